"""A task made of a torch module, a loss and tensors: what nearly everyone needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn

from p2pqg import seeds
from p2pqg.errors import ConfigError
from p2pqg.flat import Spec, bind, trainable
from p2pqg.tasks.base import Buffers, Evaluation, LocalGradient
from p2pqg.tasks.precision import Precision, arithmetic, forward

Loss = Callable[[Tensor, Tensor], Tensor]
Batch = tuple[Tensor, Tensor]


class Program(Protocol):
    """The arithmetic of a task's module and loss, made faster for inputs of some shapes.

    Each method returns None for other shapes, which the module then computes itself.
    """

    def gradient(
        self, x: Tensor, buffers: Buffers, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Buffers] | None:
        """Gradient `[d]`, loss and the buffers after the forward pass, at `x: [d]`."""

    def outputs(self, x: Tensor, buffers: Buffers, inputs: Tensor) -> Tensor | None:
        """What the module answers when it is scored."""


class Transform(Protocol):
    """What happens to inputs between where they are kept and the module: decoding, augmentation, scaling.

    Random choices are drawn apart from their use, a row a sample, so that mini-batches of many agents can
    be transformed in one call, on any device, and come out as they would one by one.
    """

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        """Choices of augmentation for `samples` training samples, `[samples, ...]`, on the CPU."""

    def __call__(self, inputs: Tensor, choices: Tensor | None) -> Tensor:
        """What the module gets for stored `inputs: [samples, ...]`; without choices, as for scoring."""


class SupervisedTask:
    """Minimise `loss(module(inputs), targets)` over an agent's own samples.

    `module` is a factory, called once for the architecture and once per `init`; only parameters that require
    a gradient are trained and mixed. `train` and `test` are `(inputs, targets)` with samples along the first
    axis. Each epoch visits the own samples once in an order drawn from ``(seed, "shuffle", agent, epoch)``,
    in mini-batches of `batch_size`, the last short one kept (paper-protocol, section 3.2). Dropout, or
    whatever else in the module draws from torch's global CPU generator, draws in step t from
    ``(seed, "dropout", agent, t)``. `total_samples` is needed for ``weighting = "samples"`` only.

    Samples are kept as they are given (bytes, say) and go through `transform`, if there is one, batch by
    batch; its choices in step t are drawn from ``(seed, "augment", agent, t)``. Scoring takes the test
    samples in their order, `test_batch_size` at once: that matters only to models whose scores depend on the
    other samples of a batch.

    `loss` is a mean over the mini-batch. Accuracy is reported for scores `[samples, classes]` against class
    numbers `[samples]`.

    Errors: `ConfigError` for an empty share, nothing held out, or inputs and targets of different length.
    """

    precision: Precision = "float32"
    """Of the arithmetic of gradients and scores; to be set before training."""

    def __init__(
        self,
        module: Callable[[], nn.Module],
        train: Batch,
        test: Batch,
        *,
        agent: str,
        seed: int,
        batch_size: int = 32,
        loss: Loss = nn.functional.cross_entropy,
        total_samples: int | None = None,
        transform: Transform | None = None,
        test_batch_size: int = 1000,
    ) -> None:
        for name, (inputs, targets) in {"train": train, "test": test}.items():
            if len(inputs) != len(targets):
                raise ConfigError(
                    f"expected as many targets as inputs, found {len(targets)} and {len(inputs)}",
                    key=f"task.{name}",
                )
            if not len(inputs):
                raise ConfigError(f"expected samples for {agent}, found none", key=f"task.{name}")
        for key, size in {"batch_size": batch_size, "options.test_batch_size": test_batch_size}.items():
            if size < 1:
                raise ConfigError(f"expected 1 or more, found {size}", key=f"task.{key}")
        self.make_module = module
        self.train, self.test = train, test
        self.agent, self.seed, self.batch_size = agent, seed, batch_size
        self.loss = loss
        self.total_samples = total_samples
        self.transform, self.test_batch_size = transform, test_batch_size
        with seeds.scoped(seed, "architecture"):
            self.module = module()
        self.spec = Spec.of_module(self.module)
        self._initial_buffers = self._copy_of_buffers()
        self.program: Program | None = None
        self._x: Tensor | None = None
        self.epoch_order = lru_cache(maxsize=2)(self._shuffled)

    @property
    def samples(self) -> int:
        return len(self.train[0])

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.samples // self.batch_size)

    def init(self, seed: int) -> Tensor:
        with seeds.scoped(seed, "init"):
            module = self.make_module()
        return self.spec.flatten(trainable(module))

    def buffers(self) -> Buffers:
        return {name: buffer.clone() for name, buffer in self._initial_buffers.items()}

    def to(self, device: torch.device, test: Batch | None = None) -> None:
        """Keep samples, module and initial buffers on a device; `test` is the held-out set where it is there
        already. Parameters and buffers passed in must then be there too."""
        self.train = (self.train[0].to(device), self.train[1].to(device))
        self.test = (self.test[0].to(device), self.test[1].to(device)) if test is None else test
        self.module.to(device)
        self._initial_buffers = {name: own.to(device) for name, own in self._initial_buffers.items()}

    def compute_in(self, x: Tensor) -> None:
        """Let the module's parameters be views of `x: [d]`. Tasks that compute in turn may share it, because
        what a task is asked to compute with is copied there each time."""
        self._x = x
        bind(self.module, self.spec, x)

    def batch_indices(self, step: int) -> Tensor:
        """Positions in the own share of the mini-batch of one step, `[b]`."""
        epoch, position = divmod(step, self.steps_per_epoch)
        first = position * self.batch_size
        return self.epoch_order(epoch)[first : first + self.batch_size]

    def batch(self, step: int) -> Batch:
        """The mini-batch of one step, as the module gets it."""
        return self.samples_at(
            self.batch_indices(step), None if self.transform is None else self.choices(step)
        )

    def samples_at(self, indices: Tensor, choices: Tensor | None) -> Batch:
        """Samples of the own share, as the module gets them; without choices, not augmented."""
        inputs, targets = self.train[0][indices], self.train[1][indices]
        return inputs if self.transform is None else self.transform(inputs, choices), targets

    def choices(self, step: int) -> Tensor:
        """The transform's random choices for the mini-batch of one step, `[b, ...]`."""
        assert self.transform is not None
        generator = seeds.generator(self.seed, "augment", self.agent, step)
        return self.transform.draw(len(self.batch_indices(step)), generator)

    def gradient(self, x: Tensor, buffers: Buffers, step: int) -> LocalGradient:
        with seeds.scoped(self.seed, "dropout", self.agent, step):
            return self.gradient_on(self.batch(step), x, buffers)

    def gradient_on(self, batch: Batch, x: Tensor, buffers: Buffers) -> LocalGradient:
        """Gradient on a batch as the module gets it."""
        inputs, targets = batch
        with arithmetic(self.precision, x.device):
            if self.program is not None:
                computed = self.program.gradient(x, buffers, inputs, targets)
                if computed is not None:
                    return LocalGradient(*computed)
            self._load(x, buffers)
            self.module.train()
            loss = self.loss(forward(self.precision, x.device, self.module, inputs), targets)
            parameters = list(trainable(self.module).values())
            parts = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        g = torch.cat([part.reshape(-1) for part in parts])
        return LocalGradient(g, loss.detach(), self._copy_of_buffers() if buffers else buffers)

    def full_gradient(self, x: Tensor, buffers: Buffers, step: int) -> Tensor:
        """In pieces of `batch_size` samples, in the order of the share."""
        total = torch.zeros_like(x)
        pieces = zip(*(torch.split(part, self.batch_size) for part in self.train), strict=True)
        with seeds.scoped(self.seed, "full dropout", self.agent, step):
            for inputs, targets in pieces:
                batch = inputs if self.transform is None else self.transform(inputs, None), targets
                total.add_(self.gradient_on(batch, x, buffers).g, alpha=len(inputs) / self.samples)
        return total

    @torch.no_grad()
    def evaluate(self, x: Tensor, buffers: Buffers, chunk: int | None = None) -> Evaluation:
        self._load(x, buffers)
        self.module.eval()
        chunk = self.test_batch_size if chunk is None else chunk
        total, correct, classified = 0.0, 0, False
        for part, wanted in zip(*(torch.split(held_out, chunk) for held_out in self.test), strict=True):
            inputs = part if self.transform is None else self.transform(part, None)
            with arithmetic(self.precision, x.device):
                outputs = None if self.program is None else self.program.outputs(x, buffers, inputs)
                if outputs is None:
                    outputs = forward(self.precision, x.device, self.module, inputs)
            total += float(self.loss(outputs, wanted)) * len(part)
            classified = outputs.dim() == 2 and wanted.dim() == 1 and not wanted.is_floating_point()
            if classified:
                correct += int((outputs.argmax(-1) == wanted).sum())
        samples = len(self.test[0])
        return Evaluation(total / samples, correct / samples if classified else None, samples)

    def _load(self, x: Tensor, buffers: Buffers) -> None:
        if self._x is None or self._x.dtype != x.dtype or self._x.device != x.device:
            self.compute_in(torch.empty_like(x))
        assert self._x is not None
        self._x.copy_(x)
        for name, buffer in self.module.named_buffers() if buffers else ():
            buffer.copy_(buffers[name])

    def _copy_of_buffers(self) -> Buffers:
        return {name: buffer.clone() for name, buffer in self.module.named_buffers()}

    def _shuffled(self, epoch: int) -> Tensor:
        """`epoch_order`: positions in the own share `[samples]` in the order of one epoch."""
        return torch.randperm(
            self.samples, generator=seeds.generator(self.seed, "shuffle", self.agent, epoch)
        )
