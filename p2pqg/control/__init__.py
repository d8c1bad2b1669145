"""Talking to a running agent on the same machine: a unix domain socket in its home, mode 0600.

One JSON line asks, one JSON line answers:

    {"version": 1, "command": "evaluate", "arguments": {}}
    {"version": 1, "result": {"round": 120, "loss": 0.31, "accuracy": 0.91}}
    {"version": 1, "error": "..."}

JSON lines and not gRPC over the socket: a client of twenty lines starts in milliseconds, needs no generated
code, and `socat` will do. Who may open the socket is the file system's business; nothing listens on a network
for this.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION = 1
MAX_LINE_BYTES = 1 << 16
SOCKET = "control.sock"
MAX_PATH_BYTES = 100
"""A socket's address holds about so many; a longer path is reached through its open folder."""


@contextmanager
def socket_address(home: Path) -> Iterator[str]:
    """The address to bind or connect, however deep the home lies (on Linux)."""
    path = home / SOCKET
    if len(os.fsencode(path)) <= MAX_PATH_BYTES:
        yield str(path)
        return
    folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{SOCKET}"
    finally:
        os.close(folder)
