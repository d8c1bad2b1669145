"""Clipped sums against a loop over samples; private gradients against plain ones and against statistics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from private_tasks import SECRET, branching, dense, evolved, grouped, mechanism, private, residual, task
from torch import Tensor, nn

from p2pqg.errors import ConfigError, TrainingDiverged
from p2pqg.flat import trainable
from p2pqg.privacy import PrivateTask, Secret
from p2pqg.privacy.clipping import ClippedSum, Hooked, Vmapped, clipping, in_chunks
from p2pqg.privacy.task import Allowance
from p2pqg.tasks.base import TaskContext
from p2pqg.tasks.models.resnet import resnet20
from p2pqg.tasks.quadratic import make_task as make_quadratic
from p2pqg.tasks.supervised import SupervisedTask

pytest.importorskip("opacus")

MODELS = [dense, grouped, evolved, residual]


def clipped_one_by_one(own: SupervisedTask, x: Tensor, inputs: Tensor, targets: Tensor, c: float) -> Tensor:
    """sum_k min(1, C / ||g_k||) g_k by autograd, a sample at a time."""
    total = torch.zeros_like(x)
    parameters = trainable(own.module)
    own._load(x, {})
    for sample, target in zip(inputs, targets, strict=True):
        loss = own.loss(own.module(sample[None]), target[None])
        g = own.spec.flatten(
            dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        )
        total += g * min(1.0, c / float(g.norm()))
    return total


def ways(own: SupervisedTask) -> dict[str, ClippedSum]:
    return {
        "vmap": Vmapped(own.module, own.spec, own.loss),
        "opacus": Hooked(own.make_module(), own.spec, own.loss),
    }


@pytest.mark.parametrize("module", MODELS)
@pytest.mark.parametrize("c", [0.1, 2.0, 1e6])
def test_both_ways_give_the_sum_of_a_loop(module: Callable[[], nn.Module], c: float) -> None:
    own = task(module)
    x, (inputs, targets) = own.init(1), own.train
    expected = clipped_one_by_one(own, x, inputs, targets, c)
    for name, way in ways(own).items():
        found = way(x, inputs, targets, c)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_pieces_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    own = task()
    x, (inputs, targets) = own.init(1), own.train
    way = Vmapped(own.module, own.spec, own.loss)
    whole = way(x, inputs, targets, 0.5)
    monkeypatch.setattr("p2pqg.privacy.clipping.CHUNK_VALUES", 5 * len(x))
    torch.testing.assert_close(in_chunks(way, x, inputs, targets, 0.5), whole)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e300])
def test_no_record_moves_the_sum_by_more_than_the_norm(bad: float) -> None:
    own = task()
    x, (inputs, targets) = own.init(1), own.train
    poisoned = inputs.clone()
    poisoned[3] = bad
    others = torch.arange(len(inputs)) != 3
    for name, way in ways(own).items():
        moved = way(x, poisoned, targets, 0.5) - way(x, inputs[others], targets[others], 0.5)
        assert float(moved.norm()) <= 0.5 + 1e-9, name


def test_a_model_that_vmap_cannot_follow_goes_through_opacus() -> None:
    own = task(branching)
    way = clipping(own)
    assert isinstance(way, Hooked)
    x, (inputs, targets) = own.init(1), own.train
    torch.testing.assert_close(
        way(x, inputs, targets, 0.3), clipped_one_by_one(own, x, inputs, targets, 0.3), rtol=1e-4, atol=1e-9
    )


class Centred(nn.Module):
    """Branches on values and subtracts the mini-batch's mean: no sum over samples."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = branching()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x - x.mean(0))
        return y


