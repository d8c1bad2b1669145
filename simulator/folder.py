"""What a run leaves behind: the folder that `simulate` and `swarm` write and `compare` reads.

metrics.jsonl             one line a round: round, lr, train_loss; scores in rounds that were evaluated
summary.json              settings, best and last scores, versions, costs; there once the run is complete
model.safetensors         the average of all agents' models, by parameter name; its card is in the header
model.json                the card: what the model is and how it was trained
local-models.safetensors  `x: [n, d]`, the agents' own models
checkpoint.safetensors    the last checkpointed iterate of training
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from p2pqg import checkpoint
from p2pqg.errors import StorageError
from p2pqg.flat import Spec
from p2pqg.storage import unwritable, write_atomically
from p2pqg.tasks.base import Buffers
from p2pqg.telemetry import clean

from .engine import Iterate
from .evaluation import average_buffers

HIGHER_IS_BETTER = ("mean_accuracy", "worst_accuracy", "averaged_accuracy")
LOWER_IS_BETTER = ("mean_loss", "worst_loss", "averaged_loss", "consensus", "train_loss")


class RunFolder:
    """Paths and formats of one run's files. Every write is atomic; failures raise `StorageError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.model = path / "model.safetensors"
        self.card = path / "model.json"
        self.local_models = path / "local-models.safetensors"
        self.checkpoint = path / "checkpoint.safetensors"

    @property
    def used(self) -> bool:
        """Whether a run has written here."""
        return any(file.exists() for file in (self.metrics, self.summary, self.checkpoint))

    def create(self) -> None:
        """Make the folder, with its parents, if it is not there."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def save_iterate(self, iterate: Iterate, meta: Mapping[str, Any]) -> None:
        """Checkpoint an iterate of training with facts about the run."""
        tensors = {"x": iterate.x, "sent": iterate.sent}
        tensors |= {f"state/{name}": tensor for name, tensor in iterate.state.items()}
        for i, buffers in enumerate(iterate.buffers):
            tensors |= {f"buffers/{i}/{name}": buffer for name, buffer in buffers.items()}
        checkpoint.save(self.checkpoint, tensors, {**meta, "round": iterate.round})

    def load_iterate(self, device: torch.device) -> tuple[Iterate, dict[str, Any]]:
        """What `save_iterate` wrote."""
        tensors, meta = checkpoint.load(self.checkpoint)
        x = tensors["x"].to(device)
        state: dict[str, Tensor] = {}
        buffers: list[dict[str, Tensor]] = [{} for _ in range(len(x))]
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "state":
                state[rest] = tensor.to(device)
            elif kind == "buffers":
                i, _, buffer = rest.partition("/")
                buffers[int(i)][buffer] = tensor.to(device)
        return Iterate(meta["round"], x, state, tuple(buffers), tensors["sent"]), meta

    def save_models(
        self,
        spec: Spec,
        x: Tensor,
        buffers: Sequence[Buffers],
        names: Sequence[str],
        card: Mapping[str, Any],
    ) -> None:
        """The agents' own models `x: [n, d]` and, with its card, their average."""
        checkpoint.save(self.local_models, {"x": x}, {"agents": list(names), "model": spec.fingerprint})
        averaged = {**spec.views(x.mean(0)), **average_buffers(buffers)}
        checkpoint.save(self.model, averaged, clean(card))
        self._save_json(self.card, card)

    def load_local_models(self) -> tuple[Tensor, list[str]]:
        """The agents' own models `[n, d]` and their names."""
        tensors, meta = checkpoint.load(self.local_models)
        return tensors["x"], meta["agents"]

    def save_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``."""
        self._save_json(self.summary, summary)

    def load_summary(self) -> dict[str, Any]:
        """Read ``summary.json``."""
        try:
            summary: dict[str, Any] = json.loads(self.summary.read_text())
        except FileNotFoundError:
            raise StorageError(
                f"{self.path}: expected a finished run, found a folder without {self.summary.name}"
            ) from None
        except OSError as error:
            raise StorageError(f"{self.summary}: cannot read: {error.strerror}") from error
        except ValueError as error:
            raise StorageError(f"{self.summary}: corrupted: {error}") from error
        return summary

    def _save_json(self, path: Path, value: Mapping[str, Any]) -> None:
        write_atomically(path, (json.dumps(clean(value), indent=2) + "\n").encode())


def best(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The best value of each score over a run's metrics, each from its own round."""
    found: dict[str, Any] = {}
    for record in records:
        for keys, better in ((HIGHER_IS_BETTER, max), (LOWER_IS_BETTER, min)):
            for key in keys:
                value = record.get(key)
                if value is not None:
                    found[key] = better(found.get(key, value), value)
    return found
