"""One batched pass and a loop over agents give the same gradients, or the batched pass refuses."""

from __future__ import annotations

from itertools import chain, repeat

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_tasks import FEATURES, dense, normalised, quadratics, supervised
from torch import nn

from p2pqg.errors import ConfigError
from p2pqg.tasks import SupervisedTask
from p2pqg.tasks.augmentation import ImageTransform
from p2pqg.tasks.models import resnet20
from p2pqg_simulator import gradients as engines
from p2pqg_simulator.gradients import Compiled, CompiledVmap, Loop, Vmap, gradients


def different_starts(n: int, d: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n), dtype=dtype)


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=12), batch_size=st.integers(1, 9))
@settings(max_examples=25)
def test_vmap_equals_loop_for_any_shares(sizes: list[int], batch_size: int) -> None:
    tasks = supervised(sizes, batch_size=batch_size)
    loop, batched = Loop(tasks), Vmap(tasks)
    x = different_starts(len(sizes), tasks[0].spec.d)
    for step in range(5):
        expected, losses = loop(x, [{}] * len(sizes), step)
        g, batched_losses = batched(x, [{}] * len(sizes), step)
        torch.testing.assert_close(g, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(batched_losses, losses, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sizes", [[20] * 5, [20, 9, 17, 5, 12, 20]])
def test_vmap_equals_loop_with_augmentation(sizes: list[int]) -> None:
    images = torch.randint(0, 256, (sum(sizes), 1, 6, 6), dtype=torch.uint8)
    shares = zip(torch.split(images, sizes), torch.split(torch.arange(sum(sizes)) % 3, sizes), strict=True)
    transform = ImageTransform((0.5,), (0.25,), torch.float64, "flip-crop")
    tasks = [
        SupervisedTask(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double(),
            train=share,
            test=share,
            agent=f"agent-{i}",
            seed=0,
            batch_size=8,
            transform=transform,
        )
        for i, share in enumerate(shares)
    ]
    x = different_starts(len(sizes), tasks[0].spec.d)
    expected = [task.gradient(x[i], {}, step).g for step in range(3) for i, task in enumerate(tasks)]
    batched = Vmap(tasks)
    got = torch.cat([batched(x, [{}] * len(sizes), step)[0] for step in range(3)])
    torch.testing.assert_close(got, torch.stack(expected), rtol=0, atol=1e-10)
    tasks[1].transform = ImageTransform((0.4,), (0.25,), torch.float64, "flip-crop")
    with pytest.raises(ConfigError, match="vmap expects the same transform on every agent"):
        Vmap(tasks)


def test_loop_replaces_buffers_by_those_after_the_forward_pass() -> None:
    tasks = supervised([10, 12], module=normalised)
    buffers = [task.buffers() for task in tasks]
    x = different_starts(2, tasks[0].spec.d)
    expected = [task.gradient(x[i], task.buffers(), 3).buffers for i, task in enumerate(tasks)]
    Loop(tasks)(x, buffers, 3)
    for own, wanted in zip(buffers, expected, strict=True):
        assert own.keys() == wanted.keys()
        assert all(torch.equal(own[name], wanted[name]) for name in own)
        assert own["1.num_batches_tracked"] == 1


def test_the_pool_is_shared_with_the_tasks() -> None:
    tasks = supervised([4, 7, 5, 6])
    before = [task.train[0].clone() for task in tasks]
    Vmap(tasks)
    assert len({task.train[0].untyped_storage().data_ptr() for task in tasks}) == 1
    assert all(torch.equal(task.train[0], own) for task, own in zip(tasks, before, strict=True))


class Scaled(nn.Module):
    """Models that differ in what neither their parameters nor their description show."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, 3).double()
        self.factor = factor

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.factor * self.linear(inputs)


class Branching(nn.Module):
    """A forward pass that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, 3).double()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(inputs) * (2.0 if inputs.sum() > 0 else 1.0)


def random_forward() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 3), nn.Dropout(0.5)).double()


