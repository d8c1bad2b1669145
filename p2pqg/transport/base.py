"""The seam between the agent and whatever carries its messages.

A connection is one held, bidirectional, first-in-first-out stream of messages between two agents. A
transport decides nothing: who dials whom, who is welcome and what a message means is the agent's business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from p2pqg.errors import RemoteProtocolError, TransportError
from p2pqg.gossip.membership import Seal
from p2pqg.gossip.messages import Message

GRACE_S = 5.0
"""How long a closing end waits for the other to take what was sent, before it breaks the connection."""

_log = logging.getLogger(__name__)


class Connection(Protocol):
    """One end of a stream."""

    @property
    def peer_identity(self) -> str | None:
        """The peer's name as its certificate proves it; None without TLS."""

    @property
    def bytes_sent(self) -> int:
        """Encoded bytes of all messages handed to the wire."""

    @property
    def bytes_received(self) -> int:
        """Encoded bytes of all messages taken from the wire."""

    async def send(self, message: Message) -> None:
        """Hand one message to the wire; returning is the only back pressure, so never queue ahead of it.

        Several tasks may send; a message that was cancelled on its way out may still arrive, whole.
        Raises `TransportError` if the connection is gone.
        """

    async def receive(self) -> Message:
        """The next message; one task at a time. A cancelled receive loses nothing. Raises `TransportError`
        at the end of the stream and `RemoteProtocolError` for bytes that are no message."""

    async def close(self) -> None:
        """End the stream; what was sent before is delivered. Calling it again does nothing."""


Accept = Callable[[Connection], Awaitable[None]]
"""Serves one inbound connection and returns when it is done with it."""


class Transport(Protocol):
    """Listens and dials."""

    async def listen(self, accept: Accept) -> str:
        """Start serving inbound connections; returns the address others can dial.

        Raises `ConfigError` if the address is taken or cannot be bound.
        """

    async def dial(self, peer: str, address: str) -> Connection:
        """Connect to the agent named `peer`. Raises `TransportError` if it cannot be reached or proves
        another name."""

    def seal(self, network: str, run: str) -> Seal:
        """What proves to others what this agent says of itself in a run of a network, and the reverse."""

    async def close(self) -> None:
        """Stop listening and end every connection."""


async def serve(accept: Accept, connection: Connection) -> None:
    """Run `accept` on an inbound connection and close it after. A peer's or the network's fault that `accept`
    lets through ends this connection only."""
    try:
        await accept(connection)
    except (RemoteProtocolError, TransportError) as error:
        _log.info("connection from %s ended: %s", connection.peer_identity or "a peer", error)
    finally:
        await connection.close()


async def finish(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Wait for the tasks that serve closed connections; cancel what has not finished after `GRACE_S`."""
    waited_for = set(tasks) - {asyncio.current_task()}
    if not waited_for:
        return
    _, late = await asyncio.wait(waited_for, timeout=GRACE_S)
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late)
