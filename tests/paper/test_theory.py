"""Appendix C and footnotes 8 and 9 as identities of the algorithms, and Theorem 3.1's experiment against
exact expectations."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from p2pqg import topology
from p2pqg.algorithms import D2, Algorithm, D2Plus, QGDSGDm
from p2pqg_simulator.descent import Step, descend
from p2pqg_simulator.experiments import theory_speedup

N, D, ROUNDS = 7, 4, 40
RANDOM = np.random.default_rng(3)
START = torch.from_numpy(RANDOM.normal(size=(N, D)))
GRADIENTS = torch.from_numpy(RANDOM.normal(size=(ROUNDS, N, D)))
"""Whatever they are: the identities hold for all gradients."""


def run(algorithm: Algorithm, lr: float = 0.3, graph: str = "ring") -> list[Step]:
    steps = descend(algorithm, topology.build(graph, N), START, lambda x, t: GRADIENTS[t], lr)
    return list(islice(steps, ROUNDS))


@pytest.mark.parametrize("graph", ["ring", "one-peer-exponential"])
@pytest.mark.parametrize(("beta", "mu"), [(0.9, 0.9), (0.9, 0.5), (0.01, 0.8)])
def test_matrix_form_8(beta: float, mu: float, graph: str) -> None:
    eta, X, M, eye = 0.3, START, torch.zeros_like(START), torch.eye(N, dtype=torch.float64)
    for t, step in enumerate(run(QGDSGDm(beta=beta, mu=mu), eta, graph)):
        W, G = topology.build(graph, N).graph(t).matrix(), GRADIENTS[t]
        M_new = (
            (mu * eye + (1 - mu) * beta * W) @ M + (1 - mu) * W @ G + (1 - mu) / eta * (eye - W) @ X
        )  # fmt: skip
        X = W @ (X - eta * (beta * M + G))
        M = M_new
        torch.testing.assert_close(step.x, X, rtol=0, atol=1e-12)
        torch.testing.assert_close(step.state["m_hat"], M, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("beta", "mu"), [(0.9, 0.9), (0.9, 0.5), (0.01, 0.8)])
def test_the_mean_model_follows_9_and_its_error_lemma_c6(beta: float, mu: float) -> None:
    """And e is -eta beta / ((1 - mu) (1 - beta)) times the mean buffer, which the paper does not say."""
    eta = 0.3
    x, m, virtual = START.mean(0), torch.zeros(D, dtype=torch.float64), START.mean(0)
    e = torch.zeros_like(x)
    for t, step in enumerate(run(QGDSGDm(beta=beta, mu=mu), eta)):
        g = GRADIENTS[t].mean(0)
        x, m = x - eta * (beta * m + g), (1 - (1 - mu) * (1 - beta)) * m + (1 - mu) * g
        virtual = virtual - eta / (1 - beta) * g
        e = (1 - (1 - mu) * (1 - beta)) * e - eta * beta / (1 - beta) * g
        torch.testing.assert_close(step.x.mean(0), x, rtol=0, atol=1e-11)
        torch.testing.assert_close(step.state["m_hat"].mean(0), m, rtol=0, atol=1e-11)
        torch.testing.assert_close(virtual - step.x.mean(0), e, rtol=0, atol=1e-10)
        torch.testing.assert_close(e, -eta * beta / ((1 - mu) * (1 - beta)) * m, rtol=0, atol=1e-10)


DECAY = 15


def rate(t: int) -> float:
    return 0.3 if t < DECAY else 0.03


def moved_beside_the_gradient(algorithm: Algorithm) -> Iterator[tuple[int, Tensor]]:
    """x' - x + lr g of the means."""
    before = START.mean(0)
    steps = descend(algorithm, topology.build("ring", N), START, lambda x, t: GRADIENTS[t], rate)
    for t, step in enumerate(islice(steps, ROUNDS)):
        after = step.x.mean(0)
        yield t, after - before + rate(t) * GRADIENTS[t].mean(0)
        before = after


def test_a_decay_gives_the_mean_of_d2_a_constant_push() -> None:
    push = -(0.3 - 0.03) * GRADIENTS[DECAY - 1].mean(0)
    for t, beside in moved_beside_the_gradient(D2()):
        torch.testing.assert_close(beside, torch.zeros_like(push) if t < DECAY else push, rtol=0, atol=1e-10)


def test_the_mean_of_d2_plus_takes_gradient_steps_only() -> None:
    for _, beside in moved_beside_the_gradient(D2Plus()):
        torch.testing.assert_close(beside, torch.zeros_like(beside), rtol=0, atol=1e-10)


