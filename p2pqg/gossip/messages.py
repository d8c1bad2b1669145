"""What two neighbours say to each other.

A round between neighbours is an additive, antisymmetric update of a pair, decided once per edge: the
*coordinator* (the smaller name; on a directed edge the receiver) commits or aborts, the *participant*
promises with PREPARED that it can still apply a commit later. `seq` numbers the exchanges of one edge.
Checksums are xxh3-64 over the payload; payloads are little-endian tensors of the agreed wire dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PROTOCOL_VERSIONS = (1, 1)
"""Oldest and newest protocol version this program speaks."""

CHUNK_BYTES = 1 << 20
"""Payload of one DATA message."""

MAX_CONTROL_BYTES = 1 << 16
"""Largest encoded message other than DATA."""


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of both ends of a connection. `settings` is everything a network must agree on, by
    name (algorithm, schedule, model, wire dtype, ...); the first item that differs is refused by name."""

    network: str
    run: str
    agent: str
    incarnation: int
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: tuple[int, int] = PROTOCOL_VERSIONS
    round: int = 0
    next_seq: int = 0
    undecided: int | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """The connection ends because `item` differs."""

    item: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class Begin:
    """Opens exchange `seq`: the sender's position (round, exchange within the round), the degree it attempts
    in this round and the bytes that follow. `payload_bytes` is 0 on the silent end of a directed edge.
    `note` is a number that spreads with the gossip (largest disagreement seen, in the final rounds)."""

    seq: int
    round: int
    exchange: int
    degree: int
    payload_bytes: int
    wire: str
    deadline_s: float
    note: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Bytes `[offset, offset + len(payload))` of the payload, in order."""

    seq: int
    offset: int
    payload: memoryview | bytes


@dataclass(frozen=True, slots=True)
class End:
    """All bytes of `seq` were sent; their checksum and L2 norm."""

    seq: int
    checksum: int
    norm: float


@dataclass(frozen=True, slots=True)
class Prepared:
    """Participant: I hold your payload (checksum `received`) and mine was `sent`; I can apply a commit."""

    seq: int
    received: int
    sent: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Coordinator: apply `seq`."""

    seq: int


@dataclass(frozen=True, slots=True)
class Abort:
    """Coordinator: nobody applies `seq`. `round` and `exchange` are the sender's position."""

    seq: int
    round: int
    exchange: int
    reason: str


@dataclass(frozen=True, slots=True)
class Skip:
    """Participant, before PREPARED: I will not take part in `seq`."""

    seq: int
    round: int
    exchange: int
    reason: str


@dataclass(frozen=True, slots=True)
class Settle:
    """Participant in doubt: what became of `seq`?"""

    seq: int


@dataclass(frozen=True, slots=True)
class Settled:
    """Coordinator: this became of `seq`."""

    seq: int
    committed: bool


@dataclass(frozen=True, slots=True)
class Status:
    """Sign of life, once a second: own round, and for the round-trip time the peer's last `sent_s`, plus how
    long it lay here. Times are the sender's monotonic clock: they mean nothing to anybody but the sender."""

    round: int
    sent_s: float
    echo_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Bye:
    """No BEGIN follows; the sender leaves."""

    reason: str


Message = (
    Hello | Refuse | Begin | Data | End | Prepared | Commit | Abort | Skip | Settle | Settled | Status | Bye
)
