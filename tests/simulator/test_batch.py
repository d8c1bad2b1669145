"""Several runs as one: each as it would be alone."""

import pytest
import torch

from p2pqg.errors import ConfigError, TrainingDiverged
from p2pqg_simulator.batch import Batch
from p2pqg_simulator.engine import Iterate, Simulation
from p2pqg_simulator.simulate import build, settings_from

ROUNDS = 5


def simulation(seed: int = 0, **options: object) -> Simulation:
    common = {"task": "quadratic", "agents": 4, "dtype": "float64", "topology": "ring", "rounds": ROUNDS}
    return build(settings_from(common | {"seed": seed} | options), engine="loop")


def trained(simulation: Simulation, seed: int) -> Iterate:
    *_, last = simulation.train(simulation.start(seed), ROUNDS)
    return last


@pytest.mark.parametrize(
    ("algorithm", "topology"),
    [
        ("qg-dsgdm-n", "ring"),
        ("dsgdm-n-gt", "complete"),
        ("slowmo", "ring"),
        ("sgdm-n", "complete"),
        ("qg-dadam", "one-peer-exponential"),
        ("dsgd", "isolated"),
    ],
)
def test_each_run_is_what_it_would_be_alone(algorithm: str, topology: str) -> None:
    options = {"algorithm": algorithm, "topology": topology}
    cases = [(0, 0.1), (1, 0.1), (1, 0.02)]
    batch = Batch([simulation(seed, lr=lr, **options) for seed, lr in cases], [seed for seed, _ in cases])
    together = trained(batch, 0)
    for r, (seed, lr) in enumerate(cases):
        alone = trained(simulation(seed, lr=lr, **options), seed)
        part = batch.part(together, r)
        torch.testing.assert_close(part.x, alone.x, rtol=1e-12, atol=1e-12)
        assert part.state.keys() == alone.state.keys()
        assert torch.equal(part.sent, alone.sent)
        assert (part.round, part.lr) == (alone.round, alone.lr)
        assert part.loss == pytest.approx(alone.loss, rel=1e-12)


def test_schedules_and_samples_are_each_run_s_own() -> None:
    own = [
        {"lr": 0.1, "milestones": (2,), "weighting": "samples"},
        {"lr": 0.05, "milestones": (3, 4), "weighting": "samples"},
    ]
    options = {"task": "digits", "alpha": 0.5, "partition": "dirichlet-plain", "dtype": "float64"}
    batch = Batch([simulation(**options, **each) for each in own], [0, 0])
    together = trained(batch, 0)
    for r, each in enumerate(own):
        alone = trained(simulation(**options, **each), 0)
        torch.testing.assert_close(batch.part(together, r).x, alone.x, rtol=1e-10, atol=1e-10)


def test_a_run_that_diverges_is_named_and_can_be_left_out() -> None:
    lrs = (0.05, 1e200, 0.1)
    batch = Batch([simulation(lr=lr, algorithm="dsgd") for lr in lrs], [0, 0, 0])
    iterate = batch.start()
    caught = None
    while caught is None:
        try:
            iterate = batch.advance(iterate)
        except TrainingDiverged as error:
            caught = error
    assert {agent // 4 for agent in caught.agents} == {1}
    rest = Batch([batch.runs[0], batch.runs[2]], [0, 0])
    *_, last = rest.train(batch.only([0, 2], iterate), ROUNDS)
    for r, lr in enumerate((0.05, 0.1)):
        alone = trained(simulation(lr=lr, algorithm="dsgd"), 0)
        torch.testing.assert_close(rest.part(last, r).x, alone.x, rtol=1e-12, atol=1e-12)


def test_runs_that_differ_in_more_are_refused() -> None:
    with pytest.raises(ConfigError, match="same algorithm"):
        Batch([simulation(algorithm="dsgd"), simulation(algorithm="dsgdm")], [0, 0])
    with pytest.raises(ConfigError, match="same n"):
        Batch([simulation(), simulation(agents=5)], [0, 0])
