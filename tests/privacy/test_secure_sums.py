"""Secure sums: the arithmetic, the protocol under crashes, and what lies and mistakes bring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from circle import TIMEOUT_S, Circle
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from p2pqg.algorithms import build as build_algorithm
from p2pqg.errors import ConfigError, RemoteProtocolError, TrainingDiverged
from p2pqg.gossip.messages import (
    Begin,
    Bye,
    Commit,
    Data,
    Hello,
    Key,
    Masked,
    Message,
    Ready,
    Senders,
    Skip,
    Status,
)
from p2pqg.gossip.sums import Summed
from p2pqg.privacy import KeyRing, Secret
from p2pqg.privacy.masking import RANGE, encode, masked, mixed, total
from p2pqg.privacy.sums import require_possible
from p2pqg.security import issue
from p2pqg.topology import build

# ---- arithmetic


@settings(max_examples=30)
@given(st.integers(2, 5), st.integers(1, 9), st.data())
def test_the_masked_sum_is_the_unmasked_one_bit_for_bit(n: int, d: int, data: st.DataObject) -> None:
    values = st.lists(st.integers(-(2**31), 2**31 - 1), min_size=d, max_size=d)
    vectors = [torch.tensor(data.draw(values), dtype=torch.int32) for _ in range(n)]
    sums, checks = np.zeros(d, dtype=np.uint32), 0
    for j, vector in enumerate(vectors):
        pads = [
            (Secret(bytes(31 * [min(j, k)] + [max(j, k)])), 1 if j < k else -1) for k in range(n) if k != j
        ]
        payload, check = masked(vector, pads)
        assert len(payload) == 4 * d
        sums += np.frombuffer(payload, dtype=np.uint32)
        checks += check
    plain = sum(vector.numpy().view(np.uint32).astype(np.uint64) for vector in vectors)
    assert (sums == (plain & 0xFFFFFFFF).astype(np.uint32)).all()
    assert checks % (1 << 64) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_of_sums_is_that_of_w_within_rounding(dtype: torch.dtype) -> None:
    x = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0), dtype=dtype)
    weights = [0.25, 1 / 3, 0.2]
    added = torch.stack([encode(v, w)[0] for v, w in zip(x[1:], weights, strict=True)])
    found = mixed(x[0], added.sum(0, dtype=torch.int32), weights)
    exact = torch.tensor([1 - sum(weights), *weights], dtype=torch.float64) @ x.double()
    torch.testing.assert_close(found.double(), exact, rtol=3e-7, atol=3 * 2**-25)


@settings(max_examples=30)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5), st.integers(1, 20))
def test_what_does_not_fit_saturates_and_is_counted(values: list[float], degree: int) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    encoded, saturated = encode(x, 1 / (1 + degree))
    assert saturated == int((x.abs() > RANGE).sum())
    clamped = x.clamp(-RANGE, RANGE) / (1 + degree)
    torch.testing.assert_close(encoded.double() / 2**24, clamped, rtol=0, atol=2**-24)


def test_a_whole_neighbourhood_at_the_end_of_the_range_does_not_wrap() -> None:
    for degree in (1, 2, 3, 6, 15, 100):
        x, weight = torch.full((3,), 1e9), 1 / (1 + degree)
        summed = sum(encode(x, weight)[0].long() for _ in range(degree))
        assert int(torch.as_tensor(summed).max()) < 2**31


def test_a_value_that_is_not_finite_is_never_sent() -> None:
    for value in (torch.nan, torch.inf):
        with pytest.raises(TrainingDiverged):
            encode(torch.tensor([0.0, value]), 0.5)


# ---- protocol


def assert_right(circle: Circle, result: Summed) -> None:
    assert result.total is not None
    assert torch.equal(total(result.total), circle.plain_sum(result))


@pytest.mark.parametrize(("topology", "n"), [("ring", 3), ("ring", 4), ("complete", 5)])
def test_everybody_gets_the_sum_of_its_neighbours(topology: str, n: int) -> None:
    circle = Circle(n, topology)
    for round in range(3):
        circle.begin(round)
        for i, member in enumerate(circle.members.values()):
            result = member.results[round]
            assert result.mixed == tuple(circle.names[j] for j in circle.graph.neighbours(i))
            assert_right(circle, result)
            assert result.one_sided == 0


def test_an_edge_carries_as_many_bytes_as_float32() -> None:
    circle = Circle(d=1000)
    circle.begin(0)
    size: Counter[tuple[str, str]] = Counter()
    for sender, receiver, message in circle.transcript:
        if isinstance(message, Data):
            size[sender, receiver] += len(message.payload)
    assert len(size) == 8
    assert set(size.values()) == {4 * 1000}


def test_what_a_receiver_sees_of_a_sender_is_uniform() -> None:
    """Whatever the model: one byte in 256 each, and independent of what the sender sends to another."""
    circle = Circle(d=20_000)
    circle.begin(0, vectors=dict.fromkeys(circle.names, torch.zeros(20_000)))
    views = [np.frombuffer(b"".join(circle.seen("b", sender)), dtype=np.uint8) for sender in ("a", "c")]
    other = np.frombuffer(b"".join(circle.seen("d", "a")), dtype=np.uint8)
    for bytes_ in (*views, other, views[0] ^ other):
        for lane in range(4):
            assert chisquare(np.bincount(bytes_[lane::4], minlength=256)).pvalue > 1e-4
    words = [view.view(np.uint32) for view in views]
    assert not (words[0] + words[1]).any(), "together they are the sum, here of zeros"


def test_the_same_model_looks_different_in_every_round_to_every_receiver_and_in_every_life() -> None:
    circle = Circle()
    circle.begin(0)
    circle.begin(1)
    for name in circle.names:
        circle.kill(name)
    for name in circle.names:
        circle.start(name, incarnation=2)
    for a, b in ("ab", "bc", "cd", "da"):
        circle.connect(a, b)
    circle.pump()
    circle.begin(0)
    views = [view for receiver in ("b", "d") for view in circle.seen(receiver, "a")]
    assert len(set(views)) == len(views) == 6


def test_a_crash_after_any_message_costs_mixes_and_nothing_else() -> None:
    """Kill each agent after each message of a round. The others finish; what they have is the sum of an
    announced set of two or more, or nothing; nobody sends to a receiver under two sets in a round."""
    whole = Circle()
    before = len(whole.transcript)
    whole.begin(0)
    messages = len(whole.transcript) - before
    lost = 0
    for victim in ("a", "b"):
        for count in range(messages + 1):
            circle = Circle()
            circle.stop_after = (before + count, victim)
            circle.begin(0)
            if count == 0:
                circle.kill(victim)
            circle.pass_time(4 * TIMEOUT_S)
            for name, member in circle.members.items():
                if name == victim:
                    continue
                result = member.results[0]
                lost += bool(result.lost)
                if result.total is not None:
                    assert len(result.mixed) >= 2
                    assert_right(circle, result)
            assert_one_set_each(circle)
            if count == 0:
                continue
            circle.pass_time(1)
            circle.begin(1)
            circle.pass_time(1)
            assert all(1 in member.results for member in circle.members.values() if member.alive)
    assert lost


def assert_one_set_each(circle: Circle) -> None:
    jobs = Counter((name, life, job.peer, job.position) for name, life, job in circle.masks)
    assert not jobs or max(jobs.values()) == 1


def test_an_agent_that_comes_back_in_the_middle_sends_under_its_new_life_only() -> None:
    def deaf(sender: str, receiver: str, message: Message) -> Sequence[Message]:
        return [] if isinstance(message, Data) and sender == "a" else [message]

    circle = Circle(tamper=deaf)
    circle.begin(0)
    circle.kill("a")
    circle.tamper = lambda sender, receiver, message: [message]
    circle.start("a", incarnation=2)
    circle.connect("a", "b")
    circle.connect("a", "d")
    circle.pump()
    circle.begin(0, "a")
    circle.pass_time(4 * TIMEOUT_S)
    assert circle.members["b"].results[0].total is None
    assert "broke off" in circle.members["b"].results[0].lost
    assert circle.members["b"].results[0].one_sided > 0, "its neighbours had its own model"
    circle.begin(1)
    for member in circle.members.values():
        assert_right(circle, member.results[1])
    assert_one_set_each(circle)


def test_a_slow_sender_is_left_out_and_is_not_waited_for_twice() -> None:
    circle = Circle(5, "complete")
    circle.begin(0, "a", "b", "c", "d")
    circle.pass_time(TIMEOUT_S + 1)
    result = circle.members["a"].results
    assert not result, "as a sender it still waits for e, who may only be held up"
    circle.pass_time(2 * TIMEOUT_S)
    assert result[0].mixed == ("b", "c", "d")
    assert_right(circle, result[0])
    circle.begin(1, "a", "b", "c", "d")
    assert result[1].missed == {"e": "late"}
    circle.begin(2)
    circle.pass_time(1)


# ---- lies and mistakes


def test_a_deadline_passes_without_any_message() -> None:
    circle = Circle(3)
    circle.begin(0, "a")
    alone = circle.members["a"].gossip
    for second in range(1, 2 * int(TIMEOUT_S)):
        alone.tick(circle.now + second)
    (summed,) = (output for output in alone.outputs() if isinstance(output, Summed))
    assert summed.missed == {"b": "late", "c": "late"}


def test_a_wrong_key_is_noticed_and_no_model_is_spoilt(tmp_path: Path) -> None:
    """b passes on a key of its own in the place of c's."""
    forged = X25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()

    def forge(sender: str, receiver: str, message: Message) -> Sequence[Message]:
        if isinstance(message, Key) and sender == "b" and message.agent == "c":
            return [replace(message, public_key=forged)]
        return [message]

    circle = Circle(tamper=forge)
    circle.begin(0)
    assert circle.members["b"].results[0].total is None
    assert "do not cancel" in circle.members["b"].results[0].lost
    names = ("a", "b", "c", "d")
    identities = {name: files.read() for name, files in issue(tmp_path, names).items()}
    circle = Circle(tamper=forge, identities=identities)
    circle.begin(0)
    assert circle.members["b"].results[0].total is None
    assert "not signed" in circle.members["b"].results[0].lost
    assert not circle.seen("b", "a"), "with certificates nothing leaves under such a key"
    for name in ("a", "c", "d"):
        assert_right(circle, circle.members[name].results[0])


