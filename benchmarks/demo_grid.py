"""How the learning rates of `p2pqg demo` were chosen: every method on a factor-2 grid, three seeds.

    python benchmarks/demo_grid.py > table.md

Prints the table of `docs/demo.md`: mean over seeds of the mean local accuracy and of the worst local
accuracy. The best learning rate of each method lies inside its grid.
"""

from __future__ import annotations

import statistics

import torch

from p2pqg.errors import TrainingDiverged
from p2pqg_simulator import simulate
from p2pqg_simulator.demo import NETWORK, REFERENCES, ROUNDS, settings_for

SEEDS = range(3)
GRID = [0.0125 * 2**k for k in range(7)]


def main() -> None:
    torch.set_num_threads(1)
    print("| method | " + " | ".join(f"lr {lr:g}" for lr in GRID) + " |")
    print("|---|" + "---|" * len(GRID))
    for method in (*REFERENCES, NETWORK):
        cells = []
        for lr in GRID:
            try:
                ends = []
                for seed in SEEDS:
                    settings = settings_for(method, seed, ROUNDS, lr=lr)
                    *_, last = simulate(settings, finish_rounds=0, eval_every=0)
                    ends.append(last.scores)
                mean = statistics.mean(scores.mean_accuracy for scores in ends)
                worst = statistics.mean(scores.worst_accuracy for scores in ends)
                cells.append(f"{mean:.1%} / {worst:.1%}")
            except TrainingDiverged:
                cells.append("diverged")
        print(f"| {method.label} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
