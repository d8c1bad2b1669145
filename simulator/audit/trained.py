"""Membership inference on the final model of a trained network: a folder that `simulate` or `swarm` wrote.

Everyone takes the final model home, and nothing else of a run is kept that a neighbour saw. Candidates are
records of the victim and as many held-out ones of the same classes. References are networks of the run's own
settings, in which the victim holds a random half of the candidates and all else is as it was: an attacker
that knows everything but these records.
"""

from __future__ import annotations

import numpy as np
import torch

from p2pqg import seeds
from p2pqg.config import SimulationSettings, validate
from p2pqg.errors import ConfigError
from p2pqg.privacy import Secret
from p2pqg.privacy.task import private
from p2pqg.tasks.supervised import Batch, SupervisedTask

from ..folder import RunFolder
from ..simulate import make_tasks
from .membership import Array, Examiner, Success, halves, likelihood_ratios, success, taken, with_share
from .views import Networks

FEWEST = 10
"""Records of each kind below which figures say nothing."""


def attack(run: RunFolder, victim: str, networks: int, candidates: int) -> Success:
    """How well the records of the agent named `victim` are told from held-out ones, at most `candidates` of
    each. Raises `ConfigError` for a folder, an agent or a task that cannot be attacked."""
    if not run.summary.exists():
        raise ConfigError(
            "expected a finished run of simulate or swarm, found none (an agent's home will not do: "
            "reference networks are trained with the data of all agents)",
            where=str(run.path),
        )
    settings = validate(SimulationSettings, run.load_summary()["settings"], where=str(run.summary))
    if victim not in settings.names:
        raise ConfigError(
            f"expected one of {', '.join(settings.names)}, found {victim}", where="command line", key="victim"
        )
    tasks = [private(task) for task in make_tasks(settings)]
    models, _ = run.load_local_models()
    place = settings.names.index(victim)
    own, others, rest = chosen(tasks[place], candidates)
    records = joined(own, others)
    member = halves(networks, len(records[0]), seed=settings.seed)
    references = Networks(
        settings,
        [
            [
                with_share(task, joined(rest, taken(records, row)) if i == place else task.train)
                for i, task in enumerate(tasks)
            ]
            for row in member
        ],
        Secret.fresh(),
    )
    for _ in references.rounds():
        pass
    examine = Examiner(tasks[place], records)
    target: Array = examine(models.mean(0)[None])[0]
    known = examine(references.models.mean(1))
    truth = np.arange(len(records[0])) < len(own[0])
    scores = likelihood_ratios(target[:, None], known[..., None], member)
    return success(scores[:, None], truth[:, None], settings.seed)


def chosen(task: SupervisedTask, most: int) -> tuple[Batch, Batch, Batch]:
    """Own records, as many held-out ones class by class, and the own records that are left; each `(inputs,
    targets)`."""
    chance = seeds.numpy_generator(0, "audit candidates")
    share, held_out = (chance.permutation(len(part[0])) for part in (task.train, task.test))
    mine, theirs = task.train[1].numpy()[share], task.test[1].numpy()[held_out]
    pairs: list[tuple[int, int]] = []
    for label in np.unique(mine):
        pairs += zip(share[mine == label], held_out[theirs == label], strict=False)
    pairs = [pairs[k] for k in chance.permutation(len(pairs))[:most]]
    if len(pairs) < FEWEST:
        raise ConfigError(f"expected {FEWEST} or more records to attack, found {len(pairs)}", key="task")
    own, other = (np.array(side) for side in zip(*pairs, strict=True))
    rest = np.setdiff1d(np.arange(task.samples), own)
    return taken(task.train, own), taken(task.test, other), taken(task.train, rest)


def joined(a: Batch, b: Batch) -> Batch:
    """Samples of both, in order."""
    return torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])
