from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Envelope(_message.Message):
    __slots__ = ("hello", "refuse", "begin", "end", "prepared", "commit", "abort", "skip", "settle", "settled", "status", "bye", "getstate", "statehead", "key", "ready", "senders", "masked")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    REFUSE_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    PREPARED_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    SKIP_FIELD_NUMBER: _ClassVar[int]
    SETTLE_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    GETSTATE_FIELD_NUMBER: _ClassVar[int]
    STATEHEAD_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    SENDERS_FIELD_NUMBER: _ClassVar[int]
    MASKED_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    refuse: Refuse
    begin: Begin
    end: End
    prepared: Prepared
    commit: Commit
    abort: Abort
    skip: Skip
    settle: Settle
    settled: Settled
    status: Status
    bye: Bye
    getstate: GetState
    statehead: StateHead
    key: Key
    ready: Ready
    senders: Senders
    masked: Masked
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., refuse: _Optional[_Union[Refuse, _Mapping]] = ..., begin: _Optional[_Union[Begin, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ..., prepared: _Optional[_Union[Prepared, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., abort: _Optional[_Union[Abort, _Mapping]] = ..., skip: _Optional[_Union[Skip, _Mapping]] = ..., settle: _Optional[_Union[Settle, _Mapping]] = ..., settled: _Optional[_Union[Settled, _Mapping]] = ..., status: _Optional[_Union[Status, _Mapping]] = ..., bye: _Optional[_Union[Bye, _Mapping]] = ..., getstate: _Optional[_Union[GetState, _Mapping]] = ..., statehead: _Optional[_Union[StateHead, _Mapping]] = ..., key: _Optional[_Union[Key, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., senders: _Optional[_Union[Senders, _Mapping]] = ..., masked: _Optional[_Union[Masked, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("network", "run", "agent", "incarnation", "settings", "versions", "round", "next_seq", "undecided", "joining", "remembered", "fetches")
    class SettingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NEXT_SEQ_FIELD_NUMBER: _ClassVar[int]
    UNDECIDED_FIELD_NUMBER: _ClassVar[int]
    JOINING_FIELD_NUMBER: _ClassVar[int]
    REMEMBERED_FIELD_NUMBER: _ClassVar[int]
    FETCHES_FIELD_NUMBER: _ClassVar[int]
    network: str
    run: str
    agent: str
    incarnation: int
    settings: _containers.ScalarMap[str, str]
    versions: _containers.RepeatedScalarFieldContainer[int]
    round: int
    next_seq: int
    undecided: int
    joining: bool
    remembered: int
    fetches: bool
    def __init__(self, network: _Optional[str] = ..., run: _Optional[str] = ..., agent: _Optional[str] = ..., incarnation: _Optional[int] = ..., settings: _Optional[_Mapping[str, str]] = ..., versions: _Optional[_Iterable[int]] = ..., round: _Optional[int] = ..., next_seq: _Optional[int] = ..., undecided: _Optional[int] = ..., joining: _Optional[bool] = ..., remembered: _Optional[int] = ..., fetches: _Optional[bool] = ...) -> None: ...

class Refuse(_message.Message):
    __slots__ = ("item", "expected", "found")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    item: str
    expected: str
    found: str
    def __init__(self, item: _Optional[str] = ..., expected: _Optional[str] = ..., found: _Optional[str] = ...) -> None: ...

class Begin(_message.Message):
    __slots__ = ("seq", "round", "exchange", "degree", "payload_bytes", "wire", "deadline_s", "note", "reached")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    DEGREE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    WIRE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    REACHED_FIELD_NUMBER: _ClassVar[int]
    seq: int
    round: int
    exchange: int
    degree: int
    payload_bytes: int
    wire: str
    deadline_s: float
    note: float
    reached: int
    def __init__(self, seq: _Optional[int] = ..., round: _Optional[int] = ..., exchange: _Optional[int] = ..., degree: _Optional[int] = ..., payload_bytes: _Optional[int] = ..., wire: _Optional[str] = ..., deadline_s: _Optional[float] = ..., note: _Optional[float] = ..., reached: _Optional[int] = ...) -> None: ...

class End(_message.Message):
    __slots__ = ("seq", "checksum", "norm")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    seq: int
    checksum: int
    norm: float
    def __init__(self, seq: _Optional[int] = ..., checksum: _Optional[int] = ..., norm: _Optional[float] = ...) -> None: ...

class Prepared(_message.Message):
    __slots__ = ("seq", "received", "sent")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    seq: int
    received: int
    sent: int
    def __init__(self, seq: _Optional[int] = ..., received: _Optional[int] = ..., sent: _Optional[int] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("seq",)
    SEQ_FIELD_NUMBER: _ClassVar[int]
    seq: int
    def __init__(self, seq: _Optional[int] = ...) -> None: ...

class Abort(_message.Message):
    __slots__ = ("seq", "round", "exchange", "reason")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    seq: int
    round: int
    exchange: int
    reason: str
    def __init__(self, seq: _Optional[int] = ..., round: _Optional[int] = ..., exchange: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Skip(_message.Message):
    __slots__ = ("seq", "round", "exchange", "reason")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    seq: int
    round: int
    exchange: int
    reason: str
    def __init__(self, seq: _Optional[int] = ..., round: _Optional[int] = ..., exchange: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Settle(_message.Message):
    __slots__ = ("seq",)
    SEQ_FIELD_NUMBER: _ClassVar[int]
    seq: int
    def __init__(self, seq: _Optional[int] = ...) -> None: ...

class Settled(_message.Message):
    __slots__ = ("seq", "committed")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    seq: int
    committed: bool
    def __init__(self, seq: _Optional[int] = ..., committed: _Optional[bool] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("round", "sent_s", "echo_s", "members", "waiting", "reached")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SENT_S_FIELD_NUMBER: _ClassVar[int]
    ECHO_S_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    REACHED_FIELD_NUMBER: _ClassVar[int]
    round: int
    sent_s: float
    echo_s: float
    members: _containers.RepeatedCompositeFieldContainer[Member]
    waiting: bool
    reached: int
    def __init__(self, round: _Optional[int] = ..., sent_s: _Optional[float] = ..., echo_s: _Optional[float] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., waiting: _Optional[bool] = ..., reached: _Optional[int] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("name", "heartbeat", "state", "address", "round", "certificate", "signature")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    name: str
    heartbeat: int
    state: str
    address: str
    round: int
    certificate: bytes
    signature: bytes
    def __init__(self, name: _Optional[str] = ..., heartbeat: _Optional[int] = ..., state: _Optional[str] = ..., address: _Optional[str] = ..., round: _Optional[int] = ..., certificate: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Bye(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class GetState(_message.Message):
    __slots__ = ("snapshot", "offset")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    snapshot: int
    offset: int
    def __init__(self, snapshot: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class StateHead(_message.Message):
    __slots__ = ("round", "size", "snapshot", "offset")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    round: int
    size: int
    snapshot: int
    offset: int
    def __init__(self, round: _Optional[int] = ..., size: _Optional[int] = ..., snapshot: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class Key(_message.Message):
    __slots__ = ("agent", "incarnation", "public_key", "certificate", "signature")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    agent: str
    incarnation: int
    public_key: bytes
    certificate: bytes
    signature: bytes
    def __init__(self, agent: _Optional[str] = ..., incarnation: _Optional[int] = ..., public_key: _Optional[bytes] = ..., certificate: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("round", "exchange", "degree", "note", "reached")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    DEGREE_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    REACHED_FIELD_NUMBER: _ClassVar[int]
    round: int
    exchange: int
    degree: int
    note: float
    reached: int
    def __init__(self, round: _Optional[int] = ..., exchange: _Optional[int] = ..., degree: _Optional[int] = ..., note: _Optional[float] = ..., reached: _Optional[int] = ...) -> None: ...

class Senders(_message.Message):
    __slots__ = ("seq", "round", "exchange", "degree", "incarnation", "names", "incarnations")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    DEGREE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    INCARNATIONS_FIELD_NUMBER: _ClassVar[int]
    seq: int
    round: int
    exchange: int
    degree: int
    incarnation: int
    names: _containers.RepeatedScalarFieldContainer[str]
    incarnations: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, seq: _Optional[int] = ..., round: _Optional[int] = ..., exchange: _Optional[int] = ..., degree: _Optional[int] = ..., incarnation: _Optional[int] = ..., names: _Optional[_Iterable[str]] = ..., incarnations: _Optional[_Iterable[int]] = ...) -> None: ...

class Masked(_message.Message):
    __slots__ = ("seq", "checksum", "check")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    seq: int
    checksum: int
    check: int
    def __init__(self, seq: _Optional[int] = ..., checksum: _Optional[int] = ..., check: _Optional[int] = ...) -> None: ...
