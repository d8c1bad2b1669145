"""The processes that torchrun started, on one machine or several, as one `Group`.

Point to point through torch.distributed: NCCL for tensors on a GPU, gloo for those on the CPU. Nothing else
of it is used: its collectives may sum in any order, and its object functions unpickle what they receive.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from p2pqg.errors import ConfigError, TransportError

from .world import Group

TIMEOUT_S = 600.0
"""How long a rank waits for another before it gives up; an evaluation or a checkpoint takes less."""


class Ranks(Group):
    """This process and the others."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        super().__init__()
        self.timeout_s = timeout_s
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def exchange(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]) -> None:
        operations = [dist.P2POp(kind, tensor, rank)
                      for kind, tensors in ((dist.isend, outgoing), (dist.irecv, incoming))
                      for rank, tensor in tensors.items() if tensor.numel()]  # fmt: skip
        if not operations:
            return
        try:
            for work in dist.batch_isend_irecv(operations):
                work.wait(timedelta(seconds=self.timeout_s))
        except RuntimeError as error:
            raise TransportError(
                f"rank {self.rank}: another rank is gone, or silent for {self.timeout_s:g} s: "
                f"{str(error).splitlines()[0]}"
            ) from error


def started_by_torchrun() -> bool:
    """Whether this process is one of several that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(timeout_s: float = TIMEOUT_S) -> Iterator[Ranks]:
    """Meet the other processes, and leave them in the end.

    The first SIGINT or SIGTERM sets `interrupted`, for all ranks to stop after the same round; a second one
    interrupts at once. Raises `ConfigError` outside torchrun and `TransportError` if the others do not come.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise ConfigError(
            "distributed expects to be started by torchrun (torchrun --nproc-per-node 2 -m p2pqg simulate "
            "--engine distributed ...), found none of its variables",
            where="command line", key="engine",
        )  # fmt: skip
    cuda = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # NCCL wants one each
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    except RuntimeError as error:
        raise TransportError(f"the ranks cannot meet: {str(error).splitlines()[0]}") from error
    ranks = Ranks(timeout_s)

    def stop(number: int, frame: FrameType | None) -> None:
        if ranks.interrupted:
            sys.exit(130)  # without the checkpoint, for which all ranks would be needed
        ranks.interrupted = True

    # They stay: torchrun ends whoever has not left when the first rank has, and all shall say why they leave.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
