"""The methods that the paper compares with follow their published formulas, step by step, in float64.

`matrix_reference` has them from the sources; limit cases tie them to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import dense_reference as dense
import matrix_reference as matrix
import numpy as np
import pytest
import torch
from dense_world import GRAPHS, SCHEDULES, assert_same, train

from p2pqg import algorithms, topology
from p2pqg.errors import ConfigError
from p2pqg.schedules import Schedule, constant

Reference = Callable[..., Iterator[np.ndarray]]

REFERENCES: dict[str, Reference] = {
    "qg-dsgdm": partial(matrix.qg_dsgdm, nesterov=False),
    "qg-dsgdm-n": partial(matrix.qg_dsgdm, nesterov=True),
    "qg-sgdm": partial(matrix.qg_dsgdm, nesterov=False, single=True),
    "qg-sgdm-n": partial(matrix.qg_dsgdm, nesterov=True, single=True),
    "qhm": matrix.qhm,
    "dadam": matrix.dadam,
    "qg-dadam": matrix.qg_dadam,
    "adam": partial(matrix.dadam, central=True),
    "dsgd-gt": matrix.gradient_tracking,
    "dsgdm-n-gt": partial(matrix.gradient_tracking, beta=0.9),
    "d2": matrix.d2,
    "d2-plus": matrix.d2_plus,
    "dmsgd-option-1": partial(matrix.dmsgd, option=1),
    "dmsgd-option-2": partial(matrix.dmsgd, option=2),
    "dsgdm-buffer-ring": partial(matrix.buffer, everywhere=False, nesterov=False),
    "dsgdm-n-buffer-ring": partial(matrix.buffer, everywhere=False, nesterov=True),
    "dsgdm-n-buffer-complete": partial(matrix.buffer, everywhere=True, nesterov=True),
    "dsgdm-n-gradients-ring": matrix.gradients_mixed,
    "slowmo": matrix.slowmo,
    "mimelite": matrix.mimelite,
}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *(
        (name, {"tau": tau, "form": form, "mu": 0.7})
        for name in ("qg-dsgdm", "qg-dsgdm-n", "qg-sgdm-n")
        for tau in (2, 3)
        for form in ("released", "printed")
    ),
    *(("qg-dadam", {"form": form, "beta2": 0.99}) for form in ("released", "printed", "v2")),
    ("dadam", {"beta1": 0.7, "beta2": 0.9, "eps": 1e-3}),
    *((f"dmsgd-option-{i}", {"beta": 0.8, "mu": mu}) for i in (1, 2) for mu in (0.0, 0.2, 1.0)),
    ("dsgdm-buffer-ring", {"step_with": "own"}),
    ("dsgdm-n-buffer-ring", {"step_with": "own", "beta": 0.6}),
    ("dsgdm-n-buffer-complete", {"step_with": "own"}),
    ("slowmo", {"tau": 5, "slow_beta": 0.4, "slow_lr": 0.8}),
    ("slowmo", {"tau": 3, "form": "printed"}),
    ("mimelite", {"beta": 0.5}),
    ("qhm", {"beta": 0.9, "nu": 0.4}),
]
COVERED_ELSEWHERE = {"dsgd", "dsgdm", "dsgdm-n", "sgd", "sgdm", "sgdm-n"}  # test_algorithm_formulas


def ours(
    name: str, problem: dense.Quadratics, graph: str, rates: list[Any], **hyper_parameters: Any
) -> list[np.ndarray]:
    algorithm = algorithms.build(name, local_steps=len(rates[0]), **hyper_parameters)
    return train(algorithm, problem, GRAPHS[graph][0], rates)


def reference(
    name: str,
    problem: dense.Quadratics,
    graph: str,
    rates: list[Any],
    weight_decay: float = 0.0,
    **hyper: Any,
) -> list[np.ndarray]:
    return list(REFERENCES[name](matrix.Run(problem, GRAPHS[graph][1], rates, weight_decay), **hyper))


def test_no_method_is_without_a_reference() -> None:
    assert REFERENCES.keys() | COVERED_ELSEWHERE == algorithms.ALGORITHMS.keys()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("graph", ["ring of 5", "exponential of 6", "complete of 4"])
@pytest.mark.parametrize("name", REFERENCES)
def test_trajectory_equals_the_formulas(name: str, graph: str, schedule: str) -> None:
    assert_equals_the_reference(name, {}, graph, schedule)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_trajectory_with_options_equals_the_formulas(name: str, options: dict[str, Any]) -> None:
    assert_equals_the_reference(name, options, "ring of 5", "warm-up and decay")


def assert_equals_the_reference(name: str, options: dict[str, Any], graph: str, schedule: str) -> None:
    problem = dense.Quadratics(GRAPHS[graph][0].n, sigma=0.3)
    # The reference of quasi-global Adam has one local step.
    for local_steps in (1, 3) if allows_local_steps(name) and name != "qg-dadam" else (1,):
        rates = [SCHEDULES[schedule].steps(t, local_steps) for t in range(24 // local_steps)]
        setting = (name, problem, graph, rates)
        found = ours(*setting, weight_decay=0.03, **options)
        assert_same(found, reference(*setting, weight_decay=0.03, **options), tolerance=1e-11)
        assert np.abs(found[-1] - problem.start).max() > 0.01


def allows_local_steps(name: str) -> bool:
    return algorithms.build(name).multi_step


@pytest.mark.parametrize("name", [name for name in REFERENCES if not allows_local_steps(name)])
def test_what_exchanges_single_gradients_takes_one_local_step(name: str) -> None:
    with pytest.raises(ConfigError, match="expected 1 with this method, found 2"):
        algorithms.build(name, local_steps=2)


# ---- limit cases

RATES = [Schedule(0.05, milestones=(10, 20)).steps(t, 1) for t in range(30)]
NOISY = dense.Quadratics(5, sigma=0.3)
RING = "ring of 5"


@pytest.mark.parametrize("form", ["released", "printed"])
@pytest.mark.parametrize("name", ["qg-dsgdm", "qg-dsgdm-n"])
def test_tau_of_one_is_algorithm_1(name: str, form: str) -> None:
    theirs = dense.train(name, dense.Quadratics(5), GRAPHS[RING][1], RATES)
    assert_same(ours(name, dense.Quadratics(5), RING, RATES, tau=1, form=form), theirs)


def test_the_first_refresh_of_the_released_form_is_one_displacement_over_tau() -> None:
    """And Algorithm 3's comes tau - 1 rounds later: until then m_hat is 0 and both are gossip of SGD."""
    plain = ours("dsgd", NOISY, RING, RATES)
    printed = ours("qg-dsgdm", NOISY, RING, RATES, tau=4, form="printed")
    assert_same(printed[:4], plain[:4])
    assert np.abs(printed[4] - plain[4]).max() > 1e-3
    released = ours("qg-dsgdm", NOISY, RING, RATES, tau=4)
    assert_same(released[:1], plain[:1])
    assert np.abs(released[1] - plain[1]).max() > 1e-4


