"""One device of a network: wires task, algorithm, gossip, connections and files together.

The event loop never computes: torch runs in one worker thread, and messages are received while it does. In
lockstep an agent computes or waits, so a second process for gossip would only add copies; see
`benchmarks/README.md` for what was measured, for lockstep and for overlapped rounds.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from p2pqg import __version__
from p2pqg.config import AgentTable, NetworkFile, RunSettings, agreed_in, check_lag
from p2pqg.discovery import Announcement, Discovery
from p2pqg.errors import ConfigError, P2PQGError, TransportError
from p2pqg.gossip.agreement import Agreement
from p2pqg.gossip.edge import Rules
from p2pqg.gossip.graphs import FixedGraphs, Graphs, LivingGraphs
from p2pqg.gossip.machine import Exchanged, Gossip
from p2pqg.gossip.membership import Membership
from p2pqg.gossip.messages import JOINING, Hello, Member
from p2pqg.gossip.pace import Pace, entry
from p2pqg.gossip.secure import SecureGossip
from p2pqg.gossip.snapshot import Snapshot, snapshot
from p2pqg.gossip.sums import WORD_BYTES, Mask, Summed
from p2pqg.home import Home
from p2pqg.neighbourhood import Neighbourhood, Observe
from p2pqg.participation import Participation
from p2pqg.privacy import KeyRing, Secret, SecureSums, protect_agent
from p2pqg.privacy.masking import RANGE
from p2pqg.privacy.sums import Tally
from p2pqg.security import Identity
from p2pqg.tasks.base import Evaluation, Task
from p2pqg.telemetry import MetricsWriter
from p2pqg.telemetry.journal import Link
from p2pqg.topology import Topology, build
from p2pqg.training import Outgoing, Training
from p2pqg.transport.base import Transport
from p2pqg.wire.tensors import WIRE_DTYPES

T = TypeVar("T")

DISTANCES = 200
"""Rounds of a run, besides those that evaluate, that measure how far the neighbours' models are: a pass over
each of their models."""


@dataclass(frozen=True)
class Outcome:
    """How an agent's run ended: the rounds done, whether that is all of them, the evaluation at the end of
    training and after the gossip-only rounds (None if the run was stopped before)."""

    round: int
    finished: bool
    trained: Evaluation | None = None
    final: Evaluation | None = None
    agreement: Agreement | None = None


def no_events(event: str, details: Mapping[str, Any]) -> None:
    """Observes nothing."""


class Agent:
    """One agent of `network`, running `settings` on its own `task`.

    Without a `home` nothing is kept on disk. `stop_after` ends the run at a round boundary, with a
    checkpoint. `secret` makes private noise repeatable, in tests only; `identity()` is the certificate that
    vouches for the key of secure sums. Errors: `ConfigError` before anything starts; `TransportError` if
    neighbours do not show up; `TrainingDiverged`; `StorageError`.
    """

    def __init__(
        self,
        table: AgentTable,
        network: NetworkFile,
        settings: RunSettings,
        task: Task,
        transport: Transport,
        *,
        home: Home | None = None,
        stop_after: int | None = None,
        discovery: Discovery | None = None,
        observe: Observe = no_events,
        secret: Secret | None = None,
        identity: Callable[[], Identity | None] = lambda: None,
    ) -> None:
        living = network.membership == "alive"
        if table.name not in network.names and not living:
            raise ConfigError(
                f"expected one of {', '.join(network.names)}, found {table.name}", key="agent.name"
            )
        check_lag(table, network)
        self.name, self.names = table.name, network.names
        self.discovery = discovery
        self.settings, self.table, self.home, self.observe = settings, table, home, observe
        self.last_round = settings.rounds if stop_after is None else min(stop_after, settings.rounds)
        algorithm = settings.algorithm.build()
        topology = None if living else network.build()
        if algorithm.needs_mean and not (topology and topology.complete):
            raise ConfigError(
                f"{settings.algorithm.name} needs exact averages, which only the complete graph of a fixed "
                f"network gives; found {network.topology}",
                key="algorithm.name",
            )
        if settings.secure_sums:
            require_lockstep(table, topology)
            settings.require_secure_sums(topology or build(network.topology, 1))
        self.protection = protect_agent(
            task, settings.mechanism(task), algorithm, agent=self.name, home=home, secret=secret
        )
        if self.protection:
            task = self.protection.task
        wire = settings.wire(table.wire)
        self.agreed = agreed_in(network, settings, task.spec, table.wire)
        incarnation = home.incarnation + 1 if home else secrets.randbits(48) | 1 << 48
        self.sums = None
        if settings.secure_sums:
            ring = KeyRing(network.name, network.run, self.name, incarnation, identity)
            self.sums = SecureSums(ring)
        self.training = Training(
            task,
            algorithm,
            settings.schedule.build(),
            agent=self.name,
            seed=settings.seed,
            wire=wire,
            scale=gradient_scale(task, settings.task.weighting, len(self.names)),
            sums=self.sums,
        )
        self.participation = Participation()
        self._resumed = self._restore()
        self._greeting = greeting = Hello(
            network.name,
            network.run,
            self.name,
            home.next_incarnation() if home else incarnation,
            self.agreed,
            round=self.training.round,
            joining=True,
        )
        address = network.addresses.get(self.name, "") if table.advertise is None else table.advertise
        membership = Membership(
            Member(self.name, 1, JOINING, address, self.training.round),
            seal=transport.seal(network.name, network.run),
        )
        for peer, its_address in network.addresses.items():
            membership.learn(peer, its_address)
        self.graphs: Graphs = (
            FixedGraphs(self.name, self.names, topology)
            if topology
            else LivingGraphs(network.topology, network.edges, membership)
        )
        rules = Rules(
            vector_bytes=task.spec.d * (WORD_BYTES if self.sums else WIRE_DTYPES[wire].itemsize),
            wire=wire,
            vectors=algorithm.messages,
            round_timeout_s=table.round_timeout_s,
            lag=table.lag,
            period=self.graphs.topology().period,
        )
        self.gossip = (
            SecureGossip(
                greeting,
                self.graphs.sought,
                rules,
                membership,
                keys=self.sums.keys,
                senders_to=self.graphs.senders_to,
                min_senders=settings.secure_sums,
            )
            if self.sums
            else Gossip(greeting, self.graphs.sought, rules, membership)
        )
        self.incarnation = greeting.incarnation
        self.neighbourhood = Neighbourhood(
            self.gossip, greeting, transport, self.graphs, observe, self._snapshot, self._mask, living=living
        )
        self.pace = Pace(self.last_round, every_round=self.graphs.topology().period == 1)
        self._expected = max(len(self.names), network.at_least) if living else 1
        self._at_least = network.at_least
        self._remark = ""
        self._stopping = False
        self._missed: Mapping[str, str] = {}
        self._executor: Executor | None = None

    def stop(self) -> None:
        """End at the next round boundary: a round past PREPARED is finished, then checkpoint and goodbye."""
        self._stopping = True
        self.neighbourhood.leave()

    async def evaluate(self) -> Evaluation:
        """Score the model as it is now; training waits meanwhile."""
        return await self._compute(self.training.evaluate)

    async def export(self) -> tuple[Path, int]:
        """Write the model as it is now to the home; returns the file and the round."""
        assert self.home is not None
        home, training = self.home, self.training
        return await self._compute(lambda: (home.save_export(training.model()), training.round))

    async def run(self) -> Outcome:
        """Train, agree, and write the model; returns when all is done or the run was stopped."""
        with ThreadPoolExecutor(1, thread_name_prefix="compute") as self._executor:
            try:
                async with self.neighbourhood.background:
                    address = await self.neighbourhood.listen()
                    self.observe("listening", {"address": address})
                    await self._announce(address)
                    self.neighbourhood.start()
                    reason = "failed"
                    try:
                        outcome = await self._run()
                        reason = "finished" if outcome.finished else "stopped"
                    finally:
                        if self.discovery is not None:
                            await self.discovery.close()
                        await self.neighbourhood.close(reason)
                return outcome
            except BaseExceptionGroup as errors:
                raise _first(errors) from errors

    async def _announce(self, listening: str) -> None:
        """Say where this agent is, and look for others."""
        if self.discovery is None:
            return
        membership, greeting = self.gossip.membership, self._greeting
        announcement = Announcement(self.name, greeting.network, greeting.run, greeting.versions, listening)
        address = await self.discovery.start(announcement, membership.learn)
        if self.table.advertise is None and not membership.own.address:
            membership.say(address=address)

    async def _run(self) -> Outcome:
        training = self.training
        await self._enter()
        self.observe("started", {"round": training.round, "neighbours": list(self.gossip.live)})
        if self.protection:
            self.observe("private", self.protection.report())
            for notice in self.protection.notices:
                self.observe("privacy", {"notice": notice})
        with self._metrics() as metrics:
            evaluation = None
            while training.round < self.last_round and not self._stopping:
                evaluation = await self._train_one_round(metrics)
                self._keep_up()
            await self._settle()
            await self._compute(self._checkpoint)
            if training.round < self.settings.rounds:
                return Outcome(training.round, finished=False)
            if evaluation is None:
                evaluation = await self._compute(training.evaluate)
            agreement = await self._agree(metrics)
            await self._settle()
            final = await self._compute(training.evaluate)
            outcome = Outcome(training.round, not self._stopping, evaluation, final, agreement)
            self._save_model(outcome)
            return outcome

    async def _enter(self) -> None:
        """Come in where the network is: at the start of the run, or in the middle of it."""
        training, gossip = self.training, self.gossip
        await self.neighbourhood.wait_for_all(self.table.start_timeout_s, self._expected, self._at_least)
        found = entry(
            training.round,
            resumed=self._resumed,
            neighbours=gossip.rounds.values(),
            last=self.settings.rounds,
        )
        if found.download and not self._stopping:
            await self._start_from_a_neighbour()
        elif found.round > training.round:
            training.skip_to(found.round)
        if found.round > gossip.membership.own.round:
            self.observe("joined", {"round": training.round, "reason": found.reason})
        self._take_part()

    async def _start_from_a_neighbour(self) -> None:
        """Take over a neighbour's state, and enter just beyond the round it belongs to. An agent that has a
        model of its own goes on with that if it gets no other; with secure sums nobody gives any."""
        training = self.training
        try:
            if self.sums:
                raise TransportError("neighbours keep their models to themselves")
            tensors, round = await self.neighbourhood.fetch_state(
                training.tensors(), self.table.start_timeout_s
            )
        except TransportError:
            if self._stopping:
                return
            if not (self._resumed or self.sums):
                raise
            round = max(self.gossip.rounds.values(), default=training.round)
        else:
            await self._compute(training.adopt, tensors, round)
        training.skip_to(min(round + 1, self.settings.rounds))

    def _take_part(self) -> None:
        round, now = self.training.round, asyncio.get_running_loop().time()
        self.gossip.take_part(round, now)

    def _keep_up(self) -> None:
        """Leave rounds out if the neighbours have gone on without this agent."""
        training, gossip = self.training, self.gossip
        now = asyncio.get_running_loop().time()
        members = {m.name: m.round for m in gossip.membership.here}
        following = self.pace.after(training.round - 1, self._missed, gossip.rounds, members, now)
        if following > training.round:
            self.observe("behind", {"round": training.round, "goes_on_at": following})
            training.skip_to(following)
            gossip.enter(following, now)

    async def _snapshot(self) -> Snapshot:
        """The state at the last round boundary, for an agent that joins."""
        return await self._compute(lambda: snapshot(self.training.tensors(), self.training.round))

    async def _mask(self, job: Mask) -> tuple[memoryview, int, int]:
        """The vector of the open exchange, as a receiver asks for it."""
        assert self.sums is not None
        return await self._compute(self.sums.mask, job)

    async def _train_one_round(self, metrics: MetricsWriter | _NoMetrics) -> Evaluation | None:
        """One round, its line in the metrics, and what is due after it."""
        training, settings = self.training, self.settings
        round = training.round
        started = time.perf_counter()
        exchange_s, missed, traded = 0.0, dict[str, str](), dict[str, tuple[int, int]]()
        mixed: set[str] = set()
        score = round + 1 == settings.rounds or (
            settings.eval_every and (round + 1) % settings.eval_every == 0
        )
        measure = bool(score) or round % max(1, settings.rounds // DISTANCES) == 0
        self.pace.begins(self.gossip.rounds)
        outgoing = await self._compute(partial(training.begin, measure=measure))
        self.pace.offers(self.gossip.rounds)
        while outgoing is not None:
            exchange_started = time.perf_counter()
            exchanged = await self._exchange(outgoing)
            exchange_s += time.perf_counter() - exchange_started
            missed |= exchanged.missed
            mixed |= {*exchanged.mixed}
            for peer, (out, back) in exchanged.traded.items():
                sent, received = traded.get(peer, (0, 0))
                traded[peer] = sent + out, received + back
            outgoing = await self._compute(training.mixed, exchanged)
        self._missed = missed
        self.participation.count(round, mixed, missed)
        for peer, reason in missed.items():
            self.observe("missed", {"peer": peer, "round": round, "reason": reason})
        done = training.round
        if self.protection and self.protection.just_spent():
            self.observe("budget_spent", {"round": round, **self.protection.report()})
        evaluation = None
        if score:
            evaluation = await self._compute(training.evaluate)
        sent, received = self.neighbourhood.traffic
        measured = {
            "loss": training.loss,
            "lr": training.schedule.steps(round, training.algorithm.local_steps)[-1],
            "neighbours": len(mixed),
            "missed": missed,
            "bytes_sent": sent,
            "bytes_received": received,
            "round_s": time.perf_counter() - started,
            "exchange_s": exchange_s,
            **({"disagreement": training.disagreement} if measure and mixed else {}),
            **_evaluated(evaluation),
            **(self.protection.measurements() if self.protection else {}),
            **(self.sums.tally.as_json() if self.sums else {}),
        }
        metrics.write(done, measured)
        self.observe("round", {"round": done, **measured, "exchanged": traded})
        if self.table.checkpoint_every and done % self.table.checkpoint_every == 0:
            await self._compute(self._checkpoint)
        return evaluation

    async def _agree(self, metrics: MetricsWriter | _NoMetrics) -> Agreement:
        """Gossip without training until all agents hold the same model, within the tolerance."""
        finish, training = self.settings.finish, self.training
        max_rounds = 0 if training.algorithm.centralised else finish.max_rounds  # equal models all along
        agreement = Agreement.of(self.graphs.topology(), finish.tolerance, max_rounds)
        while not agreement.done and not self._stopping:
            outgoing = await self._compute(lambda: training.begin(gossip_only=True))
            assert outgoing is not None
            exchanged = await self._exchange(outgoing, note=agreement.disagreement)
            await self._compute(training.mixed, exchanged)
            agreement = agreement.after(training.disagreement, exchanged.heard)
            metrics.write(training.round, {"disagreement": training.disagreement})
            self.observe("agreeing", {"round": training.round, "disagreement": training.disagreement})
        return agreement

    async def _settle(self) -> None:
        """Wait for outstanding verdicts and apply them."""
        await self.neighbourhood.settle(self.table.round_timeout_s)
        await self._compute(self.training.settle, self.gossip.late())

    async def _exchange(self, outgoing: Outgoing, note: float = 0.0) -> Exchanged | Summed:
        incoming, neighbours_out = self.graphs.exchanges(outgoing.position[0])
        if self.graphs.remark != self._remark:
            self._remark = self.graphs.remark
            self.observe("graph", {"round": outgoing.position[0], "remark": self._remark or "whole again"})
        exchanged = await self.neighbourhood.exchange(
            outgoing.position,
            outgoing.payload,
            checksum=outgoing.checksum,
            norm=outgoing.norm,
            incoming=incoming,
            outgoing=neighbours_out,
            note=note,
        )
        if isinstance(exchanged, Summed):
            self._tell(exchanged)
        return exchanged

    def _tell(self, summed: Summed) -> None:
        """What an operator should know of a secure sum."""
        assert self.sums is not None
        if summed.lost:
            self.observe("mix_lost", {"round": summed.position[0], "reason": summed.lost})
        if self.sums.just_saturated:
            details = {"round": summed.position[0], "numbers": self.sums.just_saturated, "beyond": RANGE}
            self.observe("saturated", details)

    async def _compute(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    # ---- what can be seen

    @cached_property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """All pairs of agents that exchange, by name, as far as this one knows."""
        return self.graphs.pairs

    def links(self, quality: Callable[[str], float | None]) -> tuple[Link, ...]:
        """This agent's own edges as they are now; call it in the event loop."""
        return tuple(self._link(peer, quality(peer)) for peer in self.gossip.edges)

    def _link(self, peer: str, quality: float | None) -> Link:
        edge = self.gossip.edges[peer]
        sent, received = self.neighbourhood.traffic_with(peer)
        missing = [span for span in self.participation.missing if span["peer"] == peer]
        last = missing[-1]["reason"] if missing else ""
        return Link(
            peer=peer,
            state="live" if edge.live else "left" if edge.left else "refused" if edge.refused else "missing",
            reason="" if edge.live else self.neighbourhood.refusals.get(peer, last),
            round=edge.peer_round,
            round_trip_s=edge.round_trip_s if edge.live else None,
            mixed=self.participation.mixed.get(peer, 0),
            missed=self.participation.missed(peer),
            quality=quality,
            leaked=edge.leaked,
            bytes_sent=sent,
            bytes_received=received,
        )

    # ---- files

    def _restore(self) -> bool:
        found = self.home.load(self.agreed, self._fell_back) if self.home else None
        if found is None:
            return False
        tensors, meta = found
        if self.protection:
            self.protection.require(meta.get("privacy"), "the checkpoint")
        self.training.restore(tensors, meta["round"])
        self.participation = Participation.from_json(meta["participation"])
        if self.sums:
            self.sums.tally = Tally.from_json(meta["secure_sums"])
        return True

    def _fell_back(self, reason: str) -> None:
        self.observe("fallback", {"reason": reason, "to": "the checkpoint before"})

    def _checkpoint(self) -> None:
        if self.home is None:
            return
        meta = {
            "agent": self.name,
            "agreed": self.agreed,
            "round": self.training.round,
            "participation": self.participation.as_json(),
            **({"privacy": self.protection.witness()} if self.protection else {}),
            **({"secure_sums": self.sums.tally.as_json()} if self.sums else {}),
        }
        self.home.save(self.training.tensors(), meta)
        self.observe("checkpoint", {"round": self.training.round})

    def _metrics(self) -> MetricsWriter | _NoMetrics:
        if self.home is None:
            return _NoMetrics()
        return self.home.metrics(self.training.round if self._resumed else None)

    def _save_model(self, outcome: Outcome) -> None:
        if self.home is None:
            return
        training = self.training
        card = {
            "agent": self.name,
            "agents": self.names,
            "p2pqg": __version__,
            "rounds": self.settings.rounds,
            "gossip_only_rounds": outcome.agreement.round if outcome.agreement else 0,
            "disagreement": outcome.agreement.disagreement if outcome.agreement else None,
            "agreed": self.agreed,
            "samples": training.task.samples,
            "trained": dataclasses.asdict(outcome.trained) if outcome.trained else None,
            "final": dataclasses.asdict(outcome.final) if outcome.final else None,
            "finished": outcome.finished,
            "participation": self.participation.as_json(),
            "bytes_sent": self.neighbourhood.traffic[0],
            "bytes_received": self.neighbourhood.traffic[1],
            "privacy": self.protection.report() if self.protection else None,
            "secure_sums": self.sums.tally.as_json() if self.sums else None,
        }
        path = self.home.save_model(training.model(), card)
        self.observe("finished", {"model": str(path)})


