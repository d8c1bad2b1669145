"""Convolutions as matrix products over unfolded patches.

Batched over agents, each with weights of its own, a convolution becomes one of n groups with few channels
each, the shape that convolution libraries serve worst, above all backward. As a product it is one batched
matrix multiplication, which every accelerator does well, at the price of writing each pixel k² times: for
ResNet-20 about eight times the least traffic (`benchmarks/engine.py` computes both). Chosen on paper for
accelerators, where not measured; on a CPU it takes twice as long as grouped convolutions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, unfold
from torch.overrides import TorchFunctionMode


class ConvolutionsAsProducts(TorchFunctionMode):
    """Inside it, every ungrouped `conv2d` with numbers for its padding is a matrix product."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is conv2d and not kwargs and len(args) == 7:
            inputs, weight, bias, stride, padding, dilation, groups = args
            if groups == 1 and not isinstance(padding, str):
                return product(inputs, weight, bias, stride, padding, dilation)
        return func(*args, **(kwargs or {}))


def product(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """`conv2d` of `inputs: [b, c, h, w]` with `weight: [C, c, k, l]`: `[b, C, H, W]`."""
    patches = unfold(inputs, weight.shape[2:], dilation, padding, stride)  # [b, c k l, H W]
    height, width = (
        (inputs.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    )
    outputs = torch.matmul(weight.flatten(1), patches).view(len(inputs), len(weight), height, width)
    return outputs if bias is None else outputs + bias[:, None, None]
