"""Was this record among the victim's? Likelihood ratios against reference networks.

The attack is LiRA (Carlini et al., "Membership inference attacks from first principles", S&P 2022) in a
form for few references and many looks. Its measure of how well a model knows a record is

    phi = log(p / (1 - p)),  p = exp(-loss),

and the attacker looks in every round: at the level, phi of the model it sees, and at the gain, what that is
above phi of the attacker's own model before the round, which shows what the victim just learned. Means over
the halves of training make F = 4 features of a record. From K reference networks, in a random half of which
the record was the victim's, come Gaussians of these features for members and for others; the score is
log N(phi; in) - log N(phi; out).

Decisions: means are the record's own, drawn towards "difficulty of the record plus the common effect of
membership" as by `PRIOR` more references, since a mean over ten networks is noisy; covariances are common to
all records, as LiRA's authors do for few references. Records are drawn for the victim independently in each
network, so that scores of a network that never saw any record are fair coins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, vmap

from p2pqg import seeds
from p2pqg.privacy.task import private
from p2pqg.tasks.partition import Indices
from p2pqg.tasks.supervised import Batch, SupervisedTask

from .views import Networks

HALVES = 2
PRIOR = 4.0
"""References that the common effect counts for."""
FALSE_POSITIVES = 0.01
RESAMPLES = 1000
CONFIDENCE = 0.95
FEWEST_LOSS = 1e-9
"""Losses below count as this, so that phi stays finite."""

Array = NDArray[np.float64]
Members = NDArray[np.bool_]


@dataclass(frozen=True)
class Success:
    """How well scores tell members from others, each with a 95 % bootstrap interval: the area under the ROC
    curve (0.5 is chance), and the share of members found at 1 % false alarms (0.01 is chance)."""

    auc: float
    auc_interval: tuple[float, float]
    tpr: float
    tpr_interval: tuple[float, float]

    def numbers(self) -> dict[str, Any]:
        """For a record."""
        return asdict(self)


def halves(networks: int, records: int, seed: int) -> Members:
    """Which records `[networks, records]` are the victim's: a random half in each network."""
    member = np.zeros((networks, records), dtype=np.bool_)
    for k, row in enumerate(member):
        chance = seeds.numpy_generator(seed, "audit members", round=k)
        row[chance.permutation(records)[: records // 2]] = True
    return member


def with_share(task: SupervisedTask, share: Batch) -> SupervisedTask:
    """The task of an agent that holds another share, and is otherwise the same."""
    return SupervisedTask(
        task.make_module,
        share,
        task.test,
        agent=task.agent,
        seed=task.seed,
        batch_size=task.batch_size,
        loss=task.loss,
        total_samples=task.total_samples,
        transform=task.transform,
        test_batch_size=task.test_batch_size,
    )


def taken(batch: Batch, which: Indices | Members) -> Batch:
    """Some samples of a batch, by position or by mask."""
    chosen = torch.from_numpy(which)
    return batch[0][chosen], batch[1][chosen]


class Examiner:
    """phi of `records`, as `task` scores them, under models `[..., d]`. Raises `ConfigError` for a task whose
    records cannot be scored one by one."""

    def __init__(self, task: SupervisedTask, records: Batch) -> None:
        self.task = private(task)
        inputs, self.targets = records
        self.inputs = inputs if task.transform is None else task.transform(inputs, None)

    @torch.no_grad()
    def __call__(self, models: Tensor) -> Array:
        """`[K, d]` to `[K, records]`."""
        self.task.module.eval()
        losses = torch.stack([self._losses(x) for x in models]).double().clamp(min=FEWEST_LOSS)
        phi: Array = (-losses - torch.log(-torch.expm1(-losses))).numpy()
        return phi

    def _losses(self, x: Tensor) -> Tensor:
        outputs = functional_call(self.task.module, self.task.spec.views(x), (self.inputs,))
        each = vmap(lambda output, target: self.task.loss(output[None], target[None]))
        losses: Tensor = each(outputs, self.targets)
        return losses


def watch(
    networks: Networks, views: Mapping[str, Tensor], attacker: int, examine: Examiner
) -> dict[str, Array]:
    """Train the networks, and look through each view `[n]` at every round: features `[K, records, F]`."""
    looks: dict[str, list[Array]] = {name: [] for name in views}
    for before, sent in networks.rounds():
        known = examine(before[:, attacker])
        for name, weights in views.items():
            level = examine(torch.einsum("n,knd->kd", weights.to(sent), sent))
            looks[name].append(np.stack([level, level - known], axis=-1))
    return {name: summarised(own) for name, own in looks.items()}


def summarised(looks: Sequence[Array]) -> Array:
    """Means over the halves of training: `[K, records, 2]` a round to `[K, records, F]`."""
    halves = np.array_split(np.stack(looks), min(HALVES, len(looks)))
    return np.concatenate([half.mean(0) for half in halves], axis=-1)


def likelihood_ratios(target: Array, references: Array, member: Members) -> Array:
    """log N(phi; in) - log N(phi; out) of each record, `[R]`: of `target: [R, F]`, given what reference
    networks `[K, R, F]` show in which the records were `member: [K, R]`, or not."""
    seen = member[..., None]
    inside, outside = seen.sum(0), (~seen).sum(0)
    mean_in = (references * seen).sum(0) / np.maximum(inside, 1)
    mean_out = (references * ~seen).sum(0) / np.maximum(outside, 1)
    effect = (mean_in - mean_out)[((inside > 0) & (outside > 0))[:, 0]].mean(0)
    difficulty = (references - effect * seen).mean(0)
    score = np.zeros(len(target))
    for sign, count, mean, prior, rows in (
        (1, inside, mean_in, difficulty + effect, member),
        (-1, outside, mean_out, difficulty, ~member),
    ):
        centre = (count * mean + PRIOR * prior) / (count + PRIOR)
        rest = (references - centre)[rows]
        covariance = rest.T @ rest / len(rest) + 1e-9 * np.eye(rest.shape[1])
        away = target - centre
        score -= (
            sign * (np.linalg.slogdet(covariance)[1] + (away @ np.linalg.inv(covariance) * away).sum(1)) / 2
        )
    return score


def leave_one_out(features: Array, member: Members) -> Array:
    """Each network in turn is the target and the others are references: scores `[K, R]`."""
    others = [np.arange(len(features)) != k for k in range(len(features))]
    return np.stack(
        [likelihood_ratios(features[k], features[rest], member[rest]) for k, rest in enumerate(others)]
    )


def success(scores: Array, member: Members, seed: int = 0) -> Success:
    """Over all scores `[units, ...]`; whole units, drawn with replacement, make the intervals."""

    def interval(statistic: Callable[[Array, Members], float]) -> tuple[float, float]:
        chance = seeds.numpy_generator(seed, "audit bootstrap")
        found = []
        for _ in range(RESAMPLES):
            drawn = chance.integers(len(scores), size=len(scores))
            if member[drawn].any() and not member[drawn].all():
                found.append(statistic(scores[drawn], member[drawn]))
        low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return float(low), float(high)

    return Success(auc(scores, member), interval(auc), found_at(scores, member), interval(found_at))


def auc(scores: Array, member: Members) -> float:
    """P[a member's score is above a non-member's], ties counted half."""
    others = np.sort(scores[~member])
    below, up_to = (np.searchsorted(others, scores[member], side) for side in ("left", "right"))
    return float((below + up_to).mean() / 2 / len(others))


def found_at(scores: Array, member: Members, false_positives: float = FALSE_POSITIVES) -> float:
    """Share of members above the least threshold that at most so large a share of non-members exceeds."""
    others = np.sort(scores[~member])
    threshold = others[len(others) - 1 - int(false_positives * len(others))]
    return float((scores[member] > threshold).mean())