@pytest.mark.parametrize(("name", "beta"), [("dsgd-gt", 0.0), ("dsgdm-n-gt", 0.9)])
def test_tracking_equal_data_is_no_tracking(name: str, beta: float) -> None:
    """Gradients that are equal on all agents are their own mean, so y is g."""
    equal = dense.Quadratics(5)
    equal.A[:], equal.b[:] = equal.A[0], equal.b[0]
    plain = ours("dsgdm-n", equal, RING, RATES, beta=beta)
    assert_same(ours(name, equal, RING, RATES), plain)


def test_tracking_over_all_follows_the_mean_gradient_a_round_late() -> None:
    """On the complete graph ybar is the mean of the gradients of the round before, so that the *mean* of
    the agents takes exact steps: x_bar' = x_bar - lr mean g."""
    problem = dense.Quadratics(4, sigma=0.3)
    run = matrix.Run(problem, [dense.complete(4)], RATES)
    X = problem.start
    for t, after in enumerate(ours("dsgd-gt", problem, "complete of 4", RATES)):
        expected = X.mean(0) - RATES[t][0] * run.G(X, t).mean(0)
        np.testing.assert_allclose(after.mean(0), expected, rtol=0, atol=1e-12)
        X = after


@pytest.mark.parametrize("name", ["dsgd-gt", "d2", "d2-plus"])
def test_corrected_methods_find_the_optimum_of_all(name: str) -> None:
    """At a constant rate and without noise; DSGD stops where agents' gradients pull apart."""
    problem, rates = dense.Quadratics(5), [(0.05,)] * 1500
    optimum = np.linalg.solve(problem.A.sum(0), np.einsum("nij,nj->i", problem.A, problem.b))
    assert np.abs(ours(name, problem, RING, rates)[-1] - optimum).max() < 1e-6
    assert np.abs(ours("dsgd", problem, RING, rates)[-1] - optimum).max() > 1e-2


