"""A model as one contiguous vector.

Algorithms, gossip and checkpoints see a model as `x: [d]`; only a task knows its layers. A `Spec` is the
map between the two: the ordered names and shapes and the one dtype. Its fingerprint travels in the
handshake, so two agents whose models differ in any name, shape or dtype refuse each other.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from p2pqg.errors import ConfigError


@dataclass(frozen=True)
class Spec:
    """Ordered names and shapes of the parameters, and their dtype.

    `layers` are the kinds of a module's layers, in order: BatchNorm and GroupNorm have parameters of the
    same names and shapes, but their models must not be mixed.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    layers: tuple[str, ...] = ()

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor], layers: tuple[str, ...] = ()) -> Spec:
        """The spec of named tensors, in their order.

        Raises `ConfigError` if there are none, or if they are not all of one floating dtype.
        """
        if not parameters:
            raise ConfigError("expected a model with trainable parameters, found none", key="task")
        dtypes = {p.dtype for p in parameters.values()}
        if len(dtypes) > 1 or not next(iter(dtypes)).is_floating_point:
            raise ConfigError(
                f"expected parameters of one floating dtype, found {', '.join(sorted(map(str, dtypes)))}",
                key="task",
            )
        return cls(
            names=tuple(parameters),
            shapes=tuple(tuple(p.shape) for p in parameters.values()),
            dtype=dtypes.pop(),
            layers=layers,
        )

    @classmethod
    def of_module(cls, module: nn.Module) -> Spec:
        """The spec of a module's trainable parameters."""
        return cls.of(trainable(module), tuple(type(layer).__name__ for layer in module.modules()))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of scalars in each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def d(self) -> int:
        """Number of parameters."""
        return sum(self.sizes)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change whenever a name, a shape, a layer, the order or the dtype does."""
        text = json.dumps([self.names, self.shapes, str(self.dtype), self.layers])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Named tensors, each `[*agents, *shape]`, to `[*agents, d]` (a copy)."""
        parts = []
        for name, shape in zip(self.names, self.shapes, strict=True):
            tensor = tensors[name]
            agents = tensor.shape[: tensor.dim() - len(shape)]
            parts.append(tensor.detach().reshape(*agents, -1))
        return torch.cat(parts, dim=-1)

    def views(self, x: Tensor) -> dict[str, Tensor]:
        """`x: [*agents, d]` to named tensors `[*agents, *shape]` that share its memory."""
        agents = x.shape[:-1]
        pieces = torch.split(x, list(self.sizes), dim=-1)
        return {
            name: piece.view(*agents, *shape)
            for name, shape, piece in zip(self.names, self.shapes, pieces, strict=True)
        }


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's parameters that require a gradient, by name, in order."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def bind(module: nn.Module, spec: Spec, x: Tensor) -> None:
    """Make the module's trainable parameters views of `x: [d]`, so that writing x changes the model."""
    views = spec.views(x)
    for name, parameter in trainable(module).items():
        parameter.data = views[name]
