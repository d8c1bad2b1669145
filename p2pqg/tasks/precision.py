"""In what numbers a model's products and convolutions are computed.

float32   as written: on a GPU without TF32, which torch allows convolutions unless it is told not to
tf32      on NVIDIA GPUs since Ampere: factors rounded to 10 bits behind the point, sums in float32
bfloat16  factors, results and most of what lies between in 7 bits behind the point (torch's autocast)

That is all a precision changes. Parameters, gradients as they are handed on, the optimiser's state, losses
and mixing stay float32, so methods, messages and checkpoints do not know of it. With 7 bits a single
gradient of a deep network is off by a noticeable share (docs/scale.md); whether a run's accuracy is, only
training can tell.

Autocast does not reach convolutions that `vmap` batches on a CPU: there the simulator takes products over
patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from p2pqg.errors import ConfigError

Precision = Literal["float32", "tf32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

KEY = "task.precision"
AMPERE = (8, 0)


def require(precision: Precision, device: torch.device) -> None:
    """Raise `ConfigError` if a device cannot compute so."""
    if precision != "tf32":
        return
    if device.type != "cuda":
        raise ConfigError(f"expected float32 or bfloat16 on {device}, found tf32", key=KEY)
    if (found := torch.cuda.get_device_capability(device)) < AMPERE:
        raise ConfigError(
            f"tf32 expects a GPU of compute capability 8.0 or more, {device} has {found[0]}.{found[1]}",
            key=KEY,
        )


def forward(precision: Precision, device: torch.device, module: Callable[..., Tensor], *args: Any) -> Tensor:
    """`module(*args)`. Of bfloat16 the answer is float32 again, because losses take sums and logarithms."""
    if precision != "bfloat16":
        return module(*args)
    with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):  # each weight is used once
        outputs = module(*args)
    return outputs.float()


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """What torch's switches for TF32 must be during forward and backward passes; afterwards they are as
    before."""
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    # Not the newer `fp32_precision`: where these two disagree with it, torch's compiler fails.
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
