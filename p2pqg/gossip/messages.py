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


MAX_MEMBERS = 256
"""Members in one STATUS, senders in one set."""

JOINING, ALIVE, LEFT = "joining", "alive", "left"
STATES = (JOINING, ALIVE, LEFT)


@dataclass(frozen=True, slots=True)
class Member:
    """What an agent says of itself and others pass on. A larger `heartbeat` is newer; `address` is where it
    can be dialled, empty if it cannot; `round` the one it is in. With certificates it is signed by its
    subject, see `p2pqg.security.seal`."""

    name: str
    heartbeat: int = 0
    state: str = JOINING
    address: str = ""
    round: int = 0
    certificate: bytes = field(default=b"", repr=False)
    signature: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of both ends of a connection. `settings` is everything a network must agree on, by
    name (algorithm, schedule, model, wire dtype, ...); the first item that differs is refused by name.

    `joining`: the sender has not taken part yet since it started, so nobody waits for it in rounds beyond
    `round`. `remembered` is the last incarnation of the receiver that the sender knows, 0 for none.
    `fetches`: this connection is for GETSTATE, not for exchanges.
    """

    network: str
    run: str
    agent: str
    incarnation: int
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: tuple[int, int] = PROTOCOL_VERSIONS
    round: int = 0
    next_seq: int = 0
    undecided: int | None = None
    joining: bool = False
    remembered: int = 0
    fetches: bool = False


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
    `note` is a number that spreads with the gossip (largest disagreement seen, in the final rounds).
    `reached` is the last round that the sender has done; it may be early for this one."""

    seq: int
    round: int
    exchange: int
    degree: int
    payload_bytes: int
    wire: str
    deadline_s: float
    note: float = 0.0
    reached: int = 0


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
    """Sign of life, once a second and when the sender leaves rounds out: the round it is in or goes to, the
    last one it has done (`reached`), and the peer's last `sent_s` plus the time since it came, for the
    round-trip time. Times are of the monotonic clock of whose `sent_s` it was: they mean nothing to anybody
    else. `members` is what the sender has heard of others since its last STATUS; `waiting` says that it is
    in the middle of an exchange, held up by others."""

    round: int
    sent_s: float
    echo_s: float = 0.0
    members: tuple[Member, ...] = ()
    waiting: bool = False
    reached: int = 0


@dataclass(frozen=True, slots=True)
class Bye:
    """No BEGIN follows; the sender leaves."""

    reason: str


@dataclass(frozen=True, slots=True)
class GetState:
    """On a connection of its own: send me your state at a round boundary, the one with checksum `snapshot`
    from byte `offset` on if you still have it."""

    snapshot: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class StateHead:
    """The answer: bytes `[offset, size)` of the state at the start of `round` follow as DATA. `snapshot` is
    the checksum of all of them."""

    round: int
    size: int
    snapshot: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Key:
    """The X25519 key with which `agent` agrees on masks in this incarnation (see `p2pqg.gossip.secure`), and
    the signature of its certificate's key over it. `certificate` (DER) and `signature` are empty in a network
    without certificates."""

    agent: str
    incarnation: int
    public_key: bytes
    certificate: bytes = b""
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class Ready:
    """Sender: my vector for (round, exchange) is there, and I will send it under the first set of senders
    that you announce. `degree`, `note` and `reached` as in BEGIN."""

    round: int
    exchange: int
    degree: int
    note: float = 0.0
    reached: int = 0


@dataclass(frozen=True, slots=True)
class Senders:
    """Receiver: the set of those whose sum I ask for, in order of names, with their incarnations, my own, and
    my degree. DATA and MASKED answer it with `seq`. Whoever is not in it need not wait: a set without
    anybody says that there will be none in this exchange."""

    seq: int
    round: int
    exchange: int
    degree: int
    incarnation: int
    names: tuple[str, ...] = ()
    incarnations: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Masked:
    """Sender: all bytes of `seq` were sent. `checksum` is xxh3-64 over them; `check` is 0 under the same
    masks, 64 bits wide: if those of all senders cancel, their sum is 0."""

    seq: int
    checksum: int
    check: int


Message = (
    Hello | Refuse | Begin | Data | End | Prepared | Commit | Abort | Skip | Settle | Settled | Status | Bye
    | GetState | StateHead | Key | Ready | Senders | Masked
)  # fmt: skip