class Counting(nn.Linear):
    def __init__(self) -> None:
        super().__init__(48, 3, dtype=torch.float64)
        self.register_buffer("calls", torch.zeros(()))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: resnet20(3, width=0.25, norm="bn").double(), r"layer stem\.1\.0 \(BatchNorm2d\)"),
        (lambda: resnet20(3, width=0.25).double(), r"layer blocks\.0\.norm2 \(BatchNorm2d\).*evonorm-s0"),
        (lambda: nn.Sequential(nn.Flatten(), Counting()), r"calls in layer 1 \(Counting\)"),
        (Centred, "do not depend on the others"),
    ],
)
def test_models_that_cannot_be_private_are_refused_by_layer(
    module: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        private(task(module))


def test_tasks_with_their_own_gradient_are_refused() -> None:
    quadratic = make_quadratic(TaskContext(agent="a", agents=("a",), seed=0))
    with pytest.raises(ConfigError, match=r"SupervisedTask.*QuadraticTask"):
        PrivateTask(quadratic, mechanism(), SECRET, Allowance(1))


# ---- the private gradient


def test_without_noise_or_clipping_it_is_the_plain_gradient_on_the_same_draw() -> None:
    own = private(task(grouped), noise_multiplier=0.0, max_grad_norm=1e9)
    x = own.init(3)
    sizes = set()
    for step in range(6):
        drawn = own.drawn(step)
        sizes.add(len(drawn))
        plain = own.task.gradient_on(own.task.samples_at(drawn, None), x, {}).g
        torch.testing.assert_close(own.gradient(x, {}, step).g, plain * len(drawn) / own.task.batch_size)
    assert len(sizes) > 1, "mini-batches of different sizes"


def test_an_empty_draw_is_noise_only() -> None:
    own = private(task(samples=40, batch_size=1))
    step = next(step for step in range(20) if not len(own.drawn(step)))
    x = own.init(0)
    found = own.gradient(x, {}, step).g
    assert torch.equal(found, own.gradient(x + 1, {}, step).g)
    assert float(found.std()) == pytest.approx(1.0, rel=0.2)


def test_every_record_is_drawn_on_its_own_with_the_sampling_rate() -> None:
    own = private(task(samples=50, batch_size=10))
    chosen = torch.zeros(400, 50)
    for step in range(400):
        chosen[step, own.drawn(step)] = 1
    assert float(chosen.mean()) == pytest.approx(0.2, abs=4 * math.sqrt(0.16 / chosen.numel()))
    sizes = chosen.sum(1)
    assert float(sizes.var()) == pytest.approx(50 * 0.2 * 0.8, rel=0.3), "binomial, not fixed"


def test_noise_is_gaussian_and_no_two_steps_share_any() -> None:
    own = private(task(samples=40, batch_size=1), max_grad_norm=2.0, noise_multiplier=1.5)
    total = torch.zeros(100_000, dtype=torch.float64)
    first, second = (own.released(total, step) for step in (0, 1))
    z = first / 3.0
    n = math.sqrt(len(z))
    assert abs(float(z.mean())) < 5 / n
    assert float(z.std()) == pytest.approx(1.0, abs=5 / n)
    assert float((z**4).mean()) == pytest.approx(3.0, abs=5 * math.sqrt(96) / n)
    assert abs(float((first * second).mean() / 9)) < 5 / n
    assert not bool((first == second).any())


def test_released_values_lie_on_the_grid() -> None:
    own = private(task(), noise_multiplier=1.0)
    released = own.released(torch.full((1000,), math.pi, dtype=torch.float64), 0) * own.task.batch_size
    assert torch.equal(released * 2**24, (released * 2**24).round())


def test_losses_are_not_told() -> None:
    assert private(task()).gradient(task().init(0), {}, 0).loss is None


def test_a_model_that_is_not_finite_stops_training() -> None:
    own = private(task())
    with pytest.raises(TrainingDiverged, match="agent-000"):
        own.gradient(own.init(0) * math.nan, {}, 0)


def test_secret_decides_all() -> None:
    x = task().init(0)
    same, again, other = (
        private(task(), secret).gradient(x, {}, 0).g for secret in (SECRET, SECRET, Secret.fresh())
    )
    assert torch.equal(same, again)
    assert not bool((same == other).any())


def test_augmentation_and_dropout_do_not_come_from_the_public_seed() -> None:
    class Shifted:
        def draw(self, samples: int, generator: torch.Generator) -> Tensor:
            return torch.randn(samples, 1, 1, 1, generator=generator, dtype=torch.float64)

        def __call__(self, inputs: Tensor, choices: Tensor | None) -> Tensor:
            return inputs if choices is None else inputs + choices

    def gradient(secret: Secret, **options: Any) -> Tensor:
        plain = task(lambda: nn.Sequential(nn.Dropout(0.5), dense()))
        plain.transform = options.get("transform")
        own = private(plain, secret, noise_multiplier=0.0, sample_rate=1.0)
        return own.gradient(own.init(0), {}, 0).g

    for options in ({}, {"transform": Shifted()}):
        assert torch.equal(gradient(SECRET, **options), gradient(SECRET, **options))
        assert not torch.equal(gradient(SECRET, **options), gradient(Secret(bytes(32)), **options))
