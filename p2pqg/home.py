"""What an agent keeps on disk.

checkpoint.safetensors, checkpoint-before.safetensors     the last two
metrics.jsonl, audit.jsonl, log.jsonl                     measurements, audit log, what it said
model.safetensors, model.json                             what everyone takes home, and its card
export.safetensors                                        a model asked for during the run
status.json, incarnation, lock, control.sock              how it ended, starts counted, is it running
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout
from safetensors.torch import save as serialise
from torch import Tensor

from p2pqg import checkpoint
from p2pqg.errors import ConfigError, StorageError
from p2pqg.storage import unwritable, write_atomically
from p2pqg.telemetry import MetricsWriter, clean, read_metrics


class Home:
    """One agent's folder, made if it is not there. Raises `StorageError` if it cannot be used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error

    def lock(self) -> BaseFileLock:
        """Keep other agents out of this home for as long as the process lives. Raises `ConfigError` if one
        is running in it."""
        path = self.folder / "lock"
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ConfigError("another agent is running in this home", where=str(self.folder)) from None
        except OSError as error:
            raise unwritable(path, error) from error
        return lock

    def next_incarnation(self) -> int:
        """A number that is larger at every start, so that peers tell a restarted agent from the old one."""
        path = self.folder / "incarnation"
        try:
            last = int(path.read_text()) if path.exists() else 0
        except (OSError, ValueError):
            raise StorageError(f"{path}: expected a whole number") from None
        write_atomically(path, f"{last + 1}\n".encode())
        return last + 1

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

    def measured(self) -> list[dict[str, Any]]:
        """What was measured so far."""
        path = self.folder / "metrics.jsonl"
        return read_metrics(path) if path.exists() else []

    def save_model(self, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> Path:
        """Write the model everyone takes home and the card that says what it is; returns its path."""
        path = self._write_model("model.safetensors", tensors)
        self.write_json("model.json", card)
        return path

    def save_export(self, tensors: Mapping[str, Tensor]) -> Path:
        """Write a model that was asked for during the run; returns its path."""
        return self._write_model("export.safetensors", tensors)

    def write_json(self, name: str, record: Mapping[str, Any]) -> None:
        """Replace a file by `record`."""
        text = json.dumps(clean(record), indent=2, allow_nan=False)
        write_atomically(self.folder / name, f"{text}\n".encode())

    def _write_model(self, name: str, tensors: Mapping[str, Tensor]) -> Path:
        path = self.folder / name
        own = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        write_atomically(path, serialise(own, metadata={"format": "pt"}))
        return path
