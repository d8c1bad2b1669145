"""A torch module as a task: gradients, buffers, randomness, mini-batches, scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from p2pqg.errors import ConfigError
from p2pqg.tasks import SupervisedTask, Task

INPUTS = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(50) % 3


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()


def task(module: Callable[[], nn.Module] = plain, **settings: Any) -> SupervisedTask:
    defaults: dict[str, Any] = {"agent": "agent-000", "seed": 4, "batch_size": 16}
    data = {"train": (INPUTS[:40], TARGETS[:40]), "test": (INPUTS[40:], TARGETS[40:])}
    return SupervisedTask(module, **(data | defaults | settings))


def reference_gradient(module: nn.Module, task: SupervisedTask, x: Tensor, step: int) -> Tensor:
    """backward() of a fresh module loaded by name, as any torch programme would do it."""
    module.load_state_dict(task.spec.views(x), strict=False)
    inputs, targets = task.batch(step)
    nn.functional.cross_entropy(module(inputs), targets).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


@pytest.mark.parametrize("module", [plain, normalised])
def test_gradient_is_torchs_own(module: Callable[[], nn.Module]) -> None:
    one = task(module)
    assert isinstance(one, Task)
    x = one.init(1)
    for step in (0, 1, 2, 7):
        result = one.gradient(x, one.buffers(), step)
        expected = reference_gradient(module(), one, x, step)
        torch.testing.assert_close(result.g, expected, rtol=0, atol=1e-14)
        x = x - 0.5 * result.g
    assert result.loss.dim() == 0
    assert not result.loss.requires_grad


def test_gradient_depends_on_its_arguments_only() -> None:
    """No trace of earlier calls, of evaluation, or of the tensor that was passed in."""
    one = task(normalised)
    x, y = one.init(1), one.init(2)
    first = one.gradient(x, one.buffers(), 3)
    kept = x.clone()
    one.gradient(y, first.buffers, 9)
    one.evaluate(y, first.buffers)
    again = one.gradient(x, one.buffers(), 3)
    assert torch.equal(first.g, again.g)
    assert torch.equal(x, kept)
    assert all(torch.equal(first.buffers[name], again.buffers[name]) for name in first.buffers)


def test_init_is_common_to_agents_and_depends_on_the_seed() -> None:
    a, b = task(agent="agent-000"), task(agent="agent-001", seed=5)
    assert torch.equal(a.init(1), b.init(1))
    assert not torch.equal(a.init(1), a.init(2))
    before = torch.get_rng_state()
    a.init(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_buffers_are_handed_on_and_initial_ones_stay_initial() -> None:
    one = task(normalised)
    x, module = one.init(1), normalised()
    module.load_state_dict(one.spec.views(x), strict=False)
    buffers = one.buffers()
    assert buffers["1.num_batches_tracked"].dtype == torch.int64
    for step in range(3):
        module(one.batch(step)[0])
        buffers = one.gradient(x, buffers, step).buffers
    assert int(buffers["1.num_batches_tracked"]) == 3
    for name, expected in module.named_buffers():
        torch.testing.assert_close(buffers[name], expected)
    assert int(one.buffers()["1.num_batches_tracked"]) == 0
    assert torch.equal(one.buffers()["1.running_mean"], torch.zeros(8, dtype=torch.float64))


def test_evaluation_uses_the_buffers_it_is_given_and_changes_none() -> None:
    one = task(normalised)
    x = one.init(1)
    trained = one.buffers()
    for step in range(20):
        trained = one.gradient(x, trained, step).buffers
    kept = {name: buffer.clone() for name, buffer in trained.items()}
    module = normalised()
    module.load_state_dict({**one.spec.views(x), **trained})
    module.eval()
    scores = module(INPUTS[40:]).detach()
    score = one.evaluate(x, trained)
    assert score.loss == pytest.approx(float(nn.functional.cross_entropy(scores, TARGETS[40:])), abs=1e-12)
    assert score.accuracy == pytest.approx(float((scores.argmax(1) == TARGETS[40:]).double().mean()))
    assert score.samples == 10
    assert one.evaluate(x, one.buffers()).loss != score.loss
    assert all(torch.equal(kept[name], trained[name]) for name in kept)


def test_evaluation_in_pieces_is_evaluation_at_once() -> None:
    one = task()
    x = one.init(1)
    whole, pieces = one.evaluate(x, {}), one.evaluate(x, {}, chunk=3)
    assert pieces.loss == pytest.approx(whole.loss, abs=1e-14)
    assert pieces.accuracy == whole.accuracy


def test_dropout_is_drawn_by_agent_and_step() -> None:
    one, other = task(with_dropout), task(with_dropout, agent="agent-001")
    x = one.init(1)
    every_sample = {"batch_size": 40}
    whole, whole_other = task(with_dropout, **every_sample), task(with_dropout, agent="b", **every_sample)
    before = torch.get_rng_state()
    g = one.gradient(x, {}, 5).g
    torch.rand(7)
    assert torch.equal(one.gradient(x, {}, 5).g, g)
    assert not torch.equal(other.gradient(x, {}, 5).g, g)
    assert not torch.allclose(whole.gradient(x, {}, 0).g, whole.gradient(x, {}, 1).g)
    assert not torch.allclose(whole.gradient(x, {}, 0).g, whole_other.gradient(x, {}, 0).g)
    torch.set_rng_state(before)
    assert torch.equal(one.gradient(x, {}, 5).g, g)
    assert torch.equal(torch.get_rng_state(), before)


class FunctionalNoise(nn.Linear):
    """Draws without owning a dropout layer."""

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(inputs), 0.5, self.training)


def test_randomness_outside_dropout_layers_is_drawn_by_step_too() -> None:
    one = task(lambda: FunctionalNoise(6, 3).double())
    x = one.init(1)
    g = one.gradient(x, {}, 5).g
    torch.rand(7)
    assert torch.equal(one.gradient(x, {}, 5).g, g)


def test_an_epoch_visits_every_sample_once_in_a_new_order() -> None:
    one = task()
    assert (one.samples, one.steps_per_epoch) == (40, 3)
    epochs = [[one.batch_indices(3 * epoch + k) for k in range(3)] for epoch in range(2)]
    assert [len(batch) for batch in epochs[0]] == [16, 16, 8]
    orders = [torch.cat(epoch) for epoch in epochs]
    for order in orders:
        assert sorted(order.tolist()) == list(range(40))
    assert not torch.equal(*orders)
    assert torch.equal(one.batch_indices(1), epochs[0][1])
    assert not torch.equal(task(agent="agent-001").batch_indices(0), epochs[0][0])


def test_frozen_parameters_are_neither_trained_nor_mixed_but_used() -> None:
    def frozen() -> nn.Module:
        module = plain()
        module[0].requires_grad_(False)
        return module

    one = task(frozen)
    assert one.spec.names == ("2.weight", "2.bias")
    before = one.module[0].weight.clone()
    x = one.init(1)
    result = one.gradient(x, {}, 0)
    module = frozen()
    module[0].load_state_dict(one.module[0].state_dict())
    torch.testing.assert_close(result.g, reference_gradient(module, one, x, 0), rtol=0, atol=1e-14)
    assert torch.equal(one.module[0].weight, before)
    assert torch.equal(task(frozen, agent="agent-001").module[0].weight, before)


class Tied(nn.Module):
    """An encoder and a decoder that share one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(6, 6, bias=False)
        self.outward = nn.Linear(6, 6, bias=False)
        self.outward.weight = self.inward.weight
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.outward(torch.tanh(self.inward(inputs)))[:, :3]


