"""Writing files so that a reader, or a power cut, finds the old content or the new and nothing between."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p2pqg.errors import StorageError

REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.ENOENT: "no such folder",
    errno.ENOTDIR: "the parent is not a folder",
    errno.EISDIR: "a folder of that name is in the way",
}


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace the content of `path` by `data`, as in `replacing`."""
    with replacing(path, mode) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Replace the content of `path` as one step that survives a power cut.

    The block inside writes to the temporary file in the same folder that it is given, empty; that is then
    flushed to the disk and renamed over `path`. A failed attempt leaves `path` as it was and nothing beside
    it. `mode` are the permissions, less those that the process's umask takes. Raises `StorageError` that says
    why: disk full, read-only, no permission, no such folder.
    """
    try:
        temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
        try:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
            yield temporary
            _sync(temporary, os.O_RDWR)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(path.parent, os.O_RDONLY)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> StorageError:
    """The `StorageError` that tells an operator why `path` could not be written."""
    reason = REASONS.get(error.errno or 0, error.strerror or str(error))
    return StorageError(f"{path}: cannot write: {reason}")


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
