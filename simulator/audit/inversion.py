"""What did the records look like? By matching the gradient that two successive models show.

Where an agent takes one step in a round, the model it starts from and the one it sends are a linear function
of one gradient, whatever the method of momentum, and everything else in it is public. In the first round the
start is the common initial model, so a single message is enough. The gradient is then inverted: the images
are sought whose gradient it is (Zhu, Liu & Han, "Deep leakage from gradients", NeurIPS 2019).

Decisions: the search is for the most probable images, not for the best match (Balunović et al., "Bayesian
framework for gradient leakage", ICLR 2022). The attacker takes the error of its gradient as Gaussian with a
known deviation (that of the privacy noise) and images as Gaussian with the mean and covariance of other
images of the same kind, which it has. So it minimises, over images z in the coordinates of that covariance,

    ||g(z) - g||^2 / (2 deviation^2) + ||z||^2 / 2

by L-BFGS in float64, where g(z) is clipped as the victim clips. With much noise this falls back to the mean
image, the baseline, and never below by fitting noise. Labels and the number of images are taken as known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from p2pqg import seeds
from p2pqg.algorithms import Algorithm, Answer, Effect, Gradient, Mix, State, drive
from p2pqg.errors import ConfigError
from p2pqg.privacy.clipping import clipped_sum, of_sample
from p2pqg.tasks.supervised import SupervisedTask

LEAST_ERROR = 1e-3
"""Deviation of a noiseless gradient's error that the attacker assumes, relative to the gradient's own root
mean square: with less, the search is badly conditioned."""
LEAST_SPREAD = 1e-3
"""Least deviation of an image's coordinate, for directions in which the attacker's own images do not vary."""


def gradient_between(algorithm: Algorithm, x: Tensor, state: State, lr: float, message: Tensor) -> Tensor:
    """The gradient `[d]` with which a round that began at `x: [d]` with `state` led to `message: [d]`.

    Messages are linear in the gradient, so two trial gradients tell the rest. Raises `ConfigError` for a
    method whose messages are not (Adam), or that takes several gradients before it sends.
    """

    def sent(trial: Tensor) -> Tensor:
        found: list[Tensor] = []
        asked = 0

        def answer(effect: Effect) -> Answer:
            nonlocal asked
            if isinstance(effect, Gradient):
                asked += not found
                return (trial,)
            if isinstance(effect, Mix) and not found:
                found.append(effect.vectors[0].clone())
            return tuple(v.clone() for v in effect.vectors)

        drive(algorithm.round(x, state, [lr] * algorithm.local_steps), answer)
        if asked != 1 or not found:
            raise ConfigError("expected a method with one gradient before its exchange", key="algorithm.name")
        return found[0]

    at_zero, at_one, at_two = (sent(torch.full_like(x, value)) for value in (0.0, 1.0, 2.0))
    slope = at_one - at_zero
    if not torch.allclose(at_two - at_one, slope, rtol=1e-3):
        raise ConfigError("expected a method whose messages are linear in the gradient", key="algorithm.name")
    return (message - at_zero) / slope


@dataclass(frozen=True, eq=False)
class Prior:
    """Images as the attacker expects them: mean `[p]`, and deviations `[k]` along the rows of `axes: [k, p]`;
    all float64, for images of a `shape` of p pixels with values from `low` to `high`."""

    mean: Tensor
    axes: Tensor
    deviations: Tensor
    shape: tuple[int, ...]
    low: float
    high: float

    @classmethod
    def of(cls, images: Tensor) -> Prior:
        """The prior of images `[samples, *shape]`."""
        flat = images.double().flatten(1)
        mean = flat.mean(0)
        _, values, axes = torch.linalg.svd(flat - mean, full_matrices=False)
        deviations = values / max(1, len(flat) - 1) ** 0.5 + LEAST_SPREAD
        return cls(mean, axes, deviations, tuple(images.shape[1:]), float(flat.min()), float(flat.max()))

    def images(self, z: Tensor) -> Tensor:
        """Coordinates `[b, k]` to images `[b, *shape]`."""
        return (self.mean + (z * self.deviations) @ self.axes).reshape(-1, *self.shape)


def invert(
    task: SupervisedTask,
    x: Tensor,
    g: Tensor,
    labels: Tensor,
    prior: Prior,
    *,
    records: int,
    max_grad_norm: float | None = None,
    deviation: float = 0.0,
    iterations: int = 200,
    seed: int = 0,
) -> Tensor:
    """The most probable images `[len(labels), *shape]` behind the gradient `g: [d]` at `x: [d]`.

    `g` is the sum of their gradients, each clipped to `max_grad_norm` if there is one, divided by `records`,
    with an error of `deviation` in each entry.
    """
    module, spec = task.module.double(), task.spec
    parameters, g = spec.views(x.double()), g.double()

    each = vmap(grad(of_sample(module, task.loss)), in_dims=(None, 0, 0))
    error = max(deviation, LEAST_ERROR * float(g.square().mean().sqrt()))
    chance = seeds.generator(seed, "audit inversion")
    z = 0.1 * torch.randn(len(labels), len(prior.deviations), generator=chance, dtype=torch.float64)
    z.requires_grad_()
    search = torch.optim.LBFGS(
        [z], max_iter=iterations, history_size=50, line_search_fn="strong_wolfe",
        tolerance_grad=1e-12, tolerance_change=1e-14,
    )  # fmt: skip

    def objective() -> Tensor:
        search.zero_grad()
        gradients = each(parameters, prior.images(z), labels)
        if max_grad_norm is None:
            total = {name: part.sum(0) for name, part in gradients.items()}
        else:
            total = clipped_sum(gradients, max_grad_norm)
        away = torch.cat([total[name].flatten() for name in spec.names]) / records - g
        value = away.square().sum() / (2 * error**2) + z.square().sum() / 2
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    search.step(objective)  # type: ignore[no-untyped-call]
    return prior.images(z.detach()).clamp(prior.low, prior.high)


def matched(found: Tensor, images: Tensor) -> Tensor:
    """For each of `images: [b, ...]` one of as many or more `found`, no one twice, so that the squared error
    is least: a batch has no order."""
    errors = (images[:, None].double() - found[None]).flatten(2).square().mean(-1)
    from scipy.optimize import linear_sum_assignment  # what other commands need not load

    _, columns = linear_sum_assignment(errors.numpy())
    return found[torch.from_numpy(columns)]


def psnr(found: Tensor, images: Tensor, span: float) -> Tensor:
    """Peak signal-to-noise ratio 10 log10(span^2 / mean squared error), dB, of each image."""
    return 10 * torch.log10(span**2 / (found - images).flatten(1).square().mean(1))


def recognised(found: Tensor, images: Tensor, others: Tensor) -> Tensor:
    """Whether each of `found` is nearer to its own image than to any of the `others`."""
    own = (found - images).flatten(1).square().sum(1)
    rest = torch.cdist(found.flatten(1), others.double().flatten(1)).min(1).values.square()
    return own < rest


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)