def test_keys_are_signed_for_one_network_agent_and_incarnation(tmp_path: Path) -> None:
    files = issue(tmp_path, ("a", "b"))
    a, b = (files[name].read() for name in ("a", "b"))
    own, other = KeyRing("net", "1", "a", 1, lambda: a), KeyRing("net", "1", "b", 1, lambda: b)
    other.check(own.own)
    elsewhere = KeyRing("other", "1", "a", 1, lambda: a).own
    stolen = KeyRing("net", "1", "a", 1, lambda: b).own
    for key in (
        elsewhere,
        stolen,
        replace(own.own, incarnation=2),
        replace(own.own, certificate=b"", signature=b""),
        replace(own.own, public_key=bytes(32)),
    ):
        with pytest.raises(RemoteProtocolError):
            other.check(key)


def test_replayed_masks_are_not_added() -> None:
    """What a sent to b in round 0 comes again in round 1, in the place of what is new."""
    kept: list[Message] = []

    def replay(sender: str, receiver: str, message: Message) -> Sequence[Message]:
        if (sender, receiver) != ("a", "b") or not isinstance(message, Data | Masked):
            return [message]
        if len(kept) < 2:
            kept.append(message)
            return [message]
        return [replace(kept[0 if isinstance(message, Data) else 1], seq=message.seq)]

    circle = Circle(tamper=replay)
    circle.begin(0)
    assert_right(circle, circle.members["b"].results[0])
    circle.begin(1)
    assert circle.members["b"].results[1].total is None
    assert "do not cancel" in circle.members["b"].results[1].lost


