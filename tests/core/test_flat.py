"""A model and its flat vector are the same numbers."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from p2pqg.errors import ConfigError
from p2pqg.flat import Spec, bind, trainable


def module() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False)).double()


def test_spec_lists_parameters_in_the_modules_order() -> None:
    spec = Spec.of_module(module())
    assert spec.names == ("0.weight", "0.bias", "2.weight")
    assert spec.shapes == ((4, 3), (4,), (2, 4))
    assert spec.sizes == (12, 4, 8)
    assert spec.d == 24
    assert spec.dtype == torch.float64


@given(shapes=st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=5), n=st.integers(1, 3))
def test_flatten_and_views_are_inverse_with_and_without_agents(shapes: list[list[int]], n: int) -> None:
    tensors = {f"p{k}": torch.randn(n, *shape) for k, shape in enumerate(shapes)}
    spec = Spec.of({name: tensor[0] for name, tensor in tensors.items()})
    x = spec.flatten(tensors)
    assert x.shape == (n, spec.d)
    for name, view in spec.views(x).items():
        assert torch.equal(view, tensors[name])
    for i in range(n):
        assert torch.equal(spec.flatten({name: tensor[i] for name, tensor in tensors.items()}), x[i])


def test_views_share_memory_and_flatten_copies() -> None:
    spec = Spec.of_module(module())
    x = torch.zeros(2, spec.d, dtype=torch.float64)
    views = spec.views(x)
    views["0.bias"][1] += 1
    assert x[1].sum() == 4
    assert x[0].sum() == 0
    copy = spec.flatten(views)
    copy += 1
    assert x.sum() == 4


def test_bound_module_follows_the_vector() -> None:
    net = module()
    spec = Spec.of_module(net)
    x = spec.flatten(trainable(net))
    inputs = torch.randn(5, 3, dtype=torch.float64)
    before = net(inputs)
    bind(net, spec, x)
    assert torch.equal(net(inputs), before)
    x.zero_()
    assert torch.equal(net(inputs), torch.zeros(5, 2, dtype=torch.float64))


def test_parameters_that_need_no_gradient_are_left_out() -> None:
    net = module()
    net[0].requires_grad_(False)
    assert Spec.of_module(net).names == ("2.weight",)


def test_fingerprint_changes_with_name_shape_order_and_dtype_only() -> None:
    a, b = torch.zeros(2, 3), torch.zeros(4)
    base = Spec.of({"a": a, "b": b})
    others = [
        Spec.of({"a": a, "c": b}),
        Spec.of({"a": a.T, "b": b}),
        Spec.of({"b": b, "a": a}),
        Spec.of({"a": a.double(), "b": b.double()}),
        Spec.of({"a": a}),
    ]
    fingerprints = {base.fingerprint, *(spec.fingerprint for spec in others)}
    assert len(fingerprints) == 1 + len(others)
    assert Spec.of({"a": a + 1, "b": b - 1}).fingerprint == base.fingerprint


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "found none"),
        ({"a": torch.zeros(1), "b": torch.zeros(1).double()}, "torch.float32, torch.float64"),
        ({"a": torch.zeros(1, dtype=torch.int64)}, "torch.int64"),
    ],
)
def test_what_is_not_a_model_is_refused(parameters: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Spec.of(parameters)


def test_flatten_takes_names_not_positions() -> None:
    net = module()
    spec = Spec.of_module(net)
    shuffled = OrderedDict(reversed(trainable(net).items()))
    assert torch.equal(spec.flatten(shuffled), spec.flatten(trainable(net)))


def test_layers_of_the_same_shapes_are_told_apart() -> None:
    """A BatchNorm and a GroupNorm have the same parameters; two agents must not mix them."""
    norms = nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
    specs = [Spec.of_module(nn.Sequential(nn.Conv2d(1, 4, 3), norm)) for norm in norms]
    assert specs[0].names == specs[1].names
    assert specs[0].shapes == specs[1].shapes
    assert specs[0].fingerprint != specs[1].fingerprint
