"""Everything that can go wrong, by whose fault it is.

P2PQGError
  ConfigError            the operator's: names the file, the key and what was expected; exit code 2
  LocalProtocolError     our own bug: crash loudly
  RemoteProtocolError    the peer's fault: log it, drop the peer, stay alive
    IncompatiblePeer     version, network, model or algorithm differ: said to both ends
  TransportError         the network's fault: back off, try again
  StorageError           a file could not be written or read: said as what it is; exit code 1
  TaskDied               a part of this program that must live died: our own bug, named; exit code 1
  TrainingDiverged       a value that is not finite: the last good checkpoint stays; exit code 1
"""

from __future__ import annotations

from collections.abc import Sequence


class P2PQGError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(P2PQGError):
    """A setting is wrong.

    `where` is the file or the command-line option, `key` the dotted key inside it; the message reads
    ``agent.toml: algorithm.beta: expected a number in [0, 1), found 1.5``.
    """

    def __init__(self, message: str, *, where: str = "", key: str = "") -> None:
        self.where, self.key, self.message = where, key, message
        super().__init__(": ".join(part for part in (where, key, message) if part))


class LocalProtocolError(P2PQGError):
    """This program broke its own protocol."""


class RemoteProtocolError(P2PQGError):
    """A peer sent what the protocol does not allow."""


class IncompatiblePeer(RemoteProtocolError):
    """A peer speaks the protocol but trains something else; `item` is the first setting that differs."""

    def __init__(self, item: str, expected: str, found: str) -> None:
        self.item, self.expected, self.found = item, expected, found
        super().__init__(f"{item} differs: expected {expected}, found {found}")


class TransportError(P2PQGError):
    """A connection could not be made or broke."""


class StorageError(P2PQGError):
    """A file could not be written (disk full, read-only, no permission) or read (missing, corrupted)."""


class TaskDied(P2PQGError):
    """A background task of this program ended while it was needed."""


class TrainingDiverged(P2PQGError):
    """A loss, a gradient or a parameter stopped being finite; `agents` are the numbers of those in whose."""

    def __init__(self, message: str, agents: Sequence[int] = ()) -> None:
        self.agents = tuple(agents)
        super().__init__(message)
