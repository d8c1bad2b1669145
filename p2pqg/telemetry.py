"""Measurements of a run as JSON lines that survive a crash and a resume."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from p2pqg.errors import StorageError
from p2pqg.storage import unwritable, write_atomically


class MetricsWriter:
    """Appends one JSON object a line to `path`, flushed at once.

    Every line has a `round`. A number that JSON cannot hold (NaN, infinity) is written as null, so that any
    reader can parse the file. With `resume_after = r` the lines of rounds after r and a torn last line
    are dropped first, so that a resumed run leaves the file that an uninterrupted one would; without it
    the file starts empty.

    Raises `StorageError` if the file cannot be written.
    """

    def __init__(self, path: Path, *, resume_after: int | None = None) -> None:
        kept = b"" if resume_after is None else _lines_until(path, resume_after)
        write_atomically(path, kept)
        self.path = path
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise unwritable(path, error) from error

    def write(self, round: int, values: Mapping[str, Any]) -> None:
        """Append the measurements of one round."""
        line = json.dumps(clean({"round": round, **values}), allow_nan=False)
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise unwritable(self.path, error) from error

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        try:
            self._file.close()
        except OSError as error:
            raise unwritable(self.path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics file, in order; a torn last line is left out."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: cannot read: {error.strerror}") from error
    return [record for _, record in _records(path, text)]


def clean(value: Any) -> Any:
    """`value` with every number that JSON cannot hold replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


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
