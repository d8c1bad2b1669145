"""What the paper's ResNet-20 costs to simulate, as ratios to a plain loop over torch modules in the same run.

    python benchmarks/engine.py

Repetitions alternate, figures are medians, and times are CPU-seconds of this process with one thread. The
last section is arithmetic on shapes and data sheets, marked as computed: nothing in it was measured.
"""

from __future__ import annotations

import time
from functools import partial

import torch
from torch import Tensor, nn

from p2pqg import algorithms, allocator, topology
from p2pqg.algorithms import Algorithm, Answer, Effect, Mix, State, drive
from p2pqg.config import agent_names
from p2pqg.tasks.augmentation import ImageTransform
from p2pqg.tasks.models import EvoNormS0, resnet20
from p2pqg.tasks.supervised import SupervisedTask
from p2pqg_simulator.columns import blocks, round_in_blocks
from p2pqg_simulator.gradients import CHUNK_BYTES, Compiled, Loop, Vmap
from p2pqg_simulator.memory import cost_of, footprint, vectors_of
from p2pqg_simulator.mixing import product
from simulator import paired, plain_loop, report, seconds, simulate, simulation

AGENTS, ROUNDS, PAIRS = 3, 2, 7
RING, CELL_ROUNDS, TEST_SAMPLES, BATCH = 16, 29_400, 10_000, 32
SCORED = 3 * BATCH
TARGET = 0.5


Start = tuple[Tensor, State]


class PlainEvoNorm(EvoNormS0):
    """As the code behind the paper writes it: torch's own variance over pixels and channels of a group."""

    def forward(self, x: Tensor) -> Tensor:
        groups = x.reshape(len(x), self.groups, -1, *x.shape[2:])
        std = torch.sqrt(groups.var(dim=(2, 3, 4), keepdim=True) + 1e-5).expand_as(groups).reshape(x.shape)
        return x * torch.sigmoid(x) / std * self.weight[:, None, None] + self.bias[:, None, None]


def plain_resnet() -> nn.Module:
    module = resnet20(10)
    for layer in module.modules():
        if type(layer) is EvoNormS0:
            layer.__class__ = PlainEvoNorm
    return module


def cifar_like(n: int, *, plain: bool = False) -> list[SupervisedTask]:
    """ResNet-20 with the paper's EvoNorm, batch 32, on random bytes of CIFAR's shape."""
    random = torch.Generator().manual_seed(0)

    def data(size: int) -> tuple[Tensor, Tensor]:
        images = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=random)
        return images, torch.randint(0, 10, (size,), generator=random)

    transform = ImageTransform((0.5,) * 3, (0.25,) * 3, torch.float32, "flip-crop")
    test, module = data(SCORED), plain_resnet if plain else partial(resnet20, 10)
    return [
        SupervisedTask(
            module, data(4 * BATCH), test, agent=name, seed=0, transform=transform, test_batch_size=BATCH
        )
        for name in agent_names(n)
    ]


def plain_scores(tasks: list[SupervisedTask]) -> None:
    """Score the initial model of one agent as one writes it."""
    model, (inputs, targets) = tasks[0].make_module().eval(), tasks[0].test
    with torch.no_grad():
        for part, wanted in zip(inputs.split(BATCH), targets.split(BATCH), strict=True):
            (model(tasks[0].transform(part, None).contiguous()).argmax(1) == wanted).sum().item()


def steps_and_scores() -> None:
    """A worker-step (forward, backward, update, mixing) and scoring, eager and compiled."""
    plain, ours = cifar_like(AGENTS, plain=True), cifar_like(AGENTS)
    run = simulation(ours, "loop")
    x = run.start(0).x
    steps = AGENTS * ROUNDS

    def step_of(engine: Loop) -> None:
        run.gradients = engine
        simulate(run, ROUNDS)

    def score() -> None:
        ours[0].evaluate(x[0], {})

    for name, build in (("loop", Loop), ("compile", Compiled)):
        compiling = seconds(lambda build=build: run.__setattr__("gradients", build(ours)), time.process_time)
        engine = run.gradients
        own, theirs, ratio = paired(
            partial(step_of, engine), partial(plain_loop, plain, ROUNDS), PAIRS, time.process_time
        )
        report(
            f"ResNet-20 worker-step, {name}: at most {TARGET} of a plain loop",
            f"{1 / ratio:.2f} ({own / steps:.3f}, {theirs / steps:.3f} CPU-s)",
            1 / ratio <= TARGET,
        )
        own, theirs, ratio = paired(score, partial(plain_scores, plain), PAIRS, time.process_time)
        whole = RING * TEST_SAMPLES / SCORED
        report(
            f"scoring, {name}: at least 3 x as fast as a plain loop",
            f"{ratio:.2f} x; 16 models x 10,000 images, extrapolated from {SCORED}: "
            f"{whole * own:.0f}, {whole * theirs:.0f} CPU-s",
            ratio >= 3,
        )
        if name == "compile":
            print(f"      making the compiled engine: {compiling:.1f} CPU-s (with torch's cache warm or not)")