def test_d2_comes_to_rest_at_nine_times_the_gradient_of_the_decay() -> None:
    curvature = torch.linspace(0.5, 1, D, dtype=torch.float64)
    steps = descend(D2(), topology.build("complete", 4), START[:4], lambda x, t: curvature * x, rate)
    means = [step.x.mean(0) for step in islice(steps, 2000)]
    at_the_decay = curvature * means[DECAY - 2]  # the model that round DECAY - 1 started from
    torch.testing.assert_close(curvature * means[-1], -9 * at_the_decay, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("graph", "n"), [("complete", 1), ("ring", 4), ("complete", 4)])
@pytest.mark.parametrize("beta", [0.05, 0.9])
def test_average_squared_gradients_are_the_expected_ones(graph: str, n: int, beta: float) -> None:
    """On quadratics, coordinate by coordinate: (x, m) of all agents follow a linear map with noise, so their
    mean and covariance are known exactly."""
    rounds, lr, mu = 50, 0.1 * (1 - beta), beta
    network = topology.build(graph, n)
    W, eye = network.graph(0).matrix().numpy(), np.eye(n)
    side = np.zeros(n) if n == 1 else np.repeat([1.0, -1.0], n // 2)
    expected = 0.0
    for a in np.logspace(0, -1, 10):
        # x' = W (x - lr (beta m + g)), m' = mu m + (1 - mu) (x - x') / lr, g = K x + c + noise
        K, c = np.diag(a * (1 + side / 2)), side / np.sqrt(10)
        to_x = np.hstack([W - lr * W @ K, -lr * beta * W])
        to_m = np.hstack([(1 - mu) / lr * eye, mu * eye]) - (1 - mu) / lr * to_x
        push = np.concatenate([-lr * W @ c, (1 - mu) * W @ c])
        spread = np.vstack([-lr * W, (1 - mu) * W]) * theory_speedup.SIGMA
        step, mean = np.vstack([to_x, to_m]), np.concatenate([np.ones(n), np.zeros(n)])
        covariance = np.zeros((2 * n, 2 * n))
        average = np.concatenate([np.full(n, 1 / n), np.zeros(n)])
        for _ in range(rounds):
            expected += a**2 * ((average @ mean) ** 2 + average @ covariance @ average) / rounds
            mean, covariance = step @ mean + push, step @ covariance @ step.T + spread @ spread.T
    found = theory_speedup.squared_gradient("quadratic", network, beta, lr, rounds, runs=1000)
    assert found == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("function", theory_speedup.FUNCTIONS)
@pytest.mark.parametrize("n", [1, 2, 8])
def test_agents_differ_but_their_mean_function_does_not(function: str, n: int) -> None:
    x = torch.linspace(-2, 2, 10, dtype=torch.float64).expand(n, 1, 10)
    f = theory_speedup.FUNCTIONS[function]
    own = theory_speedup.gradients(function, n)(x.clone())
    at = x[0, 0].clone().requires_grad_()
    f.value(at).sum().backward()
    torch.testing.assert_close(own.mean(0)[0], at.grad, rtol=0, atol=1e-12)
    assert (n == 1) is bool(torch.allclose(own[0], own[-1]))
    assert float(f.value(torch.zeros(10, dtype=torch.float64)).sum()) == 0


def test_rounds_are_interpolated_on_a_line_in_logarithms() -> None:
    rounds = [16, 32, 64, 128]
    averages = [3 / t**0.5 for t in rounds]
    for epsilon in (0.5, 0.4, 0.3):
        assert theory_speedup.rounds_to(epsilon, rounds, averages) == pytest.approx((3 / epsilon) ** 2)
    assert theory_speedup.rounds_to(1.0, rounds, averages) == 16
    assert theory_speedup.rounds_to(0.1, rounds, averages) is None


def test_the_rate_is_the_theorems() -> None:
    """4 n (f(x0) - f*) / (L sigma^2 T) for the quadratic: f(x0) is half the trace."""
    start = np.logspace(0, -1, 10).sum() / 2
    rate = theory_speedup.learning_rate("quadratic", n=4, beta=0.9, rounds=10_000)
    assert rate == pytest.approx(0.1 * np.sqrt(4 * 4 * start / (1.5 * 40 * 10_000)))
    assert theory_speedup.learning_rate("quadratic", n=64, beta=0.5, rounds=16) == pytest.approx(0.5 / 6)
