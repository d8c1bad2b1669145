"""What is settled late belongs to one exchange of one round, and only some of those had the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from p2pqg.algorithms import build
from p2pqg.gossip.edge import Contribution, Position
from p2pqg.gossip.machine import Exchanged
from p2pqg.schedules import constant
from p2pqg.tasks.base import TaskContext
from p2pqg.tasks.quadratic import make_task
from p2pqg.training import Training
from p2pqg.wire.tensors import payload

D = 4


def after_two_rounds(algorithm: str) -> Training:
    context = TaskContext("agent-000", ("agent-000",), 0, dtype=torch.float64, options={"d": D})
    training = Training(
        make_task(context), build(algorithm), constant(0.1), agent="agent-000", seed=0, wire="float64"
    )
    while training.round < 2:
        outgoing = training.begin()
        while outgoing is not None:
            outgoing = training.mixed(exchanged(outgoing.position))
    return training


def exchanged(position: Position, late: tuple[Contribution, ...] = ()) -> Exchanged:
    """With nobody."""
    return Exchanged(position, contributions=(), late=late, missed={}, heard=0.0)


def contribution(position: Position, *differences: float) -> Contribution:
    """Vectors that differ by these numbers in every coordinate, at weight 1/2."""
    theirs = torch.cat([torch.full((D,), value, dtype=torch.float64) for value in differences])
    own = torch.zeros_like(theirs)
    return Contribution("agent-001", position, 0.5, payload(theirs), payload(own), 0.0)


def moved(training: Training, before: Tensor) -> list[float]:
    return (training.x - before).tolist()


@pytest.mark.parametrize(
    ("algorithm", "exchange", "differences"),
    [
        ("dsgd", 0, (3.0,)),
        ("dsgdm-n-gt", 0, (3.0, 100.0)),  # beside the model: what tracks the gradient
        ("dsgdm-n-buffer-ring", 1, (3.0,)),  # before it: the buffer
        ("dsgdm-n-gradients-ring", 1, (3.0,)),
    ],
)
def test_only_late_models_change_the_model(
    algorithm: str, exchange: int, differences: tuple[float, ...]
) -> None:
    training = after_two_rounds(algorithm)
    x = training.x.clone()
    training.settle([contribution((1, other), *differences) for other in {0, 1} - {exchange}])
    assert moved(training, x) == [0.0] * D
    training.settle([contribution((1, exchange), *differences)])
    assert moved(training, x) == pytest.approx([1.5] * D)

    # In gossip-only rounds everything that was begun in them is a model, and what is older is what it was.
    for late, change in (
        (contribution((1, exchange), *differences), 1.5),
        (contribution((1, 1 - exchange), *differences), 0.0),
        (contribution((2, 0), 8.0), 4.0),
    ):
        outgoing = training.begin(gossip_only=True)
        assert outgoing is not None
        before = training.x.clone()
        assert training.mixed(exchanged(outgoing.position, (late,))) is None
        assert moved(training, before) == pytest.approx([change] * D)


def test_a_centralised_method_never_exchanges_its_model() -> None:
    training = after_two_rounds("sgdm")
    x = training.x.clone()
    training.settle([contribution((1, 0), 3.0)])
    assert moved(training, x) == [0.0] * D
