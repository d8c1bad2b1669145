"""Several ranks as threads of one process, of which one runs at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

from torch import Tensor

from p2pqg_simulator.world import Group

T = TypeVar("T")


class Thread(Group):
    """A rank that hands copies of tensors to the others."""

    def __init__(
        self, rank: int, size: int, mail: dict[tuple[int, int], SimpleQueue[Tensor]], turn: threading.Lock
    ) -> None:
        super().__init__()
        self.rank, self.size, self.mail, self.turn = rank, size, mail, turn

    def exchange(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]) -> None:
        for rank, tensor in outgoing.items():
            assert tensor.is_contiguous()
            self.mail[self.rank, rank].put(tensor.clone())
        for rank, tensor in incoming.items():
            self.turn.release()
            try:
                received = self.mail[rank, self.rank].get(timeout=30)
            finally:
                self.turn.acquire()
            assert tensor.is_contiguous()
            assert (received.shape, received.dtype) == (tensor.shape, tensor.dtype)
            tensor.copy_(received)


def over_ranks(size: int, program: Callable[[Thread], T]) -> list[T]:
    """What `program` returns on each rank. Nothing that was sent may be left over."""
    mail = {(a, b): SimpleQueue() for a in range(size) for b in range(size) if a != b}
    turn = threading.Lock()

    def run(rank: int) -> T:
        with turn:
            return program(Thread(rank, size, mail, turn))

    with ThreadPoolExecutor(size) as pool:
        results = list(pool.map(run, range(size)))
    assert all(queue.empty() for queue in mail.values())
    return results