def mixed_models() -> list[object]:
    factors = chain([1.0, 1.0, 2.0], repeat(1.0))
    return list(supervised([8] * 4, module=lambda: Scaled(next(factors))))


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (quadratics(4), "SupervisedTask"),
        (supervised([8] * 4, module=normalised), "without buffers"),
        (supervised([8] * 4, module=random_forward), "vmap can batch"),
        (supervised([8] * 4, module=Branching), "vmap can batch"),
        (mixed_models(), "same model and loss"),
    ],
    ids=["other tasks", "buffers", "dropout", "data-dependent", "different models"],
)
def test_what_cannot_be_batched_is_refused_or_looped(tasks: list, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        gradients(tasks, "vmap")
    assert gradients(tasks, "auto").name == "loop"


def test_auto_picks_by_model_and_number_of_agents() -> None:
    assert gradients(supervised([8] * 8), "auto").name == "vmap"
    assert gradients(supervised([8] * 2), "auto").name == "loop"
    assert gradients(supervised([8] * 8), "loop").name == "loop"

    def convolutional() -> nn.Module:
        return nn.Sequential(
            nn.Unflatten(1, (1, FEATURES)), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)
        ).double()

    tasks = supervised([8] * 8, module=convolutional)
    assert gradients(tasks, "auto").name == "loop"
    x = different_starts(8, tasks[0].spec.d)
    told = gradients(tasks, "vmap")(x, [{}] * 8, 0)[0]
    torch.testing.assert_close(told, Loop(tasks)(x, [{}] * 8, 0)[0], rtol=0, atol=1e-10)


def test_parameters_without_a_gradient_get_zeros() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = dense()
            self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.used(inputs)

    tasks = supervised([8] * 4, module=Unused)
    x = different_starts(4, tasks[0].spec.d)
    looped, batched = (kind(tasks)(x, [{}] * 4, 0)[0] for kind in (Loop, Vmap))
    torch.testing.assert_close(batched, looped, rtol=0, atol=1e-10)
    assert (tasks[0].spec.views(batched)["unused"] == 0).all()


def test_chunks_of_agents_give_the_same_gradients() -> None:
    tasks = supervised([20, 9, 17, 5, 12, 20])
    x = different_starts(6, tasks[0].spec.d)
    for step in range(3):
        expected, losses = Vmap(tasks)(x, [{}] * 6, step)
        for chunk in (1, 2, 4):
            g, own = Vmap(tasks, chunk)(x, [{}] * 6, step)
            torch.testing.assert_close(g, expected, rtol=0, atol=1e-12)
            torch.testing.assert_close(own, losses, rtol=0, atol=1e-12)


def test_the_chunk_follows_from_the_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = supervised([8] * 6)
    assert Vmap(tasks).chunk > 6
    monkeypatch.setitem(engines.CHUNK_BYTES, "cpu", 3 * engines.cost_of(tasks[0]).activations)
    assert Vmap(tasks).chunk == 3