@pytest.mark.parametrize("name", ["d2", "d2-plus", "dsgd-gt"])
def test_without_edges_and_at_a_constant_rate_corrections_cancel(name: str) -> None:
    """W = I: 2 x - x_prev - lr (g - g_prev) is x - lr g, and y is g."""
    problem, rates = dense.Quadratics(3, sigma=0.3), [(0.05,)] * 20
    assert_same(ours(name, problem, "alone", rates), ours("dsgd", problem, "alone", rates), 1e-11)


def test_d2_and_d2_plus_differ_from_the_first_decay_on() -> None:
    """Footnotes 8 and 9: D2 repeats the old, ten times larger, step once more."""
    rates = [constant(0.05).steps(t, 1) for t in range(10)] + [(0.005,)] * 2
    plain, plus = (ours(name, NOISY, RING, rates) for name in ("d2", "d2-plus"))
    assert_same(plain[:10], plus[:10], 1e-11)
    W, moved = GRAPHS[RING][1][0], plain[9] - plain[8]
    np.testing.assert_allclose(plain[10] - plus[10], 0.9 * W @ moved, rtol=0, atol=1e-11)


@pytest.mark.parametrize("option", [1, 2])
def test_dmsgd_is_algorithm_7_with_its_rate_restored(option: int) -> None:
    rates = [(0.05,)] * 30
    theirs = matrix.dmsgd_7(matrix.Run(NOISY, GRAPHS[RING][1], rates), option, beta=0.8, mu=0.3)
    assert_same(ours(f"dmsgd-option-{option}", NOISY, RING, rates, beta=0.8, mu=0.3), list(theirs), 1e-11)


@pytest.mark.parametrize("option", [1, 2])
def test_dmsgd_alone_is_heavy_ball(option: int) -> None:
    """x' = x - lr g + beta (x - x_prev), whatever mu."""
    rates = [(0.05,)] * 20
    problem = dense.Quadratics(3, sigma=0.3)
    heavy_ball = ours("dsgdm", problem, "alone", rates, beta=0.8)
    assert_same(ours(f"dmsgd-option-{option}", problem, "alone", rates, beta=0.8), heavy_ball, 1e-11)


def test_slowmo_that_is_never_slow_is_its_base() -> None:
    base = ours("dsgdm-n", NOISY, RING, RATES)
    assert_same(ours("slowmo", NOISY, RING, RATES, tau=1000, form="printed"), base)


def test_slowmo_without_slow_momentum_averages_now_and_then() -> None:
    """With slow_beta 0 and slow_lr 1, z - lr (z - mean) / lr is the mean."""
    run = ours("slowmo", NOISY, RING, RATES, tau=4, slow_beta=0.0)
    spread = [float(np.abs(X - X.mean(0)).max()) for X in run]
    assert [t for t, s in enumerate(spread) if s < 1e-13] == list(range(0, 30, 4))


def test_sharing_is_pointless_where_there_is_nobody_or_everybody() -> None:
    problem = dense.Quadratics(3, sigma=0.3)
    alone = ours("dsgdm-n", problem, "alone", RATES)
    for name in ("dsgdm-n-buffer-ring", "dsgdm-n-gradients-ring"):
        assert_same(ours(name, problem, "alone", RATES), alone)
    problem = dense.Quadratics(4, sigma=0.3)
    everybody = ours("sgdm-n", problem, "complete of 4", RATES)
    for name in ("dsgdm-n-buffer-ring", "dsgdm-n-buffer-complete", "dsgdm-n-gradients-ring"):
        assert_same(ours(name, problem, "complete of 4", RATES), everybody)


def test_buffers_averaged_over_all_are_buffers_mixed_on_the_complete_graph() -> None:
    problem = dense.Quadratics(4, sigma=0.3)
    for step_with in ("mixed", "own"):
        mixed, averaged = (
            ours(f"dsgdm-n-buffer-{over}", problem, "complete of 4", RATES, step_with=step_with)
            for over in ("ring", "complete")
        )
        assert_same(mixed, averaged)


