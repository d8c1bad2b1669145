"""One device of a network: wires task, algorithm, gossip, connections and files together.

The event loop never computes: torch runs in one worker thread, and messages are received while it does. In
lockstep an agent computes or waits, so a second process for gossip would only add copies; see
`benchmarks/README.md` for what was measured, for lockstep and for overlapped rounds.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from p2pqg import __version__
from p2pqg.config import AgentTable, NetworkFile, RunSettings
from p2pqg.errors import ConfigError, P2PQGError
from p2pqg.gossip.agreement import Agreement
from p2pqg.gossip.edge import Rules
from p2pqg.gossip.machine import Exchanged, Gossip
from p2pqg.gossip.messages import Hello
from p2pqg.home import Home
from p2pqg.neighbourhood import Neighbourhood, Observe
from p2pqg.participation import Participation
from p2pqg.privacy import Secret, protect_agent
from p2pqg.tasks.base import Evaluation, Task
from p2pqg.telemetry import MetricsWriter
from p2pqg.training import Outgoing, Training
from p2pqg.transport.base import Transport
from p2pqg.wire.tensors import WIRE_DTYPES

T = TypeVar("T")


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
    checkpoint. `secret` makes private noise repeatable, in tests only. Errors: `ConfigError` before anything
    starts; `TransportError` if neighbours do not show up; `TrainingDiverged`; `StorageError`.
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
        observe: Observe = no_events,
        secret: Secret | None = None,
    ) -> None:
        if table.name not in network.names:
            raise ConfigError(
                f"expected one of {', '.join(network.names)}, found {table.name}", key="agent.name"
            )
        self.name, self.names, self.topology = table.name, network.names, network.build()
        self.index = self.names.index(self.name)
        self.settings, self.table, self.home, self.observe = settings, table, home, observe
        self.last_round = settings.rounds if stop_after is None else min(stop_after, settings.rounds)
        algorithm = settings.algorithm.build()
        if algorithm.needs_mean and not self.topology.complete:
            raise ConfigError(
                f"{settings.algorithm.name} needs exact averages, which only the complete graph gives; "
                f"found {self.topology.name}",
                key="algorithm.name",
            )
        self.protection = protect_agent(
            task, settings.mechanism(task), algorithm, agent=self.name, home=home, secret=secret
        )
        if self.protection:
            task = self.protection.task
        wire = table.wire or settings.task.dtype
        self.agreed = settings.agreed(task.spec, self.topology) | {"wire": wire}
        self.training = Training(
            task,
            algorithm,
            settings.schedule.build(),
            agent=self.name,
            seed=settings.seed,
            wire=wire,
            scale=gradient_scale(task, settings.task.weighting, len(self.names)),
        )
        self.participation = Participation()
        self._resumed = self._restore()
        greeting = Hello(
            network.name,
            network.run,
            self.name,
            home.next_incarnation() if home else 1,
            self.agreed,
            round=self.training.round,
        )
        self.gossip = Gossip(
            greeting,
            (self.names[j] for j in self.topology.neighbours(self.index)),
            Rules(
                vector_bytes=task.spec.d * WIRE_DTYPES[wire].itemsize,
                wire=wire,
                vectors=algorithm.messages,
                round_timeout_s=table.round_timeout_s,
            ),
        )
        self.neighbourhood = Neighbourhood(self.gossip, greeting, transport, network.addresses, observe)
        self._stopping = False
        self._executor: Executor | None = None

    def stop(self) -> None:
        """End at the next round boundary: a round past PREPARED is finished, then checkpoint and goodbye."""
        self._stopping = True
        self.neighbourhood.leave()

    async def run(self) -> Outcome:
        """Train, agree, and write the model; returns when all is done or the run was stopped."""
        with ThreadPoolExecutor(1, thread_name_prefix="compute") as self._executor:
            address = await self.neighbourhood.listen()
            self.observe("listening", {"address": address})
            try:
                async with asyncio.TaskGroup() as group:
                    background = group.create_task(self.neighbourhood.run())
                    reason = "failed"
                    try:
                        outcome = await self._run()
                        reason = "finished" if outcome.finished else "stopped"
                    finally:
                        await self.neighbourhood.close(reason)
                        background.cancel()
                return outcome
            except BaseExceptionGroup as errors:
                raise _first(errors) from errors

    async def _run(self) -> Outcome:
        training = self.training
        await self.neighbourhood.wait_for_all(self.table.start_timeout_s)
        self.observe("started", {"round": training.round, "neighbours": list(self.gossip.live)})
        if self.protection:
            self.observe("private", self.protection.report())
            for notice in self.protection.notices:
                self.observe("privacy", {"notice": notice})
        with self._metrics() as metrics:
            evaluation = None
            while training.round < self.last_round and not self._stopping:
                evaluation = await self._train_one_round(metrics)
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

    async def _train_one_round(self, metrics: MetricsWriter | _NoMetrics) -> Evaluation | None:
        """One round, its line in the metrics, and what is due after it."""
        training, settings = self.training, self.settings
        round = training.round
        started = time.perf_counter()
        exchange_s, missed, committed = 0.0, dict[str, str](), set[str]()
        outgoing = await self._compute(training.begin)
        while outgoing is not None:
            exchange_started = time.perf_counter()
            exchanged = await self._exchange(outgoing)
            exchange_s += time.perf_counter() - exchange_started
            missed |= exchanged.missed
            committed |= {c.peer for c in exchanged.contributions}
            outgoing = await self._compute(training.mixed, exchanged)
        self.participation.count(round, committed, missed)
        for peer, reason in missed.items():
            self.observe("missed", {"peer": peer, "round": round, "reason": reason})
        done = training.round
        if self.protection and self.protection.just_spent():
            self.observe("budget_spent", {"round": round, **self.protection.report()})
        evaluation = None
        if done == settings.rounds or (settings.eval_every and done % settings.eval_every == 0):
            evaluation = await self._compute(training.evaluate)
        sent, received = self.neighbourhood.traffic
        metrics.write(
            done,
            {
                "loss": training.loss,
                "lr": training.schedule.steps(round, training.algorithm.local_steps)[-1],
                "neighbours": len(committed),
                "missed": missed,
                "bytes_sent": sent,
                "bytes_received": received,
                "round_s": time.perf_counter() - started,
                "exchange_s": exchange_s,
                **_evaluated(evaluation),
                **(self.protection.measurements() if self.protection else {}),
            },
        )
        if self.table.checkpoint_every and done % self.table.checkpoint_every == 0:
            await self._compute(self._checkpoint)
        return evaluation

    async def _agree(self, metrics: MetricsWriter | _NoMetrics) -> Agreement:
        """Gossip without training until all agents hold the same model, within the tolerance."""
        finish, training = self.settings.finish, self.training
        max_rounds = 0 if training.algorithm.centralised else finish.max_rounds  # equal models all along
        agreement = Agreement.of(self.topology, finish.tolerance, max_rounds)
        while not agreement.done and not self._stopping:
            outgoing = await self._compute(lambda: training.begin(gossip_only=True))
            assert outgoing is not None
            exchanged = await self._exchange(outgoing, note=agreement.disagreement)
            await self._compute(training.mixed, exchanged)
            agreement = agreement.after(training.disagreement, exchanged.heard)
            metrics.write(training.round, {"disagreement": training.disagreement})
        return agreement

    async def _settle(self) -> None:
        """Wait for outstanding verdicts and apply them."""
        await self.neighbourhood.settle(self.table.round_timeout_s)
        await self._compute(self.training.settle, self.gossip.late())

    async def _exchange(self, outgoing: Outgoing, note: float = 0.0) -> Exchanged:
        graph = self.topology.graph(outgoing.position[0])
        return await self.neighbourhood.exchange(
            outgoing.position,
            outgoing.payload,
            checksum=outgoing.checksum,
            norm=outgoing.norm,
            incoming=tuple(self.names[j] for j in graph.incoming[self.index]),
            outgoing=tuple(self.names[j] for j in graph.outgoing[self.index]),
            note=note,
        )

    async def _compute(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    # ---- files

    def _restore(self) -> bool:
        found = self.home.load(self.agreed) if self.home else None
        if found is None:
            return False
        tensors, meta = found
        if self.protection:
            self.protection.require(meta.get("privacy"), "the checkpoint")
        self.training.restore(tensors, meta["round"])
        self.participation = Participation.from_json(meta["participation"])
        return True

    def _checkpoint(self) -> None:
        if self.home is None:
            return
        meta = {
            "agent": self.name,
            "agreed": self.agreed,
            "round": self.training.round,
            "participation": self.participation.as_json(),
            **({"privacy": self.protection.witness()} if self.protection else {}),
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
        }
        path = self.home.save_model(training.task.spec.views(training.x) | dict(training.buffers), card)
        self.observe("finished", {"model": str(path)})


class _NoMetrics:
    """Where measurements go without a home."""

    def write(self, round: int, values: Mapping[str, Any]) -> None: ...

    def __enter__(self) -> _NoMetrics:
        return self

    def __exit__(self, *error: object) -> None: ...


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
