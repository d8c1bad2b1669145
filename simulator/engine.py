"""n agents as one stacked state `[n, d]`.

A round is a pure function from one `Iterate` to the next: the same definition of an algorithm that an agent
runs, its gradients answered by the tasks, its exchanges by one product W @ v and its exact averages by a
mean. So an iterate is all that a checkpoint needs, and a run stopped anywhere and resumed is bit for bit a
run that never stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from p2pqg import allocator
from p2pqg.algorithms import Algorithm, Answer, Effect, Gradient, Mean, Mix, Rate, drive
from p2pqg.config import agent_names
from p2pqg.errors import ConfigError, TrainingDiverged
from p2pqg.gossip.agreement import Agreement
from p2pqg.gossip.sums import WORD_BYTES
from p2pqg.privacy.masking import apart
from p2pqg.schedules import Schedule
from p2pqg.tasks.base import Buffers, Task, with_full_gradient
from p2pqg.topology import Topology

from .columns import blocks, round_in_blocks
from .evaluation import Scores, evaluate, judges
from .gradients import Engine, gradients
from .memory import Footprint, footprint, vectors_of
from .mixing import Product, SecureSums, product
from .placement import device_named, place
from .world import Reach, World


@dataclass(frozen=True, eq=False)
class Iterate:
    """Everything after `round` completed rounds.

    `x: [n, d]` are the agents' parameters, `state` what the algorithm keeps, `buffers` the model state that
    is never mixed (one mapping an agent); of a simulation shared out over processes these three are of the
    agents held here, the rest of all. `sent: [n]` are the bytes each agent would have sent. An exact
    average counts as an exchange, which is what it takes on a complete graph and on a star; a centralised
    method has no network and sends nothing. Of the last round: `losses: [n]`, mean over its mini-batches, and
    `lr` of its last step; None before the first round and in gossip-only rounds, which have `agreement`
    instead; private tasks tell no losses. `scores` are there when they were asked for.
    """

    round: int
    x: Tensor
    state: dict[str, Tensor]
    buffers: tuple[Buffers, ...]
    sent: Tensor
    losses: Tensor | None = None
    lr: float | None = None
    agreement: Agreement | None = None
    scores: Scores | None = None

    @property
    def loss(self) -> float | None:
        """Mean training loss over agents in the last round."""
        return None if self.losses is None else float(self.losses.mean())


class Simulation:
    """All agents of one network, or the share of them that one of several processes holds.

    `tasks[i]` is the learning problem of agent i; in a `world` of several processes, of the i-th agent held
    here, and all processes call the same methods in the same order. `weighting` "samples" scales agent i's
    gradients by n * samples_i / total samples, so that large shares count for more. `engine` picks how
    gradients are computed (see `gradients`); of a known number of `rounds`, "auto" takes the length into
    account.
    With `secure_sums` exchanges are fixed-point sums, bit for bit those of agents with them. Parameters,
    samples and modules live on `device`, to which tasks are moved.

    Iterates are immutable. With `overwrite` a round may write over the algorithm's state in the iterate it
    begins with, which saves its memory; that iterate is `spent` then, also if the round fails.

    Raises `ConfigError` if numbers of tasks and agents differ or the tasks train different models.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        topology: Topology,
        algorithm: Algorithm,
        schedule: Schedule,
        *,
        names: Sequence[str] | None = None,
        weighting: Literal["uniform", "samples"] = "uniform",
        engine: Engine = "auto",
        device: torch.device | str = "cpu",
        world: World | None = None,
        rounds: int | None = None,
        secure_sums: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.world = World(topology.n) if world is None else world
        held, group = self.world.agents, self.world.group
        with group.together():
            if len(tasks) != len(held):
                raise ConfigError(
                    f"expected {len(tasks)} agents, one a task, found {len(held)}", key="topology"
                )
            if any(task.spec != tasks[0].spec for task in tasks):
                raise ConfigError("expected the same model on every agent, found different ones", key="task")
            if algorithm.needs_full_gradient:
                for task in tasks:
                    with_full_gradient(task)
            device = device_named(device)
            place(tasks, device)
            allocator.trim()  # as many models as agents were there, and will not be again
            calls = None if rounds is None else rounds * algorithm.local_steps * len(held)
            self.gradients = gradients(tasks, engine, calls)
        self.tasks, self.topology, self.algorithm, self.schedule = tasks, topology, algorithm, schedule
        self.names = agent_names(topology.n) if names is None else tuple(names)
        self.spec, self.n, self.device = tasks[0].spec, topology.n, device
        if group.differs([self.spec.fingerprint, str(self.spec.dtype)]):
            raise ConfigError("expected the same model on every rank, found different ones", key="task")
        if group.differs(self.gradients.name):
            self.gradients = gradients(tasks, "loop")
        self._reaches = [Reach(self.world, graph) for graph in topology.graphs]
        self._products: list[Product] = [
            SecureSums(graph.matrix(), held, reach.agents)
            if secure_sums
            else product(graph.matrix(), self.spec.dtype, self.device, held, reach.agents)
            for graph, reach in zip(topology.graphs, self._reaches, strict=True)
        ]
        self.secure_sums, self.overwrite = secure_sums, overwrite
        self._out_bytes = [
            torch.tensor([len(out) for out in graph.outgoing])
            * self.spec.d
            * (WORD_BYTES if secure_sums else self.spec.dtype.itemsize)
            for graph in topology.graphs
        ]
        samples = torch.tensor([task.samples for task in tasks], dtype=torch.float64)
        scale = samples * self.n / self.world.gather(samples).sum()
        self.scale = scale.to(self.device, self.spec.dtype)[:, None] if weighting == "samples" else None
        self.blocks = [slice(self.spec.d)]
        if algorithm.local_steps == 1:
            most = max(map(len, self.world.shares))  # so that all ranks have the same blocks
            self.blocks = blocks(most, self.spec.d, self.spec.dtype.itemsize, self.device.type)
        self._exchange_once = group.size > 1 or secure_sums  # which send, and count
        self._kept = algorithm.init(torch.zeros(1, 1)).keys()
        self._judges = judges(tasks, self.world)

    def start(self, seed: int) -> Iterate:
        """Every agent at the same initial parameters."""
        x = self.tasks[0].init(seed).to(self.device).expand(len(self.tasks), -1).contiguous()
        buffers = tuple(task.buffers() for task in self.tasks)
        return Iterate(0, x, dict(self.algorithm.init(x)), buffers, torch.zeros(self.n, dtype=torch.int64))

    def advance(self, iterate: Iterate) -> Iterate:
        """One round of training, which leaves `iterate` as it is, or with `overwrite` may spend it. Raises
        `TrainingDiverged` naming agent and round, and `ValueError` if `iterate` is spent already."""
        if self.spent(iterate):
            raise ValueError(f"the state after round {iterate.round} was overwritten by the next round's")
        round = iterate.round
        lrs = self._lrs(round)
        buffers, losses = list(iterate.buffers), []
        exchanges = _Exchanges()

        def gradient(effect: Gradient) -> Tensor:
            at = round * self.algorithm.local_steps + effect.step
            if effect.full:
                g = torch.empty_like(effect.x)
                for i, task in enumerate(self.tasks):
                    g[i] = with_full_gradient(task).full_gradient(effect.x[i], buffers[i], at)
            else:
                g, loss = self.gradients(effect.x, buffers, at)
                if loss is not None:
                    self._require_finite("loss", self._infinite(loss[:, None]), round + 1)
                    losses.append(loss)
            return g if self.scale is None else g.mul_(self.scale)

        def exchange(effect: Mix | Mean, index: int) -> Answer:
            exchanges.note(effect, index, map(self._infinite, effect.vectors))
            if isinstance(effect, Mix):
                return self.exchange(effect.vectors, round)
            return tuple(map(self._mean, effect.vectors))

        def answer(effect: Effect) -> Answer:
            if isinstance(effect, Gradient):
                return (gradient(effect),)
            index = len(exchanges.vectors)
            answered = exchange(effect, index)
            self._require_finite(*exchanges.infinite(index), round + 1)
            return answered

        start = iterate.x, iterate.state
        if len(self.blocks) == 1:
            x, after = drive(self.algorithm.round(*start, lrs), answer)
            state = dict(after)
        else:
            x, state = round_in_blocks(
                self.algorithm, *start, lrs, self.blocks, gradient, exchange,
                overwrite=self.overwrite, once=self._exchange_once,
            )  # fmt: skip
            for index in exchanges.vectors:
                self._require_finite(*exchanges.infinite(index), round + 1)
        if not exchanges.vectors:  # what was mixed has been looked at
            self._require_finite("model", self._infinite(x), round + 1)
        sent = 0 if self.algorithm.centralised else sum(exchanges.vectors.values())
        return Iterate(
            round=round + 1,
            x=x,
            state=state,
            buffers=tuple(buffers),
            sent=iterate.sent + sent * self._out_bytes[round % self.topology.period],
            losses=self.world.gather(torch.stack(losses).mean(0)) if losses else None,
            lr=self.schedule.steps(round, self.algorithm.local_steps)[-1],
        )

    def spent(self, iterate: Iterate) -> bool:
        """Whether a round has written over the algorithm's state in `iterate`, which is gone then."""
        return iterate.state.keys() != self._kept

    def exchange(self, vectors: tuple[Tensor, ...], round: int) -> tuple[Tensor, ...]:
        """The answer to `Mix`: W @ v for each `v: [n, d]`, or a block of its columns: all that leaves the
        agents in this round."""
        mixed = self._product(round)
        return tuple(mixed(self._reached(v, round)) for v in vectors)

    def train(self, start: Iterate, rounds: int, *, eval_every: int = 0) -> Iterator[Iterate]:
        """The iterates after each round until `rounds` are completed, with scores every `eval_every` rounds
        (0: never) and at the end. With `overwrite` each is whole until the next is asked for."""
        iterate = start
        del start  # whose memory nobody may need any more
        while iterate.round < rounds:
            iterate = self.advance(iterate)
            due = eval_every and iterate.round % eval_every == 0
            yield self.scored(iterate) if due or iterate.round == rounds else iterate

    def agree(self, start: Iterate, tolerance: float, max_rounds: int) -> Iterator[Iterate]:
        """The iterates of gossip-only rounds, until the agents agree (see `Agreement`); the last one has
        scores. None at all where nobody talks or models are always equal."""
        agreement = Agreement.of(self.topology, tolerance, 0 if self.algorithm.centralised else max_rounds)
        iterate = start
        del start
        while not agreement.done:
            round = iterate.round
            reached = self._reached(iterate.x, round)
            mixed = self._product(round)(reached)
            measured = self._disagreement(iterate.x, reached, mixed, round) if agreement.measures else 0.0
            agreement = agreement.after(measured, heard=0.0)
            iterate = replace(
                iterate,
                round=round + 1,
                x=mixed,
                sent=iterate.sent + self._out_bytes[round % self.topology.period],
                losses=None,
                lr=None,
                agreement=agreement,
                scores=None,
            )
            yield self.scored(iterate) if agreement.done else iterate

    def scored(self, iterate: Iterate) -> Iterate:
        """The iterate with its scores."""
        return replace(
            iterate, scores=evaluate(self.tasks, iterate.x, iterate.buffers, self.world, self._judges)
        )

    def collected(self, iterate: Iterate) -> Iterate:
        """The iterate with the rows of all agents on the first rank, where files are written; elsewhere as
        it is."""
        if self.world.group.size == 1:
            return iterate
        stacked = {name: self.world.collect(rows) for name, rows in _stacked(iterate.buffers).items()}
        return replace(
            iterate,
            x=self.world.collect(iterate.x),
            state={name: self.world.collect(rows) for name, rows in iterate.state.items()},
            buffers=_unstacked(stacked, self.n if self.world.group.first else len(iterate.x)),
        )

    def footprint(self) -> Footprint:
        """What training takes of memory."""
        vectors = vectors_of(
            self.algorithm,
            in_blocks=len(self.blocks) > 1,
            overwrite=self.overwrite,
            once=self._exchange_once,
        )
        return footprint(self.tasks, self.gradients.chunk, vectors)

    def saturated(self) -> dict[str, int]:
        """How many numbers did not fit into secure sums so far, over all agents; empty without sums. All
        processes of the world call it alike."""
        counts = [sums.saturated for sums in self._products if isinstance(sums, SecureSums)]
        return {"saturated": int(self.world.gather(torch.stack(counts).sum(0)).sum())} if counts else {}

    def _lrs(self, round: int) -> Sequence[Rate]:
        """The learning rate of each local step of a round."""
        return self.schedule.steps(round, self.algorithm.local_steps)

    def _mean(self, v: Tensor) -> Tensor:
        """The exact average of all agents' rows, for each of those held here: `[n, d]`."""
        return self.world.mean(v).expand_as(v)

    def dealt(self, whole: Iterate | None) -> Iterate:
        """The own rows of an iterate `whole`, which the first rank has and the others need not."""
        world = self.world
        if world.group.size == 1 and whole is not None:
            return whole
        like = self.start(0)
        source = like if whole is None else whole
        round, sent = world.group.said_by(0, [source.round, source.sent.tolist()])
        buffers = {
            name: world.deal(rows.to(like.buffers[0][name].device))
            for name, rows in _stacked(source.buffers).items()
        }
        return Iterate(
            round=round,
            x=world.deal(source.x.to(like.x.device)),
            state={name: world.deal(source.state[name].to(rows.device)) for name, rows in like.state.items()},
            buffers=_unstacked(buffers, len(like.x)),
            sent=torch.tensor(sent),
        )

    def _product(self, round: int) -> Product:
        return self._products[round % self.topology.period]

    def _reached(self, v: Tensor, round: int) -> Tensor:
        """The rows that this round's product takes."""
        return self._reaches[round % self.topology.period](v)

    def _disagreement(self, x: Tensor, reached: Tensor, mixed: Tensor, round: int) -> float:
        """max over this round's edges of ||x_j - x_i|| / ||x_i||; with secure sums, over agents and their
        neighbours' averages."""
        incoming = self._reaches[round % self.topology.period].incoming
        if self.secure_sums:
            W = self.topology.graph(round).matrix()
            shares = [
                [float(W[i, j]) for j in self.topology.graph(round).incoming[i]] for i in self.world.agents
            ]
            far = [apart(*rows) for rows in zip(x, mixed, shares, strict=True)]
            return float(self.world.gather(torch.tensor(far, dtype=torch.float64)).max())
        worst = [
            (reached[neighbours] - own).norm(dim=1).max() / own.norm() if neighbours else x.new_zeros(())
            for own, neighbours in zip(x, incoming, strict=True)
        ]
        return float(self.world.gather(torch.stack(worst)).max())

    def _infinite(self, v: Tensor) -> Tensor | None:
        """Which of the agents held here `[n_r]` have an entry in `v: [n_r, ...]` that is not finite; None if
        none has."""
        # A sum is finite unless an entry is not, or it overflows: only then look at the entries.
        if v.sum().isfinite():
            return None
        bad = ~v.isfinite().all(dim=1)
        return bad if bad.any() else None

    def _require_finite(self, what: str, infinite: Tensor | None, round: int) -> None:
        if not self.world.group.largest(infinite is not None):
            return
        own = torch.zeros(len(self.tasks), dtype=torch.bool, device=self.device)
        bad = self.world.gather(own if infinite is None else infinite).nonzero().flatten().tolist()
        agents = ", ".join(self.names[i] for i in bad[:3]) + (", ..." if len(bad) > 3 else "")
        raise TrainingDiverged(f"{agents}: round {round}: the {what} is not finite", bad)


