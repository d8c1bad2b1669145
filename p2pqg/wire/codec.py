"""Messages <-> frames. `protos/p2pqg/v1/gossip.proto` describes the format.

Whatever a peer sends, `decode` returns a message or raises `RemoteProtocolError`, and takes no more memory
than a fixed multiple of the frame. Both directions apply the same checks, so what `encode` takes,
`decode` gives back. The payload of DATA is copied once on the way out and never on the way in.
"""

from __future__ import annotations

import math
import struct
from dataclasses import asdict, fields
from typing import Any, get_args

from google.protobuf.message import DecodeError

from p2pqg.errors import LocalProtocolError, RemoteProtocolError
from p2pqg.gossip.messages import (
    CHUNK_BYTES,
    MAX_CONTROL_BYTES,
    MAX_MEMBERS,
    STATES,
    Begin,
    Data,
    End,
    Hello,
    Key,
    Member,
    Message,
    Senders,
    Status,
)
from p2pqg.wire import gossip_pb2
from p2pqg.wire.tensors import WIRE_DTYPES

Frame = bytes | bytearray | memoryview

MAX_FRAME_BYTES = CHUNK_BYTES + MAX_CONTROL_BYTES
"""A transport refuses anything larger before it takes memory for it."""

MAX_TEXT = 1024
"""Characters in any text."""

MAX_NAME = 255
"""Characters in the name of a network, run, agent or setting."""

MAX_SETTINGS = 128

MAX_CERTIFICATE, MAX_SIGNATURE = 2048, 128
"""Bytes; those of an agent are some 500 and 72."""
KEY_BYTES = 32
"""An X25519 key."""

_CONTROL, _DATA = 1, 2
_DATA_VERSION = 1
_HEADER = struct.Struct("<BB6xQQQ")  # type, version, seq, offset, length
_PADDING = bytes(6)

_TYPES: dict[str, type[Message]] = {
    kind.__name__.lower(): kind for kind in get_args(Message) if kind is not Data
}
_FIELDS: dict[type[Message], tuple[str, ...]] = {
    kind: tuple(field.name for field in fields(kind)) for kind in _TYPES.values()
}


_MEMBER_FIELDS = tuple(field.name for field in fields(Member))


def encode(message: Message) -> bytes:
    """One frame. Raises `LocalProtocolError` for a message that breaks a limit."""
    if isinstance(message, Data):
        return _encode_data(message)
    kind = type(message)
    values = {name: getattr(message, name) for name in _FIELDS[kind]}
    try:
        _check(message, values)
        if isinstance(message, Status):
            values["members"] = [gossip_pb2.Member(**asdict(member)) for member in message.members]
        body = getattr(gossip_pb2, kind.__name__)(**values)
        envelope = gossip_pb2.Envelope(**{kind.__name__.lower(): body})
    except (TypeError, ValueError) as error:
        raise LocalProtocolError(f"cannot send {kind.__name__}: {error}") from error
    frame = bytes((_CONTROL,)) + envelope.SerializeToString()
    if len(frame) > MAX_CONTROL_BYTES:
        raise LocalProtocolError(
            f"cannot send {kind.__name__}: {len(frame)} bytes, at most {MAX_CONTROL_BYTES} allowed"
        )
    return frame


def decode(frame: Frame) -> Message:
    """The message in one frame; `Data.payload` is a view of it. Raises `RemoteProtocolError`."""
    if not frame:
        raise RemoteProtocolError("empty frame")
    kind = frame[0]
    if kind == _DATA:
        return _decode_data(frame)
    if kind == _CONTROL:
        return _decode_control(frame)
    raise RemoteProtocolError(f"frame of unknown type {kind}")


def _encode_data(message: Data) -> bytes:
    payload = memoryview(message.payload).cast("B")
    if not 0 < payload.nbytes <= CHUNK_BYTES:
        raise LocalProtocolError(f"DATA of {payload.nbytes} bytes, expected 1 to {CHUNK_BYTES}")
    try:
        header = _HEADER.pack(_DATA, _DATA_VERSION, message.seq, message.offset, payload.nbytes)
    except struct.error as error:
        raise LocalProtocolError(f"cannot send Data: {error}") from error
    return b"".join((header, payload))


def _decode_data(frame: Frame) -> Data:
    if not _HEADER.size < len(frame) <= _HEADER.size + CHUNK_BYTES:
        raise RemoteProtocolError(
            f"DATA frame of {len(frame)} bytes, expected a {_HEADER.size}-byte header and 1 to {CHUNK_BYTES}"
        )
    _, version, seq, offset, length = _HEADER.unpack_from(frame)
    if version != _DATA_VERSION or frame[2:8] != _PADDING:
        raise RemoteProtocolError(f"DATA header of version {version}, expected {_DATA_VERSION}")
    if length != len(frame) - _HEADER.size:
        raise RemoteProtocolError(f"DATA announces {length} bytes and holds {len(frame) - _HEADER.size}")
    return Data(seq, offset, memoryview(frame)[_HEADER.size :])


