"""Which learning rate next: a factor-2 grid for one seed, extended until its best is interior, then the other
seeds at the best.

Only the learning rate is tuned, for every method and setting, as in the paper, whose grids and results are
not published. Like the paper, whose data has no validation part, it chooses by what is reported: the best
mean accuracy of the local models on the test set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LIMIT = 12
"""Most rates that are tried for one cell."""

Scores = Mapping[tuple[float, int], float]
"""Accuracy by learning rate and seed; minus infinity for a run that diverged."""


def next_runs(
    first: Sequence[float], seeds: int, done: Scores, grid: Sequence[float] | None = None
) -> list[tuple[float, int]]:
    """Pairs of learning rate and seed to run now; empty when the search is over.

    With a `grid`, all of its rates for all seeds. Otherwise `first` (increasing, each twice the one before)
    for seed 0; then the next smaller or larger while the best is at an end; then all seeds at the best.
    """
    if grid is not None:
        return [(lr, seed) for seed in range(seeds) for lr in grid if (lr, seed) not in done]
    if missing := [(lr, 0) for lr in first if (lr, 0) not in done]:
        return missing
    tried = sorted(lr for lr, seed in done if seed == 0)
    best = best_rate(done)
    if best is None or len(tried) >= LIMIT:
        below = tried[0] / 2
        return [(below, 0)] if best is None and len(tried) < LIMIT else []
    if best == tried[0]:
        return [(best / 2, 0)]
    if best == tried[-1]:
        return [(best * 2, 0)]
    return [(best, seed) for seed in range(seeds) if (best, seed) not in done]


def best_rate(done: Scores) -> float | None:
    """The rate with the best score for seed 0 (the smallest of equals); None if every run diverged."""
    scores = sorted((-score, lr) for (lr, seed), score in done.items() if seed == 0)
    return scores[0][1] if scores and scores[0][0] < float("inf") else None


def interior(done: Scores) -> bool:
    """Whether a smaller and a larger rate than the best were tried."""
    best, tried = best_rate(done), [lr for lr, seed in done if seed == 0]
    return best is not None and min(tried) < best < max(tried)