def test_tied_weights_are_one_parameter_and_unused_ones_have_zero_gradient() -> None:
    one = task(lambda: Tied().double())
    assert set(one.spec.names) == {"unused", "inward.weight"}
    x = one.init(1)
    g = one.spec.views(one.gradient(x, {}, 0).g)
    W = one.spec.views(x)["inward.weight"].clone().requires_grad_()
    inputs, targets = one.batch(0)
    loss = nn.functional.cross_entropy((torch.tanh(inputs @ W.T) @ W.T)[:, :3], targets)
    (expected,) = torch.autograd.grad(loss, W)
    torch.testing.assert_close(g["inward.weight"], expected, rtol=0, atol=1e-14)
    assert torch.equal(g["unused"], torch.zeros(2, dtype=torch.float64))


def test_regression_has_a_loss_and_no_accuracy() -> None:
    wanted = INPUTS.sum(1, keepdim=True)
    one = task(
        lambda: nn.Linear(6, 1).double(),
        train=(INPUTS[:40], wanted[:40]),
        test=(INPUTS[40:], wanted[40:]),
        loss=nn.functional.mse_loss,
    )
    ones = torch.ones(7, dtype=torch.float64)
    ones[6] = 0  # the bias
    score = one.evaluate(ones, {})
    assert score.loss == pytest.approx(0, abs=1e-25)
    assert score.accuracy is None


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"train": (INPUTS[:40], TARGETS[:39])}, "task.train"),
        ({"test": (INPUTS[:1], TARGETS[:2])}, "task.test"),
        ({"train": (INPUTS[:0], TARGETS[:0])}, "task.train"),
        ({"test": (INPUTS[:0], TARGETS[:0])}, "task.test"),
        ({"batch_size": 0}, "task.batch_size"),
    ],
)
def test_unusable_data_is_refused_by_key(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=r"expected .* found") as caught:
        task(**settings)
    assert caught.value.key == key
