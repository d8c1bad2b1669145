"""The stacked simulation is what n agents would do."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from sample_tasks import normalised, quadratics, supervised
from torch import Tensor, nn

from p2pqg import algorithms, topology
from p2pqg.errors import ConfigError, TrainingDiverged
from p2pqg.schedules import constant, milestones
from p2pqg.tasks.base import Buffers, LocalGradient
from p2pqg.tasks.quadratic import QuadraticTask
from p2pqg_simulator import Iterate, Simulation, consensus_distance


def simulation(tasks, graph="ring", algorithm="qg-dsgdm-n", lr=0.05, **options) -> Simulation:
    hyper = {
        key: options.pop(key) for key in ("local_steps", "beta", "weight_decay", "tau") if key in options
    }
    return Simulation(
        tasks,
        topology.build(graph, len(tasks)),
        algorithms.build(algorithm, **hyper),
        lr if callable(lr) else constant(lr),
        **options,
    )


def trained(simulation: Simulation, rounds: int) -> Iterate:
    *_, last = simulation.train(simulation.start(0), rounds)
    return last


@pytest.mark.parametrize("algorithm", ["sgd", "sgdm", "sgdm-n", "dsgd", "dsgdm", "dsgdm-n"])
@pytest.mark.parametrize("local_steps", [1, 3])
def test_one_agent_is_torch_sgd(algorithm: str, local_steps: int) -> None:
    (task,) = tasks = supervised([21])
    schedule = milestones(0.2, at=[5, 9], warmup_steps=3)
    last = trained(
        simulation(tasks, "isolated", algorithm, schedule, weight_decay=1e-2, local_steps=local_steps),
        12 // local_steps,
    )
    model = task.make_module()
    start = task.spec.views(task.init(0))
    model.load_state_dict(start)
    momentum = 0.0 if algorithm.endswith("sgd") else 0.9
    optimiser = torch.optim.SGD(
        model.parameters(), lr=1.0, momentum=momentum, weight_decay=1e-2, nesterov=algorithm.endswith("-n")
    )
    for step in range(12):
        inputs, targets = task.batch(step)
        optimiser.param_groups[0]["lr"] = schedule(step)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimiser.step()
    expected = nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.testing.assert_close(last.x[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("algorithm", ["dsgdm-n", "qg-dsgdm-n"])
def test_nobody_talks_is_everybody_alone(algorithm: str) -> None:
    tasks = supervised([9, 20, 15])
    together = trained(simulation(tasks, "isolated", algorithm, engine="loop"), 6)
    for i, task in enumerate(tasks):
        alone = trained(simulation([task], "isolated", algorithm, engine="loop"), 6)
        assert torch.equal(together.x[i], alone.x[0])


@pytest.mark.parametrize(
    ("decentralised", "centralised"), [("dsgd", "sgd"), ("dsgdm", "sgdm"), ("dsgdm-n", "sgdm-n")]
)
def test_complete_graph_is_centralised_for_equal_starts(decentralised: str, centralised: str) -> None:
    tasks = supervised([16, 16, 16, 16], batch_size=16)
    ours = trained(simulation(tasks, "complete", decentralised), 8).x
    reference = trained(simulation(tasks, "complete", centralised), 8).x
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)
    assert consensus_distance(reference) == 0


def test_rounds_use_the_graphs_in_turn() -> None:
    tasks = quadratics(8)
    one_peer = simulation(tasks, "one-peer-exponential", "dsgd", lr=0.1)
    iterates = [one_peer.start(0), *one_peer.train(one_peer.start(0), 7)]
    matrices = [graph.matrix() for graph in one_peer.topology.graphs]
    for t, (before, after) in enumerate(pairwise(iterates)):
        g = torch.stack([task.A @ (x - task.b) for task, x in zip(tasks, before.x, strict=True)])
        torch.testing.assert_close(after.x, matrices[t % 3] @ (before.x - 0.1 * g), rtol=0, atol=1e-12)


def test_weighting_by_samples_follows_the_pooled_gradient() -> None:
    sizes = [3, 8, 21]
    tasks = supervised(sizes, batch_size=100)
    pooled = tuple(torch.cat(parts) for parts in zip(*(task.train for task in tasks), strict=True))
    weighted = simulation(tasks, "complete", "dsgd", weighting="samples")
    start = weighted.start(0)
    after = weighted.advance(start)
    model = tasks[0].make_module()
    model.load_state_dict(tasks[0].spec.views(start.x[0].clone()))
    nn.functional.cross_entropy(model(pooled[0]), pooled[1]).backward()
    g = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(after.x[1], start.x[1] - 0.05 * g, rtol=0, atol=1e-12)
    uniform = simulation(tasks, "complete", "dsgd").advance(start)
    assert not torch.allclose(uniform.x, after.x, atol=1e-6)


def test_buffers_stay_with_their_agent() -> None:
    tasks = supervised([10, 12, 11], module=normalised)
    run = simulation(tasks, "complete", "dsgd")
    before = run.start(0)
    for after in run.train(before, 3):
        for i, task in enumerate(tasks):
            own = task.gradient(before.x[i], before.buffers[i], before.round).buffers
            assert all(torch.equal(after.buffers[i][name], own[name]) for name in own)
        before = after
    means = [own["1.running_mean"] for own in before.buffers]
    assert not torch.allclose(means[0], means[1], atol=1e-3)


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_divergence_names_agent_and_round(engine: str) -> None:
    tasks = supervised([8, 8, 8, 8])
    run = simulation(tasks, "ring", "dsgd", engine=engine)
    tasks[2].train[0].mul_(float("inf"))
    with pytest.raises(TrainingDiverged, match=r"^agent-002: round 1: the loss is not finite"):
        trained(run, 5)


def test_an_exploding_learning_rate_is_noticed() -> None:
    tasks = quadratics(3)
    with pytest.raises(TrainingDiverged, match=r"agent-000.*round \d+: the (loss|model) is not finite"):
        trained(simulation(tasks, "ring", "dsgd", lr=1e6), 1000)


def test_a_huge_but_finite_model_is_not_a_divergence() -> None:
    class Indifferent(QuadraticTask):
        """The same value everywhere."""

        def gradient(self, x: Tensor, buffers: Buffers, step: int) -> LocalGradient:
            return LocalGradient(torch.zeros_like(x), x.new_zeros(()), buffers)

    tasks = [Indifferent(**vars(task)) for task in quadratics(3)]
    run = simulation(tasks, "isolated", "dsgd")
    large = replace(run.start(0), x=torch.full((3, 10), 1e308, dtype=torch.float64))
    assert large.x.sum().isinf()
    assert torch.equal(run.advance(large).x, large.x)


def test_scores_come_when_asked_for_and_at_the_end() -> None:
    run = simulation(quadratics(4), "ring", "dsgd")
    iterates = list(run.train(run.start(0), 7, eval_every=3))
    assert [iterate.round for iterate in iterates] == [1, 2, 3, 4, 5, 6, 7]
    assert [iterate.round for iterate in iterates if iterate.scores] == [3, 6, 7]
    assert all(iterate.lr == 0.05 and iterate.loss is not None for iterate in iterates)


def test_bytes_count_what_neighbours_would_get() -> None:
    d = 10 * 8
    assert trained(simulation(quadratics(5), "ring", "dsgd"), 3).sent.tolist() == [2 * d * 3] * 5
    assert trained(simulation(quadratics(4), "star", "dsgd"), 2).sent.tolist() == [6 * d, 2 * d, 2 * d, 2 * d]
    assert trained(simulation(quadratics(4), "ring", "sgdm-n"), 2).sent.tolist() == [0] * 4


@pytest.mark.parametrize("graph", ["ring", "star", "complete", "one-peer-exponential", "one-peer-hypercube"])
def test_gossip_only_rounds_reach_agreement_and_keep_the_mean(graph: str) -> None:
    run = simulation(quadratics(8), graph, "qg-dsgdm-n")
    last = trained(run, 10)
    *_, agreed = run.agree(last, tolerance=1e-6, max_rounds=1000)
    difference = max(
        float((agreed.x[i] - agreed.x[j]).norm() / agreed.x[j].norm()) for i in range(8) for j in range(i)
    )
    assert difference <= 8 * 1e-6
    assert agreed.agreement.agreed
    assert (agreed.round - last.round) % agreed.agreement.window == 0
    assert agreed.scores is not None
    torch.testing.assert_close(agreed.x.mean(0), last.x.mean(0), rtol=0, atol=1e-13)
    assert agreed.state is last.state


def test_gossip_only_rounds_are_bounded_and_sometimes_pointless() -> None:
    ring = simulation(quadratics(8), "ring", "dsgd")
    last = trained(ring, 5)
    bounded = list(ring.agree(last, tolerance=1e-12, max_rounds=7))
    assert [iterate.round for iterate in bounded] == list(range(6, 13))
    assert bounded[-1].scores
    assert list(ring.agree(last, tolerance=1e-3, max_rounds=0)) == []
    for graph, algorithm in (("isolated", "dsgd"), ("ring", "sgdm-n")):
        pointless = simulation(quadratics(8), graph, algorithm)
        assert list(pointless.agree(trained(pointless, 2), tolerance=1e-3, max_rounds=100)) == []


def test_tasks_must_fit_the_topology_and_each_other() -> None:
    with pytest.raises(ConfigError, match="expected 3 agents"):
        Simulation(quadratics(3), topology.build("ring", 4), algorithms.build("dsgd"), constant(0.1))
    with pytest.raises(ConfigError, match="same model"):
        simulation([*quadratics(3), *supervised([5])], "ring", "dsgd")


def test_an_exact_average_of_a_network_counts_as_an_exchange() -> None:
    d = 10 * 8
    slow = trained(simulation(quadratics(4), "star", "slowmo", tau=2), 4)  # averages in rounds 0 and 2
    assert slow.sent.tolist() == [6 * 3 * d] + [6 * d] * 3
    mimelite = trained(simulation(quadratics(4), "star", "mimelite"), 3)  # two vectors over every edge
    assert mimelite.sent.tolist() == [3 * 2 * 3 * d] + [3 * 2 * d] * 3


def test_mimelite_uses_gradients_on_all_own_samples() -> None:
    """Without momentum from before: x' = x - lr (1 - beta) mean g on mini-batches, s = (1 - beta) mean g on
    all samples, of which the last mini-batch has fewer than the others."""
    tasks = supervised([21, 8], batch_size=8)
    federated = simulation(tasks, "star", "mimelite", beta=0.5, weight_decay=0.1, local_steps=2)
    start = federated.start(0)
    after = federated.advance(start)
    model = tasks[0].make_module()
    full = []
    for task in tasks:
        model.load_state_dict(task.spec.views(start.x[0]))
        model.zero_grad()
        nn.functional.cross_entropy(model(task.train[0]), task.train[1]).backward()
        full.append(torch.cat([p.grad.flatten() for p in model.parameters()]) + 0.1 * start.x[0])
    torch.testing.assert_close(after.state["s"][1], torch.stack(full).mean(0) / 2, rtol=0, atol=1e-12)


def test_a_task_without_full_gradients_is_refused() -> None:
    class Bare:
        def __init__(self, task) -> None:
            for name in (
                "spec",
                "samples",
                "total_samples",
                "steps_per_epoch",
                "init",
                "buffers",
                "gradient",
            ):
                setattr(self, name, getattr(task, name))

    bare = [Bare(task) for task in quadratics(2)]
    with pytest.raises(ConfigError, match="needs a task with `full_gradient`"):
        simulation(bare, "star", "mimelite")
    simulation(bare, "star", "dsgd").start(0)
