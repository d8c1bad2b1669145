"""3x3 convolutions with a quarter of the multiplications (Winograd 1980; Lavin & Gray, arXiv:1509.09308).

Convolutions are three quarters of a compiled ResNet-20 step, and torch's take all that a core has to give, so
only fewer operations make it faster. In the form F(4x4, 3x3) a tile of 4x4 outputs y is made of 6x6 inputs d
and the kernel g as

    y = A^T [(G g G^T) * (B^T d B)] A,      * entry by entry, summed over input channels,

36 multiplications for each pair of channels instead of 144. The sums over channels are 36 small matrix
products. The gradient of the inputs is a convolution with the turned kernel, that of the kernel is
G^T [(B^T d B) * (A dy A^T)] G. `winograd.cpp` computes tiles in groups that stay in the second-level cache;
the layers of ResNet-20 take 0.4 to 0.6 of the time of torch's convolutions.

Results differ from the exact sum by rounding: by 1e-6 of their norm where torch's differ by 2e-7, and
gradients of kernels by 8e-6 against 8e-7. Same inputs, machine and number of threads, same bits.

Alternatives: oneDNN had this form, but torch does not offer it. bfloat16 convolutions are about as fast, but
round to three digits, and torch's compiler made slower code around them.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SOURCE = Path(__file__).with_name("winograd.cpp")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")

LANES = 16
"""Channels come in multiples of these, the float32 numbers of the widest vector register."""


MOST_CHANNELS = 256
"""With 512, torch's convolution is as fast or faster: the transformed kernel no longer stays in the cache."""


def use_in(module: nn.Module) -> None:
    """Let the convolutions in `module` that can be computed this way be, in place.

    Those with 3x3 kernels, stride 1, padding 1 and multiples of 16 channels, up to 256, on a CPU in float32.
    Warns and changes nothing where `winograd.cpp` cannot be compiled.
    """
    layers = [layer for layer in module.modules() if type(layer) is nn.Conv2d and _fits(layer)]
    if not layers:
        return
    try:
        _library()
    except (OSError, subprocess.SubprocessError) as error:
        warnings.warn(f"convolutions stay torch's: {SOURCE.name} cannot be compiled: {error}", stacklevel=2)
        return
    for layer in layers:
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
        and all(c % LANES == 0 and c <= MOST_CHANNELS for c in (layer.in_channels, layer.out_channels))
        and layer.weight.dtype == torch.float32
        and layer.weight.device.type == "cpu"
    )


def convolution(images: Tensor, kernel: Tensor) -> Tensor:
    """Each of `images: [b, c, h, w]`, zeros around it, with `kernel: [9, c, C]`, row by row: `[b, C, h, w]`.

    float32, c and C multiples of 16. Differentiable once. What is returned lies in channels-last order, and
    what is given is brought into it.
    """
    outputs: Tensor = _convolution(images, kernel.contiguous())
    return outputs


def _outputs(images: Tensor, kernel: Tensor) -> Tensor:
    b, _, h, w = images.shape
    return torch.empty(b, kernel.shape[2], h, w, memory_format=torch.channels_last)


def _kernel(images: Tensor, slopes: Tensor) -> Tensor:
    return images.new_empty(9, images.shape[1], slopes.shape[1])


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


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, Tensor]:
    images, kernel = ctx.saved_tensors
    return convolution(slopes, kernel.flip(0).transpose(1, 2)), _kernel_gradient(images, slopes)


_convolution.register_fake(_outputs)
_kernel_gradient.register_fake(_kernel)
_convolution.register_autograd(_backward, setup_context=_keep)


def _ordered(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _call(function: str, images: Tensor, second: Tensor, result: Tensor, wanted: int) -> None:
    assert images.numel()
    assert {images.dtype, second.dtype, result.dtype} == {torch.float32}
    b, c, h, w = images.shape
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (images, second, result))
    getattr(_library(), function)(
        *pointers, *map(ctypes.c_int64, (b, h, w, c, wanted)), torch.get_num_threads()
    )


@lru_cache(1)
def _library() -> ctypes.CDLL:
    """`winograd.cpp`, compiled by each process: 2 seconds, and no file to trust or to go stale."""
    with tempfile.TemporaryDirectory() as folder:
        library = str(Path(folder) / "winograd.so")
        compiler = os.environ.get("CXX", "g++")
        subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", library], capture_output=True, check=True)
        return ctypes.CDLL(library)
