"""How a common data set is shared out among agents: who holds which samples.

A partition is a pure function of the labels, the number of agents, alpha and the seed, so every process of
a run derives the same one and keeps its own share only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from p2pqg import seeds
from p2pqg.errors import ConfigError

Indices = NDArray[np.int64]
"""Positions of samples in the data set, `[samples]`."""

GROUP = 10
"""Agents that share one slice of the data in the paper's procedure."""

DRAWS = 10_000
"""Redraws before a split is given up as impossible."""


def dirichlet(labels: Indices, n: int, alpha: float, seed: int) -> tuple[Indices, ...]:
    """The paper's partition: `dirichlet_lists`, joined in the agents' order and cut into equal blocks.

    Because the lists are sorted by class, an agent that drew more than its block passes its highest
    classes on to the next agent.
    """
    return equal_blocks(np.concatenate(dirichlet_lists(labels, n, alpha, seed)), n)


def dirichlet_lists(labels: Indices, n: int, alpha: float, seed: int) -> tuple[Indices, ...]:
    """What the agents of the paper's partition draw before the cut: all samples, in lists of unequal size.

    The samples are shuffled and dealt in consecutive slices to groups of `GROUP` agents, the last group
    taking what remains. Within a group of G agents and S samples every class c is shared out by
    p ~ Dirichlet(alpha, ..., alpha), with p_j = 0 for an agent that already holds S/G; drawn again until the
    smallest list holds floor(S/G/2). Draw for draw the released code (paper-protocol, section 3.1), legacy
    numpy generator included.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(
            f"expected a number in [0, 2^32) with the partition 'dirichlet', found {seed}", key="seed"
        )
    random = np.random.RandomState(seed)
    samples = len(labels)
    classes = np.unique(labels)
    table = np.stack([np.arange(samples), labels], axis=1)
    random.shuffle(table)
    lists: list[Indices] = []
    for first in range(0, n, GROUP):
        members = min(GROUP, n - first)
        start = first // GROUP * int(GROUP / n * samples)
        stop = start + int(GROUP / n * samples) if first + GROUP < n else samples
        rows = table[start:stop]
        rows = rows[np.argsort(rows[:, 1], kind="stable")]
        by_class = np.split(rows[:, 0], np.searchsorted(rows[:, 1], classes[1:]))
        drawn = (_capped_cuts(random, list(map(len, by_class)), members, alpha) for _ in range(DRAWS))
        lists += _accept(drawn, by_class, minimum=int(0.5 * len(rows) / members))
    return tuple(lists)


def dirichlet_plain(labels: Indices, n: int, alpha: float, seed: int) -> tuple[Indices, ...]:
    """Every class shared out over all agents by p ~ Dirichlet(alpha, ..., alpha) (Hsu et al. 2019).

    Every sample is used and the shares differ in size. Drawn again until the smallest share has a tenth of
    the mean, but not more than 10 samples are asked for and not less than 1.
    """
    random = seeds.numpy_generator(seed, "partition")
    by_class = [random.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    sizes = np.array([len(members) for members in by_class])

    def draws() -> Iterator[NDArray[np.int64]]:
        for _ in range(DRAWS):
            p = random.dirichlet(np.full(n, alpha), size=len(sizes))
            yield _cuts(p, sizes[:, None])

    return tuple(_accept(draws(), by_class, minimum=max(1, min(10, len(labels) // (10 * n)))))


def iid(labels: Indices, n: int, alpha: float, seed: int) -> tuple[Indices, ...]:
    """A random permutation cut into equal blocks; only the number of labels matters."""
    return equal_blocks(seeds.numpy_generator(seed, "partition").permutation(len(labels)), n)


PARTITIONS: dict[str, Callable[[Indices, int, float, int], tuple[Indices, ...]]] = {
    "dirichlet": dirichlet,
    "dirichlet-plain": dirichlet_plain,
    "iid": iid,
}
"""Ways to share out a labelled data set by name; "dirichlet" is the paper's."""


def partition(kind: str, labels: ArrayLike, n: int, alpha: float, seed: int) -> tuple[Indices, ...]:
    """Disjoint shares of the samples, one for each of n agents: positions in `labels: [samples]`.

    Small `alpha` gives each agent few classes, large `alpha` gives all of them nearly the same data.

    Raises `ConfigError` for an unknown kind, labels that are not whole numbers in one dimension,
    `alpha <= 0`, fewer samples than agents, or an alpha so small that no draw gives every agent enough.
    """
    array = np.asarray(labels)
    if kind not in PARTITIONS:
        raise ConfigError(f"expected one of {', '.join(PARTITIONS)}, found {kind!r}", key="task.partition")
    if array.ndim != 1 or (kind != "iid" and not np.issubdtype(array.dtype, np.integer)):
        raise ConfigError(
            f"{kind} expects one whole number for each sample, found {array.dtype} {array.shape}",
            key="task.partition",
        )
    if not (alpha > 0 and np.isfinite(alpha)):
        raise ConfigError(f"expected a positive number, found {alpha}", key="task.alpha")
    if not 1 <= n <= len(array):
        raise ConfigError(
            f"expected between 1 and {len(array)} agents (the number of samples), found {n}", key="agents"
        )
    return PARTITIONS[kind](array, n, float(alpha), seed)


def equal_blocks(indices: Indices, n: int) -> tuple[Indices, ...]:
    """n consecutive blocks of floor(samples / n); what is left over is dropped."""
    size = len(indices) // n
    return tuple(indices[i * size : (i + 1) * size] for i in range(n))


def _cuts(p: NDArray[np.float64], size: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Where to cut `size` samples so that agent j gets the share p_j: the n - 1 inner bounds."""
    cuts: NDArray[np.int64] = (np.cumsum(p, axis=-1) * size).astype(np.int64)[..., :-1]
    return cuts


def _capped_cuts(
    random: np.random.RandomState, sizes: Sequence[int], members: int, alpha: float
) -> NDArray[np.int64] | None:
    """Cuts `[classes, members - 1]` of one draw; None if all of a class fell to agents that are full."""
    cap = sum(sizes) / members
    held = np.zeros(members, dtype=np.int64)
    cuts = np.empty((len(sizes), members - 1), dtype=np.int64)
    for c, size in enumerate(sizes):
        p = np.where(held < cap, random.dirichlet(np.full(members, alpha)), 0.0)
        total = p.sum()
        if not (total > 0 and np.isfinite(total)):
            return None
        cuts[c] = _cuts(p / total, size)
        held += np.diff(cuts[c], prepend=0, append=size)
    return cuts


def _accept(
    draws: Iterator[NDArray[np.int64] | None], by_class: Sequence[Indices], minimum: int
) -> list[Indices]:
    """Cut the classes by the first draw that leaves every agent at least `minimum` samples."""
    ends = np.array([[len(members)] for members in by_class])
    for cuts in draws:
        if cuts is None:
            continue
        held = np.diff(np.hstack([cuts, ends]), prepend=0, axis=1).sum(axis=0)
        if held.min() >= minimum:
            pieces = [np.split(members, cut) for members, cut in zip(by_class, cuts, strict=True)]
            return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]
    raise ConfigError(
        f"found no draw in {DRAWS} that leaves every agent {minimum} samples: expected a larger alpha, "
        "fewer agents or partition = 'iid'",
        key="task.alpha",
    )
