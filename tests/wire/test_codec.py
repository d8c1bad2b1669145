"""Frames: what is encoded comes back, and whatever else arrives is the peer's fault."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pqg.errors import LocalProtocolError, RemoteProtocolError
from p2pqg.gossip.messages import (
    CHUNK_BYTES,
    MAX_CONTROL_BYTES,
    STATES,
    Abort,
    Begin,
    Bye,
    Data,
    End,
    Hello,
    Member,
    Message,
    Prepared,
    Senders,
    Status,
)
from p2pqg.wire import gossip_pb2
from p2pqg.wire.codec import MAX_SETTINGS, MAX_TEXT, decode, encode
from p2pqg.wire.tensors import WIRE_DTYPES

CONTROL = [kind for kind in get_args(Message) if kind is not Data]

numbers = st.integers(0, 2**64 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), max_size=40)
names = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=40)
BY_FIELD: dict[str, st.SearchStrategy[Any]] = {
    "network": names,
    "run": names,
    "agent": names,
    "settings": st.dictionaries(names, texts, max_size=5),
    "versions": st.tuples(st.integers(1, 9), st.integers(9, 2**32 - 1)),
    "undecided": st.none() | numbers,
    "wire": st.sampled_from(sorted(WIRE_DTYPES)),
    "deadline_s": st.floats(0, allow_nan=False, allow_infinity=False),
    "norm": st.floats(0, allow_nan=False, allow_infinity=False),
    "note": floats,
    "sent_s": floats,
    "echo_s": floats,
    **dict.fromkeys(["committed", "joining", "fetches", "waiting"], st.booleans()),
    "members": st.lists(
        st.builds(
            Member, st.text("ab", min_size=1), numbers, st.sampled_from(STATES), st.text("ab:1"), numbers
        ),
        max_size=3,
    ).map(tuple),
    "public_key": st.binary(min_size=32, max_size=32),
    **dict.fromkeys(["certificate", "signature"], st.binary(max_size=100)),
    **dict.fromkeys(["item", "expected", "found", "reason"], texts),
}
sets = st.dictionaries(names, numbers, max_size=5).map(lambda of: (tuple(of), tuple(of.values())))
controls = st.one_of(
    st.builds(kind, **{field.name: BY_FIELD.get(field.name, numbers) for field in fields(kind)})
    for kind in CONTROL
    if kind is not Senders
) | st.builds(lambda ring, *of: Senders(*of, *ring), sets, *[numbers] * 5)
datas = st.builds(Data, seq=numbers, offset=numbers, payload=st.binary(min_size=1, max_size=300))


def decodes_or_blames_the_peer(frame: bytes) -> None:
    try:
        message = decode(frame)
    except RemoteProtocolError:
        return
    assert isinstance(message, get_args(Message))
    assert isinstance(encode(message), bytes)


@given(controls)
def test_control_messages_survive_the_round_trip(message: Message) -> None:
    assert decode(encode(message)) == message


@given(datas)
def test_data_survives_the_round_trip(message: Data) -> None:
    back = decode(encode(message))
    assert isinstance(back, Data)
    assert (back.seq, back.offset, bytes(back.payload)) == (message.seq, message.offset, message.payload)


def test_a_full_chunk_of_any_buffer_is_taken_and_not_copied_on_the_way_in() -> None:
    values = memoryview(bytearray(CHUNK_BYTES)).cast("d")
    frame = bytearray(encode(Data(1, 0, values)))
    back = decode(frame)
    assert isinstance(back, Data)
    frame[-1] = 7
    assert back.payload[-1] == 7


@given(st.binary(max_size=200))
def test_random_bytes(frame: bytes) -> None:
    decodes_or_blames_the_peer(frame)


@given(st.binary(max_size=200), st.sampled_from([1, 2]))
def test_random_bytes_after_a_valid_type(rest: bytes, kind: int) -> None:
    decodes_or_blames_the_peer(bytes([kind]) + rest)


@given(controls | datas, st.data())
def test_mutated_frames(message: Message, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    decodes_or_blames_the_peer(bytes(frame))


@given(controls | datas, st.data())
def test_truncated_and_extended_frames(message: Message, data: st.DataObject) -> None:
    frame = encode(message)
    decodes_or_blames_the_peer(frame[: data.draw(st.integers(0, len(frame) - 1))])
    decodes_or_blames_the_peer(frame + data.draw(st.binary(min_size=1, max_size=20)))


def hello(**changes: Any) -> Hello:
    return Hello(**({"network": "n", "run": "r", "agent": "a", "incarnation": 1} | changes))


def unsendable() -> Iterator[Message]:
    yield hello(agent="")
    yield hello(agent="a\x1b[2J")
    yield hello(network="n" * 256)
    yield hello(settings={str(k): "" for k in range(MAX_SETTINGS + 1)})
    yield hello(settings={"beta": "1" * (MAX_TEXT + 1)})
    yield hello(versions=(2, 1))
    yield hello(versions=(0, 1))
    yield hello(incarnation=2**64)
    yield hello(run="\ud800")
    yield Begin(1, 1, 0, 2, 8, "int8", 1.0)
    yield Begin(1, 1, 0, 2, 8, "float32", -1.0)
    yield Begin(1, 1, 0, 2, 8, "float32", float("inf"))
    yield Begin(1, 1, 0, 2, 8, "float32", 1.0, note=float("nan"))
    yield Begin(-1, 1, 0, 2, 8, "float32", 1.0)
    yield End(1, 0, -1.0)
    yield End(1, 0, float("nan"))
    yield Prepared(1, 2**64, 0)
    yield Abort(1, 0, 0, "x" * (MAX_TEXT + 1))
    yield Abort(1, 0, 0, "\x1b[2J")
    yield Bye("one line\nand another")
    yield hello(settings={"beta": "\x1b[2J"})
    yield Status(0, float("inf"))
    yield Data(1, 0, b"")
    yield Data(1, 0, bytes(CHUNK_BYTES + 1))
    yield Data(2**64, 0, b"x")


@pytest.mark.parametrize("message", list(unsendable()), ids=lambda m: type(m).__name__)
def test_a_message_beyond_a_limit_is_our_own_error(message: Message) -> None:
    with pytest.raises(LocalProtocolError):
        encode(message)


def test_too_large_together() -> None:
    with pytest.raises(LocalProtocolError, match="bytes"):
        encode(hello(settings={str(k): "x" * MAX_TEXT for k in range(MAX_SETTINGS)}))


def envelope(**message: Any) -> bytes:
    return b"\x01" + gossip_pb2.Envelope(**message).SerializeToString()


def data_frame(
    *, version: int = 1, padding: bytes = bytes(6), length: int = 4, payload: bytes = b"abcd"
) -> bytes:
    return struct.pack("<BB6sQQQ", 2, version, padding, 1, 0, length) + payload


HELLO = {"network": "n", "run": "r", "agent": "a", "versions": [1, 1]}


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        (b"", "empty"),
        (b"\x00abc", "type 0"),
        (b"\x01", "without a message"),
        (b"\x01\xff\xff", "does not parse"),
        (b"\x01" + bytes(MAX_CONTROL_BYTES), "at most"),
        (b"\x02" + bytes(31), "DATA frame"),
        (data_frame(payload=b"", length=0), "DATA frame"),
        (data_frame(payload=bytes(CHUNK_BYTES + 1), length=CHUNK_BYTES + 1), "DATA frame"),
        (data_frame(version=2), "version 2"),
        (data_frame(padding=b"\0\0\0\0\0\1"), "header"),
        (data_frame(length=2**63), "announces"),
        (envelope(hello=HELLO | {"versions": [1]}), "versions"),
        (envelope(hello=HELLO | {"versions": [1] * 1000}), "versions"),
        (envelope(hello=HELLO | {"agent": ""}), "name"),
        (envelope(hello=HELLO | {"settings": {str(k): "" for k in range(1000)}}), "settings"),
        (envelope(hello=HELLO | {"settings": {"k": "x" * 2000}}), "characters"),
        (envelope(begin={"wire": "pickle"}), "wire"),
        (envelope(begin={"wire": "float32", "deadline_s": float("nan")}), "finite"),
        (envelope(end={"norm": float("inf")}), "finite"),
        (envelope(end={"norm": -1.0}), "norm"),
        (envelope(abort={"reason": "x" * 2000}), "characters"),
        (envelope(bye={"reason": "abc"}).replace(b"abc", b"a\xff\xfe"), "parse"),
    ],
)
def test_frames_beyond_a_limit_are_the_peers_error(frame: bytes, complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint):
        decode(frame)


def test_fields_of_a_later_version_are_ignored() -> None:
    later = bytes([15 << 3 | 0, 42])  # field 15, a varint
    body = gossip_pb2.Bye(reason="done").SerializeToString() + later
    frame = b"\x01" + bytes([12 << 3 | 2, len(body)]) + body
    assert decode(frame) == Bye("done")


def test_every_message_has_its_place_in_the_schema() -> None:
    schema = gossip_pb2.DESCRIPTOR.message_types_by_name
    for kind in CONTROL:
        assert {field.name for field in fields(kind)} == set(schema[kind.__name__].fields_by_name)
    assert set(schema["Envelope"].fields_by_name) == {kind.__name__.lower() for kind in CONTROL}