@pytest.mark.parametrize("form", ["released", "printed", "v2"])
def test_without_memory_quasi_global_adam_is_adam_without_memory(form: str) -> None:
    """beta1 = beta2 = 0: sign descent, where eps is far below."""
    forgetful = {"beta1": 0.0, "beta2": 0.0, "eps": 1e-14}
    found = ours("qg-dadam", NOISY, RING, RATES, form=form, **forgetful)
    assert_same(found, ours("dadam", NOISY, RING, RATES, **forgetful), 1e-9)


def test_quasi_global_adams_first_steps() -> None:
    """v2 starts as DAdam; the released form takes a step 1 / (1 - beta1) as long, because it counts the
    gradient fully and corrects for a start at 0 all the same; nothing corrects the printed one."""
    start = NOISY.start
    first = {
        form: ours("qg-dadam", NOISY, RING, RATES[:1], form=form, eps=1e-16)[0] - start
        for form in ("released", "printed", "v2")
    }
    adam = ours("dadam", NOISY, RING, RATES[:1], eps=1e-16)[0] - start
    np.testing.assert_allclose(first["v2"], adam, rtol=0, atol=1e-12)
    np.testing.assert_allclose(first["released"], 10 * adam, rtol=0, atol=1e-11)
    np.testing.assert_allclose(first["printed"], 0.1 / np.sqrt(0.001) * adam, rtol=1e-9)


def test_adam_of_one_agent_is_torchs() -> None:
    problem = dense.Quadratics(1)
    found = train(algorithms.build("adam", weight_decay=0.02), problem, topology.build("ring", 1), RATES)
    x = torch.from_numpy(problem.start[0]).clone().requires_grad_()
    A, b = torch.from_numpy(problem.A[0]), torch.from_numpy(problem.b[0])
    adam = torch.optim.Adam([x], weight_decay=0.02)
    theirs = []
    for (lr,) in RATES:
        adam.param_groups[0]["lr"] = lr
        adam.zero_grad()
        ((x - b) @ A @ (x - b) / 2).backward()
        adam.step()
        theirs.append(x.detach().numpy()[None].copy())
    assert_same(found, theirs)


def test_dadam_without_edges_is_everyones_own_adam() -> None:
    problem = dense.Quadratics(3)
    together = ours("dadam", problem, "alone", RATES)
    for i in range(3):
        alone = dense.Quadratics(3)
        alone.A, alone.b, alone.start = problem.A[i : i + 1], problem.b[i : i + 1], problem.start[i : i + 1]
        single = train(algorithms.build("adam"), alone, topology.build("ring", 1), RATES)
        assert_same([X[i : i + 1] for X in together], single)


@pytest.mark.parametrize(("beta", "mu"), [(0.9, None), (0.6, 0.95), (0.5, 0.0)])
def test_quasi_global_momentum_of_a_single_worker_is_qhm(beta: float, mu: float | None) -> None:
    """Section 4.2, with b = mu + (1 - mu) beta: QHM's nu is 1 - mu (1 - beta) / b, its rate
    lr / (1 - beta)."""
    single = ours("qg-sgdm", NOISY, RING, RATES, beta=beta, mu=mu)
    mu = beta if mu is None else mu
    b = mu + (1 - mu) * beta
    larger = [(lr / (1 - beta),) for (lr,) in RATES]
    assert_same(single, ours("qhm", NOISY, RING, larger, beta=b, nu=1 - mu * (1 - beta) / b))


@pytest.mark.parametrize("name", ["qg-dsgdm", "qg-dsgdm-n"])
def test_one_agents_decentralised_method_is_the_single_worker_method(name: str) -> None:
    problem, graph = dense.Quadratics(1, sigma=0.3), topology.build("ring", 1)
    one, other = (
        train(algorithms.build(each), problem, graph, RATES) for each in (name, name.replace("-d", "-"))
    )
    assert_same(one, other)


def test_mimelite_without_momentum_and_one_step_is_centralised() -> None:
    assert_same(ours("mimelite", NOISY, RING, RATES, beta=0.0), ours("sgd", NOISY, RING, RATES))


def test_mimelites_rate_is_larger_by_its_momentum() -> None:
    """Without noise the gradients on all samples are those of the step, so s is SGDm's buffer times
    1 - beta."""
    problem = dense.Quadratics(5)
    larger = [(10 * lr,) for (lr,) in RATES]
    assert_same(ours("mimelite", problem, RING, larger), ours("sgdm", problem, RING, RATES))
