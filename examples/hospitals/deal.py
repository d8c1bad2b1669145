"""Deal out PneumoniaMNIST to the hospitals: BASEL.npz, ... and what all may know of it, options.toml.

    python3 deal.py pneumoniamnist.npz

Writes into the current folder. Sizes are uneven, and so is how frequent pneumonia is. Held-out images are
the data set's test part, a quarter for each.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

HOSPITALS = {
    "basel": (0.27, 0.40),
    "bern": (0.40, 0.27),
    "chur": (0.17, 0.08),
    "geneva": (0.16, 0.25),
}
"""The part that each has of the training images without pneumonia, and of those with it."""


def deal(archive: Path, out: Path) -> None:
    """Write the hospitals' files."""
    with np.load(archive) as data:
        parts = {
            part: (data[f"{part}_images"], data[f"{part}_labels"].flatten()) for part in ("train", "test")
        }
    random = np.random.default_rng(0)
    shares = {"train": list(HOSPITALS.values()), "test": [(0.25, 0.25)] * len(HOSPITALS)}
    hands: list[dict[str, np.ndarray]] = [{} for _ in HOSPITALS]
    for part, (images, labels) in parts.items():
        cut = []
        for label in (0, 1):
            shuffled = random.permutation(np.flatnonzero(labels == label))
            ends = np.cumsum([share[label] for share in shares[part]])[:-1] * len(shuffled)
            cut.append(np.split(shuffled, ends.round().astype(int)))
        for hand, *own in zip(hands, *cut, strict=True):
            chosen = np.concatenate(own)
            hand |= {f"{part}_images": images[chosen], f"{part}_labels": labels[chosen]}
    for name, hand in zip(HOSPITALS, hands, strict=True):
        np.savez_compressed(out / f"{name}.npz", **hand)
        ill = hand["train_labels"].mean()
        count, held_out = len(hand["train_labels"]), len(hand["test_labels"])
        print(f"{name + '.npz':<12} {count:>5} images, {ill:.0%} with pneumonia; {held_out} held out")
    labels = parts["train"][1]
    options = f"\n[task.options]\ntotal_images = {len(labels)}\npneumonia = {labels.mean():.2f}\n"
    (out / "options.toml").write_text(options)


if __name__ == "__main__":
    deal(Path(sys.argv[1]), Path())
