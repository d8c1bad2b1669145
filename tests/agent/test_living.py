"""A network to live in: agents come, die, return and lose sight of each other, and the others go on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from test_agents_equal_the_matrix import settings
from village import DELAY_S, STEP_S, TIMEOUT_S, Village, play

from p2pqg import agent as agent_module
from p2pqg.errors import ConfigError, TransportError
from p2pqg.gossip import edge
from p2pqg.gossip.edge import PATIENCE
from p2pqg.gossip.messages import Hello
from p2pqg.transport.memory import Faults

ROUND_S = STEP_S + 3 * DELAY_S
"""An undisturbed round: a step, and BEGIN, PREPARED and COMMIT one behind the other."""
SLACK_S = 0.15
"""A tick and a step more."""


def test_a_rule_over_whoever_is_alive_trains_like_the_fixed_graph() -> None:
    """Where nobody comes or goes the two are the same, bit for bit."""
    ends = []
    for membership in ("alive", "fixed"):
        village = Village(5, membership=membership)

        async def story(village: Village = village) -> None:
            village.start(*range(5))
            await village.ended()

        play(story())
        ends.append(village.models)
        assert all(len(partners) == 2 for name in village.names for _, _, partners in village.rounds[name])
    assert torch.equal(*ends)


@pytest.mark.parametrize("membership", ["alive", "fixed"])
def test_an_agent_joins_a_running_network(membership: str) -> None:
    """It receives model, state and round from a neighbour, mixes within three rounds, and nobody waits."""
    village = Village(5, membership=membership, start_timeout_s=2.0)
    started: list[float] = []

    async def story() -> None:
        if membership == "fixed":
            village.start(*range(5))
            await village.until(village.at_round(0, 2))
            await village.kill(2)
        else:
            village.start(0, 1, 3, 4)
        await village.until(village.at_round(0, 25))
        started.append(village.now)
        village.start(2)
        await village.until(village.at_round(0, 50))
        assert village.lives[2].agent.training.round >= 48
        await village.ended()

    play(story())
    newcomer = village.names[2]
    (fetched,) = village.of("fetched", newcomer)
    assert fetched[2]["round"] >= 24
    own = [entry for entry in village.rounds[newcomer] if entry[0] > started[0]]
    assert any(partners for _, _, partners in own[:3]), "mixing again within three rounds"
    assert own[-1][2], "and to the end"
    for i in (0, 1, 3, 4):
        assert max(village.pauses(village.names[i])[-30:]) < ROUND_S + SLACK_S, "nobody was disturbed"


@pytest.mark.parametrize("algorithm", ["dsgd", "qg-dadam", "dsgdm-n-gt", "d2-plus"])
def test_a_newcomer_does_not_upset_any_algorithm(algorithm: str) -> None:
    run = settings(algorithm, rounds=80, finish={"max_rounds": 0}, schedule={"lr": 0.05})
    village = Village(4, run=run)

    async def story() -> None:
        village.start(0, 1, 3)
        await village.until(village.at_round(0, 20))
        village.start(2)
        await village.ended()

    play(story())
    assert len(village.lives) == 4
    best = village.lives[0].agent.training.task.evaluate(village.models.mean(0), {}).loss
    at_start = village.lives[0].agent.training.task
    assert best < 0.5 * at_start.evaluate(at_start.init(0), {}).loss
    assert torch.isfinite(village.models).all()


@pytest.mark.parametrize("change", ["algorithm", "model"])
def test_who_differs_is_refused_with_a_reason(change: str) -> None:
    village = Village(3)
    other = settings(
        "dsgd" if change == "algorithm" else "qg-dsgdm-n",
        rounds=60,
        finish={"max_rounds": 0},
        task={"name": "quadratic", "dtype": "float64", "options": {"noise": 0.1}}
        | ({"options": {"d": 7}} if change == "model" else {}),
    )

    async def story() -> None:
        village.start(0, 1)
        await village.until(village.at_round(0, 5))
        village.start(2, run=other)
        with pytest.raises(TransportError, match=f"{change}.* differs: expected .*, found"):
            await village.lives.pop(2).running
        await village.ended()

    play(story())


@pytest.mark.parametrize("home", [True, False], ids=["checkpoint", "nothing kept"])
@pytest.mark.parametrize("away_s", [0.5, 6.0])
def test_a_killed_agent_comes_back(away_s: float, home: bool, tmp_path: Path) -> None:
    """The others lose a deadline at most, once; it is back within three rounds of its own; whatever it had
    mixed before is in the others, so only its own work since is lost."""
    run = settings("qg-dsgdm-n", rounds=110, finish={"max_rounds": 0})
    village = Village(5, membership="fixed", run=run, homes=tmp_path if home else None)
    back: list[float] = []

    async def story() -> None:
        village.start(*range(5))
        await village.until(village.at_round(1, 17))
        await village.kill(1)
        await village.until(village.at_round(3, 17 + int(away_s / ROUND_S)))
        back.append(village.now)
        village.start(1)
        await village.ended()

    play(story())
    name = village.names[1]
    own = [entry for entry in village.rounds[name] if entry[0] > back[0]]
    assert any(partners for _, _, partners in own[:3])
    assert village.lives[1].agent.training.round == 110
    for i in (0, 2, 3, 4):
        pauses = village.pauses(village.names[i])
        assert max(pauses) < TIMEOUT_S + SLACK_S
        assert sum(pause > ROUND_S + SLACK_S for pause in pauses) <= 1
    downloaded = bool(village.of("fetched", name))
    assert downloaded == (away_s > 2 or not home), "a short absence goes on from the own checkpoint"


def test_a_silent_agent_costs_one_deadline_once() -> None:
    """One whose connection lives on and which even says so, but whose training hangs."""
    village = Village(6, membership="fixed")

    async def story() -> None:
        village.start(*range(6))
        await village.until(village.at_round(2, 10))
        village.lives[2].agent.step_s = 1e6
        await village.until(village.at_round(5, 55))
        for i in (0, 1, 3, 4, 5):
            await village.lives[i].running
        village.lives.pop(2).running.cancel()

    play(story())
    for i in (0, 1, 3, 4, 5):
        lost_s = sum(pause - ROUND_S for pause in village.pauses(village.names[i]))
        assert lost_s < (1 + PATIENCE) * TIMEOUT_S + 1.0


def test_a_partition_heals() -> None:
    """Both halves go on for minutes, at a pace of their own, find each other and become one model again."""
    run = settings("qg-dsgdm-n", rounds=2500, schedule={"lr": 0.05}, finish={"max_rounds": 0})
    village = Village(6, membership="alive", run=run)
    distance: dict[str, float] = {}

    async def story() -> None:
        for i in range(6):
            village.start(i, step_s=1.0 if i < 3 else 1.4)
        await village.until(village.at_round(0, 40))
        distance["before"] = village.distance
        for a in range(3):
            for b in range(3, 6):
                village.memory.lose(village.names[a], village.names[b])
        await village.until(lambda: village.now > 230)
        assert {len(village.lives[i].agent.graphs.sought) for i in range(6)} == {2}, "two rings of three"
        rounds = [village.lives[i].agent.training.round for i in range(6)]
        assert rounds[0] - rounds[3] > 30, "the sides are not where each other are"
        distance["apart"] = village.distance
        for a in range(3):
            for b in range(3, 6):
                village.memory.restore(village.names[a], village.names[b])
        for after in (20, 40, 60):
            await village.until(lambda after=after: village.now > 230 + after)  # type: ignore[misc]
            distance[f"{after} s later"] = village.distance
        rounds = [life.agent.training.round for life in village.lives.values()]
        assert max(rounds) - min(rounds) <= 3
        for i in list(village.lives):
            village.lives[i].agent.stop()
        await village.ended()

    play(story())
    assert distance["apart"] > 3 * distance["before"]
    assert distance["60 s later"] < 1.2 * distance["before"]


@pytest.mark.parametrize("lag", ["wait", "skip"])
def test_a_peer_twenty_times_slower(lag: str) -> None:
    run = settings("qg-dsgdm-n", rounds=300, finish={"max_rounds": 0})
    village = Village(5, membership="fixed", run=run, lag=lag)

    async def story() -> None:
        village.start(0, 1, 3, 4)
        village.start(2, step_s=20 * STEP_S)
        await village.until(village.at_round(0, 290 if lag == "skip" else 30))
        for life in village.lives.values():
            life.agent.stop()
        await village.ended()

    play(story())
    slow, fast = village.names[2], village.names[0]
    mixed = [round for _, round, partners in village.rounds[slow] if partners]
    pace = village.rounds[fast][-1][0] / len(village.rounds[fast])
    if lag == "wait":
        assert pace > 18 * STEP_S, "everybody goes at its pace"
        assert len(mixed) >= 28, "and mixes with it in every round"
    else:
        assert pace < 2 * ROUND_S, "the others go at theirs"
        assert len(mixed) >= 0.7 * 300 / 22, "and it contributes as often as it can"


@pytest.mark.parametrize("topology", ["one-peer-exponential", "one-peer-hypercube"])
def test_going_on_without_slow_neighbours_takes_a_graph_that_stays(topology: str) -> None:
    """Else who is left behind could not aim at a round of theirs, and would be alone for good."""
    village = Village(4, membership="fixed", topology=topology, lag="skip")

    async def story() -> None:
        with pytest.raises(ConfigError, match=f'lag: expected "wait", because in {topology} .*found "skip"'):
            village.start(0)

    play(story())


def test_a_network_is_upgraded_one_agent_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """From version 1 to those that speak 1 and 2, to those that speak 2 only; it trains all the while."""
    run = settings("qg-dsgdm-n", rounds=150, finish={"max_rounds": 0})
    village = Village(3, topology="complete", run=run)

    def install(i: int, versions: tuple[int, int]) -> None:
        monkeypatch.setattr(agent_module, "Hello", partial(Hello, versions=versions))
        village.rounds[village.names[i]].clear()
        village.start(i)

    def all_mix() -> bool:
        """Whether everybody's last three rounds were with both others."""
        last = [village.rounds[name][-3:] for name in village.names]
        return all(len(rounds) == 3 and all(len(r[2]) == 2 for r in rounds) for rounds in last)

    async def story() -> None:
        for i in range(3):
            install(i, (1, 1))
        for versions in ((1, 2), (2, 2)):
            for i in range(3):
                await village.until(all_mix)
                await village.leave(i)
                install(i, versions)
        await village.ended()

    play(story())
    for name in village.names:
        assert all(len(partners) == 2 for _, _, partners in village.rounds[name][-20:])


