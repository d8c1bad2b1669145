"""Both attacks against every protection, on digits and on chest X-rays.

Settings in which plain gossip leaks: hospitals with few records each, which they pass many times, in several
steps a round. With more records and fewer passes the attacks find less, with or without protection.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from p2pqg import seeds
from p2pqg.config import SimulationSettings
from p2pqg.privacy import Secret
from p2pqg.privacy.accounting import noise_multiplier
from p2pqg.tasks import digits
from p2pqg.tasks.augmentation import ImageTransform
from p2pqg.tasks.base import TaskContext
from p2pqg.tasks.image_files import read_npz
from p2pqg.tasks.partition import Indices
from p2pqg.tasks.supervised import Batch, SupervisedTask

from ..experiments.base import Computation, Plan
from ..experiments.records import Case, Result
from . import inversion, membership
from .membership import taken, with_share
from .presentation import present
from .views import VIEWS, Networks, static, view

MEMBERSHIP, INVERSION = "membership", "inversion"
DIGITS, XRAYS = "digits", "x-rays"
FILE = "pneumoniamnist.npz"
AGENTS, VICTIM, ATTACKER = 4, 0, 1
DELTA = 1e-3
EPSILONS = {"full": (None, 8.0, 1.0, 64.0), "small": (None, 8.0, 1.0), "smoke": (None, 8.0)}
NETWORKS = {"full": 16, "small": 12, "smoke": 8}
BATCHES = {"full": (1, 4), "small": (1, 4), "smoke": (1,)}
IMAGES = {"full": 16, "small": 4, "smoke": 2}
"""Images in all that an inversion reconstructs."""
KNOWN = 300
"""Other images that the attacker has."""
PICTURES = 4
"""Images of a case that are kept for the pictures."""


@dataclass(frozen=True)
class Game:
    """How hospitals train: `share` records each, `steps` a round. Rates without and with privacy, which wants
    longer steps, come from a few trials."""

    classes: int
    share: int
    batch: int
    rounds: int
    steps: int
    lr: float
    private_lr: float


GAMES = {
    ("full", DIGITS): Game(10, 50, 10, 40, 5, 0.1, 0.3),
    ("full", XRAYS): Game(2, 25, 5, 15, 20, 0.2, 0.5),
    ("small", DIGITS): Game(10, 20, 5, 10, 5, 0.1, 0.3),
    ("small", XRAYS): Game(2, 20, 5, 8, 20, 0.2, 0.5),
    ("smoke", DIGITS): Game(10, 20, 5, 10, 5, 0.1, 0.3),
}


def cases(plan: Plan) -> list[Case]:
    """Digits, and X-rays where there are some."""
    sets = [DIGITS] if plan.data is None or plan.scale == "smoke" else [DIGITS, XRAYS]
    found: list[Case] = []
    for epsilon, data in product(EPSILONS[plan.scale], sets):
        common = {"data": data, "epsilon": epsilon}
        found.append({"attack": MEMBERSHIP, **common})
        found += [{"attack": INVERSION, **common, "batch": batch} for batch in BATCHES[plan.scale]]
    return found


def compute(plan: Plan, case: Case) -> Result:
    """The result of one case, for each view."""
    attack = membership_result if case["attack"] == MEMBERSHIP else inversion_result
    return attack(plan, case)


def membership_result(plan: Plan, case: Case) -> Result:
    """Each network in turn is attacked with the others as references."""
    own, (train, test) = GAMES[plan.scale, case["data"]], images(case["data"], plan.data)
    count = NETWORKS[plan.scale]
    order = seeds.numpy_generator(0, "audit records").permutation(len(train[0]))
    candidates, rest = order[: 2 * own.share], order[2 * own.share :]
    member = membership.halves(count, len(candidates), seed=0)
    networks = []
    for k in range(count):
        others = seeds.numpy_generator(0, "audit others", round=k).permutation(rest)
        shares = [others[i * own.share : (i + 1) * own.share] for i in range(AGENTS)]
        shares[VICTIM] = candidates[member[k]]
        networks.append(hospitals(shares, train, test, own.classes, own.batch))
    settings = settings_of(own, case["epsilon"])
    records = taken(train, candidates)
    examine = membership.Examiner(networks[0][VICTIM], records)
    graph = static(settings.graph)
    views = {kind: view(graph, ATTACKER, VICTIM, kind) for kind in VIEWS}
    trained = Networks(settings, networks, secret_of(case))
    features = membership.watch(trained, views, ATTACKER, examine)
    return {
        "views": {
            kind: membership.success(membership.leave_one_out(found, member), member).numbers()
            for kind, found in features.items()
        },
        "accuracy": inversion.mean_and_error(trained.accuracies),
        "per_agent_round": trained.per_agent_round(),
        "noise_multiplier": settings.privacy.noise_multiplier if settings.privacy else None,
        "parameters": trained.simulation.spec.d,
        "networks": count,
    }


def inversion_result(plan: Plan, case: Case) -> Result:
    """The first message of a victim that draws `batch` records, among neighbours that draw as many."""
    own, (train, test) = GAMES[plan.scale, case["data"]], images(case["data"], plan.data)
    batch = case["batch"]
    order = seeds.numpy_generator(0, "audit images").permutation(len(train[0]))
    known, rest = train[0][torch.from_numpy(order[:KNOWN])], order[KNOWN:]
    prior = inversion.Prior.of(known)
    # A share is what is drawn, so that all protections are tried on the same images: a round in which the
    # victim drew just these, with the noise that the budget of the membership game asks for.
    drawing = settings_of(own, case["epsilon"], once=True)
    graph, privacy = static(drawing.graph), drawing.privacy
    deviation = 0.0
    if privacy is not None and privacy.noise_multiplier is not None:
        deviation = privacy.noise_multiplier * privacy.max_grad_norm / batch
    found: dict[str, list[Tensor]] = {kind: [] for kind in VIEWS}
    wanted = []
    for trial in range(IMAGES[plan.scale] // batch):
        drawn = rest[trial * AGENTS * batch :]
        shares = [drawn[i * batch : (i + 1) * batch] for i in range(AGENTS)]
        tasks = hospitals(shares, train, test, own.classes, batch)
        once = Networks(drawing, [tasks], secret_of({**case, "trial": trial}))
        x, algorithm = once.models[0, VICTIM], once.simulation.algorithm
        _, sent = next(once.rounds())
        lr = once.simulation.schedule.steps(0, 1)[0]
        wanted.append(tasks[VICTIM].train[0])
        for kind in VIEWS:
            weights = view(graph, ATTACKER, VICTIM, kind)
            labels = torch.cat([task.train[1] for task, w in zip(tasks, weights, strict=True) if w])
            message = torch.einsum("n,nd->d", weights, sent[0].double())
            rebuilt = inversion.invert(
                with_share(tasks[VICTIM], tasks[VICTIM].train),
                x,
                inversion.gradient_between(algorithm, x.double(), algorithm.init(x.double()), lr, message),
                labels,
                prior,
                records=len(labels),
                max_grad_norm=None if privacy is None else privacy.max_grad_norm,
                deviation=deviation * float(weights.norm()),
            )
            found[kind].append(inversion.matched(rebuilt, tasks[VICTIM].train[0]))
    truth, span = torch.cat(wanted).double(), prior.high - prior.low
    baseline = inversion.psnr(prior.mean.view(1, *prior.shape).expand_as(truth), truth, span)
    views: dict[str, Any] = {}
    for kind, parts in found.items():
        pictures = torch.cat(parts)
        views[kind] = {
            "psnr": inversion.mean_and_error(inversion.psnr(pictures, truth, span).tolist()),
            "recognised": float(inversion.recognised(pictures, truth, known).double().mean()),
            "pictures": packed(pictures[:PICTURES], prior),
        }
    return {
        "views": views,
        "baseline": inversion.mean_and_error(baseline.tolist()),
        "originals": packed(truth[:PICTURES], prior),
        "images": len(truth),
        "shape": list(prior.shape),
        "noise_multiplier": privacy.noise_multiplier if privacy else None,
    }


def settings_of(own: Game, epsilon: float | None, *, once: bool = False) -> SimulationSettings:
    """A ring of hospitals; or `once`, a single step of it. The noise is that of the whole training."""
    sigma = None
    if epsilon is not None:
        rate, total = own.batch / own.share, own.rounds * own.steps
        sigma = noise_multiplier(epsilon, DELTA, rate, total, "rdp")
    return SimulationSettings.model_validate(
        {
            "agents": AGENTS,
            "topology": "ring",
            "rounds": 1 if once else own.rounds,
            "algorithm": {"local_steps": 1 if once else own.steps},
            "schedule": {"lr": own.lr if epsilon is None else own.private_lr,
                         "cosine_steps": own.rounds * own.steps},
            "privacy": None if sigma is None else
                {"dp": True, "noise_multiplier": sigma, "target_delta": DELTA, "accountant": "rdp"},
        }
    )  # fmt: skip


def hospitals(
    shares: Sequence[Indices], train: Batch, test: Batch, classes: int, batch: int
) -> list[SupervisedTask]:
    """One task for each share, which are positions in `train`."""
    side = train[0].shape[-1]
    return [
        SupervisedTask(
            lambda: network(side, classes),
            taken(train, share),
            test,
            agent=f"hospital-{i}",
            seed=0,
            batch_size=batch,
        )
        for i, share in enumerate(shares)
    ]


def network(side: int, classes: int) -> nn.Module:
    """Two convolutions of 12 channels and a linear layer, as in Zhu et al. 2019, with tanh, which suits
    clipping and inversion alike: 5,854 parameters for digits of 8x8 pixels, 5,102 for X-rays of 28x28."""
    stride = 2 if side > 8 else 1
    return nn.Sequential(
        nn.Conv2d(1, 12, 5, stride=2, padding=2),
        nn.Tanh(),
        nn.Conv2d(12, 12, 5, stride=stride, padding=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12 * (side // (2 * stride)) ** 2, classes),
    )


@lru_cache(maxsize=2)
def images(data: str, folder: Path | None) -> tuple[Batch, Batch]:
    """Training and held-out images `[samples, 1, side, side]`, scaled, and their classes."""
    if data == DIGITS:
        whole = digits.make_task(TaskContext("all", ("all",), seed=0, partition="iid"))
        return whole.train, whole.test
    assert folder is not None
    found = read_npz(folder / FILE, (1, 28, 28))
    scale = ImageTransform((0.5,), (0.5,))
    train, test = (
        (scale(torch.from_numpy(inputs), None), torch.from_numpy(labels))
        for inputs, labels in (
            (found.train_inputs, found.train_labels),
            (found.test_inputs, found.test_labels),
        )
    )
    return train, test


def secret_of(case: Case) -> Secret:
    """An audit hides nothing: its noise is the same in every run, so that its records can be made again."""
    return Secret(hashlib.sha256(f"audit {json.dumps(case, sort_keys=True)}".encode()).digest())


def packed(pictures: Tensor, prior: inversion.Prior) -> str:
    """Images as bytes of grey in base64."""
    grey = 255 * (pictures - prior.low) / (prior.high - prior.low)
    return base64.b64encode(grey.round().to(torch.uint8).numpy().tobytes()).decode()


experiment = Computation(
    "What a neighbour learns: membership inference and inversion", "audit", cases, compute, present
)
