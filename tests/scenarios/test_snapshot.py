"""A state on its way to an agent that joins: checked chunk by chunk, and gone on with where it broke."""

from __future__ import annotations

import math

import pytest
import torch

from p2pqg.errors import RemoteProtocolError
from p2pqg.gossip.messages import Data, StateHead
from p2pqg.gossip.snapshot import Download, Snapshot, snapshot

STATE = {
    "x": torch.arange(5.0),
    "state.rounds": torch.tensor([7]),
    "state.m": torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    "buffer.seen": torch.tensor([True, False]),
}
LIKE = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}


def head(given: Snapshot, offset: int = 0) -> StateHead:
    return StateHead(given.round, len(given.payload), given.checksum, offset)


def chunk(given: Snapshot, start: int, end: int) -> Data:
    return Data(0, start, given.payload[start:end])


def test_it_arrives_bit_for_bit_and_goes_on_where_it_broke() -> None:
    given, download = snapshot(STATE, 12), Download(LIKE)
    download.begin(head(given))
    download.append(chunk(given, 0, 30))
    assert not download.complete
    download.begin(head(given, offset=30))  # a new connection to the same donor
    download.append(chunk(given, 30, len(given.payload)))
    assert download.complete
    found = download.tensors()
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)
    assert all(found[name].dtype == STATE[name].dtype for name in STATE)


def test_another_donor_starts_anew() -> None:
    first, second = snapshot(STATE, 12), snapshot(STATE | {"x": torch.ones(5)}, 13)
    download = Download(LIKE)
    download.begin(head(first))
    download.append(chunk(first, 0, 30))
    download.begin(head(second))
    download.append(chunk(second, 0, len(second.payload)))
    assert torch.equal(download.tensors()["x"], torch.ones(5))


def test_later_rounds_do_not_change_what_was_taken() -> None:
    x = torch.zeros(5)
    given = snapshot({"x": x}, 0)
    x += 1
    assert not any(given.payload)


def test_what_does_not_fit_is_refused() -> None:
    given = snapshot(STATE, 12)
    expected = f"expected a state of {len(given.payload)} bytes, found 1000"
    with pytest.raises(RemoteProtocolError, match=expected):
        Download(LIKE).begin(StateHead(12, 1000, 1))
    with pytest.raises(RemoteProtocolError, match="expected the state from byte 0, found 8"):
        Download(LIKE).begin(head(given, offset=8))
    for broken in (chunk(given, 8, 16), Data(0, 0, bytes(1000))):
        download = Download(LIKE)
        download.begin(head(given))
        with pytest.raises(RemoteProtocolError, match="chunk covers bytes"):
            download.append(broken)


def test_a_flipped_bit_and_a_value_that_is_not_finite() -> None:
    given, download = snapshot(STATE, 12), Download(LIKE)
    download.begin(head(given))
    wrong = bytearray(given.payload)
    wrong[3] ^= 1
    download.append(Data(0, 0, bytes(wrong)))
    with pytest.raises(RemoteProtocolError, match="checksum"):
        download.tensors()
    assert download.received == 0, "all of it is asked for again"
    infinite = snapshot(STATE | {"x": torch.full((5,), math.inf)}, 12)
    download.begin(head(infinite))
    download.append(chunk(infinite, 0, len(infinite.payload)))
    with pytest.raises(RemoteProtocolError, match="not finite"):
        download.tensors()