def batching() -> None:
    """The two forms of batched convolutions that an accelerator may take, on this CPU."""
    tasks = cifar_like(AGENTS)
    x = tasks[0].init(0).expand(AGENTS, -1).contiguous()
    loop = Loop(tasks)
    for convolutions in ("grouped", "products"):
        batched = Vmap(tasks, convolutions=convolutions)
        own, theirs, ratio = paired(
            lambda batched=batched: batched(x, [{}] * AGENTS, 0),
            lambda: loop(x, [{}] * AGENTS, 0),
            3,
            time.process_time,
        )
        measured = f"{1 / ratio:.2f} of the loop ({own:.2f}, {theirs:.2f} CPU-s)"
        print(f"      vmap, {convolutions} convolutions: {measured}")


def rounds() -> None:
    """A round of 16 agents of 3.7 M parameters without its gradients, in blocks of columns and whole."""
    n, d = RING, 3_700_000
    x, noise = (torch.randn(n, d, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    mixed = product(topology.build("ring", n).graphs[0].matrix(), x.dtype, x.device)

    def exchange(effect: Effect, index: int = 0) -> Answer:
        return tuple(mixed(v) for v in effect.vectors) if isinstance(effect, Mix) else (noise.clone(),)

    for name in ("dsgd", "qg-dsgdm-n", "dadam", "qg-dadam"):
        algorithm = algorithms.build(name)
        start = x, dict(algorithm.init(x))

        def in_blocks(algorithm: Algorithm = algorithm, start: Start = start) -> None:
            columns = blocks(n, d, x.itemsize)
            start = start[0], dict(start[1])  # which is emptied
            round_in_blocks(
                algorithm, *start, [0.1], columns, lambda _: noise.clone(), exchange, overwrite=True
            )

        def whole(algorithm: Algorithm = algorithm, start: Start = start) -> None:
            drive(algorithm.round(*start, [0.1]), exchange)

        own, theirs, ratio = paired(in_blocks, whole, 3, time.process_time)
        vectors = [vectors_of(algorithm, in_blocks=each, overwrite=each) for each in (True, False)]
        print(f"      {name} in blocks: {1 / ratio:.2f} of whole ({own:.2f}, {theirs:.2f} CPU-s); "
              "vectors at the peak {:.1f}, whole {:.1f}".format(*vectors))  # fmt: skip


def memory() -> None:
    """What simulations are stated to take; a test holds the statement against a real process."""
    batched = CHUNK_BYTES["cpu"] // cost_of(cifar_like(1)[0]).activations
    for n, engine, chunk in ((RING, "loop", 1), (100, "loop", 1), (100, "vmap", batched)):
        vectors = vectors_of(algorithms.build("qg-dsgdm-n"), in_blocks=True, overwrite=True)
        stated = footprint(cifar_like(n), chunk, vectors)
        parts = ", ".join(
            f"{name} {getattr(stated, name) / 2**30:.2f}" for name in ("vectors", "models", "activations")
        )
        print(f"      {n} agents, {engine}, {chunk} at once: {stated.training / 2**30:.2f} GiB ({parts})")


H200 = {"float32": 67e12, "TF32": 494e12, "bfloat16": 989e12}
"""Operations a second, dense, of the data sheet."""
H200_BYTES = 4.8e12
"""Bytes a second between chip and memory."""


def traffic(task: SupervisedTask) -> tuple[int, int]:
    """Least bytes of one mini-batch gradient in float32 with everything between two layers fused, and those
    that unfolded patches add.

    A layer reads its input forward and for its weights' gradient, writes its output, and backward reads the
    output's gradient twice and writes the input's; weights move three times. Patches are written and read
    forward and backward for the weights, and written and read as gradients.
    """
    least = patches = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal least, patches
        weights = sum(p.numel() for p in layer.parameters())
        least += 4 * 3 * (inputs[0].numel() + output.numel() + weights)
        if isinstance(layer, nn.Conv2d):
            places = output.numel() // layer.out_channels
            patches += 4 * 6 * places * layer.weight[0].numel()

    hooks = [
        layer.register_forward_hook(count)
        for layer in task.module.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    task.module(task.batch(0)[0])
    for hook in hooks:
        hook.remove()
    return least, patches


def floors() -> None:
    """The least time of the paper's cell on an H200: ring 16, ResNet-20, 29,400 rounds."""
    task = cifar_like(1)[0]
    operations = cost_of(task).operations * RING
    least, patches = traffic(task)
    vectors = 16 * 4 * task.spec.d  # eight vectors of a round, each written and read
    moved = RING * (least + vectors)
    print(f"      computed, not measured: {operations / 1e9:.0f} GFLOP and {moved / 1e9:.2f} GB a round")
    for dtype, rate in H200.items():
        minutes = CELL_ROUNDS * operations / rate / 60
        print(f"      computed: the cell's operations at an H200's {dtype} rate, {minutes:.2f} minutes")
    for what, total in (("bytes", moved), ("bytes with unfolded patches", moved + RING * patches)):
        print(f"      computed: the cell's {what}, {CELL_ROUNDS * total / H200_BYTES / 60:.2f} minutes")


def main() -> None:
    allocator.pin()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    steps_and_scores()
    batching()
    rounds()
    memory()
    floors()


if __name__ == "__main__":
    main()