def _decode_control(frame: Frame) -> Message:
    if len(frame) > MAX_CONTROL_BYTES:
        raise RemoteProtocolError(f"control frame of {len(frame)} bytes, at most {MAX_CONTROL_BYTES} allowed")
    try:
        envelope = gossip_pb2.Envelope.FromString(bytes(frame[1:]))
    except DecodeError as error:
        raise RemoteProtocolError(f"control frame does not parse: {error}") from error
    name = envelope.WhichOneof("message")
    if name is None:
        raise RemoteProtocolError("control frame without a message this version knows")
    kind, body = _TYPES[name], getattr(envelope, name)
    values: dict[str, Any] = {field: getattr(body, field) for field in _FIELDS[kind]}
    if kind is Hello:
        values["settings"] = dict(body.settings)
        values["versions"] = tuple(body.versions)
        values["undecided"] = body.undecided if body.HasField("undecided") else None
    if kind is Status:
        members = ({name: getattr(m, name) for name in _MEMBER_FIELDS} for m in body.members)
        values["members"] = tuple(Member(**member) for member in members)
    if kind is Senders:
        values |= {name: tuple(values[name]) for name in ("names", "incarnations")}
    message = kind(**values)
    try:
        _check(message, values)
    except ValueError as error:
        raise RemoteProtocolError(f"{kind.__name__} refused: {error}") from error
    return message


def _check(message: Message, values: dict[str, Any]) -> None:
    """Limits that hold for every message, then those of its type; raises ValueError."""
    for name, value in values.items():
        if isinstance(value, str):
            _check_text(name, value)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}, expected a finite number")
    match message:
        case Hello():
            _check_hello(message)
        case Begin():
            if message.wire not in WIRE_DTYPES:
                raise ValueError(f"wire is {message.wire!r}, expected one of {', '.join(WIRE_DTYPES)}")
            if message.deadline_s < 0:
                raise ValueError(f"deadline_s is {message.deadline_s}, expected 0 or more")
        case End():
            if message.norm < 0:
                raise ValueError(f"norm is {message.norm}, expected 0 or more")
        case Status():
            if len(message.members) > MAX_MEMBERS:
                raise ValueError(f"{len(message.members)} members, at most {MAX_MEMBERS} allowed")
            for member in message.members:
                _check_member(member)
        case Key():
            _check_name(message.agent)
            if len(message.public_key) != KEY_BYTES:
                raise ValueError(f"a key of {len(message.public_key)} bytes, expected {KEY_BYTES}")
            _check_signed(message)
        case Senders():
            if len(message.names) > MAX_MEMBERS or len(message.names) != len(message.incarnations):
                raise ValueError(
                    f"{len(message.names)} senders and {len(message.incarnations)} incarnations, expected as "
                    f"many of both and at most {MAX_MEMBERS}"
                )
            for name in message.names:
                _check_name(name)


def _check_hello(hello: Hello) -> None:
    if len(hello.settings) > MAX_SETTINGS:
        raise ValueError(f"{len(hello.settings)} settings, at most {MAX_SETTINGS} allowed")
    for name in (hello.network, hello.run, hello.agent, *hello.settings):
        _check_name(name)
    for name, value in hello.settings.items():
        _check_text(f"setting {name}", value)
    if len(hello.versions) != 2 or not 1 <= hello.versions[0] <= hello.versions[1]:
        raise ValueError(f"versions are {hello.versions[:3]}, expected (oldest, newest) from 1")


def _check_member(member: Member) -> None:
    _check_name(member.name)
    if len(member.address) > MAX_NAME or not member.address.isprintable():
        raise ValueError(f"expected an address of printable characters, found {member.address[:80]!r}")
    _check_signed(member)
    if member.state not in STATES:
        raise ValueError(f"state is {member.state[:80]!r}, expected one of {', '.join(STATES)}")


def _check_signed(said: Member | Key) -> None:
    if len(said.certificate) > MAX_CERTIFICATE or len(said.signature) > MAX_SIGNATURE:
        raise ValueError(
            f"a certificate beyond {MAX_CERTIFICATE} or a signature beyond {MAX_SIGNATURE} bytes"
        )


def _check_name(name: str) -> None:
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise ValueError(f"expected a name of 1 to {MAX_NAME} printable characters, found {name[:80]!r}")


def _check_text(name: str, value: str) -> None:
    """What a peer says ends in logs and on terminals, so it must not steer them."""
    if len(value) > MAX_TEXT:
        raise ValueError(f"{name} has {len(value)} characters, at most {MAX_TEXT} allowed")
    if not value.isprintable():
        raise ValueError(f"expected printable characters in {name}, found {value[:80]!r}")
