"""The paper's figures on vectors, its partitions and its abstract: what the pictures are to show."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from p2pqg import algorithms, topology
from p2pqg.errors import ConfigError
from p2pqg_simulator import experiments
from p2pqg_simulator.descent import descend
from p2pqg_simulator.experiments import figure1, figure2, figure4
from p2pqg_simulator.experiments.base import Plan
from p2pqg_simulator.experiments.records import SHIPPED, Record, Records

Array = NDArray[np.float64]
VECTORS = ["figure1", "figure2", "figure3", "figure4", "theory-speedup", "theory-d2", "abstract"]


@pytest.mark.parametrize("name", VECTORS)
def test_shipped_records_are_complete_and_render(name: str) -> None:
    experiment = experiments.load(name)
    records = tuple(Records(SHIPPED, experiment.records))
    assert not experiment.pending(Plan(), records)
    assert all(record.made["dirty"] is False for record in records)
    report = experiment.report(records)
    for picture in report.pictures:
        assert f"]({picture})" in report.markdown


def test_a_report_waits_for_all_cases() -> None:
    experiment = experiments.load("figure2")
    some = [Record("figure2", "full", case, {}) for case in figure2.cases(Plan())[1:]]
    assert "yet" in experiment.report(some).markdown


@pytest.mark.parametrize("name", VECTORS)
def test_a_smoke_run_shows_nothing(name: str) -> None:
    experiment = experiments.load(name)
    cases = experiment.pending(Plan(scale="smoke"), ())
    smoke = [Record(experiment.records, "smoke", case, {}) for case in cases]
    assert "smoke run shows nothing" in experiment.report(smoke).markdown


# Figures 1, 8 and 9


@pytest.mark.parametrize(("name", "n"), [("cifar10", 16), ("agnews", 16), ("cifar10", 32)])
def test_dots_count_equal_blocks(name: str, n: int) -> None:
    result = figure1.compute(Plan(scale="smoke"), {"dataset": name, "n": n, "alpha": 1})
    held = np.array(result["counts"])
    assert (held.sum(0) == sum(figure1.CLASS_SIZES[name]) // n).all()
    shares = held / held.sum(0)
    assert result["largest_share"] == pytest.approx(shares.max(0).mean())
    assert result["distance"] == pytest.approx(np.abs(shares - 1 / len(held)).sum(0).mean() / 2)


def test_two_classes_cannot_be_shared_out_at_alpha_a_tenth() -> None:
    result = figure1.compute(Plan(scale="smoke"), {"dataset": "sst2", "n": 16, "alpha": 0.1})
    assert "no draw" in result["impossible"]


def test_labels_come_from_a_file_the_user_gives(tmp_path: Path) -> None:
    file = tmp_path / "imagenet32-labels.txt"
    file.write_text("0\n2\n1\n1\n")
    labels, source = figure1.find_labels("imagenet32", Plan(data=tmp_path))
    assert labels.tolist() == [0, 2, 1, 1]
    assert source == file.name
    file.write_text("0\n-1\n")
    with pytest.raises(ConfigError, match="whole number from 0"):
        figure1.find_labels("imagenet32", Plan(data=tmp_path))
    with pytest.raises(ConfigError, match="cifar10"):
        figure1.find_labels("cifar10", Plan(data=tmp_path))


# Figures 2 and 11


def heavy_ball(local: bool, beta: float, rounds: int) -> tuple[Array, Array]:
    """Local models after their step `[rounds, 2, 2]` and their averages `[rounds, 2]`."""
    minima, x = np.array([[0.0, 5.0], [4.0, 0.0]]), np.zeros(2)
    m, mean_moved, stepped, averages = np.zeros((2, 2)), np.zeros(2), [], []
    for _ in range(rounds):
        g = (x - minima) / np.linalg.norm(x - minima, axis=1, keepdims=True)
        m = beta * (m if local else mean_moved) + g
        after = x - figure2.LR * m
        mean_moved = beta * mean_moved + (1 - beta) * (x - after.mean(0)) / figure2.LR
        x = after.mean(0)
        stepped.append(after)
        averages.append(x)
    return np.array(stepped), np.array(averages)


@pytest.mark.parametrize(("method", "local"), [("dsgdm", True), ("qg-dsgdm", False)])
def test_paths_of_two_agents(method: str, local: bool) -> None:
    found = figure2.compute(Plan(), {"method": method, "beta": 0.9})
    stepped, averages = heavy_ball(local, 0.9, figure2.ROUNDS)
    np.testing.assert_allclose(found["local"], stepped, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found["averaged"], averages, rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def pulled() -> dict[tuple[str, float | None], dict[str, float]]:
    return {(c["method"], c["beta"]): dict(figure2.compute(Plan(), c)) for c in figure2.cases(Plan())}


def test_local_momentum_tears_models_apart_and_quasi_global_momentum_does_not(pulled) -> None:  # type: ignore[no-untyped-def]
    apart = [pulled["dsgdm", beta]["spread"] for beta in figure2.FACTORS]
    assert apart == sorted(apart)
    assert apart[2] > 9 * pulled["dsgd", None]["spread"]
    for beta in figure2.FACTORS:
        assert pulled["qg-dsgdm", beta]["spread"] <= 2 * figure2.LR + 1e-12
    assert pulled["qg-dsgdm", 0.9]["crossings"] < pulled["dsgdm", 0.9]["crossings"]
    assert pulled["qg-dsgdm", 0.9]["astray"] < pulled["dsgdm", 0.9]["astray"]
    assert pulled["qg-dsgdm", 0.99]["arrival"] > pulled["qg-dsgdm", 0.9]["arrival"]


def test_but_the_average_is_one_workers_with_heavy_ball_momentum() -> None:
    start, graph = torch.zeros(2, 2, dtype=torch.float64), topology.build("complete", 2)
    paths = [
        torch.stack([step.x[0] for step in islice(descend(method, graph, start, figure2.pull, 0.3), 60)])
        for method in (algorithms.build("dsgdm"), algorithms.build("sgdm"))
    ]
    torch.testing.assert_close(*paths, rtol=0, atol=1e-12)


# Figures 4, 15 and 16


def valley_slope(p: Array) -> Array:
    x, y = p
    return np.array([-4 * x * (y - x**2) + 200 * (x - 1), 2 * (y - x**2)])


def wave_slope(p: Array) -> Array:
    x, y = p
    u, ex = np.exp(x) * (y - np.sin(8 * x)), np.exp(x)
    return np.array([np.tanh(x) + 10 * np.tanh(u) * (u - ex * 8 * np.cos(8 * x)), 10 * np.tanh(u) * ex])


@pytest.mark.parametrize(
    ("name", "slope", "start"), [("valley", valley_slope, (2, 0)), ("wave", wave_slope, (-2, 0))]
)
@pytest.mark.parametrize("method", ["sgdm", "qg-sgdm"])
def test_paths_of_one_worker(name: str, slope, start: tuple[float, float], method: str) -> None:  # type: ignore[no-untyped-def]
    plan, beta, lr = Plan(scale="smoke"), 0.9, figure4.LR[name]
    found = figure4.compute(plan, {"function": name, "beta": beta, "start": list(start), "method": method})
    x, m, path = np.array(start, dtype=float), np.zeros(2), [np.array(start, dtype=float)]
    for _ in range(len(found["path"]) - 1):
        u = beta * m + slope(x)
        m = u if method == "sgdm" else beta * m + (1 - beta) * u
        x = x - lr * u
        path.append(x)
    np.testing.assert_allclose(found["path"], path, rtol=0, atol=1e-4)


def test_functions_have_their_minima_and_do_not_overflow() -> None:
    for name, f in figure4.FUNCTIONS.items():
        at = torch.tensor([figure4.MINIMUM[name]], dtype=torch.float64, requires_grad=True)
        value = f(at).sum()
        value.backward()
        assert value.item() == pytest.approx(figure4.LEAST[name])
        assert at.grad is not None
        assert float(at.grad.abs().max()) < 1e-12
    assert torch.isfinite(figure4.wave(torch.tensor([9.0, 50.0], dtype=torch.float64)))


def test_quasi_global_momentum_oscillates_less_everywhere() -> None:
    results = {figure4.key(r.case): r.result for r in Records(SHIPPED, "figure4")}
    for (function, beta, start, method), result in results.items():
        if method == "qg-sgdm":
            assert result["crossings"] < results[function, beta, start, "sgdm"]["crossings"]
            assert result["length"] < results[function, beta, start, "sgdm"]["length"]


def test_and_arrives_later() -> None:
    results = {figure4.key(r.case): r.result for r in Records(SHIPPED, "figure4")}
    for start in figure4.STARTS["valley"]:
        slower, faster = (results["valley", 0.9, start, method] for method in ("qg-sgdm", "sgdm"))
        assert slower["excess"] > faster["excess"]
    assert results["wave", 0.99, (-2, 0), "qg-sgdm"]["path"][-1][0] < -1
    assert results["wave", 0.99, (-2, 0), "sgdm"]["excess"] < 1e-3


# Theorem 3.1 and footnotes 8 and 9 in the shipped records


def test_the_speed_up_is_linear_where_the_report_says_so() -> None:
    from p2pqg_simulator.experiments.theory_speedup import AGENTS, EPSILONS, KEYS, work

    found = {tuple(r.case[key] for key in KEYS): r.result for r in Records(SHIPPED, "theory-speedup")}
    for function, (_, small) in EPSILONS.items():
        flat = [work(found, (function, "bounded", "complete", n), small) for n in AGENTS]
        assert max(flat) < 1.35 * min(flat)
        ring = [work(found, (function, "bounded", "ring", n), small) for n in AGENTS]
        assert max(ring[:4]) < 1.25 * min(ring[:4])
        assert all(w is None or w > 1.9 * flat[0] for w in ring[5:])
        heavy = [work(found, (function, "0.9", "complete", n), small) for n in AGENTS]
        assert heavy[-1] > 3 * heavy[0]
        heavy_ring = [work(found, (function, "0.9", "ring", n), small) for n in AGENTS[:6]]
        assert heavy_ring == pytest.approx(heavy[:6], rel=0.1)


def test_d2_breaks_at_the_decay_and_d2_plus_does_not() -> None:
    found = {
        (r.case["n"], r.case["noise"], r.case["method"]): r.result for r in Records(SHIPPED, "theory-d2")
    }
    for n in (15, 16):
        assert found[n, 1.0, "d2"]["last_gradient"] > 50 * found[n, 1.0, "d2-plus"]["last_gradient"]
        assert found[n, 1.0, "d2-plus"]["last_gradient"] == pytest.approx(
            found[n, 1.0, "dsgd"]["last_gradient"], rel=0.1
        )
    at_the_edge, inside = (found[n, 1.0, "d2-plus"]["last_consensus"] for n in (16, 15))
    assert at_the_edge > 5 * inside


# The abstract


def test_gains_of_the_published_tables() -> None:
    (record,) = Records(SHIPPED, "abstract")
    gains = {
        (g["model"], g["topology"], g["n"], g["alpha"], g["competitor"]): g for g in record.result["gains"]
    }
    assert len(gains) == len(record.result["gains"])
    assert gains["resnet20-gn", "social", 32, 0.1, "dsgdm-n"]["gain"] == pytest.approx(83.60 - 72.02)
    assert gains["resnet20x2-gn", "ring", 16, 0.1, "dsgdm-n"]["gain"] is None  # diverged
    assert gains["resnet20-evonorm", "ring", 16, 0.1, "d2"]["gain"] == pytest.approx(82.20 - 49.80)
    assert gains["resnet18-gn", "ring", 16, 0.1, "dsgdm-n"]["relative"] == pytest.approx(21.0)
    assert gains["distilbert-base-uncased", "ring", 16, 0.1, "dadam"]["gain"] == pytest.approx(1.04)
    assert not any(g["method"] == "qg-dadam" and g["competitor"] != "dadam" for g in gains.values())
    primary = [g["gain"] for g in gains.values() if g["primary"] and g["gain"] is not None]
    assert 0 < min(primary) < 1
    assert 11 < max(primary) < 12
