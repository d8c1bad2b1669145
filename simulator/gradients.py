"""Mini-batch gradients of all agents: one after the other, or as one batched computation.

`Loop` asks every task in turn and serves any `Task`. `Compiled` is the loop over like `SupervisedTask`s with
one compiled program for all of them, which pays where the arithmetic takes long and the run is long too.
`Vmap` stacks their models and runs one batched forward and backward pass (`torch.func.vmap`), which pays
where a single model is too small to keep the hardware busy; `CompiledVmap` does that with a compiled
program, on a GPU one that is recorded and replayed. All give the same gradients up to rounding, and
each the same bits for the same inputs, machine and number of threads.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from p2pqg import seeds
from p2pqg.errors import ConfigError
from p2pqg.privacy import PrivateTask
from p2pqg.tasks.base import Buffers, Task
from p2pqg.tasks.precision import arithmetic, forward
from p2pqg.tasks.supervised import Program, SupervisedTask

from .compiled import CompiledProgram, Pass, compiled_pass
from .convolution import ConvolutionsAsProducts
from .memory import cost_of
from .private import private_gradients

Engine = Literal["auto", "loop", "vmap", "compile", "vmap-compile"]
Convolutions = Literal["grouped", "products"]
ENGINES: tuple[Engine, ...] = get_args(Engine)

FEWEST = 4
"""Agents from which a batched pass is faster than a loop."""

HEAVY = (nn.modules.conv._ConvNd, nn.RNNBase)
"""Modules that a CPU runs faster one agent after the other: batched over weights they become grouped
convolutions, for which its kernels are poor."""

HEAVY_PARAMETERS = 1 << 18
"""Parameters from which one dense model keeps a CPU busy by itself."""

LONG = 2e13
"""Floating-point operations of a whole run from which compiling pays. It saves about 50 ms of the 8e9
operations of a ResNet-20 step and takes about a minute of one core (`benchmarks/engine.py`)."""

CHUNK_BYTES = {"cpu": 1 << 30}
OTHER_CHUNK_BYTES = 16 << 30
"""Activations of the agents that one batched pass computes together: a fixed number, not a share of what is
free, so that a run does not depend on what else the machine does."""


class Gradients(Protocol):
    """Gradients of all agents on the mini-batches of one step."""

    name: Engine

    chunk: int
    """Agents whose activations are held at once."""

    def __call__(self, x: Tensor, buffers: list[Buffers], step: int) -> tuple[Tensor, Tensor | None]:
        """Gradients `[n, d]` at `x: [n, d]` and losses `[n]` (None where they are private); replaces the
        entries of `buffers` by those after the forward pass."""


class Loop:
    """One `task.gradient` after the other."""

    name: Engine = "loop"
    chunk = 1

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        _give(tasks, None)

    def __call__(self, x: Tensor, buffers: list[Buffers], step: int) -> tuple[Tensor, Tensor]:
        g = torch.empty_like(x)
        losses = torch.empty(len(x), dtype=x.dtype, device=x.device)
        for i, task in enumerate(self.tasks):
            local = task.gradient(x[i], buffers[i], step)
            assert local.loss is not None
            g[i], losses[i], buffers[i] = local.g, local.loss, local.buffers
        return g, losses


class Compiled(Loop):
    """The loop, its tasks sharing one compiled program for full mini-batches and for scoring.

    Raises `ConfigError` for other kinds of tasks, different models or losses, and where torch cannot compile.
    """

    name: Engine = "compile"

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        own = _alike(tasks, "compile")
        first, x = own[0], own[0].init(0).to(own[0].train[0].device)
        for task in own[1:]:  # the module of one agent will compute for all
            inputs, targets = task.batch(0)
            few = inputs[:2], targets[:2]
            with seeds.scoped(0, "comparison"):
                theirs = task.gradient_on(few, x, task.buffers())
            with seeds.scoped(0, "comparison"):
                ours = first.gradient_on(few, x, task.buffers())
            if not torch.allclose(ours.g, theirs.g, rtol=1e-3, equal_nan=True):
                raise _unfit("compile", "the same model and loss on every agent")
        _give(own, CompiledProgram(first))


class Vmap:
    """One batched pass for all agents whose mini-batches have the same size, `chunk` agents at once (0: as
    many as have activations of `CHUNK_BYTES`). Convolutions are grouped ones, or products (the default on an
    accelerator, see `ConvolutionsAsProducts`).

    The training sets of all tasks are moved into one pool, of which the tasks then hold views, so that one
    `index_select` gathers all mini-batches. Agents whose mini-batch is of another size (a short last batch,
    unequal shares) form their own batched pass, or go through the loop if they are few.

    Raises `ConfigError` if the tasks cannot be batched: other kinds of tasks, different models or losses,
    buffers, randomness in the forward pass. Different models are noticed by comparing with the loop once.
    """

    name: Engine = "vmap"

    def __init__(
        self, tasks: Sequence[Task], chunk: int = 0, convolutions: Convolutions | None = None
    ) -> None:
        own = _alike(tasks, "vmap")
        first = own[0]
        if any(task.transform != first.transform for task in own):
            raise _unfit("vmap", "the same transform on every agent")
        if any(task.buffers() for task in own):
            raise _unfit("vmap", "a model without buffers")
        _give(own, None)
        device = first.train[0].device.type
        grouped = device == "cpu" and first.precision == "float32"  # see `p2pqg.tasks.precision`
        best: Convolutions = "grouped" if grouped else "products"
        self._convolutions: Callable[[], AbstractContextManager[object]] = (
            nullcontext if (convolutions or best) == "grouped" else ConvolutionsAsProducts
        )
        most = CHUNK_BYTES.get(device, OTHER_CHUNK_BYTES)
        self.chunk = chunk or max(1, most // max(1, cost_of(first).activations))
        self.tasks, self.spec, self.module, self.loss = own, first.spec, first.module, first.loss
        self.transform = first.transform
        self._inputs, self._targets, self._firsts = _pool(own)
        # Shares and mini-batches of one size: the order of an epoch is then one matrix for all agents.
        self._alike = len({(task.samples, task.batch_size) for task in own}) == 1
        self._order = lru_cache(maxsize=1)(self._shuffled)
        self._compare()

    def __call__(self, x: Tensor, buffers: list[Buffers], step: int) -> tuple[Tensor, Tensor]:
        if self._alike:
            return self._chunks(x, range(len(x)), self._samples(step), step)
        indices = [task.batch_indices(step) for task in self.tasks]
        sizes = defaultdict(list)
        for i, own in enumerate(indices):
            sizes[len(own)].append(i)
        g = torch.empty_like(x)
        losses = torch.empty(len(x), dtype=x.dtype, device=x.device)
        for agents in sizes.values():
            if len(agents) < FEWEST:
                for i in agents:
                    local = self.tasks[i].gradient(x[i], {}, step)
                    assert local.loss is not None
                    g[i], losses[i] = local.g, local.loss
            else:
                samples = torch.stack([indices[i] for i in agents]) + self._firsts[agents, None]
                g[agents], losses[agents] = self._chunks(x[agents], agents, samples, step)
        return g, losses

    def _chunks(self, x: Tensor, agents: Sequence[int], samples: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """`_pass`, of no more than `chunk` agents at once."""
        if len(x) <= self.chunk:
            return self._pass(x, agents, samples, step)
        g = torch.empty_like(x)
        losses = torch.empty(len(x), dtype=x.dtype, device=x.device)
        for first in range(0, len(x), self.chunk):
            rows = slice(first, first + self.chunk)
            g[rows], losses[rows] = self._pass(x[rows], agents[rows], samples[rows], step)
        return g, losses

    def _samples(self, step: int) -> Tensor:
        """Positions in the pool `[n, b]` of all agents' mini-batches, for shares of one size."""
        task = self.tasks[0]
        epoch, position = divmod(step, task.steps_per_epoch)
        first = position * task.batch_size
        return self._order(epoch)[:, first : first + task.batch_size]

    def _shuffled(self, epoch: int) -> Tensor:
        order = torch.stack([task.epoch_order(epoch) for task in self.tasks]) + self._firsts[:, None]
        return order.to(self._inputs.device)

    def _pass(self, x: Tensor, agents: Sequence[int], samples: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Gradients and losses of `x: [k, d]` of some agents on their samples `[k, b]` of the pool."""
        samples = samples.to(self._inputs.device)
        flat = samples.reshape(-1)
        inputs, targets = self._inputs.index_select(0, flat), self._targets.index_select(0, flat)
        if self.transform is not None:
            inputs = self.transform(inputs, torch.cat([self.tasks[i].choices(step) for i in agents]))
        inputs, targets = (part.view(*samples.shape, *part.shape[1:]) for part in (inputs, targets))
        self.module.train()
        with arithmetic(self.tasks[0].precision, x.device):
            return self._computed(x, inputs, targets)

    def _computed(self, x: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients and losses at `x: [k, d]` on mini-batches `[k, b, ...]`."""
        leaves = x.detach().requires_grad_()
        losses = self._losses(leaves, inputs, targets)
        (g,) = torch.autograd.grad(losses.sum(), leaves)
        return g, losses.detach()

    def _losses(self, x: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        with self._convolutions():
            losses: Tensor = vmap(self._mean_loss)(self.spec.views(x), inputs, targets)
        return losses

    def _mean_loss(self, parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        precision = self.tasks[0].precision
        outputs = forward(precision, inputs.device, functional_call, self.module, parameters, (inputs,))
        return self.loss(outputs, targets)

    def _compare(self) -> None:
        """Refuse tasks for which the batched pass fails or gives other gradients than their own."""
        x = self.tasks[0].init(0).to(self._inputs.device).expand(len(self.tasks), -1).contiguous()
        try:
            self(x, [], 0)
            with _in_float32(self.tasks):
                batched, _ = self(x, [], 0)
        except RuntimeError as error:
            raise _unfit("vmap", f"a model that torch.func.vmap can batch ({error})") from error
        with _in_float32(self.tasks):
            looped, _ = Loop(self.tasks)(x, [{}] * len(self.tasks), 0)
        scale = looped.norm(dim=1) + torch.finfo(x.dtype).tiny
        if bool(((batched - looped).norm(dim=1) > 1e-3 * scale).any()):
            raise _unfit("vmap", "the same model and loss on every agent")


class CompiledVmap(Vmap):
    """`Vmap` by a compiled program for passes of one shape, that of step 0 (with chunks: of a whole one).
    Others, of short last mini-batches or of the agents that chunks leave over, are computed as `Vmap` does.

    It takes longer to compile than one model's program, and again for another number of agents, so "auto"
    never takes it. Raises `ConfigError` where `Vmap` does and where torch cannot compile.
    """

    name: Engine = "vmap-compile"

    def __init__(
        self, tasks: Sequence[Task], chunk: int = 0, convolutions: Convolutions | None = None
    ) -> None:
        self._program: Pass | None = None
        self._shape: torch.Size | None = None
        super().__init__(tasks, chunk, convolutions)
        sizes = Counter(len(task.batch_indices(0)) for task in self.tasks)
        ((size, agents),) = sizes.most_common(1)
        self._shape = torch.Size((min(agents, self.chunk), size))
        x = self.tasks[0].init(0).to(self._inputs.device).expand(len(self.tasks), -1).contiguous()
        self(x, [], 0)
        if self._program is None:
            raise _unfit(self.name, f"mini-batches of one size for {FEWEST} or more agents")

    def _computed(self, x: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if inputs.shape[:2] != self._shape:
            return super()._computed(x, inputs, targets)
        if self._program is None:
            expected, _ = super()._computed(x, inputs, targets)
            precision = self.tasks[0].precision
            self._program = compiled_pass(self._losses, (x, inputs, targets), expected, precision)
        return self._program(x, inputs, targets)


def gradients(tasks: Sequence[Task], engine: Engine = "auto", calls: int | None = None) -> Gradients:
    """The engine asked for; "auto" is `Vmap` for four or more agents with like, small, dense models (on an
    accelerator: like models of any kind), else `Compiled` where the gradients of all agents that the run
    will take, `calls`, are known and cost enough operations, else `Loop`.

    Raises `ConfigError` if an engine is asked for and cannot be had. Where "auto" would compile and
    cannot, it warns and loops. Private tasks have engines of their own.
    """
    if private := [task for task in tasks if isinstance(task, PrivateTask)]:
        return private_gradients(private, engine, _worth_batching([task.task for task in private]))
    match engine:
        case "loop":
            return Loop(tasks)
        case "vmap":
            return Vmap(tasks)
        case "compile":
            return Compiled(tasks)
        case "vmap-compile":
            return CompiledVmap(tasks)
    if _worth_batching(tasks):
        try:
            return Vmap(tasks)
        except ConfigError:
            return Loop(tasks)
    if _worth_compiling(tasks, calls):
        try:
            return Compiled(tasks)
        except ConfigError as error:
            warnings.warn(f"{error}: goes on with loop, which is slower", stacklevel=2)
    return Loop(tasks)


def _worth_batching(tasks: Sequence[Task]) -> bool:
    first = tasks[0]
    if len(tasks) < FEWEST or not isinstance(first, SupervisedTask):
        return False
    heavy = first.spec.d > HEAVY_PARAMETERS or any(isinstance(m, HEAVY) for m in first.module.modules())
    return not (heavy and first.train[0].device.type == "cpu")


def _worth_compiling(tasks: Sequence[Task], calls: int | None) -> bool:
    if calls is None or not all(type(task) is SupervisedTask for task in tasks):
        return False
    return cost_of(tasks[0]).operations * calls > LONG


def _alike(tasks: Sequence[Task], engine: Engine) -> list[SupervisedTask]:
    """The tasks, of which one description of a model may serve all."""
    own = [task for task in tasks if type(task) is SupervisedTask]
    if len(own) < len(tasks):
        raise _unfit(engine, "tasks that are all SupervisedTask")
    if any(task.spec != own[0].spec for task in own):
        raise _unfit(engine, "the same model on every agent")
    return own


def _give(tasks: Sequence[Task], program: Program | None) -> None:
    """Let tasks compute by this program from now on; None: by their modules."""
    for task in tasks:
        if isinstance(task, SupervisedTask):
            task.program = program


@contextmanager
def _in_float32(tasks: Sequence[SupervisedTask]) -> Iterator[None]:
    """For a while, without what a lower precision makes of small differences."""
    own = [task.precision for task in tasks]
    for task in tasks:
        task.precision = "float32"
    try:
        yield
    finally:
        for task, precision in zip(tasks, own, strict=True):
            task.precision = precision


def _pool(tasks: Sequence[SupervisedTask]) -> tuple[Tensor, Tensor, Tensor]:
    """All training inputs and targets, each task's `train` now views of them, and where each begins."""
    inputs = torch.cat([task.train[0] for task in tasks])
    targets = torch.cat([task.train[1] for task in tasks])
    sizes = [task.samples for task in tasks]
    for task, own in zip(
        tasks, zip(torch.split(inputs, sizes), torch.split(targets, sizes), strict=True), strict=True
    ):
        task.train = own
    firsts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
    return inputs, targets, firsts


def _unfit(engine: Engine, expected: str) -> ConfigError:
    return ConfigError(f"{engine} expects {expected}; use loop", key="engine")
