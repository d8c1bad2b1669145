"""The processes that share one simulation, and what each must ask of the others.

A `Group` is who there is: this process alone, or one of the ranks that torchrun started (`Ranks`). Its one
way to move numbers is `swap`, point to point. A `World` shares n agents out over a group in blocks of
consecutive numbers, each held stacked `[n_r, ...]` by its rank, and hands out what a round needs of others:
the rows that a mixing matrix reaches (`Reach`), exact means, rows of everyone. For one process nothing is
copied.

Results hardly depend on the number of processes: rows are handed on as they are and summed in order of the
agents' numbers, so few neighbours mix bit for bit as in one process; an exact mean is the sum of the ranks'
sums in a fixed order. Decided against: collective reductions, whose order is the library's; and means in
order of agents, for which every agent's row would travel where one row a rank is enough.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from p2pqg import errors
from p2pqg.errors import ConfigError, P2PQGError
from p2pqg.topology import Graph


class Group:
    """The processes of one simulation; as it is, this one alone.

    All of them call the same methods in the same order. `interrupted` says whether somebody asked this
    process to stop, and `sent_bytes` what it has sent to others, by kind: rows that cross in an exchange
    ("gossip"), sums for exact averages ("means"), rows for scores, checkpoints and results ("gathered"),
    and the rest ("control").
    """

    rank = 0
    size = 1
    interrupted = False

    def __init__(self) -> None:
        self.sent_bytes = {"gossip": 0, "means": 0, "gathered": 0, "control": 0}

    @property
    def first(self) -> bool:
        """Whether this process reads and writes the files and talks to the operator."""
        return self.rank == 0

    @property
    def others(self) -> list[int]:
        """All other ranks, in order."""
        return [rank for rank in range(self.size) if rank != self.rank]

    def swap(self, kind: str, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]) -> None:
        """Send a tensor to each rank of `outgoing` and fill those of `incoming` with what their ranks send.

        All are contiguous, and both ends know shape and dtype. Raises `TransportError` if a rank is gone or
        silent.
        """
        self.sent_bytes[kind] += sum(tensor.nbytes for tensor in outgoing.values())
        if outgoing or incoming:
            self.exchange(outgoing, incoming)

    def exchange(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]) -> None:
        """`swap`, as this kind of group does it."""
        raise NotImplementedError  # a process alone has nobody to swap with

    def largest(self, value: int) -> int:
        """The largest of all ranks' values."""
        if self.size == 1:
            return value
        own = torch.tensor([int(value)])
        heard = {rank: torch.empty_like(own) for rank in self.others}
        self.swap("control", dict.fromkeys(self.others, own), heard)
        return max(value, *map(int, heard.values()))

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks, in their order."""
        table = torch.zeros(self.size, len(values), dtype=torch.float64)
        table[self.rank] = torch.tensor(values, dtype=torch.float64)
        heard = {rank: table[rank] for rank in self.others}
        self.swap("control", dict.fromkeys(self.others, table[self.rank]), heard)
        return [float(sum(column)) for column in table.T.tolist()]

    def said_by(self, rank: int, value: Any = None) -> Any:
        """What `rank` says: its JSON-clean `value`; that of other ranks does not matter."""
        if self.size == 1:
            return value
        if self.rank == rank:
            text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
            self.swap("control", dict.fromkeys(self.others, torch.tensor([len(text)])), {})
            self.swap("control", dict.fromkeys(self.others, text), {})
            return value
        length = torch.empty(1, dtype=torch.int64)
        self.swap("control", {}, {rank: length})
        text = torch.empty(int(length), dtype=torch.uint8)
        self.swap("control", {}, {rank: text})
        return json.loads(text.numpy().tobytes())

    def differs(self, value: Any) -> bool:
        """Whether any rank's JSON-clean `value` is another than the first rank's."""
        return bool(self.largest(self.said_by(0, value) != value))

    @contextmanager
    def together(self) -> Iterator[None]:
        """What goes wrong inside on one rank goes wrong on all: they raise the error of the first such rank.

        Inside, ranks do not wait for each other: nothing there may call this group.
        """
        error: P2PQGError | None = None
        try:
            yield
        except P2PQGError as raised:
            error = raised
        if worst := self.largest(self.size - self.rank if error else 0):
            rank = self.size - worst
            kind, text = self.said_by(rank, [type(error).__name__, str(error)])
            raise error if rank == self.rank and error else getattr(errors, kind, P2PQGError)(text)


class World:
    """n agents shared out over a group: rank r of R holds those from floor(r n / R) to floor((r + 1) n / R).

    Raises `ConfigError` if there are more processes than agents.
    """

    def __init__(self, n: int, group: Group | None = None) -> None:
        self.n, self.group = n, group or Group()
        size = self.group.size
        if size > n:
            raise ConfigError(
                f"expected at most {n} processes, one for each agent, found {size}", key="agents"
            )
        self.shares = [range(rank * n // size, (rank + 1) * n // size) for rank in range(size)]
        self.agents = self.shares[self.group.rank]

    def mean(self, v: Tensor) -> Tensor:
        """Exact mean `[...]` over all agents, from the own rows `v: [n_r, ...]`.

        Each of R ranks adds up one part of the vector for all and hands it on, so that all together send
        2 (R - 1) vectors.
        """
        group = self.group
        if group.size == 1:
            return v.mean(0)
        total = v.sum(0)
        flat = total.view(-1)
        parts = torch.tensor_split(flat, group.size)
        own = parts[group.rank]
        sums = own.new_empty(group.size, len(own))
        sums[group.rank] = own
        heard = {rank: sums[rank] for rank in group.others}
        group.swap("means", {rank: parts[rank] for rank in group.others}, heard)
        own.copy_(sums.sum(0).div_(self.n))
        group.swap("means", dict.fromkeys(group.others, own), {rank: parts[rank] for rank in group.others})
        return total

    def gather(self, v: Tensor) -> Tensor:
        """Rows of all agents `[n, ...]`, on every rank, from the own ones `v: [n_r, ...]`."""
        if self.group.size == 1:
            return v
        own = v.contiguous()
        rows = self._with_own(own)
        heard = {rank: self._rows(rows, rank) for rank in self.group.others}
        self.group.swap("gathered", dict.fromkeys(self.group.others, own), heard)
        return rows

    def collect(self, v: Tensor) -> Tensor:
        """Rows of all agents on the first rank; elsewhere the own ones `v: [n_r, ...]`, as they are."""
        if self.group.size == 1:
            return v
        if not self.group.first:
            self.group.swap("gathered", {0: v.contiguous()}, {})
            return v
        rows = self._with_own(v)
        self.group.swap("gathered", {}, {rank: self._rows(rows, rank) for rank in self.group.others})
        return rows

    def deal(self, v: Tensor) -> Tensor:
        """The own rows of `v: [n, ...]` on the first rank; elsewhere `v: [n_r, ...]` tells their shape and
        dtype."""
        if self.group.first:
            self.group.swap("gathered", {rank: self._rows(v, rank) for rank in self.group.others}, {})
            return self._rows(v, 0)
        own = torch.empty_like(v, memory_format=torch.contiguous_format)
        self.group.swap("gathered", {}, {0: own})
        return own

    def _with_own(self, v: Tensor) -> Tensor:
        rows = v.new_empty(self.n, *v.shape[1:])
        self._rows(rows, self.group.rank).copy_(v)
        return rows

    def _rows(self, v: Tensor, rank: int) -> Tensor:
        return v[self.shares[rank].start : self.shares[rank].stop]


class Reach:
    """From the own rows of a vector to all those that a graph's W mixes into them.

    `agents` are the numbers of these rows, in order: the own agents and whom they receive from. A row crosses
    from one rank to another once, however many agents there want it.
    """

    def __init__(self, world: World, graph: Graph) -> None:
        self.group, rank = world.group, world.group.rank
        wanted = [_wanted(graph, share) for share in world.shares]
        self.agents: Sequence[int] = wanted[rank]
        held = self._held = world.agents
        self._graph = graph
        self._outgoing = {
            other: torch.tensor(rows)
            for other in world.group.others
            if (rows := [j - held.start for j in wanted[other] if j in held])
        }
        # Agents are in order and shares are blocks, so the rows of one rank are side by side.
        bounds = [(bisect_left(self.agents, s.start), bisect_left(self.agents, s.stop)) for s in world.shares]
        self._slices = {other: slice(*ends) for other, ends in enumerate(bounds) if ends[0] < ends[1]}

    @property
    def rows_sent(self) -> int:
        """Rows that leave this rank for one vector."""
        return sum(map(len, self._outgoing.values()))

    @cached_property
    def incoming(self) -> list[list[int]]:
        """Which rows each of the own agents receives."""
        row = {j: place for place, j in enumerate(self.agents)}
        return [[row[j] for j in self._graph.incoming[i]] for i in self._held]

    def __call__(self, v: Tensor) -> Tensor:
        """Rows `[m, d]` of `agents`, from the own rows `v: [n_r, d]`."""
        if len(self.agents) == len(v) and not self._outgoing:
            return v
        rows = v.new_empty(len(self.agents), *v.shape[1:])
        rows[self._slices[self.group.rank]] = v
        self.group.swap(
            "gossip",
            {rank: v[indices.to(v.device)] for rank, indices in self._outgoing.items()},
            {rank: rows[own] for rank, own in self._slices.items() if rank != self.group.rank},
        )
        return rows


def _wanted(graph: Graph, share: range) -> list[int]:
    return sorted({*share, *(j for i in share for j in graph.incoming[i])})
