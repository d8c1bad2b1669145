"""What every algorithm has in common: one definition for any number of agents, and checked settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from p2pqg import algorithms
from p2pqg.algorithms import ALGORITHMS, Algorithm, Answer, Effect, Gradient, Mean, Mix, Norm, State, drive
from p2pqg.errors import ConfigError

N, D, RUNS = 4, 37, 3  # an odd width leaves a tail beside the vector instructions
RATES = [(0.3, 0.2), (0.1, 0.05), (0.02, 0.01)]


def gradient(i: int, x: Tensor) -> Tensor:
    """Of agent i at x: [..., d]; element-wise, so that the shape of a batch cannot matter."""
    return torch.sin(x * (i + 1)) + 0.1 * x


def averaged(rows: Sequence[Tensor], neighbours: Sequence[int]) -> Tensor:
    """Mean of some agents' vectors, summed in the given order."""
    total = torch.zeros_like(rows[0])
    for j in neighbours:
        total = total + rows[j]
    return total / len(neighbours)


def on_the_ring(rows: Sequence[Tensor]) -> list[Tensor]:
    return [averaged(rows, sorted({(i - 1) % N, i, (i + 1) % N})) for i in range(N)]


def over_all(rows: Sequence[Tensor]) -> list[Tensor]:
    return [averaged(rows, range(N))] * N


def answer_stacked(effect: Effect) -> Answer:
    """Requests of all agents at once, agents along the second last axis."""

    def each(vector: Tensor, answer: Callable[[Sequence[Tensor]], list[Tensor]]) -> Tensor:
        return torch.stack(answer(vector.unbind(-2)), dim=-2)

    match effect:
        case Gradient(x):
            return (each(x, lambda rows: [gradient(i, row) for i, row in enumerate(rows)]),)
        case Mix(vectors):
            return tuple(each(v, on_the_ring) for v in vectors)
        case Mean(vectors):
            return tuple(each(v, over_all) for v in vectors)


def answer_separately(effects: Sequence[Effect]) -> list[Answer]:
    """The same kind of request of every single agent."""
    match effects[0]:
        case Gradient():
            return [(gradient(i, effect.x),) for i, effect in enumerate(effects)]  # type: ignore[union-attr]
        case Norm():
            return [effect.answer() for effect in effects]  # type: ignore[union-attr]
        case Mix() | Mean():
            answer = on_the_ring if isinstance(effects[0], Mix) else over_all
            columns = zip(*(effect.vectors for effect in effects), strict=True)  # type: ignore[union-attr]
            return list(zip(*(answer(rows) for rows in columns), strict=True))


def round_of_single_agents(
    algorithm: Algorithm, xs: Sequence[Tensor], states: Sequence[State], lrs: Sequence[float]
) -> tuple[list[Tensor], list[State]]:
    """n programs over `[d]`, each run up to its next request before any is answered."""
    programs = [algorithm.round(x, state, lrs) for x, state in zip(xs, states, strict=True)]
    effects = [next(program) for program in programs]
    finished: list[tuple[Tensor, State]] = []
    while not finished:
        answers = answer_separately(effects)
        effects = []
        for program, answer in zip(programs, answers, strict=True):
            try:
                effects.append(program.send(answer))
            except StopIteration as stop:
                finished.append(stop.value)
    assert len(finished) == N
    return [x for x, _ in finished], [state for _, state in finished]


def built(name: str) -> Algorithm:
    """With two local steps where a method has several, and every period within three rounds."""
    takes = algorithms.hyper_parameters(name)
    steps = 2 if algorithms.build(name).multi_step else 1
    return algorithms.build(
        name, weight_decay=0.01, local_steps=steps, **({"tau": 2} if "tau" in takes else {})
    )


