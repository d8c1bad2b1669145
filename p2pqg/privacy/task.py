"""A task whose gradients are differentially private, in the place of the one whose gradients are not.

Everything after the noisy gradient is post-processing and costs nothing: momentum of any kind, trackers,
mixing, weight decay (it depends on the parameters only), gossip-only rounds. So every algorithm works that
asks for mini-batch gradients; MimeLite asks for gradients on all samples and is refused. What else could
leak from a step, and what is done about it:

* The training loss is a function of the records without noise: it is not told, to nobody, not even to the
  agent's own metrics, which get copied and plotted. The noisy gradient says whether training diverged.
* Running statistics of BatchNorm: such models are refused (`p2pqg.privacy.clipping`).
* Augmentation and dropout: their choices are secret (`p2pqg.privacy.randomness`).
* Scores on held-out data are functions of held-out records: none of this protects those.
* The number of own samples is public: the denominator, `weighting = "samples"` and the sample rate show it.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from p2pqg import seeds
from p2pqg.errors import ConfigError, TrainingDiverged
from p2pqg.flat import Spec
from p2pqg.privacy.accounting import Mechanism
from p2pqg.privacy.clipping import clipping, in_chunks, require_private
from p2pqg.privacy.randomness import Secret, Stream
from p2pqg.tasks.base import Buffers, Evaluation, LocalGradient, Task
from p2pqg.tasks.supervised import Batch, SupervisedTask

GRID_BITS = 24
"""A released gradient is a multiple of the noise's standard deviation times 2^-24, or a little finer."""


class Account(Protocol):
    """Who pays for the steps: `affordable` of them, of the kind that `PrivateTask.mechanism` is."""

    affordable: int

    def pay(self, step: int) -> bool:
        """Count step number `step` as taken, before it is; False if the budget does not allow it."""


class Allowance:
    """An account in memory, where no step is ever taken twice: a simulation, an agent without a home."""

    def __init__(self, affordable: int) -> None:
        self.affordable = affordable
        self.refused = False

    def pay(self, step: int) -> bool:
        self.refused = step >= self.affordable
        return not self.refused


class PrivateTask:
    """`task` with gradients of step t, at x,

        g = (sum_k min(1, C / ||g_k||) g_k + sigma C N(0, I)) / (q samples)

    summed over records that are each drawn with probability q, all from the stream t of `secret`. An empty
    draw is a valid step: noise only. When `account` refuses a step, g is zero, as if the agent had no data:
    it goes on mixing what the others learn, its momentum runs out, and nothing of its data is looked at.

    Raises `ConfigError` for a task other than `SupervisedTask`, whose gradient is its own business, and for
    a model that cannot be trained privately.
    """

    def __init__(self, task: Task, mechanism: Mechanism, secret: Secret, account: Account) -> None:
        self.task, self.mechanism = private(task), mechanism
        self.secret, self.account = secret, account
        self.clipping = clipping(self.task)

    @property
    def spec(self) -> Spec:
        return self.task.spec

    @property
    def samples(self) -> int:
        return self.task.samples

    @property
    def total_samples(self) -> int | None:
        return self.task.total_samples

    @property
    def steps_per_epoch(self) -> int:
        return self.task.steps_per_epoch

    def init(self, seed: int) -> Tensor:
        return self.task.init(seed)

    def buffers(self) -> Buffers:
        return {}

    def evaluate(self, x: Tensor, buffers: Buffers) -> Evaluation:
        return self.task.evaluate(x, buffers)

    def gradient(self, x: Tensor, buffers: Buffers, step: int) -> LocalGradient:
        if not self.account.pay(step):
            return LocalGradient(torch.zeros_like(x), None, {})
        if not bool(x.isfinite().all()):
            raise TrainingDiverged(f"{self.task.agent}: the model at step {step} is not finite")
        inputs, targets = self.batch(step)
        with seeds.scoped(self.secret.stream(step, "dropout").seed(), "dropout"):
            total = in_chunks(self.clipping, x, inputs, targets, self.mechanism.max_grad_norm)
        return LocalGradient(self.released(total, step).to(x), None, {})

    def batch(self, step: int) -> Batch:
        """The records drawn for a step, as the module gets them; there may be none."""
        indices = self.drawn(step)
        if not len(indices):  # nothing that a transform could work on
            return self.task.train[0][:0], self.task.train[1][:0]
        if self.task.transform is None:
            return self.task.samples_at(indices, None)
        chance = torch.Generator().manual_seed(self.secret.stream(step, "augment").seed())
        return self.task.samples_at(indices, self.task.transform.draw(len(indices), chance))

    def drawn(self, step: int) -> Tensor:
        """Positions in the own share of the records drawn for a step, each with probability q."""
        chances = self.secret.stream(step, "draw").uniform(self.samples)
        return torch.from_numpy(chances < self.mechanism.sample_rate).nonzero().flatten()

    def released(self, total: Tensor, step: int) -> Tensor:
        """The private gradient for a sum `[d]` of clipped gradients; float64."""
        return noisy(total, self.mechanism, self.secret.stream(step, "noise")) / (
            self.mechanism.sample_rate * self.samples
        )


def noisy(total: Tensor, mechanism: Mechanism, stream: Stream) -> Tensor:
    """total + sigma C N(0, I), float64 and rounded to the grid; without noise the sum itself."""
    deviation = mechanism.noise_multiplier * mechanism.max_grad_norm
    if deviation == 0:
        return total
    grid = 2.0 ** (math.floor(math.log2(deviation)) - GRID_BITS)
    noise = torch.from_numpy(stream.gaussian(len(total))).to(total)
    return ((total + deviation * noise) / grid).round_().mul_(grid)


def private(task: Task) -> SupervisedTask:
    """The task, if its per-sample gradients can be told from outside and its layers allow for them."""
    if not isinstance(task, SupervisedTask) or type(task).gradient is not SupervisedTask.gradient:
        raise ConfigError(
            f"expected a SupervisedTask with its own gradient, because gradients must be clipped sample by "
            f"sample; found {type(task).__name__}",
            key="privacy.dp",
        )
    require_private(task.module)
    return task
