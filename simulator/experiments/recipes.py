"""From a cell of the paper's tables to settings that can be run, at three scales.

full   the paper's: model, data, batch size, epochs and schedule of paper-protocol sections 3 to 5
small  the same methods, graphs, partitions and search, with a model and a length that a CPU has in an hour:
       only the order of methods is to be compared with the paper's. CIFAR-10: a small convolutional network,
       scored on 2,000 images. AG News: two of six layers of a pretrained transformer, embeddings that stay
       as they are, the first 16 tokens of 2,048 texts, mini-batches of 16, scored on 400 texts
smoke  the paper's own model and data, two rounds of tiny mini-batches: shows that a cell can be launched
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from p2pqg.config import ScheduleSettings, SimulationSettings, validate
from p2pqg.errors import ConfigError
from p2pqg.schedules import PAPER_BATCHES, PAPER_EPOCHS, Schedule, epoch_steps, paper_schedule

from .base import Plan
from .records import Case

Kind = Literal["cifar", "imagenet", "text"]

DISTILBERT = "distilbert-base-uncased"
"""Model, and folder of its published weights; without it, it starts from random ones."""

PAPER_MODELS: dict[str, dict[str, Any]] = {
    "resnet20-bn": {"model": "resnet20", "norm": "bn"},
    "resnet20-gn": {"model": "resnet20", "norm": "gn"},
    "resnet20-evonorm": {"model": "resnet20", "norm": "evonorm"},
    "resnet20x2-gn": {"model": "resnet20", "norm": "gn", "width": 2.0},
    "resnet20x2-evonorm": {"model": "resnet20", "norm": "evonorm", "width": 2.0},
    "resnet18-gn": {"model": "resnet18", "norm": "gn"},
    "resnet18-evonorm": {"model": "resnet18", "norm": "evonorm"},
    "vgg11-half": {"model": "vgg11", "width": 0.5},
    DISTILBERT: {"model": "distilbert"},
    "cnn": {"model": "cnn"},
    "minilm": {"model": "minilm"},
}
"""`[task.options]` of each model as ``results.csv`` spells it, and of the small scale's."""


@dataclass(frozen=True)
class DataSet:
    """How the paper trains on a data set, where its files may lie under a common folder, and how it is
    scaled down."""

    kind: Kind
    files: tuple[str, ...]
    small: Small | None = None


@dataclass(frozen=True)
class Small:
    """A scale of an hour on a CPU: another model, for fewer epochs, where `batch_size` says so on smaller
    mini-batches. Everything else stays the paper's.

    It stands for all of the paper's models; reports show the published numbers of one beside it.
    """

    model: str
    beside: str
    epochs: int
    evaluations: int
    options: Mapping[str, Any] = field(default_factory=dict)
    warmup_epochs: int = 0
    batch_size: int | None = None
    simplified: str = ""
    """What else is simpler than in the paper, for reports."""


DATA_SETS = {
    "cifar10": DataSet(
        "cifar",
        ("cifar10", "cifar-10-batches-py", "cifar10.npz", "cifar10-jpeg.tar.gz"),
        Small(
            "cnn",
            "resnet20-evonorm",
            epochs=10,
            evaluations=10,
            options={"test_samples": 2000},
            warmup_epochs=1,
        ),
    ),
    "imagenet32": DataSet("imagenet", ("imagenet32",)),
    "imagenet": DataSet("imagenet", ("imagenet",)),
    "agnews": DataSet(
        "text",
        ("agnews", "ag_news", "ag_news.csv", "ag_news_7600.csv"),
        Small(
            "minilm",
            "distilbert-base-uncased",
            epochs=10,
            evaluations=5,
            options={
                "layers": 2,
                "freeze_embeddings": True,
                "max_tokens": 16,
                "train_samples": 2048,
                "test_samples": 400,
            },
            batch_size=16,
            simplified="two of its six layers, frozen embeddings, 2,048 texts of 16 tokens, "
            "mini-batches of 16, scored on 400 texts",
        ),
    ),
}

SMOKE_BATCH, SMOKE_ROUNDS, SMOKE_TEST_SAMPLES = 2, 2, 8

TOPOLOGIES = {"centralized": "complete", "single": "complete"}
"""Topologies of ``results.csv`` that we call otherwise."""

ADAM = ("adam", "dadam", "qg-dadam")


def model_of(cell: Case, plan: Plan) -> str:
    """The model that stands for a cell's at the plan's scale. Raises `ConfigError` where a data set has no
    small scale."""
    if plan.scale != "small":
        return str(cell["model"])
    small = DATA_SETS[cell["dataset"]].small
    if small is None:
        raise ConfigError(
            f"expected full or smoke for {cell['dataset']}, found small", where="reproduce", key="scale"
        )
    return small.model


