"""The paper's text classification problems by name: AG News and SST-2.

Where each data set must lie, and in which format, is told in docs/data.md.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p2pqg.errors import ConfigError
from p2pqg.tasks.base import TaskContext
from p2pqg.tasks.common_data import SUBSETS, CommonData, fixed_order, own_share
from p2pqg.tasks.models.text import text_model, tokenize, weights_folder
from p2pqg.tasks.supervised import SupervisedTask

Rows = tuple[list[str], list[int]]
"""Texts and class numbers."""

DEV_SHARE = 0.2
FEWEST_TOKENS = 3


@dataclass(frozen=True)
class TrimPadding:
    """Cuts `[b, 2, length]` down to the longest text among b, which changes no score: padding is masked."""

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        """Nothing is random: `[samples, 0]`."""
        return torch.empty(samples, 0)

    def __call__(self, inputs: Tensor, choices: Tensor | None) -> Tensor:
        return inputs[:, :, : int(inputs[:, 1].sum(1).max())]


def agnews(context: TaskContext) -> SupervisedTask:
    """AG News (Zhang et al. 2015), four classes; title and description joined by a space.

    `data` is a folder with train.csv (and test.csv), or one CSV file. Held out are 20 % of the rows of
    train.csv or the one file, the same in every run, as in the released code; with ``held_out = "test"``
    they are trained on too and test.csv is scored.
    """
    chosen = _settings(context, held_out="dev")
    path, held_out = _path(context, "a folder with train.csv, or a CSV file"), chosen["held_out"]
    if held_out not in ("dev", "test"):
        raise ConfigError(f"expected dev or test, found {held_out!r}", key="task.options.held_out")
    return _task(context, chosen, 4, read_agnews, path, held_out)


def sst2(context: TaskContext) -> SupervisedTask:
    """SST-2 as GLUE has it, two classes: trained on train.tsv of the folder `data`, scored on dev.tsv."""
    chosen = _settings(context)
    path = _path(context, "a folder with train.tsv and dev.tsv")
    return _task(context, chosen, 2, read_sst2, path)


def read_agnews(path: Path, held_out: str = "dev") -> tuple[Rows, Rows]:
    """Training and held-out rows of `agnews`, from lines ``"class 1-4","title","description"``.

    Raises `ConfigError`, naming the file and the line, for anything else.
    """
    if path.is_file() and held_out == "test":
        raise _wrong(path, "expected a folder with train.csv and test.csv, found a file")
    texts, labels = _agnews_file(path if path.is_file() else path / "train.csv")
    if held_out == "test":
        return (texts, labels), _agnews_file(path / "test.csv")
    order = fixed_order(len(texts), "held out").tolist()
    cut = round(DEV_SHARE * len(texts))
    dev, train = (
        ([texts[k] for k in rows], [labels[k] for k in rows]) for rows in (order[:cut], order[cut:])
    )
    return train, dev


def read_sst2(folder: Path) -> tuple[Rows, Rows]:
    """Training and held-out rows of `sst2`, from lines of a sentence, a tab and 0 or 1, under a line
    ``sentence<TAB>label``. Raises `ConfigError`, naming the file and the line, for anything else."""
    parts = []
    for name in ("train.tsv", "dev.tsv"):
        rows = _lines(folder / name, delimiter="\t", quoting=csv.QUOTE_NONE)
        if next(rows, (0, []))[1] != ["sentence", "label"]:
            raise _wrong(folder / name, "expected a first line with the columns sentence and label")
        parts.append(_rows(folder / name, _two_columns(rows), ("0", "1")))
    return parts[0], parts[1]


TEXT_TASKS: dict[str, Callable[[TaskContext], SupervisedTask]] = {"agnews": agnews, "sst2": sst2}


def _settings(context: TaskContext, **more: Any) -> dict[str, Any]:
    """The options all of these tasks have, and more: those of `text_model`,
    `tokenizer` (a folder; empty: that of the weights, or where there are none the package's, whose
    vocabulary is DistilBERT's), `max_tokens`, `test_batch_size`, and subsets as in `own_share`."""
    defaults = {
        "model": "distilbert",
        "weights": "",
        "tokenizer": "",
        "dropout": False,
        "layers": 0,
        "freeze_embeddings": False,
        "max_tokens": 128,
        "test_batch_size": 100,
    }
    return context.settings(**(defaults | SUBSETS | more))


def _path(context: TaskContext, expected: str) -> Path:
    if context.data is None:
        raise ConfigError(f"expected {expected}; found none", key="task.data")
    return context.data


def _task(
    context: TaskContext,
    chosen: dict[str, Any],
    classes: int,
    read: Callable[..., tuple[Rows, Rows]],
    *source: Path | str,
) -> SupervisedTask:
    if chosen["max_tokens"] < FEWEST_TOKENS:
        raise ConfigError(
            f"expected {FEWEST_TOKENS} or more, found {chosen['max_tokens']}", key="task.options.max_tokens"
        )
    module = text_model(
        chosen["model"],
        chosen["weights"],
        classes,
        dropout=chosen["dropout"],
        layers=chosen["layers"],
        freeze_embeddings=chosen["freeze_embeddings"],
    )
    folder = Path(chosen["tokenizer"] or weights_folder(chosen["model"], chosen["weights"]))
    return own_share(
        context,
        _tokenized(folder, chosen["max_tokens"], read, *source),
        module,
        train_samples=chosen["train_samples"],
        test_samples=chosen["test_samples"],
        transform=TrimPadding(),
        test_batch_size=chosen["test_batch_size"],
    )


@lru_cache(maxsize=2)
def _tokenized(
    folder: Path, max_tokens: int, read: Callable[..., tuple[Rows, Rows]], *source: Path | str
) -> CommonData:
    """Read and tokenised once for all agents of a process."""
    parts: list[Any] = []
    for texts, labels in read(*source):
        parts += [tokenize(folder, texts, max_tokens), np.array(labels, dtype=np.int64)]
    return CommonData(*parts)


def _agnews_file(path: Path) -> Rows:
    rows = (
        (line, " ".join(row[1:]) if len(row) == 3 else None, row[0] if row else "")
        for line, row in _lines(path, delimiter=",")
    )
    return _rows(path, rows, ("1", "2", "3", "4"))


def _two_columns(lines: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, str | None, str]]:
    return ((line, row[0] if len(row) == 2 else None, row[-1] if row else "") for line, row in lines)


def _lines(path: Path, **dialect: Any) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and fields."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True, **dialect)
            for row in reader:
                yield reader.line_num, row
    except OSError as error:
        raise _wrong(path, f"expected a file: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise _wrong(path, f"expected UTF-8 text in columns: {error}") from error


def _rows(path: Path, lines: Iterable[tuple[int, str | None, str]], classes: tuple[str, ...]) -> Rows:
    """Checked texts, and labels as positions in `classes`."""
    texts, labels = [], []
    for line, text, label in lines:
        if text is None or label not in classes:
            raise _wrong(
                path, f"line {line}: expected a text and one of {', '.join(classes)}, found {label!r}"
            )
        texts.append(text)
        labels.append(classes.index(label))
    if not texts:
        raise _wrong(path, "expected a row at least, found none")
    return texts, labels


def _wrong(path: Path, message: str) -> ConfigError:
    return ConfigError(message, where=str(path), key="task.data")
