"""The attacks of `p2pqg audit`: they find what is there, and nothing where nothing is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score
from torch import nn

from p2pqg.algorithms import build
from p2pqg.cli.main import cli
from p2pqg.config import SimulationSettings
from p2pqg.errors import ConfigError
from p2pqg.privacy import Secret
from p2pqg.tasks.supervised import SupervisedTask
from p2pqg.topology.named import ring
from p2pqg_simulator.audit import inversion, membership
from p2pqg_simulator.audit.views import MESSAGES, SUMS, Networks, view
from p2pqg_simulator.experiments.records import SHIPPED, Records

SECRET = Secret(bytes(32))
RECORDS, NETWORKS = 24, 8


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 2))


def noise_images(samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images without any rule: what is known of their classes has been learned by heart."""
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 1, 3, 4, generator=chance), torch.randint(2, (samples,), generator=chance)


def settings(**changes: Any) -> SimulationSettings:
    table = {"agents": 4, "rounds": 8, "algorithm": {"local_steps": 4}, "schedule": {"lr": 0.3}}
    return SimulationSettings.model_validate(table | changes)


def attacked(*, never_seen: bool) -> dict[str, membership.Success]:
    """Membership inference on agent 0 of networks that learn noise by heart."""
    candidates, test = noise_images(RECORDS, 1), noise_images(4, 2)
    member = membership.halves(NETWORKS, RECORDS, seed=0)
    networks = []
    for k, row in enumerate(member):
        shares = [noise_images(RECORDS // 2, 10 + 4 * k + i) for i in range(4)]
        if not never_seen:
            own = torch.from_numpy(row)
            shares[0] = candidates[0][own], candidates[1][own]
        networks.append(
            [
                SupervisedTask(network, share, test, agent=f"agent-{i}", seed=0, batch_size=6)
                for i, share in enumerate(shares)
            ]
        )
    run = settings()
    graph = run.graph.graph(0)
    views = {kind: view(graph, 1, 0, kind) for kind in (MESSAGES, SUMS)}
    examine = membership.Examiner(networks[0][0], candidates)
    features = membership.watch(Networks(run, networks, SECRET), views, 1, examine)
    return {
        kind: membership.success(membership.leave_one_out(found, member), member)
        for kind, found in features.items()
    }


def test_members_of_an_overfitted_network_are_found_and_sums_hide_some() -> None:
    found = attacked(never_seen=False)
    assert found[MESSAGES].auc > 0.8
    assert 0.5 < found[SUMS].auc < found[MESSAGES].auc


def test_a_network_that_never_saw_the_records_tells_nothing() -> None:
    for found in attacked(never_seen=True).values():
        assert abs(found.auc - 0.5) < 0.12


def test_scores_of_pure_chance_are_fair_coins() -> None:
    chance = np.random.default_rng(0)
    member = membership.halves(12, 400, seed=1)
    scores = membership.leave_one_out(chance.normal(size=(12, 400, 4)), member)
    assert abs(membership.auc(scores, member) - 0.5) < 0.03


def test_likelihood_ratios_are_those_of_the_gaussians_for_many_references() -> None:
    chance = np.random.default_rng(0)
    member = membership.halves(2000, 6, seed=0)
    references = chance.normal(size=(2000, 6, 1)) + 1.5 * member[..., None]
    target = chance.normal(size=(6, 1))
    found = membership.likelihood_ratios(target, references, member)
    exact = ((target - 0) ** 2 - (target - 1.5) ** 2)[:, 0] / 2
    np.testing.assert_allclose(found, exact, atol=0.2)


def test_measures_of_success() -> None:
    chance = np.random.default_rng(0)
    scores, member = chance.integers(9, size=(5, 40)).astype(float), chance.random((5, 40)) < 0.5
    assert membership.auc(scores, member) == pytest.approx(roc_auc_score(member.ravel(), scores.ravel()))
    others = np.arange(200.0)
    both = np.concatenate([others, [196.5, 198.5, 199.5]])
    truth = np.arange(203) >= 200
    assert membership.found_at(both, truth) == pytest.approx(2 / 3), "two of 200 may be above"


def test_what_is_seen() -> None:
    graph = ring(5).graph(0)
    assert view(graph, 1, 2, MESSAGES).tolist() == [0, 0, 1, 0, 0]
    assert view(graph, 1, 2, SUMS).tolist() == [0.5, 0, 0.5, 0, 0]
    with pytest.raises(ConfigError, match="expected a neighbour of agent 1, found agent 3"):
        view(graph, 1, 3, MESSAGES)


def linear_task(images: torch.Tensor, labels: torch.Tensor) -> SupervisedTask:
    def module() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()

    return SupervisedTask(module, (images, labels), (images, labels), agent="agent-0", seed=0, batch_size=8)


def test_a_single_image_is_read_off_a_linear_layer() -> None:
    image, label = noise_images(1, 5)[0].double(), torch.tensor([2])
    task = linear_task(image, label)
    x = task.init(0)
    g = task.gradient(x, {}, 0).g
    prior = inversion.Prior.of(noise_images(200, 6)[0])
    found = inversion.invert(task, x, g, label, prior, records=1)
    torch.testing.assert_close(found, image, rtol=0, atol=1e-3)
    parts = task.spec.views(g)
    weight, bias = parts["1.weight"], parts["1.bias"]
    torch.testing.assert_close(weight[2] / bias[2], image.flatten(), msg="the textbook's formula")


def test_under_much_noise_the_best_guess_is_the_mean_image() -> None:
    images, labels = noise_images(2, 5)[0].double(), torch.tensor([0, 1])
    task = linear_task(images, labels)
    prior = inversion.Prior.of(noise_images(200, 6)[0])
    noise = torch.randn(task.spec.d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = inversion.invert(
        task, task.init(0), 50 * noise, labels, prior, records=2, max_grad_norm=1.0, deviation=50.0
    )
    assert (found - prior.mean.view(prior.shape)).abs().max() < 0.1


@pytest.mark.parametrize("algorithm", ["dsgd", "dsgdm-n", "qg-dsgdm-n"])
def test_two_successive_models_show_the_gradient(algorithm: str) -> None:
    """Also in later rounds, to somebody who knows where the victim stood."""
    batch = noise_images(12, 3)
    task = SupervisedTask(network, batch, batch, agent="agent-000", seed=0, batch_size=4)
    run = settings(algorithm={"name": algorithm}, agents=4, rounds=3, task={"dtype": "float32"})
    networks = Networks(run, [[task] * 4], SECRET)
    method = run.algorithm.build()
    for round in range(3):
        x, state = networks.models[0, 0], {name: own[0] for name, own in networks.last.state.items()}
        _, sent = next(iter(networks.rounds()))
        g = inversion.gradient_between(method, x, state, 0.3, sent[0, 0])
        torch.testing.assert_close(g, task.gradient(x, {}, round).g, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["dadam", "dsgd-steps"])
def test_methods_whose_messages_do_not_show_a_gradient(algorithm: str) -> None:
    method = build("dsgd", local_steps=2) if algorithm == "dsgd-steps" else build(algorithm)
    x = torch.zeros(5)
    with pytest.raises(ConfigError, match="expected a method"):
        inversion.gradient_between(method, x, method.init(x), 0.1, x + 1)


def test_rebuilt_images_are_told_apart() -> None:
    images = noise_images(3, 1)[0].double()
    found = images[[2, 0, 1]] + 0.01
    assert torch.equal(inversion.matched(found, images), images + 0.01)
    assert inversion.psnr(images + 0.01, images, 1.0).tolist() == pytest.approx([40.0] * 3)
    others = noise_images(50, 2)[0]
    assert inversion.recognised(images + 0.01, images, others).all()
    assert not inversion.recognised(others[:3].double(), images, others).any()


@pytest.mark.slow
def test_the_final_model_of_a_trained_network(tmp_path: Path) -> None:
    options = ["-n", "4", "--rounds", "60", "--partition", "iid", "--task-option", "width=4"]
    CliRunner().invoke(cli, ["simulate", *options, "--out", str(tmp_path)], catch_exceptions=False)
    arguments = ["audit", str(tmp_path), "--networks", "4"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert 0.4 < float(done.output.split("AUC ")[1].split()[0]) < 0.9
    with pytest.raises(ConfigError, match="expected one of agent-000"):
        CliRunner().invoke(cli, [*arguments, "--victim", "nobody"], catch_exceptions=False)


def test_a_home_of_an_agent_is_no_run_to_attack(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text("")
    with pytest.raises(ConfigError, match=r"expected a finished run of simulate or swarm.*agent's home"):
        CliRunner().invoke(cli, ["audit", str(tmp_path)], catch_exceptions=False)


@pytest.mark.slow
def test_the_command_and_that_it_does_nothing_twice(tmp_path: Path) -> None:
    arguments = ["audit", "--out", str(tmp_path), "--cell", "epsilon=8"]
    first = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert first.exit_code == 0
    assert "DP, ε = 8 and secure sums" in first.output
    lines = (tmp_path / "audit.jsonl").read_text()
    assert {json.loads(line)["case"]["attack"] for line in lines.splitlines()} == {"membership", "inversion"}
    assert (tmp_path / "audit-membership.png").stat().st_size > 1000
    CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert (tmp_path / "audit.jsonl").read_text() == lines


def test_the_page_shows_the_shipped_records() -> None:
    from p2pqg_simulator.audit.presentation import present

    records = list(Records(SHIPPED, "audit"))
    page = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text(encoding="utf-8")
    tables = [part for part in present(records).markdown.split("\n\n") if part.startswith("|")]
    assert tables
    assert all(table.strip() in page for table in tables)
