"""Bytes and operations of a simulation, stated before it trains.

Both are counted, not listed for each method and model: one agent's gradient and one round of the algorithm on
short vectors run with every operation's results watched. What libraries take for themselves (convolutions'
scratch space, memory that the allocator keeps) is not seen; `tests/simulator/test_memory.py` holds the
statement against the peak of a real process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from p2pqg.algorithms import Algorithm, Answer, Effect, Gradient, Mean, Mix, drive
from p2pqg.errors import ConfigError
from p2pqg.tasks.base import Task
from p2pqg.tasks.supervised import SupervisedTask

from .columns import blocks_of, round_in_blocks

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
KEPT_BLOCKS = 4 << 20
"""Largest block that the allocator of a simulation keeps when it is freed: larger ones are vectors of all
agents or activations of large models. With these kept, 64 agents of 0.5 M parameters and activations of 8 MB
took 1.5 to 2.3 times what was counted; with these handed back, 0.97 times that, and half as much CPU time
again."""

KEPT = 1.1
"""What a process may take over what it was counted to need."""

SHORT = 4096
"""Length of the vectors on which a round is counted."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all tensors that operations inside made and that are still in use; `peak` is their most."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._live = {
            key: own
            for key, own in self._live.items()
            if not own[0].expired()  # type: ignore[no-untyped-call]
        }
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    weak = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                    self._live[storage._cdata] = weak, storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result


class Cost(NamedTuple):
    """Of one mini-batch gradient: `operations` in products and convolutions, forward and backward, and most
    `activations`, bytes that are in use at once."""

    operations: int
    activations: int


def cost_of(task: Task) -> Cost:
    """The cost of a gradient of `task`, counted on its first mini-batch, of which a module computes all."""
    x = task.init(0)
    program = None
    if isinstance(task, SupervisedTask):
        x = x.to(task.train[0].device)
        program, task.program = task.program, None
    with LiveBytes(x) as live, FlopCounterMode(display=False) as flops:
        task.gradient(x, task.buffers(), 0)
    if isinstance(task, SupervisedTask):
        task.program = program
    return Cost(flops.get_total_flops(), live.peak)


def vectors_of(
    algorithm: Algorithm, *, in_blocks: bool, overwrite: bool = False, once: bool = False
) -> float:
    """Vectors `[n, d]` that one round of an algorithm needs at once.

    In blocks (see `round_in_blocks`): model and state before and after it, the gradient among the latter;
    with `overwrite`, model, state and gradient; with `once`, also the message of a method that asks for a
    norm. All at once: also messages, as sent and as mixed, and what the arithmetic leaves in between.
    """

    def answer(effect: Effect) -> Answer:
        match effect:
            case Gradient(x):
                return (x.clone(),)
            case Mix(vectors):
                return tuple(v.clone() for v in vectors)
            case Mean(vectors):
                return tuple(v.mean(0, keepdim=True).expand_as(v) for v in vectors)

    with LiveBytes() as live:
        x = torch.ones(2, SHORT)
        state, lrs = dict(algorithm.init(x)), [0.1] * algorithm.local_steps
        if in_blocks:
            round_in_blocks(
                algorithm, x, state, lrs, blocks_of(SHORT // 64, SHORT),
                lambda effect: answer(effect)[0], lambda effect, _: answer(effect),
                overwrite=overwrite, once=once,
            )  # fmt: skip
        else:
            drive(algorithm.round(x, state, lrs), answer)
    return float(live.peak / (x.numel() * x.itemsize))


@dataclass(frozen=True)
class Footprint:
    """Bytes that a simulation takes beside the interpreter, its libraries and the data set it was made from.

    `vectors` are the parameters, state, messages and gradients of all agents, `models` what the tasks'
    modules hold, `activations` those of the agents computed at once, and `data` the samples of all agents.
    """

    vectors: int
    models: int
    activations: int
    data: int

    @property
    def training(self) -> int:
        """What training adds to tasks that are there, with what their modules hold."""
        return self.vectors + self.models + self.activations

    @property
    def total(self) -> int:
        return self.training + self.data


def footprint(tasks: Sequence[Task], chunk: int, vectors: float) -> Footprint:
    """That of training `tasks` by rounds that need so many `vectors` (see `vectors_of`), with the gradients
    of at most `chunk` agents computed at once.

    Modules share their parameters' memory (see `place`). Buffers count once for each module, and twice more
    because an iterate is kept while the next is made.
    """
    spec, cost = tasks[0].spec, cost_of(tasks[0])
    one = spec.d * spec.dtype.itemsize
    buffers = sum(buffer.nbytes for buffer in tasks[0].buffers().values())
    held_out: dict[int, int] = {}
    data = 0
    for task in tasks:
        if isinstance(task, SupervisedTask):
            data += sum(part.nbytes for part in task.train)
            held_out |= {part.data_ptr(): part.nbytes for part in task.test}
    return Footprint(
        vectors=round(vectors * len(tasks) * one) + 2 * len(tasks) * buffers,
        models=one + len(tasks) * buffers,
        activations=min(chunk, len(tasks)) * cost.activations,
        data=data + sum(held_out.values()),
    )


def require(needed: int, device: torch.device) -> None:
    """Raise `ConfigError` if `device` has fewer bytes to give, those included that the allocator keeps."""
    needed, available = round(KEPT * needed), available_bytes(device)
    if available is not None and needed > available:
        raise ConfigError(
            f"training takes {needed / 2**30:.1f} GiB of memory, {device} has {available / 2**30:.1f} GiB "
            "left: expected fewer agents, smaller mini-batches or a smaller model",
            key="agents",
        )


def available_bytes(device: torch.device) -> int | None:
    """Memory that can be had without swapping; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = []
    if MEMINFO.exists():
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        found.append(1024 * int(lines["MemAvailable"].split()[0]))
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":
        found.append(int(most) - int(used.read_text()))
    return min(found, default=None)
