"""What an agent keeps on disk: its incarnation, the last checkpoint, its measurements and the final model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as serialise
from torch import Tensor

from p2pqg import checkpoint
from p2pqg.errors import ConfigError, StorageError
from p2pqg.storage import unwritable, write_atomically
from p2pqg.telemetry import MetricsWriter, clean


class Home:
    """One agent's folder, made if it is not there. Raises `StorageError` if it cannot be used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error

    @property
    def incarnation(self) -> int:
        """The last number that `next_incarnation` gave out; 0 before the first."""
        path = self.folder / "incarnation"
        try:
            return int(path.read_text()) if path.exists() else 0
        except (OSError, ValueError):
            raise StorageError(f"{path}: expected a whole number") from None

    def next_incarnation(self) -> int:
        """A number that is larger at every start, so that peers tell a restarted agent from the old one."""
        following = self.incarnation + 1
        write_atomically(self.folder / "incarnation", f"{following}\n".encode())
        return following

    def save(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Replace the checkpoint."""
        checkpoint.save(self.folder / "checkpoint.safetensors", tensors, meta)

    def load(self, agreed: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The checkpoint, or None if there is none yet. Raises `ConfigError` if it was made under other
        settings than `agreed`."""
        path = self.folder / "checkpoint.safetensors"
        if not path.exists():
            return None
        tensors, meta = checkpoint.load(path)
        for item in sorted(agreed.keys() | meta["agreed"].keys()):
            now, then = agreed.get(item), meta["agreed"].get(item)
            if now != then:
                raise ConfigError(
                    f"made with {item} = {then}, but the settings say {now}; "
                    "restore the settings, or choose another home",
                    where=str(path),
                )
        return tensors, meta

    def metrics(self, resume_after: int | None) -> MetricsWriter:
        """Where measurements go; lines of rounds after `resume_after` are dropped, None starts afresh."""
        return MetricsWriter(self.folder / "metrics.jsonl", resume_after=resume_after)

    def save_model(self, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> Path:
        """Write the model everyone takes home and the card that says what it is; returns its path."""
        path = self.folder / "model.safetensors"
        own = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        write_atomically(path, serialise(own, metadata={"format": "pt"}))
        text = json.dumps(clean(card), indent=2, allow_nan=False)
        write_atomically(self.folder / "model.json", f"{text}\n".encode())
        return path
