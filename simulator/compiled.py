"""The arithmetic of one module, compiled once for all agents that train it.

Eager torch runs a ResNet-20 step as some 500 operations, each reading and writing whole activations.
Compiled, what lies between two convolutions is one loop over memory. Compiling takes a minute of one core the
first time and 7 CPU-seconds after that, because torch keeps the result on disk (``TORCHINDUCTOR_CACHE_DIR``).
Convolutions, three quarters of what is left, run at the core's rate either way, so 3x3 ones are computed with
fewer operations (`winograd.py`).

Compiled is the function of *one* agent, called for each: a batched function of all agents would have to be
compiled anew for every number of agents, and on a CPU grouped convolutions are slower than one after the
other. Shapes are fixed, which makes faster code than sizes left open: mini-batches of another size (the
short last one of an epoch) are computed by the module itself.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from p2pqg import seeds
from p2pqg.errors import ConfigError
from p2pqg.tasks.base import Buffers
from p2pqg.tasks.precision import Precision, arithmetic, forward
from p2pqg.tasks.supervised import SupervisedTask

from . import winograd

OPTIONS: dict[str, Any] = {
    "fallback_random": True,  # dropout draws what it draws in eager torch
    "guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe,  # nobody else has the modules
}
"""Of torch's compiler."""

MOST: dict[Precision, float] = {"float32": 0.1, "tf32": 0.1, "bfloat16": 0.5}
"""Relative difference of gradients that may come from rounding: it may flip a ReLU, and in bfloat16 compiled
code rounds at fewer places."""


class CompiledProgram:
    """A `Program` for mini-batches and test batches of the sizes of `task`.

    Compiles at once what training needs, and what scoring needs when it is first asked for. Same inputs and
    number of threads, same bits. Raises `ConfigError` if there is no C++ compiler or torch cannot compile the
    module as a whole.
    """

    def __init__(self, task: SupervisedTask) -> None:
        self.spec, self.loss, self.precision = task.spec, task.loss, task.precision
        assert self.spec.sizes  # computed now: the compiler cannot trace it
        self._training, self._scoring = copy.deepcopy(task.module).train(), copy.deepcopy(task.module).eval()
        if self.precision == "float32":
            for module in (self._training, self._scoring):
                winograd.use_in(module)
        self._batch = _shapes(task.batch(0))
        self._test_shape: torch.Size | None = None
        self._loss = _compiled(self._mean_loss)
        self._outputs = _compiled(self._scores)
        x = task.init(task.seed).to(task.train[0].device)
        with (
            _quiet_compiler(),
            arithmetic(self.precision, x.device),
            seeds.scoped(task.seed, "dropout", task.agent, 0),
        ):
            try:
                compiled = self.gradient(x, task.buffers(), *task.batch(0))
            except Exception as error:  # the compiler raises many kinds, and what the module raises
                raise ConfigError(f"torch cannot compile this model here: {_reason(error)}; use loop",
                                  key="engine") from error  # fmt: skip
        assert compiled is not None
        expected = task.gradient(x, task.buffers(), 0).g
        if float((compiled[0] - expected).norm()) > MOST[self.precision] * float(expected.norm()):
            raise ConfigError("compiled, this model has other gradients; use loop", key="engine")

    def gradient(
        self, x: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Buffers] | None:
        if _shapes((inputs, targets)) != self._batch:
            return None
        kept = {name: buffer.clone() for name, buffer in buffers.items()}
        leaf = x.detach().requires_grad_()
        loss = self._loss(leaf, kept, inputs, targets)
        (g,) = torch.autograd.grad(loss, leaf)
        return g, loss.detach(), kept

    def outputs(self, x: Tensor, buffers: Buffers, inputs: Tensor) -> Tensor | None:
        if self._test_shape is None:
            self._test_shape = inputs.shape
        if inputs.shape != self._test_shape:
            return None
        with _quiet_compiler():
            outputs: Tensor = self._outputs(x, dict(buffers), inputs)
        return outputs

    def _mean_loss(self, x: Tensor, buffers: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        state = {**self.spec.views(x), **buffers}
        outputs = forward(self.precision, x.device, functional_call, self._training, state, (inputs,))
        return self.loss(outputs, targets)

    def _scores(self, x: Tensor, buffers: dict[str, Tensor], inputs: Tensor) -> Any:
        state = {**self.spec.views(x), **buffers}
        return forward(self.precision, x.device, functional_call, self._scoring, state, (inputs,))


Pass = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From parameters, inputs and targets of some agents to their gradients and losses."""


def compiled_pass(
    losses: Callable[..., Tensor],
    example: tuple[Tensor, Tensor, Tensor],
    expected: Tensor,
    precision: Precision,
) -> Pass:
    """The gradients of `losses`, a batched function `[k]` of what a `Pass` takes, compiled for the shapes of
    an example, at which they are `expected`.

    On a GPU the program is recorded as a CUDA graph and replayed, so that some thousand small kernels are
    launched as one; its results, which the next replay writes over, are copied. Raises `ConfigError` if torch
    cannot compile it.
    """
    replayed = example[0].device.type == "cuda"
    program = _compiled(losses, {"triton.cudagraphs": True} if replayed else {})

    def run(x: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if replayed:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        leaves = x.detach().requires_grad_()
        found = program(leaves, inputs, targets)
        (g,) = torch.autograd.grad(found.sum(), leaves)
        return (g.clone(), found.detach().clone()) if replayed else (g, found.detach())

    with _quiet_compiler():
        try:
            g, _ = run(*example)
        except Exception as error:
            raise ConfigError(f"torch cannot compile the batched pass here: {_reason(error)}; use vmap",
                              key="engine") from error  # fmt: skip
    if float((g - expected).norm()) > MOST[precision] * float(expected.norm()):
        raise ConfigError("compiled, the batched pass has other gradients; use vmap", key="engine")
    return run


def _compiled(function: Callable[..., Any], more: dict[str, Any] | None = None) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=False, options=OPTIONS | (more or {}))


def _shapes(batch: tuple[Tensor, Tensor]) -> tuple[torch.Size, torch.Size]:
    inputs, targets = batch
    return inputs.shape, targets.shape


def _reason(error: Exception) -> str:
    """The first line of what torch's compiler says."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextmanager
def _quiet_compiler() -> Iterator[None]:
    """Without torch's remarks on the machine's CUDA installation, which is not used."""
    log = logging.getLogger("torch.utils.cpp_extension")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
