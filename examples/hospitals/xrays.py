"""What the hospitals train: does a chest X-ray show pneumonia? A task of one's own (docs/your-own-task.md).

A site's images are in one file, `task.data` in its agent.toml: `train_images` and `test_images`, bytes
`[images, 28, 28]`, and `train_labels` and `test_labels`, 1 for pneumonia and 0 for none.

    python3 xrays.py MODEL.safetensors IMAGES.npz

scores a finished model on the held-out images of one site.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from p2pqg.tasks import SupervisedTask, TaskContext, load_npz

RATE = 0.08
"""A mini-batch is this part of a site's images. It is the same everywhere, so one budget means one noise."""


def network() -> nn.Module:
    """4,290 parameters: noise grows with their number. GroupNorm, because BatchNorm cannot be private."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 2),
    )


def load(path: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images `[images, 1, 28, 28]` in [-1, 1], by constants and not by statistics of the images, and labels
    `[images]`."""
    images, labels = load_npz(path, f"{part}_images", f"{part}_labels")
    return images.unsqueeze(1) / 127.5 - 1, labels.flatten()


def cross_entropy(frequency: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the scores plus the log of how frequent each class is among the training images: the
    scores then speak for the image alone, and do not lean to the frequent class (Menon et al., 2021)."""
    return nn.functional.cross_entropy(scores + frequency.log(), labels)


def make_task(context: TaskContext) -> SupervisedTask:
    """The site's learning problem. Options: training images of all sites, and the part with pneumonia."""
    chosen = context.settings(total_images=0, pneumonia=0.5)
    train, test = load(context.data, "train"), load(context.data, "test")
    return SupervisedTask(
        network,
        train,
        test,
        loss=partial(cross_entropy, torch.tensor([1 - chosen["pneumonia"], chosen["pneumonia"]])),
        agent=context.agent,
        seed=context.seed,
        batch_size=max(1, round(RATE * len(train[0]))),
        total_samples=chosen["total_images"] or None,
    )


@torch.no_grad()
def score(model: Path, images: Path) -> dict[str, float]:
    """How many images there are and the parts that are told right: of all, of those with pneumonia, of those
    without. `auc` is the chance that an image with pneumonia gets a higher score than one without."""
    module = network()
    module.load_state_dict(load_file(model))
    inputs, labels = load(images, "test")
    scores = module(inputs)
    right, lean = scores.argmax(1) == labels, scores[:, 1] - scores[:, 0]
    above = lean[labels == 1, None] - lean[labels == 0]
    return {
        "images": len(labels),
        "accuracy": float(right.float().mean()),
        "sensitivity": float(right[labels == 1].float().mean()),
        "specificity": float(right[labels == 0].float().mean()),
        "auc": float((above.sign() / 2 + 0.5).mean()),
    }


if __name__ == "__main__":
    print(json.dumps(score(Path(sys.argv[1]), Path(sys.argv[2]))))
