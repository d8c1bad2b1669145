"""PEM files: read with an explanation, written so that only their owner can read them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from p2pqg.errors import ConfigError
from p2pqg.storage import unwritable

T = TypeVar("T")

Stamp = tuple[int, int, int]
"""What changes when a file is replaced: its inode, size and modification time."""

MAX_BYTES = 1 << 20


def read(path: Path, key: str, load: Callable[[bytes], T]) -> tuple[bytes, T]:
    """A PEM file's bytes and what they hold. Raises `ConfigError` naming file and `key`."""
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path), key=key) from error
    try:
        return pem, load(pem)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"expected an unencrypted PEM file: {error}", where=str(path), key=key) from error


def stamp(path: Path) -> Stamp | None:
    """The file's stamp; None if it cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def write_secret(path: Path, data: bytes) -> Path:
    """Write a new file that only its owner can read. Raises `StorageError`, also if it is there already: a
    key is never overwritten."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error) from error
    return path
