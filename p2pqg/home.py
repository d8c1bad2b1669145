"""What an agent keeps on disk.

checkpoint.safetensors, checkpoint-before.safetensors     the last two
metrics.jsonl, audit.jsonl, log.jsonl                     measurements, audit log, what it said
model.safetensors, model.json                             what everyone takes home, and its card
export.safetensors                                        a model asked for during the run
status.json, incarnation, lock, control.sock              how it ended, starts counted, is it running
secret, ledger.json, web.token                            of privacy, and of the page; if there are any
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout
from safetensors.torch import save as serialise
from torch import Tensor

from p2pqg import checkpoint
from p2pqg.errors import ConfigError, StorageError
from p2pqg.storage import unwritable, write_atomically
from p2pqg.telemetry import MetricsWriter, clean, read_metrics

CHECKPOINTS = ("checkpoint.safetensors", "checkpoint-before.safetensors")
"""The last one and the one before."""


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
        for torn in self.folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            torn.unlink(missing_ok=True)
        return lock

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
        """Replace the checkpoint; the one it replaces is kept as the one before."""
        current, before = (self.folder / name for name in CHECKPOINTS)
        if current.exists():
            try:
                before.unlink(missing_ok=True)
                os.link(current, before)  # both names at every moment: the write below may fail
            except OSError:  # a file system without links
                with suppress(OSError):
                    os.replace(current, before)
        checkpoint.save(current, tensors, meta)

    def load(
        self, agreed: Mapping[str, str], fallback: Callable[[str], None] = lambda reason: None
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last checkpoint that can be read, or None if there never was one.

        If the last one is damaged, `fallback` is told why and the one before is taken. Raises `StorageError`
        if no checkpoint can be read, and `ConfigError` if it was made under other settings than `agreed`.
        """
        paths = [self.folder / name for name in CHECKPOINTS if (self.folder / name).exists()]
        for path in paths:
            try:
                tensors, meta = checkpoint.load(path)
                break
            except StorageError as error:
                if path == paths[-1]:
                    raise StorageError(
                        f"{error}; no checkpoint in this home can be read: restore one, or remove "
                        f"{' and '.join(p.name for p in paths)} to start over"
                    ) from error
                fallback(str(error))
        else:
            return None
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