@pytest.mark.slow
def test_compiled_equals_loop() -> None:
    """Also for short mini-batches and test batches, and for dropout and running statistics."""

    def module() -> nn.Module:
        return nn.Sequential(*normalised(), nn.Dropout(0.3)).double()

    sizes = [20, 11, 8]
    tasks = supervised(sizes, module=module)
    for task in tasks:
        task.test_batch_size = 12
    x = different_starts(3, tasks[0].spec.d)

    def results(engine: Loop) -> list[torch.Tensor]:
        buffers, found = [task.buffers() for task in tasks], []
        for step in range(4):
            found += engine(x, buffers, step)
        scores = [task.evaluate(x[i], buffers[i]) for i, task in enumerate(tasks)]
        found += [tensor for own in buffers for tensor in own.values()]
        return [*found, torch.tensor([[e.loss, e.accuracy] for e in scores])]

    looped = results(Loop(tasks))
    compiled = Compiled(tasks)
    assert compiled.name == "compile"
    first, again = results(compiled), results(compiled)
    for ours, repeated, expected in zip(first, again, looped, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
        assert torch.equal(ours, repeated)
    assert all(torch.equal(a, b) for a, b in zip(results(Loop(tasks)), looped, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "chunk"),
    [([20] * 5, 0), ([20] * 5, 2), ([20, 9, 17, 5, 12, 20, 20], 0)],
    ids=["all at once", "chunks", "unequal shares"],
)
def test_a_compiled_batched_pass_equals_the_loop(sizes: list[int], chunk: int) -> None:
    """Also for short mini-batches, and for agents that chunks leave over."""
    tasks = supervised(sizes)
    loop, compiled = Loop(tasks), CompiledVmap(tasks, chunk)
    assert compiled.name == "vmap-compile"
    x = different_starts(len(sizes), tasks[0].spec.d)
    for step in range(4):
        expected, losses = loop(x, [{}] * len(sizes), step)
        for _ in range(2):
            g, own = compiled(x, [{}] * len(sizes), step)
            torch.testing.assert_close(g, expected, rtol=0, atol=1e-10)
            torch.testing.assert_close(own, losses, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("convolutions", ["grouped", "products"])
def test_convolutions_in_a_compiled_batched_pass(convolutions: str) -> None:
    def module() -> nn.Module:
        convolution = nn.Conv2d(1, 3, 2, padding=1, bias=False)
        return nn.Sequential(
            nn.Unflatten(1, (1, 2, 3)), convolution, nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)
        ).double()

    tasks = supervised([8] * 4, module=module)
    x = different_starts(4, tasks[0].spec.d)
    compiled, _ = CompiledVmap(tasks, convolutions=convolutions)(x, [{}] * 4, 0)
    torch.testing.assert_close(compiled, Loop(tasks)(x, [{}] * 4, 0)[0], rtol=0, atol=1e-10)


def test_only_passes_of_one_shape_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def compiled_pass(losses: object, example: tuple[torch.Tensor, ...], *more: object) -> object:
        def run(x: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
            shapes.append((len(x), *inputs.shape[:2]))
            return torch.zeros_like(x), torch.zeros(len(x), dtype=x.dtype)

        return run

    monkeypatch.setattr(engines, "compiled_pass", compiled_pass)
    compiled = CompiledVmap(supervised([20, 9, 17, 5, 12, 20, 20]))  # mini-batches of 8, one share is smaller
    shapes.clear()
    x = different_starts(7, compiled.spec.d)
    left = [bool((compiled(x, [{}] * 7, step)[0] != 0).any()) for step in range(3)]
    assert shapes == [(6, 6, 8)]  # step 0; later others have a short last mini-batch
    assert left == [True, True, True]
    with pytest.raises(ConfigError, match="mini-batches of one size for 4 or more agents"):
        CompiledVmap(supervised([8, 7, 6, 5]))


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (quadratics(4), "compile expects tasks that are all SupervisedTask; use loop"),
        (mixed_models(), "compile expects the same model and loss on every agent; use loop"),
        (supervised([8] * 2, module=Branching), "torch cannot compile this model here: .*; use loop"),
    ],
    ids=["other tasks", "different models", "data-dependent"],
)
def test_what_cannot_be_compiled_is_refused(tasks: list, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        gradients(tasks, "compile")
    assert all(getattr(task, "program", None) is None for task in tasks)


def test_auto_compiles_long_runs_only_and_says_where_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = supervised([8] * 2)
    operations = engines.cost_of(tasks[0]).operations
    assert gradients(tasks, "auto").name == "loop"
    assert gradients(tasks, "auto", int(engines.LONG / operations)).name == "loop"
    long = int(engines.LONG / operations) + 1
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    with pytest.warns(
        UserWarning, match=r"engine: torch cannot compile this model here: .*compiler.*goes on with loop"
    ):
        assert gradients(tasks, "auto", long).name == "loop"
    with pytest.raises(ConfigError, match="compiler"):
        gradients(tasks, "vmap-compile")


@pytest.mark.parametrize("convolutions", ["grouped", "products"])
def test_convolutions_batched_over_agents_equal_the_loop(convolutions: str) -> None:
    def module() -> nn.Module:
        return nn.Sequential(
            nn.Unflatten(1, (1, 2, 3)),
            nn.Conv2d(1, 3, (2, 3), padding=1, bias=True),
            nn.Tanh(),
            nn.Conv2d(3, 4, 2, stride=(1, 2), padding=(0, 1), dilation=(2, 1), bias=False),
            nn.Flatten(),
            nn.Linear(8, 3),
        ).double()

    tasks = supervised([8] * 4, module=module)
    x = different_starts(4, tasks[0].spec.d)
    expected, _ = Loop(tasks)(x, [{}] * 4, 0)
    batched, _ = Vmap(tasks, convolutions=convolutions)(x, [{}] * 4, 0)
    torch.testing.assert_close(batched, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("convolutions", ["grouped", "products"])
def test_a_resnet_batched_over_agents_equals_the_loop(convolutions: str) -> None:
    images = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8)
    tasks = [
        SupervisedTask(
            lambda: resnet20(3, width=0.25, norm="evonorm").double(),
            train=(images[8 * i : 8 * i + 8], torch.arange(8) % 3),
            test=(images[:4], torch.arange(4) % 3),
            agent=f"agent-{i}",
            seed=0,
            batch_size=8,
            transform=ImageTransform((0.5,) * 3, (0.25,) * 3, torch.float64, "flip-crop"),
        )
        for i in range(3)
    ]
    x = tasks[0].init(0) + 0.1 * different_starts(3, tasks[0].spec.d)
    expected, _ = Loop(tasks)(x, [{}] * 3, 0)
    batched, _ = Vmap(tasks, 2, convolutions)(x, [{}] * 3, 0)
    torch.testing.assert_close(batched, expected, rtol=1e-8, atol=1e-8)
