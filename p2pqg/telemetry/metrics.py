"""Measurements of a run as JSON lines that survive a crash and a resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from p2pqg.errors import StorageError
from p2pqg.storage import write_atomically
from p2pqg.telemetry.jsonl import JsonLines


class MetricsWriter(JsonLines):
    """One line for each round, with its `round`.

    With `resume_after = r` the lines of rounds after r and a torn last line are dropped first, so that a
    resumed run leaves the file that an uninterrupted one would; without it the file starts empty.

    Raises `StorageError` if the file cannot be written.
    """

    def __init__(self, path: Path, *, resume_after: int | None = None) -> None:
        kept = b"" if resume_after is None else _lines_until(path, resume_after)
        write_atomically(path, kept)
        super().__init__(path)

    def write(self, round: int, values: Mapping[str, Any]) -> None:
        """Append the measurements of one round."""
        self.append({"round": round, **values})


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics file, in order; a torn last line is left out."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: cannot read: {error.strerror}") from error
    return [record for _, record in _records(path, text)]


def _lines_until(path: Path, last: int) -> bytes:
    if not path.exists():
        return b""
    return b"".join(line for line, record in _records(path, path.read_bytes()) if record["round"] <= last)


def _records(path: Path, text: bytes) -> list[tuple[bytes, dict[str, Any]]]:
    lines = [line for line in text.splitlines(keepends=True) if line.endswith(b"\n")]
    try:
        return [(line, json.loads(line)) for line in lines]
    except ValueError as error:
        raise StorageError(f"{path}: expected one JSON object a line: {error}") from error
