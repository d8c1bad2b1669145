"""One JSON object a line, flushed at once: readable at every moment, and after a crash but for a torn end."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from p2pqg.storage import unwritable


class JsonLines:
    """Appends to `path`; a number that JSON cannot hold (NaN, infinity) is written as null, so that any
    reader can parse the file.

    With `max_bytes` the file is renamed to ``NAME.1``, in place of an earlier one, when it has grown so
    large. Raises `StorageError` if the file cannot be written.
    """

    def __init__(self, path: Path, *, max_bytes: int | None = None) -> None:
        self.path, self.max_bytes = path, max_bytes
        self._open()
        if self._size and _last_byte(path) != b"\n":  # torn by a crash; the next line starts afresh
            self._write("\n")

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line."""
        self._write(json.dumps(clean(record), allow_nan=False) + "\n")
        if self.max_bytes is not None and self._size > self.max_bytes:
            self.close()
            try:
                os.replace(self.path, self.path.with_name(self.path.name + ".1"))
            except OSError as error:
                raise unwritable(self.path, error) from error
            self._open()

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

    def _open(self) -> None:
        try:
            self._file = self.path.open("a", encoding="utf-8")
            self._size = self.path.stat().st_size
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _write(self, line: str) -> None:
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise unwritable(self.path, error) from error
        self._size += len(line)


def clean(value: Any) -> Any:
    """`value` with every number that JSON cannot hold replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)
