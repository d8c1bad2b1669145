"""A quadratic for every agent: the test problem whose answer is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from p2pqg import seeds
from p2pqg.errors import ConfigError
from p2pqg.flat import Spec
from p2pqg.tasks.base import Buffers, Evaluation, LocalGradient, TaskContext


@dataclass(frozen=True, eq=False)
class QuadraticTask:
    """f_i(x) = (x - b_i)ᵀ A_i (x - b_i) / 2, with A_i: [d, d] symmetric positive definite.

    All agents together minimise the mean f of the f_i, whose optimum is (sum_i A_i)⁻¹ sum_i A_i b_i.
    `evaluate` gives f(x). The gradient is A_i (x - b_i) plus `noise` times a standard normal vector drawn
    from ``(seed, "gradient noise", agent, step)``.
    """

    A: Tensor  # [d, d]
    b: Tensor  # [d]
    mean_hessian: Tensor  # [d, d]
    x_star: Tensor  # [d]
    least: float
    agent: str
    agents: int
    seed: int
    noise: float = 0.0

    @property
    def spec(self) -> Spec:
        return Spec(("x",), (tuple(self.b.shape),), self.b.dtype)

    @property
    def samples(self) -> int:
        return 1

    @property
    def total_samples(self) -> int:
        return self.agents

    @property
    def steps_per_epoch(self) -> int:
        return 1

    def init(self, seed: int) -> Tensor:
        return torch.randn(
            len(self.b), dtype=torch.float64, generator=seeds.generator(seed, "init")
        ).to(self.b.dtype)  # fmt: skip

    def buffers(self) -> Buffers:
        return {}

    def gradient(self, x: Tensor, buffers: Buffers, step: int) -> LocalGradient:
        deviation = x - self.b
        g = self.A @ deviation
        loss = deviation @ g / 2
        if self.noise:
            random = seeds.generator(self.seed, "gradient noise", self.agent, step)
            g = g + self.noise * torch.randn(len(g), dtype=torch.float64, generator=random).to(g)
        return LocalGradient(g, loss, buffers)

    def full_gradient(self, x: Tensor, buffers: Buffers, step: int) -> Tensor:
        """Without the noise."""
        return self.A @ (x - self.b)

    def evaluate(self, x: Tensor, buffers: Buffers) -> Evaluation:
        deviation = x - self.x_star
        return Evaluation(
            float(deviation @ self.mean_hessian @ deviation / 2) + self.least, None, self.agents
        )

    def optimum(self) -> Tensor:
        """The x `[d]` that minimises the mean of all agents' functions."""
        return self.x_star.clone()


def make_task(context: TaskContext) -> QuadraticTask:
    """Options: `d` parameters (10); `heterogeneity`, the standard deviation of the b_i about a common point
    (1.0; 0 gives every agent the same minimiser); `condition`, the ratio of the largest to the smallest
    eigenvalue of every A_i, of which the largest is 1 (10.0); `noise` of the gradient (0.0)."""
    chosen = context.settings(d=10, heterogeneity=1.0, condition=10.0, noise=0.0)
    for key, least in {"d": 1, "heterogeneity": 0, "condition": 1, "noise": 0}.items():
        if not chosen[key] >= least:
            raise ConfigError(f"expected {least} or more, found {chosen[key]}", key=f"task.options.{key}")
    A, b = _coefficients(
        context.seed, context.agents, chosen["d"], chosen["heterogeneity"], chosen["condition"]
    )
    mean_hessian = A.mean(0)
    x_star = torch.linalg.solve(mean_hessian, (A @ b[..., None])[..., 0].mean(0))
    deviation = x_star - b
    least_value = torch.einsum("ni,nij,nj->n", deviation, A, deviation).mean() / 2
    return QuadraticTask(
        A=A[context.index].to(context.dtype),
        b=b[context.index].to(context.dtype),
        mean_hessian=mean_hessian.to(context.dtype),
        x_star=x_star.to(context.dtype),
        least=float(least_value),
        agent=context.agent,
        agents=len(context.agents),
        seed=context.seed,
        noise=chosen["noise"],
    )


@lru_cache(maxsize=4)
def _coefficients(
    seed: int, agents: tuple[str, ...], d: int, heterogeneity: float, condition: float
) -> tuple[Tensor, Tensor]:
    """A: [n, d, d] with eigenvalues spaced evenly in the logarithm, in bases that differ between agents,
    and b: [n, d]; float64."""
    eigenvalues = torch.logspace(0, 1, d, base=1 / condition, dtype=torch.float64)
    centre = torch.randn(d, dtype=torch.float64, generator=seeds.generator(seed, "quadratic"))
    A, b = [], []
    for agent in agents:
        random = seeds.generator(seed, "quadratic", agent)
        basis, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=random))
        A.append(basis * eigenvalues @ basis.T)
        b.append(centre + heterogeneity * torch.randn(d, dtype=torch.float64, generator=random))
    return torch.stack(A), torch.stack(b)
