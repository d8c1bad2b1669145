"""Streams are named, not drawn from one another."""

from __future__ import annotations

import itertools

import pytest
import torch

from p2pqg import seeds


def test_names_make_streams_distinct() -> None:
    names = itertools.product((0, 1, 11), ("init", "shuffle"), ("", "agent-001", "agent-011"), (0, 1, 10))
    streams = [seeds.stream(*name) for name in names]
    assert len(set(streams)) == len(streams)
    assert all(0 <= stream < 2**63 for stream in streams)


def test_a_stream_does_not_depend_on_what_was_drawn_before() -> None:
    first = torch.randn(3, generator=seeds.generator(1, "shuffle", "agent-000", 7))
    seeds.numpy_generator(1, "shuffle", "agent-001", 7).random(100)
    torch.randn(100)
    again = torch.randn(3, generator=seeds.generator(1, "shuffle", "agent-000", 7))
    assert torch.equal(first, again)


def test_streams_are_the_same_in_every_release() -> None:
    """An old checkpoint must resume: ``printf '0|init||0' | b2sum -l 64``, without the lowest bit."""
    assert seeds.stream(0, "init") == 0x4E47E56A7B24784B >> 1
    assert seeds.stream(6, "shuffle", "agent-003", 12) == 0x31421ECD87E70901 >> 1


def test_scoped_draws_from_the_stream_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    with seeds.scoped(3, "dropout", "agent-000", 5):
        inside = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(inside, torch.rand(4, generator=seeds.generator(3, "dropout", "agent-000", 5)))


def test_scoped_restores_after_an_exception() -> None:
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeds.scoped(3, "init"):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)
