"""The part of an agent that computes: one round of the algorithm on the agent's own data.

Everything here runs in the agent's worker thread, never in its event loop. A round is advanced from one
exchange to the next: `begin` computes until the algorithm asks to mix and returns what goes out, `mixed`
takes what came back and computes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
import xxhash
from torch import Tensor

from p2pqg import seeds
from p2pqg.algorithms import Algorithm, Effect, Gradient, Norm, Program, State, mix
from p2pqg.errors import ConfigError, TrainingDiverged
from p2pqg.gossip.edge import Contribution, Position
from p2pqg.gossip.machine import Exchanged
from p2pqg.gossip.mixing import disagreement, mixed
from p2pqg.gossip.sums import Summed
from p2pqg.privacy import SecureSums
from p2pqg.schedules import Schedule
from p2pqg.tasks.base import Buffers, Evaluation, Task, with_full_gradient
from p2pqg.wire.tensors import WIRE_DTYPES, payload, snapshot

Result = tuple[Tensor, State]


@dataclass(frozen=True, slots=True, eq=False)
class Outgoing:
    """What leaves in one exchange: the snapshot's bytes, their checksum (xxh3-64) and L2 norm."""

    position: Position
    payload: memoryview
    checksum: int
    norm: float


class Training:
    """Parameters `x: [d]`, the algorithm's state, the task's buffers, and the round they are at; also how far
    the neighbours' models were (`disagreement`) in gossip-only rounds and in those that measure it.

    `scale` multiplies the gradient (the agent's share of all samples times n, or 1). With `sums` no vector
    leaves in `Outgoing`; `sums` masks it for each receiver.
    """

    def __init__(
        self,
        task: Task,
        algorithm: Algorithm,
        schedule: Schedule,
        *,
        agent: str,
        seed: int,
        wire: str,
        scale: float = 1.0,
        sums: SecureSums | None = None,
    ) -> None:
        self.task, self.algorithm, self.schedule = task, algorithm, schedule
        self.agent, self.seed, self.wire, self.scale, self.sums = agent, seed, wire, scale, sums
        if algorithm.needs_full_gradient:
            with_full_gradient(task)
        self.x = task.init(seed)
        self.state = algorithm.init(self.x)
        self.buffers: Buffers = task.buffers()
        self.round = 0
        self.disagreement = 0.0
        self._program: Program[Result] | None = None
        self._gossip_only = self._measure = False
        self._losses: list[float] = []
        self._trained: int | None = None
        self._exchange = 0
        self._sent = torch.empty(0)

    @property
    def loss(self) -> float:
        """Mean loss over the mini-batches of the last round; NaN before the first and where private."""
        return sum(self._losses) / len(self._losses) if self._losses else math.nan

    def begin(self, *, gossip_only: bool = False, measure: bool = False) -> Outgoing | None:
        """Start a round and compute up to its first exchange; None if it has none and is done."""
        self._gossip_only, self._measure = gossip_only, measure
        if gossip_only and self._trained is None:
            self._trained = self.round
        lrs = self.schedule.steps(self.round, self.algorithm.local_steps)
        self._program = (
            _only_mix(self.x, self.state) if gossip_only else self.algorithm.round(self.x, self.state, lrs)
        )
        self._losses, self._exchange = [], 0
        return self._advance(None)

    def mixed(self, exchanged: Exchanged | Summed) -> Outgoing | None:
        """Apply an exchange and compute up to the next one; None if the round is done."""
        self._exchange += 1
        if isinstance(exchanged, Summed):
            assert self.sums is not None
            vector = self.sums.mixed(exchanged)
            if self._gossip_only or self._exchange - 1 == self.algorithm.model_exchange:
                self.disagreement = self.sums.apart
            return self._advance((vector,))
        if self._gossip_only:  # what is late may come from training, with other vectors than the model
            self.disagreement = disagreement(exchanged.contributions, self.wire)
            outgoing = self._advance((mixed(self._sent, exchanged.contributions, self.wire),))
            self.settle(exchanged.late)
            return outgoing
        if self._measure and self._exchange - 1 == self.algorithm.model_exchange:
            self.disagreement = disagreement(map(self._of_model, exchanged.contributions), self.wire)
        vector = mixed(self._sent, (*exchanged.contributions, *exchanged.late), self.wire)
        return self._advance(tuple(torch.split(vector, self.task.spec.d)))

    def settle(self, late: Iterable[Contribution]) -> None:
        """Apply to the model what was settled between rounds, so that its sum over agents is exact.

        Late parts of other vectors (gradients, buffers) are dropped: nobody computes with them any more, or
        a direction of the rounds after a restart is off a little.
        """
        self.x = mixed(self.x, [self._of_model(c) for c in late if self._has_model(c)], self.wire)

    def _has_model(self, contribution: Contribution) -> bool:
        """Whether the first vector of the exchange it belongs to is the model."""
        round, exchange = contribution.position
        trained = self._trained is None or round < self._trained
        return exchange == (self.algorithm.model_exchange if trained else 0)

    def _of_model(self, contribution: Contribution) -> Contribution:
        size = self.task.spec.d * WIRE_DTYPES[self.wire].itemsize
        return replace(contribution, theirs=contribution.theirs[:size], own=contribution.own[:size])

    def evaluate(self) -> Evaluation:
        """Score the current model on held-out data."""
        return self.task.evaluate(self.x, self.buffers)

    def model(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        return self.task.spec.views(self.x) | dict(self.buffers)

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint holds."""
        state = {f"state.{name}": tensor for name, tensor in self.state.items()}
        return {"x": self.x, **state, **{f"buffer.{name}": b for name, b in self.buffers.items()}}

    def restore(self, tensors: Mapping[str, Tensor], round: int) -> None:
        """Continue from a checkpoint. Raises `ConfigError` if it holds other tensors than this training."""
        expected = {name: (tensor.shape, tensor.dtype) for name, tensor in self.tensors().items()}
        found = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        if expected != found:
            raise ConfigError(
                f"expected a checkpoint with {', '.join(expected)} of this model, found {', '.join(found)}"
            )
        self.x = tensors["x"]
        self.state = {name: tensors[f"state.{name}"] for name in self.state}
        self.buffers = {name: tensors[f"buffer.{name}"] for name in self.buffers}
        self.round = round

    def adopt(self, tensors: Mapping[str, Tensor], round: int) -> None:
        """Start from another agent's model and state at the start of `round`. What the algorithm keeps of the
        own gradients, or of the own way, starts afresh. Raises `ConfigError` as `restore` does."""
        self.restore(tensors, round)
        self.state = self.algorithm.adopt(self.x, self.state)

    def skip_to(self, round: int) -> None:
        """Leave out the rounds before `round`."""
        self.round = round

    def _advance(self, answer: tuple[Tensor, ...] | None) -> Outgoing | None:
        assert self._program is not None
        try:
            effect = next(self._program) if answer is None else self._program.send(answer)
            while isinstance(effect, Gradient | Norm):
                own = effect.answer() if isinstance(effect, Norm) else (self._gradient(effect),)
                effect = self._program.send(own)
        except StopIteration as stop:
            self.x, self.state = stop.value
            self.round += 1
            return None
        return self._outgoing(effect)

    def _gradient(self, effect: Gradient) -> Tensor:
        step = self.round * self.algorithm.local_steps + effect.step
        if effect.full:
            return self._scaled(with_full_gradient(self.task).full_gradient(effect.x, self.buffers, step))
        local = self.task.gradient(effect.x, self.buffers, step)
        self.buffers = local.buffers
        if local.loss is not None:
            loss = float(local.loss)
            if not math.isfinite(loss):
                raise TrainingDiverged(f"{self.agent}: the loss of round {self.round} is {loss}")
            self._losses.append(loss)
        return self._scaled(local.g)

    def _scaled(self, g: Tensor) -> Tensor:
        return g if self.scale == 1 else g * self.scale

    def _outgoing(self, effect: Effect) -> Outgoing:
        assert not isinstance(effect, Gradient)
        self._sent = effect.vectors[0] if len(effect.vectors) == 1 else torch.cat(effect.vectors)
        if self.sums is not None:
            self.sums.enter(self._sent)
            return Outgoing((self.round, self._exchange), memoryview(b""), 0, 0.0)
        rounding = seeds.generator(self.seed, f"rounding {self._exchange}", self.agent, self.round)
        q = snapshot(self._sent, self.wire, rounding)
        data = payload(q)
        return Outgoing(
            (self.round, self._exchange),
            data,
            xxhash.xxh3_64_intdigest(data),
            float(q.to(self._sent.dtype).norm()),
        )


def _only_mix(x: Tensor, state: State) -> Program[Result]:
    x = yield from mix(x)
    return x, state