def lying(change: dict[str, object], to: str = "a") -> Circle:
    """b announces a set that is changed on its way to one of its senders."""

    def lie(sender: str, receiver: str, message: Message) -> Sequence[Message]:
        if isinstance(message, Senders) and (sender, receiver) == ("b", to) and message.names:
            return [replace(message, **change)]  # type: ignore[arg-type]
        return [message]

    circle = Circle(tamper=lie)
    circle.begin(0)
    circle.pass_time(4 * TIMEOUT_S)
    return circle


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"names": ("a",), "incarnations": (1,)}, "sum of 1 senders"),
        ({"names": ("a", "d"), "incarnations": (1, 1)}, "not all of whom send to it"),
        ({"names": ("a", "a"), "incarnations": (1, 1)}, "not all of whom send to it"),
        ({"names": ("a", "zoe"), "incarnations": (1, 1)}, "not all of whom send to it"),
    ],
)
def test_a_set_that_no_honest_receiver_announces_is_refused(change: dict[str, object], reason: str) -> None:
    circle = lying(change)
    assert any(reason in told for told in circle.dropped["a"])
    assert not circle.seen("b", "a")
    assert circle.members["b"].results[0].total is None


@pytest.mark.parametrize("change", [{"incarnations": (1, 7)}, {"incarnations": (2, 1)}])
def test_a_set_with_another_life_of_a_sender_is_not_answered(change: dict[str, object]) -> None:
    circle = lying(change)
    assert not circle.seen("b", "a")
    assert "does not send" in circle.members["b"].results[0].lost


