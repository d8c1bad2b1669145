"""The seam between an agent and whatever tells it where others are.

What is found is an address to try, no more: who answers there proves itself in the handshake, and whether it
lives is what its heartbeats say. So nothing is ever reported lost; a record that ends means as little as one
that outlives its agent (an hour and more, for mDNS).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

Found = Callable[[str, str], None]
"""`found(agent, address)`: the agent of this name may be dialled there. May be said again, or anew."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """What an agent says of itself to everyone: its name, its network and run, the protocol versions it
    speaks (oldest and newest), and the ``host:port`` it listens at."""

    agent: str
    network: str
    run: str
    versions: tuple[int, int]
    listening: str

    @property
    def port(self) -> int:
        """The port it listens at."""
        return int(self.listening.rpartition(":")[2])


class Discovery(Protocol):
    """Announces one agent and looks for others."""

    async def start(self, announcement: Announcement, found: Found) -> str:
        """Announce, and report everyone else of the same network from now on; returns the address that was
        announced, empty if none was. Raises `ConfigError` for interfaces that are not there."""

    async def close(self) -> None:
        """Take the announcement back and stop looking."""
