"""3x3 convolutions with a quarter of the multiplications (Winograd 1980; Lavin & Gray, arXiv:1509.09308).

Convolutions are three quarters of a compiled ResNet-20 step, and torch's run at all that a core has to give, so
only fewer operations make it faster. In the form F(4x4, 3x3) a tile of 4x4 outputs y is made of 6x6 inputs d and
the kernel g as

    y = A^T [(G g G^T) * (B^T d B)] A,      * entry by entry, summed over input channels,

36 multiplications for each pair of channels instead of 144. The sums over channels are 36 small matrix products.
The inputs' gradient is a convolution with the turned kernel, and the kernel's G^T [(B^T d B) * (A dy A^T)] G.
`winograd.cpp` computes tiles in groups that stay in the second-level cache; per layer of ResNet-20 it takes 0.40
to 0.55 of the time of torch's convolution (`benchmarks/engine.py`).

Results differ from the direct sum by rounding: 1e-6 of a result's norm against 2e-7, and 8e-6 against 8e-7 for the
gradient of a kernel. Same inputs, machine and number of threads, same bits.

Alternatives: oneDNN had this form, but torch does not offer it; bfloat16 convolutions are as fast but round to
three digits, and torch's compiler makes slow code around them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from p2pqg.errors import ConfigError

SOURCE = Path(__file__).with_name("winograd.cpp")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")

LANES = 16
"""Channels come in multiples of these, the float32 numbers of the widest vector register."""


def use_in(module: nn.Module) -> None:
    """Let the convolutions in `module` that can be computed this way be, in place.

    Those with 3x3 kernels, stride 1, padding 1 and multiples of 16 channels, on a CPU in float32.
    Raises `ConfigError` if there is no C++ compiler.
    """
    for layer in module.modules():
        if type(layer) is nn.Conv2d and _fits(layer):
            _library()
            layer.__class__ = _WinogradConv2d


class _WinogradConv2d(nn.Conv2d):
    def forward(self, inputs: Tensor) -> Tensor:
        outputs = convolution(inputs, self.weight.permute(2, 3, 1, 0).flatten(0, 1))
        return outputs if self.bias is None else outputs + self.bias[:, None, None]


def _fits(layer: nn.Conv2d) -> bool:
    return (
        layer.kernel_size == (3, 3)
        and layer.stride == layer.padding == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and layer.in_channels % LANES == layer.out_channels % LANES == 0
        and layer.weight.dtype == torch.float32
        and layer.weight.device.type == "cpu"
    )


def convolution(images: Tensor, kernel: Tensor) -> Tensor:
    """Each of `images: [b, c, h, w]` with `kernel: [9, c, C]` (taps row by row), zeros around it: `[b, C, h, w]`.

    float32, c and C multiples of 16. Differentiable once. Pixels lie in channels-last order in what is returned,
    and what is given is brought into it.
    """
    outputs: Tensor = _convolution(images, kernel.contiguous())
    return outputs


@torch.library.custom_op("p2pqg::winograd_convolution", mutates_args=())
def _convolution(images: Tensor, kernel: Tensor) -> Tensor:
    images, outputs = _ordered(images), _outputs(images, kernel)
    _call("convolution", images, kernel, outputs, kernel.shape[2])
    return outputs


@torch.library.custom_op("p2pqg::winograd_kernel_gradient", mutates_args=())
def _kernel_gradient(images: Tensor, slopes: Tensor) -> Tensor:
    kernel = _kernel(images, slopes)
    _call("kernel_gradient", _ordered(images), _ordered(slopes), kernel, slopes.shape[1])
    return kernel


@_convolution.register_fake
def _outputs(images: Tensor, kernel: Tensor) -> Tensor:
    b, _, h, w = images.shape
    return torch.empty(b, kernel.shape[2], h, w, memory_format=torch.channels_last)


@_kernel_gradient.register_fake
def _kernel(images: Tensor, slopes: Tensor) -> Tensor:
    return images.new_empty(9, images.shape[1], slopes.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, Tensor]:
    images, kernel = ctx.saved_tensors
    return convolution(slopes, kernel.flip(0).transpose(1, 2)), _kernel_gradient(images, slopes)


_convolution.register_autograd(_backward, setup_context=_keep)


def _ordered(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _call(function: str, images: Tensor, second: Tensor, result: Tensor, wanted: int) -> None:
    assert {images.dtype, second.dtype, result.dtype} == {torch.float32}
    b, c, h, w = images.shape
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (images, second, result))
    getattr(_library(), function)(*pointers, *map(ctypes.c_int64, (b, h, w, c, wanted)), torch.get_num_threads())


@lru_cache(1)
def _library() -> ctypes.CDLL:
    """`winograd.cpp`, compiled for this machine by each process: 2 seconds, and no file to trust or to go stale."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise ConfigError("expected a C++ compiler (g++, or another in CXX), found none; use loop", key="engine")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "winograd.so"
        done = subprocess.run(
            [compiler, *FLAGS, str(SOURCE), "-o", str(library)], capture_output=True, text=True
        )
        if done.returncode:
            reason = done.stderr.strip().splitlines()[0] if done.stderr.strip() else f"exit {done.returncode}"
            raise ConfigError(f"{compiler} cannot compile {SOURCE.name}: {reason}; use loop", key="engine")
        return ctypes.CDLL(str(library))