@pytest.mark.parametrize("change", [{"round": 5}, {"incarnation": 3}])
def test_senders_that_are_told_different_things_make_noise(change: dict[str, object]) -> None:
    circle = lying(change)
    assert circle.members["b"].results[0].total is None


def test_nobody_sends_under_a_second_set() -> None:
    """b has the sum of a and c, and asks a once more as if c were gone."""
    circle = Circle(5, "complete")
    circle.begin(0)
    (asked,) = (
        m for s, r, m in circle.transcript if (s, r) == ("b", "a") and isinstance(m, Senders) and m.names
    )
    sent = circle.seen("b", "a")
    a = circle.members["a"].gossip
    again = replace(asked, seq=asked.seq + 1, names=asked.names[:-1], incarnations=asked.incarnations[:-1])
    a.received("b", asked, circle.now)
    assert not a.outputs(), "a repeated message"
    reborn = replace(again, incarnation=2)
    a.received("b", reborn, circle.now)
    circle.pump()
    assert "b" in a.live
    a.received("b", again, circle.now)
    circle.pump()
    assert any("two sums" in reason for reason in circle.dropped["a"])
    assert circle.seen("b", "a") == sent


small = st.integers(0, 3)
anything = st.one_of(
    st.builds(
        Key, st.sampled_from("abcdz"), small, st.binary(min_size=32, max_size=32), st.binary(max_size=9)
    ),
    st.builds(Ready, small, small, small | st.just(2**64 - 1), reached=small),
    st.lists(st.tuples(st.sampled_from("abcdz"), small), max_size=4).flatmap(
        lambda pairs: st.builds(
            Senders, small, small, small, small, small, *(st.just(tuple(p[k] for p in pairs)) for k in (0, 1))
        )
    ),
    st.builds(Data, small, st.sampled_from([0, 4, 8, 24]), st.binary(min_size=1, max_size=24)),
    st.builds(Masked, small, small, small),
    st.builds(Skip, small, small, small, st.just("no")),
    st.builds(Status, small, st.just(0.0), waiting=st.booleans()),
    st.sampled_from([Begin(0, 0, 0, 2, 24, "float32", 1.0), Commit(0), Bye("gone")]),
)


@settings(max_examples=25)
@given(st.lists(anything, max_size=20), st.booleans())
def test_any_sequence_of_messages_raises_nothing(messages: list[Message], connected_again: bool) -> None:
    """b says anything to a, who is in the middle of a round, and still ends it."""
    circle = Circle(
        tamper=lambda sender, receiver, message: [] if sender == "b" and receiver == "a" else [message]
    )
    a = circle.members["a"].gossip
    a.received("b", Hello("net", "1", "b", 1), circle.now)
    circle.begin(0)
    for message in messages:
        a.received("b", message, circle.now)
        circle.pump()
        if connected_again and "b" not in a.live:
            a.connected("b")
            a.received("b", Hello("net", "1", "b", 1), circle.now)
    circle.pass_time(5 * TIMEOUT_S)
    assert 0 in circle.members["a"].results
    assert_one_set_each(circle)


# ---- refused at the start


@pytest.mark.parametrize(
    ("algorithm", "topology", "n", "reason"),
    [
        ("qg-dsgdm-n", "one-peer-exponential", 8, "agent 0 has 1"),
        ("qg-dsgdm-n", "star", 5, "agent 1 has 1"),
        ("qg-dsgdm-n", "ring", 2, "agent 0 has 1"),
        ("dsgd-gt", "ring", 5, "both ends"),
        ("d2", "ring", 5, "both ends"),
        ("sgdm-n", "complete", 4, "both ends"),
    ],
)
def test_where_sums_cannot_work_they_are_refused(algorithm: str, topology: str, n: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        require_possible(build(topology, n), build_algorithm(algorithm), algorithm, 2)


def test_three_senders_can_be_asked_for() -> None:
    algorithm = build_algorithm("qg-dsgdm-n")
    require_possible(build("torus", 9), algorithm, "qg-dsgdm-n", 3)
    with pytest.raises(ConfigError, match="at least 3"):
        require_possible(build("ring", 9), algorithm, "qg-dsgdm-n", 3)