def algorithm_of(cell: Case) -> str:
    """The name in `ALGORITHMS` of a cell's method and variant."""
    return f"{cell['method']}-{cell['variant']}" if cell["variant"] else str(cell["method"])


def first_rates(cell: Case) -> tuple[float, float, float]:
    """Where the search for a learning rate begins. No tuned value of the paper is published; these are within
    a few factors of 2 of what was found best here."""
    if cell["method"] in ADAM:
        middle = {DISTILBERT: 1e-5, "minilm": 4e-4}.get(cell["model"], 1e-3)
    elif cell["method"] == "dsgd":
        middle = 0.4
    else:
        middle = 0.1
    return middle / 2, middle, middle * 2


def settings(case: Case, plan: Plan) -> SimulationSettings:
    """All settings of a run but those that follow from how many samples there are: see `timed`."""
    options = dict(PAPER_MODELS[case["model"]])
    data_set = DATA_SETS[case["dataset"]]
    batch = PAPER_BATCHES[data_set.kind]
    if plan.scale == "small" and data_set.small is not None:
        options |= data_set.small.options
        batch = data_set.small.batch_size or batch
    if plan.scale == "smoke":
        batch = SMOKE_BATCH
        options |= {"train_samples": 2 * SMOKE_BATCH * max(case["n"], 10), "test_samples": SMOKE_TEST_SAMPLES}
    if case["model"] == DISTILBERT:
        weights = _folder(plan) / DISTILBERT
        options["weights"] = str(weights) if weights.exists() else "random"
    if plan.download and case["dataset"].startswith("cifar"):
        options["download"] = True
    table = {
        "agents": case["n"],
        "topology": TOPOLOGIES.get(case["topology"], case["topology"]),
        "seed": case["seed"],
        "task": {
            "name": case["dataset"],
            "data": find_data(case["dataset"], plan),
            "batch_size": batch,
            "dtype": plan.dtype,
            "precision": plan.precision,
            "options": options,
            **({"partition": "iid"} if case["alpha"] is None else {"alpha": case["alpha"]}),
        },
        "algorithm": {
            "name": algorithm_of(case),
            "weight_decay": case["weight_decay"],
            **({"beta": case["beta"]} if "beta" in case else {}),
            **({"options": {"tau": case["tau"]}} if case["tau"] else {}),
        },
        "schedule": {"lr": case["lr"]},
    }
    return validate(SimulationSettings, table, where="reproduce")


def timed(chosen: SimulationSettings, samples: int, plan: Plan) -> SimulationSettings:
    """The settings with rounds, evaluations and schedule for `samples` training samples of all agents."""
    data_set, n, batch = DATA_SETS[chosen.task.name], chosen.agents, chosen.task.batch_size
    kind, lr = data_set.kind, chosen.schedule.lr
    epoch = epoch_steps(n, samples, batch)
    if plan.scale == "smoke":
        rounds, every, schedule = SMOKE_ROUNDS, SMOKE_ROUNDS, Schedule(lr)
    elif plan.scale == "small" and (small := data_set.small) is not None:
        rounds = small.epochs * epoch
        every = -(-rounds // small.evaluations)
        schedule = Schedule(lr)
        if kind != "text":
            schedule = Schedule(
                lr,
                warmup_steps=small.warmup_epochs * epoch,
                warmup_from=lr / 10,
                milestones=(rounds // 2, rounds * 3 // 4),
            )
    else:
        rounds, every = PAPER_EPOCHS[kind] * epoch, epoch
        factor = lr / (1e-5 if kind == "text" else 0.1 / 64 * batch)
        schedule = paper_schedule(kind, n, samples, batch, factor=factor)
    update = {"rounds": rounds, "eval_every": every, "schedule": ScheduleSettings(**asdict(schedule))}
    return chosen.model_copy(update=update)


def find_data(name: str, plan: Plan) -> Path:
    """The first of a data set's usual files under `plan.data`. Raises `ConfigError` if none is there."""
    folder = _folder(plan)
    usual = DATA_SETS[name].files
    for file in usual:
        if (folder / file).exists():
            # torchvision's own folder is named by its parent
            return folder if file == "cifar-10-batches-py" else folder / file
    if plan.download and name.startswith("cifar"):
        return folder
    raise ConfigError(
        f"expected the data set {name} as {' or '.join(usual)} (docs/data.md), found none",
        where=str(folder),
        key="data",
    )


def _folder(plan: Plan) -> Path:
    return Path("datasets") if plan.data is None else plan.data