class _Exchanges:
    """What is exchanged in one round, all at once or block by block; exchanges are numbered from 0."""

    def __init__(self) -> None:
        self.vectors: dict[int, int] = {}
        """How many in each exchange."""
        self._what: dict[int, str] = {}
        self._infinite: dict[int, Tensor] = {}

    def note(self, effect: Mix | Mean, index: int, infinite: Iterable[Tensor | None]) -> None:
        """An exchange of the round or a block of it; and for each of its vectors, of which of the agents held
        here `[n_r]` it is not finite."""
        self.vectors[index] = len(effect.vectors)
        self._what[index] = "model" if isinstance(effect, Mix) else "gradient"
        for bad in infinite:
            if bad is not None:
                self._infinite[index] = self._infinite.get(index, bad) | bad

    def infinite(self, index: int) -> tuple[str, Tensor | None]:
        """What was exchanged, and of which of the agents held here it was not finite."""
        return self._what[index], self._infinite.get(index)


def _stacked(buffers: Sequence[Buffers]) -> dict[str, Tensor]:
    return {name: torch.stack([own[name] for own in buffers]) for name in buffers[0]}


def _unstacked(stacked: dict[str, Tensor], n: int) -> tuple[Buffers, ...]:
    return tuple({name: rows[i] for name, rows in stacked.items()} for i in range(n))