def rates(algorithm: Algorithm) -> list[tuple[float, ...]]:
    """Of three rounds."""
    return [lrs[: algorithm.local_steps] for lrs in RATES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_stacked_agents_are_single_agents_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    algorithm = built(name)
    start = torch.randn(RUNS, N, D, dtype=dtype, generator=torch.Generator().manual_seed(1))
    x, state = start, algorithm.init(start)
    runs_x = [start[r] for r in range(RUNS)]
    runs_state = [algorithm.init(run) for run in runs_x]
    agents_x = [[start[r, i] for i in range(N)] for r in range(RUNS)]
    agents_state = [[algorithm.init(agent) for agent in run] for run in agents_x]
    for lrs in rates(algorithm):
        x, state = drive(algorithm.round(x, state, lrs), answer_stacked)
        for r in range(RUNS):
            runs_x[r], runs_state[r] = drive(
                algorithm.round(runs_x[r], runs_state[r], lrs), answer_stacked
            )  # fmt: skip
            agents_x[r], agents_state[r] = round_of_single_agents(
                algorithm, agents_x[r], agents_state[r], lrs
            )
            assert torch.equal(x[r], runs_x[r])
            for i in range(N):
                assert torch.equal(x[r, i], agents_x[r][i])
                for key, value in agents_state[r][i].items():
                    assert torch.equal(state[key][r, i], value)
    assert not torch.equal(x, start)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_runs_may_differ_in_their_rates(name: str) -> None:
    """A rate `[runs, 1, 1]` is every run with its own number."""
    algorithm = built(name)
    start = torch.randn(RUNS, N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    scale = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    x, state = start, algorithm.init(start)
    for lrs in rates(algorithm):
        each = [lr * scale[:, None, None] for lr in lrs]
        x, state = drive(algorithm.round(x, state, each), answer_stacked)
    for r in range(RUNS):
        one, one_state = start[r], algorithm.init(start[r])
        for lrs in rates(algorithm):
            own = [lr * float(scale[r]) for lr in lrs]
            one, one_state = drive(algorithm.round(one, one_state, own), answer_stacked)
        torch.testing.assert_close(x[r], one, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_round_leaves_its_inputs_as_they_were(name: str) -> None:
    """Between rounds everything is in x and state: the same inputs give the same round again."""
    algorithm = built(name)
    start = torch.randn(N, D, generator=torch.Generator().manual_seed(3))
    first_lrs, lrs, _ = rates(algorithm)
    x, state = drive(algorithm.round(start, algorithm.init(start), first_lrs), answer_stacked)
    kept_x, kept_state = x.clone(), {key: value.clone() for key, value in state.items()}
    first, first_state = drive(algorithm.round(x, state, lrs), answer_stacked)
    assert torch.equal(x, kept_x)
    assert all(torch.equal(state[key], kept_state[key]) for key in state)
    second, second_state = drive(algorithm.round(kept_x, kept_state, lrs), answer_stacked)
    assert torch.equal(first, second)
    assert all(torch.equal(first_state[key], second_state[key]) for key in first_state)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_requests_of_a_round(name: str) -> None:
    """One gradient a local step, each of its own mini-batch; as many vectors in an exchange as declared;
    nothing undeclared."""
    algorithm = built(name)
    start = torch.randn(N, D, generator=torch.Generator().manual_seed(3))
    x, state = start, algorithm.init(start)
    most, means = 0, 0
    for lrs in rates(algorithm):
        requests: list[Effect] = []

        def record(effect: Effect, requests: list[Effect] = requests) -> Answer:
            requests.append(effect)
            return answer_stacked(effect)

        before, (x, state) = x, drive(algorithm.round(x, state, lrs), record)
        steps = [effect.step for effect in requests if isinstance(effect, Gradient) and not effect.full]
        assert steps == list(range(algorithm.local_steps))
        full = [effect.x for effect in requests if isinstance(effect, Gradient) and effect.full]
        assert all(at is before for at in full)
        assert bool(full) == algorithm.needs_full_gradient
        exchanges = [effect for effect in requests if not isinstance(effect, Gradient)]
        most = max(most, *(len(effect.vectors) for effect in exchanges))
        means += sum(isinstance(effect, Mean) for effect in exchanges)
    assert most == algorithm.messages
    assert bool(means) == algorithm.needs_mean


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_model_is_exchanged_where_it_is_said_to_be(name: str) -> None:
    """With hardly a learning rate the model hardly moves; gradients and buffers are elsewhere."""
    algorithm = built(name)
    start = torch.randn(N, D, generator=torch.Generator().manual_seed(3))
    exchanged: list[Tensor] = []

    def record(effect: Effect) -> Answer:
        if not isinstance(effect, Gradient):
            exchanged.append(effect.vectors[0])
        return answer_stacked(effect)

    drive(algorithm.round(start, algorithm.init(start), (1e-6,) * algorithm.local_steps), record)
    models = [bool((v - start).norm() < 1e-3 * start.norm()) for v in exchanged]
    assert (models.index(True) if any(models) else None) == algorithm.model_exchange


@pytest.mark.parametrize(
    ("name", "hyper_parameters", "key", "message"),
    [
        ("dsgdm", {"beta": 1.0}, "algorithm.beta", r"a number in \[0, 1\), found 1.0"),
        ("qg-dsgdm-n", {"beta": -0.1}, "algorithm.beta", "found -0.1"),
        ("qg-dsgdm", {"beta": float("nan")}, "algorithm.beta", "found nan"),
        ("qg-dsgdm", {"mu": 1.0}, "algorithm.mu", "found 1.0"),
        ("dsgd", {"weight_decay": -1e-4}, "algorithm.weight_decay", "0 or more, found -0.0001"),
        ("dsgd", {"weight_decay": float("inf")}, "algorithm.weight_decay", "found inf"),
        ("dsgd", {"local_steps": 0}, "algorithm.local_steps", "1 or more, found 0"),
        ("dsgd", {"beta": 0.5}, "algorithm", "dsgd takes local_steps, weight_decay, found beta"),
        ("sgd", {"beta": 0.5}, "algorithm", "found beta"),
        ("dsgdm", {"mu": 0.5}, "algorithm", "found mu"),
        ("dsgdm-n", {"nesterov": False}, "algorithm", "found nesterov"),
        ("lion", {}, "algorithm.name", "qg-dsgdm-n.*found 'lion'"),
        ("qg-dsgdm", {"tau": 0}, "algorithm.tau", "1 or more, found 0"),
        ("qg-dsgdm", {"tau": 2.5}, "algorithm.tau", "expected int, found 2.5"),
        ("qg-dsgdm", {"mu": "0.9"}, "algorithm.mu", "expected float, found '0.9'"),
        ("qg-dsgdm", {"tau": True}, "algorithm.tau", "expected int, found True"),
        ("qg-dsgdm-n", {"form": "v2"}, "algorithm.form", "released or printed, found v2"),
        ("qg-dadam", {"form": "v1"}, "algorithm.form", "released or printed or v2, found v1"),
        ("dadam", {"beta2": 1.0}, "algorithm.beta2", "found 1.0"),
        ("dadam", {"eps": 0.0}, "algorithm.eps", "a positive number, found 0.0"),
        ("slowmo", {"slow_beta": 1.0}, "algorithm.slow_beta", "found 1.0"),
        ("slowmo", {"slow_lr": 0.0}, "algorithm.slow_lr", "found 0.0"),
        ("dsgdm-buffer-ring", {"step_with": "both"}, "algorithm.step_with", "mixed or own, found both"),
        ("dmsgd-option-1", {"mu": 1.5}, "algorithm.mu", "found 1.5"),
        ("dmsgd-option-1", {"option": 2}, "algorithm", "found option"),
        ("dsgd-gt", {"beta": 0.9}, "algorithm", "found beta"),
        ("qhm", {"nu": -0.1}, "algorithm.nu", "found -0.1"),
        ("mimelite", {"beta": 1}, "algorithm.beta", "found 1"),
    ],
)
def test_bad_settings_are_refused_by_key(
    name: str, hyper_parameters: dict[str, Any], key: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        algorithms.build(name, **hyper_parameters)
    assert caught.value.key == key


def test_none_leaves_the_default() -> None:
    assert algorithms.build("dsgd", beta=None, mu=None) == algorithms.build("dsgd")


def test_description_is_what_a_network_must_agree_on() -> None:
    described = algorithms.build("qg-dsgdm-n", beta=0.8, local_steps=3).describe()
    assert described == {
        "weight_decay": "0.0",
        "local_steps": "3",
        "beta": "0.8",
        "nesterov": "True",
        "mu": "0.8",
        "tau": "1",
        "form": "released",
    }
    assert algorithms.build("qg-dsgdm-n", beta=0.8, mu=0.8, local_steps=3).describe() == described
    assert algorithms.build("dsgdm", beta=0).describe() == algorithms.build("dsgdm", beta=0.0).describe()
    assert algorithms.build("dsgdm").describe() != algorithms.build("dsgdm-n").describe()
