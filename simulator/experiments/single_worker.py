"""One worker on CIFAR-10: quasi-global momentum and SGD with momentum (appendix D.3, Figures 5, 12 to 14).

ResNet-20 with BatchNorm and with GroupNorm, mini-batches of 32, heavy-ball and Nesterov.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .published import KEYS
from .records import Case, Record
from .training import Cell, distinct, summarise, without

MODELS = ("resnet20-bn", "resnet20-gn")
METHODS = {"sgdm": "SGDm", "sgdm-n": "SGDm-N", "qg-sgdm": "QG-SGDm", "qg-sgdm-n": "QG-SGDm-N"}
WEIGHT_DECAYS = (1e-4, 0.0)


def cells(methods: Sequence[str] = tuple(METHODS)) -> list[Case]:
    """Every model, method and weight decay."""
    return [
        dict.fromkeys(KEYS)
        | {"dataset": "cifar10", "model": model, "method": method, "topology": "single", "n": 1}
        | {"weight_decay": weight_decay}
        for model in MODELS
        for weight_decay in WEIGHT_DECAYS
        for method in methods
    ]


def summaries(records: Sequence[Record], scale: str) -> Iterator[Cell]:
    """The cells with one worker that have records at a scale."""
    own = [r for r in records if r.scale == scale and r.case["topology"] == "single"]
    for cell in distinct([without(record.case, ("lr", "seed")) for record in own]):
        summary = summarise(cell, scale, records)
        if summary.runs:
            yield summary