@pytest.mark.parametrize("dial_only", [(1,), (1, 2), (0, 1, 2)])
def test_agents_that_can_only_dial_out_take_part(dial_only: tuple[int, ...]) -> None:
    village = Village(5, dial_only=dial_only)

    async def story() -> None:
        village.start(*range(5))
        await village.ended()

    play(story())
    for name in village.names:
        assert sum(bool(partners) for _, _, partners in village.rounds[name]) >= 58


def test_agents_that_leave_make_way() -> None:
    """The ring closes behind them."""
    village = Village(6)

    async def story() -> None:
        village.start(*range(6))
        await village.until(village.at_round(0, 10))
        await village.leave(1)
        await village.leave(4)
        await village.ended()

    play(story())
    assert village.partners(village.names[0], 50) == (village.names[2], village.names[5])
    for i in (0, 2, 3, 5):
        assert max(village.pauses(village.names[i])) < ROUND_S + SLACK_S


def test_a_slow_link_is_waited_for_as_long_as_it_delivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline far shorter than the transfer: it counts from the last chunk."""
    monkeypatch.setattr(edge, "SLOWEST_BYTES_S", 100)
    monkeypatch.setattr(edge, "CHUNK_BYTES", 400)
    run = settings(
        "dsgd",
        rounds=4,
        finish={"max_rounds": 0},
        task={"name": "quadratic", "dtype": "float64", "options": {"d": 400}},
    )
    faults = Faults(delay_s=(0.1, 0.1), bytes_per_s=3200.0)
    village = Village(2, membership="fixed", run=run, faults=faults, round_timeout_s=1.0)

    async def story() -> None:
        village.start(0, 1)
        await village.ended()

    play(story())
    for name in village.names:
        assert [len(partners) for _, _, partners in village.rounds[name]] == [1] * 4
        transfer_s = 8 * 400 / 3200
        assert max(village.pauses(name)) < STEP_S + transfer_s + 4 * 0.1 + SLACK_S
