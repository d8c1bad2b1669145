"""Learning rate as a pure function of the step.

Steps count mini-batches of one agent from 0; the learning rate of step t is `schedule(t)` and is used
everywhere in that step, also in the quasi-global difference (paper-protocol, sections 1 and 5). A schedule
is part of what a network must agree on, so its `describe()` enters the fingerprint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from p2pqg.errors import ConfigError

PAPER_BATCHES = {"cifar": 32, "imagenet": 64, "text": 32}
PAPER_EPOCHS = {"cifar": 300, "imagenet": 90, "text": 10}
PAPER_DECAYS = {"cifar": (1 / 2, 3 / 4), "imagenet": (1 / 3, 2 / 3, 8 / 9)}


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to `lr`, then constant, piecewise constant or cosine.

        t < warmup_steps          warmup_from + (lr - warmup_from) * t / warmup_steps
        otherwise                 lr * decay ** #{m in milestones : t >= m}
        cosine                    final + (lr - final) * (1 + cos(pi * u)) / 2, final = floor * lr,
                                  u = (t - warmup_steps) / (cosine_steps - warmup_steps), within [0, 1]

    The rate never reaches 0, because the quasi-global difference divides by it.

    The paper's CIFAR schedule for n = 16: lr 0.8, warm-up from 0.1 over 5 epochs, milestones at epochs 150
    and 225, decay 0.1. A peak at or below `warmup_from` has no warm-up (the released code).
    """

    lr: float
    warmup_steps: int = 0
    warmup_from: float = 0.1
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    cosine_steps: int | None = None
    floor: float = 0.01

    def __post_init__(self) -> None:
        _require(self.lr > 0 and math.isfinite(self.lr), "lr", "a positive number", self.lr)
        _require(self.warmup_steps >= 0, "warmup_steps", "0 or more", self.warmup_steps)
        _require(self.warmup_from > 0, "warmup_from", "a positive number", self.warmup_from)
        _require(
            list(self.milestones) == sorted(set(self.milestones)) and all(m > 0 for m in self.milestones),
            "milestones",
            "steps in increasing order",
            self.milestones,
        )
        _require(0 < self.decay <= 1, "decay", "a number in (0, 1]", self.decay)
        _require(0 < self.floor <= 1, "floor", "a number in (0, 1]", self.floor)
        if self.cosine_steps is not None:
            _require(not self.milestones, "milestones", "none with a cosine", self.milestones)
            _require(
                self.cosine_steps > self.warmup_steps,
                "cosine_steps",
                f"more than warmup_steps ({self.warmup_steps})",
                self.cosine_steps,
            )

    def __call__(self, step: int) -> float:
        """Learning rate of step `step` (from 0)."""
        if step < self.warmup_steps and self.lr > self.warmup_from:
            return self.warmup_from + (self.lr - self.warmup_from) * step / self.warmup_steps
        if self.cosine_steps is not None:
            u = (step - self.warmup_steps) / (self.cosine_steps - self.warmup_steps)
            u = min(1.0, max(0.0, u))
            final = self.floor * self.lr
            return final + (self.lr - final) * (1 + math.cos(math.pi * u)) / 2
        return self.lr * self.decay ** sum(step >= m for m in self.milestones)

    def steps(self, round: int, local_steps: int) -> tuple[float, ...]:
        """Learning rates of the local steps of one round."""
        first = round * local_steps
        return tuple(self(first + h) for h in range(local_steps))

    def describe(self) -> str:
        """Canonical text, in which settings that change no rate do not appear."""
        parts = [f"lr={float(self.lr)}"]
        if self.warmup_steps and self.lr > self.warmup_from:
            parts.append(f"warmup_from={float(self.warmup_from)} over {self.warmup_steps}")
        if self.cosine_steps is not None:
            parts.append(f"cosine {self.warmup_steps}..{self.cosine_steps} floor={float(self.floor)}")
        if self.milestones:
            parts.append(f"decay={float(self.decay)} at {' '.join(map(str, self.milestones))}")
        return ", ".join(parts)


def constant(lr: float) -> Schedule:
    """The same rate in every step."""
    return Schedule(lr)


def milestones(lr: float, at: Sequence[int], decay: float = 0.1, warmup_steps: int = 0) -> Schedule:
    """Divide by `1/decay` at the given steps."""
    return Schedule(lr, warmup_steps=warmup_steps, milestones=tuple(at), decay=decay)


def cosine(lr: float, steps: int, warmup_steps: int = 0, floor: float = 0.01) -> Schedule:
    """Half a cosine from `lr` down to `floor * lr` over `steps` steps."""
    return Schedule(lr, warmup_steps=warmup_steps, cosine_steps=steps, floor=floor)


def paper_schedule(
    kind: Literal["cifar", "imagenet", "text"],
    n: int,
    samples: int,
    batch_size: int | None = None,
    epochs: int | None = None,
    factor: float | None = None,
) -> Schedule:
    """The learning rates of the paper's experiments (paper-protocol, section 5) in steps of one agent.

        "cifar"     300 epochs of batches of 32, peak / 10 from 1/2 and / 100 from 3/4 of them
        "imagenet"  90 epochs of batches of 64, / 10, / 100 and / 1000 from 1/3, 2/3 and 8/9 of them
        "text"      1e-5 * factor throughout, factor 1 unless given

    The peak of the first two is 0.1 * batch_size / 64 * factor, factor n unless given (as published), reached
    from 0.1 over 5 epochs if it is above. `samples` are those of all n agents; an epoch is
    `epoch_steps(n, samples, batch_size)` steps, and decays begin with an epoch.
    """
    if kind == "text":
        return Schedule(1e-5 * (1.0 if factor is None else factor))
    fractions = PAPER_DECAYS[kind]
    batch_size = PAPER_BATCHES[kind] if batch_size is None else batch_size
    epochs = PAPER_EPOCHS[kind] if epochs is None else epochs
    epoch = epoch_steps(n, samples, batch_size)
    return Schedule(
        0.1 / 64 * batch_size * (n if factor is None else factor),
        warmup_steps=5 * epoch,
        warmup_from=0.1,
        milestones=tuple(epoch * math.floor(part * epochs + 0.5) for part in fractions),
    )


def epoch_steps(n: int, samples: int, batch_size: int) -> int:
    """Mini-batches in one pass over an agent's block of floor(samples / n), the last perhaps short."""
    return -(-(samples // n) // batch_size)


def _require(holds: bool, key: str, expected: str, found: object) -> None:
    if not holds:
        raise ConfigError(f"expected {expected}, found {found}", key=f"schedule.{key}")
