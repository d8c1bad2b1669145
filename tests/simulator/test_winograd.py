"""Convolutions in Winograd's form against direct sums in float64."""

from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from p2pqg.tasks.models import resnet20
from p2pqg_simulator import winograd

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


def far(found: Tensor, expected: Tensor) -> float:
    return float((found.detach() - expected.detach()).norm() / expected.detach().norm())


def taps(kernel: Tensor) -> Tensor:
    """`[C, c, 3, 3]` as `[9, c, C]`."""
    return kernel.permute(2, 3, 1, 0).flatten(0, 1)


@needs_compiler
@settings(max_examples=20)
@given(
    count=st.integers(1, 3),
    channels=st.sampled_from([16, 32, 48, 64]),
    wanted=st.sampled_from([16, 32, 112]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    order=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    seed=st.integers(0, 99),
)
def test_results_and_gradients_are_those_of_the_direct_sum(
    count: int, channels: int, wanted: int, height: int, width: int, order: torch.memory_format, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(count, channels, height, width, dtype=torch.float64, generator=random)
    kernel = torch.randn(wanted, channels, 3, 3, dtype=torch.float64, generator=random)
    slopes = torch.randn(count, wanted, height, width, dtype=torch.float64, generator=random)
    ours = [v.float().requires_grad_() for v in (images, kernel)]
    theirs = [v.requires_grad_() for v in (images, kernel)]
    found = winograd.convolution(ours[0].to(memory_format=order), taps(ours[1]))
    expected = nn.functional.conv2d(*theirs, padding=1)
    assert far(found, expected) < 1e-5
    for mine, right in zip(
        torch.autograd.grad(found, ours, slopes.float()),
        torch.autograd.grad(expected, theirs, slopes),
        strict=True,
    ):
        assert far(mine, right) < 1e-5


@needs_compiler
def test_same_threads_same_bits_and_any_number_the_same_up_to_rounding() -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(9, 32, 13, 13, generator=random)
    kernel = torch.randn(48, 32, 3, 3, generator=random, requires_grad=True)

    def gradient() -> Tensor:
        return torch.autograd.grad(winograd.convolution(images, taps(kernel)).square().sum(), kernel)[0]

    threads, gradients = torch.get_num_threads(), {}
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            gradients[n] = gradient()
            assert torch.equal(gradients[n], gradient())
    finally:
        torch.set_num_threads(threads)
    assert far(gradients[2], gradients[1]) < 1e-6
    assert far(gradients[3], gradients[1]) < 1e-6


@needs_compiler
def test_only_the_layers_it_serves_are_changed() -> None:
    network = resnet20(10)
    winograd.use_in(network)
    kept = [m for m in network.modules() if type(m) is nn.Conv2d]
    changed = [m for m in network.modules() if isinstance(m, nn.Conv2d) and type(m) is not nn.Conv2d]
    assert len(changed) == 16
    # The stem, with three channels, and of both stages that halve the image a 3x3 and a 1x1 of stride 2.
    assert [(m.in_channels, m.kernel_size, m.stride) for m in kept] == [
        (3, (3, 3), (1, 1)),
        (16, (3, 3), (2, 2)),
        (16, (1, 1), (2, 2)),
        (32, (3, 3), (2, 2)),
        (32, (1, 1), (2, 2)),
    ]
    for other in (
        nn.Conv2d(512, 512, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1, dtype=torch.float64),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(16, 16, 3, padding="same"),
        nn.Conv2d(32, 32, 3, padding=1, groups=2),
    ):
        winograd.use_in(other)
        assert type(other) is nn.Conv2d


@needs_compiler
def test_a_layer_with_biases_gives_what_it_gave() -> None:
    layer = nn.Conv2d(16, 32, 3, padding=1)
    images = torch.randn(2, 16, 5, 6, generator=torch.Generator().manual_seed(0))
    before = layer(images)
    winograd.use_in(layer)
    assert type(layer) is not nn.Conv2d
    assert far(layer(images), before) < 1e-5


def test_without_a_compiler_convolutions_stay_and_a_warning_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(winograd, "_library", winograd._library.__wrapped__)
    layer = nn.Conv2d(16, 16, 3, padding=1)
    with pytest.warns(UserWarning, match="no-such-compiler"):
        winograd.use_in(layer)
    assert type(layer) is nn.Conv2d