class _NoMetrics:
    """Where measurements go without a home."""

    def write(self, round: int, values: Mapping[str, Any]) -> None: ...

    def __enter__(self) -> _NoMetrics:
        return self

    def __exit__(self, *error: object) -> None: ...


def require_lockstep(table: AgentTable, topology: Topology | None) -> None:
    """Raise `ConfigError` for an agent that cannot take part in secure sums however it trains."""
    if table.lag != "wait":
        raise ConfigError(
            'expected "wait", because a secure sum is all or nothing: whoever goes on without a slow '
            f"neighbour loses the whole mix; found {table.lag!r}",
            key="agent.lag",
        )
    if topology is None:
        raise ConfigError(
            'expected "fixed", because senders check whose sum they are asked for against a graph that all '
            'know; found "alive"',
            key="membership",
        )


def gradient_scale(task: Task, weighting: str, n: int) -> float:
    """What an agent's gradient is multiplied with: 1 (the paper's uniform weights), or n times its share of
    all samples. Raises `ConfigError` if the share is asked for and the task cannot know it."""
    if weighting == "uniform":
        return 1.0
    if task.total_samples is None:
        raise ConfigError(
            'expected "uniform", because this task does not know how many samples all agents hold together; '
            'found "samples"',
            key="task.weighting",
        )
    return n * task.samples / task.total_samples


def _evaluated(evaluation: Evaluation | None) -> dict[str, float | None]:
    if evaluation is None:
        return {}
    return {"test_loss": evaluation.loss, "test_accuracy": evaluation.accuracy}


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to tell the operator: one of ours if there is one."""
    known, other = errors.split(P2PQGError)
    group = known or other
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]  # type: ignore[assignment]
    assert group is not None
    return group
