"""glibc's allocator, pinned for messages of a megabyte.

By default glibc hands every block of 128 KiB to 32 MiB back to the kernel when it is freed, so each chunk of
a tensor is mapped, faulted in page by page and unmapped again. Without that, gRPC moves chunks of 1 MiB about
twice as fast one way and 1.5 times as fast both ways at once (2 cores, loopback; `benchmarks/gossip.py`).
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8  # malloc.h
_MIB = 1 << 20


def pin(keep: int = 256 * _MIB) -> bool:
    """Keep freed blocks of up to `keep` bytes for the next message. Once, at the start of a process.

    Larger ones go back to the system: kept, they would be reused badly, because an aligned block does not fit
    where one of its size was. Returns False, and does nothing, where the C library is not glibc.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - only glibc has it
    except (OSError, TypeError, AttributeError):
        return False
    # Older releases refuse more than 32 MiB, and setting any one of these switches the automatic choice off.
    if not libc.mallopt(_MMAP_THRESHOLD, keep) and not libc.mallopt(_MMAP_THRESHOLD, 32 * _MIB):
        return False
    libc.mallopt(_TRIM_THRESHOLD, 1024 * _MIB)
    libc.mallopt(_TOP_PAD, 64 * _MIB)
    libc.mallopt(_ARENA_MAX, 1)  # a buffer that one thread frees is still warm for the next thread
    return True


def trim() -> None:
    """Hand freed memory back to the system, where the C library can: after much that is not needed again."""
    with suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
