"""Hosts on this machine: network namespaces with a cable each to one switch.

The switch is a namespace of its own, so nothing of the real host is touched. It needs the right to make
namespaces (root, or a container with it).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from types import TracebackType
from typing import Self

SWITCHES = ("lan-one", "lan-two")
"""Two switches with nothing between them: in a partition some hosts are plugged into the second."""


class Lan:
    """`n` hosts, ``10.99.0.1`` and on (or ``fd99::1`` and no IPv4 at all, `version` 6), while entered. Raises
    `OSError` or `CalledProcessError` where namespaces cannot be made."""

    def __init__(self, n: int, *, version: int = 4) -> None:
        self.version = version
        self.any_address = "0.0.0.0:7000" if version == 4 else "[::]:7000"
        self.hosts = [f"p2pqg-{os.getpid()}-{i}" for i in range(n)]
        self.switch = f"p2pqg-{os.getpid()}-lan"

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for space in (*self.hosts, self.switch):
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)

    def address(self, i: int) -> str:
        """Of a host."""
        return f"10.99.0.{i + 1}" if self.version == 4 else f"fd99::{i + 1}"

    def command(self, i: int) -> list[str]:
        """What to put before a command so that it runs on a host, as the same process."""
        return ["ip", "netns", "exec", self.hosts[i]]

    def plug(self, i: int, state: str) -> None:
        """Pull the cable of a host ("down"), or put it back ("up")."""
        ip("-n", self.switch, "link", "set", f"port{i}", state)

    def part(self, side: Iterable[int]) -> None:
        """Cut the network in two, `side` and the rest: every cable stays up, and packets get no further."""
        for i in side:
            ip("-n", self.switch, "link", "set", f"port{i}", "master", SWITCHES[1])

    def heal(self) -> None:
        """Undo `part`."""
        for i in range(len(self.hosts)):
            ip("-n", self.switch, "link", "set", f"port{i}", "master", SWITCHES[0])

    def _build(self) -> None:
        for space in (self.switch, *self.hosts):
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
        for switch in SWITCHES:
            ip("-n", self.switch, "link", "add", switch, "type", "bridge")
            ip("-n", self.switch, "link", "set", switch, "up")
        for i, host in enumerate(self.hosts):
            ip("-n", self.switch, "link", "add", f"port{i}", "type", "veth", "peer", "eth0", "netns", host)
            ip("-n", self.switch, "link", "set", f"port{i}", "master", SWITCHES[0], "up")
            address = [f"{self.address(i)}/24"] if self.version == 4 else [f"{self.address(i)}/64", "nodad"]
            ip("-n", host, "addr", "add", *address, "dev", "eth0")
            ip("-n", host, "link", "set", "eth0", "up")


def ip(*arguments: str) -> None:
    """``ip ...``. Raises `OSError` or `CalledProcessError`."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
