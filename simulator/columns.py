"""A round of all agents in blocks of columns.

What an algorithm does between gradients is element-wise, and W multiplies from the left: a block of columns
of `[n, d]` needs nothing of the others, except for a norm. So a program of one round runs for one block
after the other, and of the dozen vectors that its arithmetic makes only a block is there at once, small
enough to stay in a core's cache. The new parameters take the memory of the gradient, and no message is ever
whole.

An iterate is immutable, so by default the state after a round is there beside the one before it. A caller
that lets go of each iterate when the next is made may have it overwritten: then model, state and gradient are
all there is, and one vector more where a method asks for a norm. The old state is emptied when the writing
begins, so that nobody takes what is half written for a state. The old model stays as it was, which costs
nothing, because there must be room for a gradient.

Sums over agents run in the same order as without blocks, so results are the same bit for bit; but for a dense
W, whose product a library computes in an order that depends on its width.

Several local steps in a round stay whole. Their gradients are taken at parameters that the program makes on
its way: programs that wait there until all blocks have come so far hold together what is to be saved, and
programs that begin anew need all earlier gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from p2pqg.algorithms import Algorithm, Answer, Gradient, Mean, Mix, Norm, Rate, State

BLOCK_BYTES = {"cpu": 1 << 20}
"""Of a block of a vector. 0.5 to 1 MiB was fastest for 16 agents of 0.27 and 3.7 M parameters, on a core with
1 MiB of second-level cache; in smaller ones, Python shows."""

OTHER_BLOCK_BYTES = 64 << 20
"""On an accelerator, for which a block must be large; not measured."""

FEW = 8
"""Vectors of up to so many blocks stay whole, which for them is as fast or faster."""

ALIGNED = 64
"""Columns by which blocks begin, so that vector instructions fall on the same numbers as without blocks."""


def blocks(n: int, d: int, itemsize: int, device: str = "cpu") -> list[slice]:
    """Blocks of columns of vectors `[n, d]` on a kind of device: one, if they are small."""
    size = BLOCK_BYTES.get(device, OTHER_BLOCK_BYTES)
    if n * d * itemsize <= FEW * size:
        return [slice(d)]
    return blocks_of(max(1, size // (n * itemsize * ALIGNED)) * ALIGNED, d)


def blocks_of(width: int, d: int) -> list[slice]:
    """Blocks of so many of `d` columns, the last perhaps narrower."""
    return [slice(first, min(first + width, d)) for first in range(0, d, width)]


def round_in_blocks(
    algorithm: Algorithm,
    x: Tensor,
    state: dict[str, Tensor],
    lrs: Sequence[Rate],
    columns: Sequence[slice],
    gradient: Callable[[Gradient], Tensor],
    exchange: Callable[[Mix | Mean, int], Answer],
    *,
    overwrite: bool = False,
    once: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One round of one local step from `x: [n, d]`, which is not written to. Nor is `state`, but with
    `overwrite`: its memory then is that of the state after the round, and `state` is empty from when that
    begins.

    `gradient` answers for whole vectors, with memory that is given away, and `exchange` for a block in the
    given one of the round's exchanges, counted from 0. What leads to a norm is computed twice, exchanges
    included; with `once` their answers are kept for the second time, a message more.
    """
    whole: list[Tensor] = []  # gradients `[n, d]` and norms `[n, 1]`, in the order they are asked for
    asked: Tensor | None = None  # a vector whose norm is not known yet
    before, after = dict(state), dict[str, Tensor]()
    kept: dict[int, list[Answer]] = {block.start: [] for block in columns}

    def run(block: slice) -> Tensor | tuple[Tensor, State]:
        """The vector whose norm the round needs next, or else its result; both of a block."""
        own = {name: v[:, block] if _is_vector(v, x) else v for name, v in before.items()}
        program, known, index = algorithm.round(x[:, block], own, lrs), iter(list(whole)), 0
        answers = kept[block.start]
        try:
            effect = next(program)
            while True:
                match effect:
                    case Gradient():
                        if (g := next(known, None)) is None:
                            g = gradient(replace(effect, x=x))
                            whole.append(g)
                        effect = program.send((g[:, block],))
                    case Norm(vector):
                        if (length := next(known, None)) is None:
                            return vector
                        effect = program.send((length,))
                    case Mix() | Mean():
                        answer = answers[index] if index < len(answers) else exchange(effect, index)
                        if once and index == len(answers):
                            answers.append(answer)
                        effect = program.send(answer)
                        index += 1
        except StopIteration as stop:
            answers.clear()
            result: tuple[Tensor, State] = stop.value
            return result

    def write(block: slice, own_x: Tensor, own_state: State) -> None:
        """Put the result of a block where it belongs."""
        if overwrite:
            # What an algorithm hands on as it got it, perhaps by another name, would be lost.
            old = {_memory(v) for v in before.values()}
            own_x = own_x.clone() if _memory(own_x) in old else own_x
            own_state = {name: v.clone() if _memory(v) in old else v for name, v in own_state.items()}
            state.clear()
        for name, v in own_state.items():
            if not _is_vector(before[name], x):
                after[name] = v
                continue
            if name not in after:
                after[name] = before[name] if overwrite else torch.empty_like(x)
            after[name][:, block] = v
        whole[0][:, block] = own_x  # last: the gradient may be part of the state

    while True:
        for block in columns:
            match run(block):
                case (own_x, own_state):
                    write(block, own_x, own_state)
                case Tensor() as vector:
                    asked = torch.empty_like(x) if asked is None else asked
                    asked[:, block] = vector
        if asked is None:
            return whole[0], after
        whole += Norm(asked).answer()
        asked = None


def _is_vector(v: Tensor, x: Tensor) -> bool:
    """Whether it has an entry for every parameter; else it is a counter."""
    return v.shape == x.shape


def _memory(v: Tensor) -> int:
    return v.untyped_storage().data_ptr()
