"""One program: runs of a cell that train together, from settings to results, stopped and resumed at will."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from p2pqg.config import SimulationSettings
from p2pqg.errors import TrainingDiverged
from p2pqg.telemetry import read_metrics

from ..batch import Batch
from ..engine import Iterate, Simulation
from ..folder import HIGHER_IS_BETTER, LOWER_IS_BETTER, RunFolder, best
from ..gradients import Engine
from ..interrupts import interruptible
from ..memory import require
from ..simulate import assemble, make_tasks
from ..swarm import SETTINGS, Swarm
from ..swarm import run as run_swarm
from ..world import Group
from .base import Observe, Plan, quiet
from .recipes import settings, timed
from .records import Case, Result

SWARM = "swarm"
"""The engine that runs real agents."""
CHECKPOINT_EVERY_S = 60.0
DIGITS = 6
"""Significant digits of a number in a record."""


@dataclass
class Run:
    """One case on its way: its curve so far, and the training losses since the curve's last point."""

    case: Case
    chosen: SimulationSettings
    simulation: Simulation
    curve: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def train(plan: Plan, cases: Sequence[Case], observe: Observe = quiet) -> Iterator[tuple[Case, Result]]:
    """Train runs together and yield each one's result when it ends: at once when it diverges.

    A checkpoint is written every minute and when the program is interrupted; called again with the cases
    that have no result yet, it goes on from there. Raises `ConfigError` before any training if the cases
    cannot be run.
    """
    runs = [_prepared(plan, case) for case in cases]
    rounds, eval_every = runs[0].chosen.rounds, runs[0].chosen.eval_every
    batch = _batch(runs, plan)
    checkpoint = _Checkpoint(plan, runs)
    iterate = checkpoint.load(runs) or batch.start()
    saved_s, noted, group = time.monotonic(), iterate.round, Group()

    def whole() -> bool:
        """Whether the last round can be saved: it stands, and what was measured in it, too."""
        return noted == iterate.round and not batch.spent(iterate)

    with interruptible(group, whole, lambda: checkpoint.save(iterate, runs)):
        while iterate.round < rounds:
            try:
                iterate = batch.advance(iterate)
            except TrainingDiverged as error:
                fallen = {agent // batch.runs[0].n for agent in error.agents}
                for r in sorted(fallen):
                    why = {"round": iterate.round + 1, "why": str(error)}
                    yield runs[r].case, _result(runs[r], batch, r, iterate, why)
                checkpoint.forget()
                kept = [r for r in range(len(runs)) if r not in fallen]
                if not kept:
                    return
                iterate = batch.only(kept, iterate)
                runs = [runs[r] for r in kept]
                batch, checkpoint = _batch(runs, plan), _Checkpoint(plan, runs)
                continue
            due = iterate.round % eval_every == 0 or iterate.round == rounds
            for r, run in enumerate(runs):
                part = batch.part(iterate, r)
                run.losses.append(cast(float, part.loss))
                if due:
                    run.curve.append(_point(run.simulation.scored(part), run.losses))
                    run.losses = []
            noted = iterate.round
            observe([run.case for run in runs], iterate.round, rounds)
            if time.monotonic() - saved_s > CHECKPOINT_EVERY_S:
                checkpoint.save(iterate, runs)
                saved_s = time.monotonic()
            if group.interrupted:
                raise KeyboardInterrupt
    for r, run in enumerate(runs):
        yield run.case, _result(run, batch, r, iterate, None)
    checkpoint.forget()


def swarm(plan: Plan, case: Case) -> Result:
    """The same with real agents, one process each, over gRPC. An unfinished swarm goes on.

    What a point of both curves has is equal in every digit where the simulator mixes as agents do (see
    `product`), its engine is "loop" and nobody was `missing`. Before the end no one sees all models, so that
    there is nothing of their average. `bytes_sent` are all bytes here, and those of models there.
    """
    run = _prepared(plan, case)
    out = _folder(plan, [case])
    agents = Swarm(run.chosen, out, resume=(out / SETTINGS).exists())
    summary = run_swarm(agents, run.simulation.tasks, lambda members: None)
    assert summary is not None
    curve = list(_measured(read_metrics(agents.folder.metrics)))
    missing = {name: own["missing"] for name, own in summary["participation"].items() if own["missing"]}
    shutil.rmtree(out, ignore_errors=True)
    return {
        "diverged": None,
        "rounds": summary["rounds"],
        "parameters": summary["parameters"],
        "engine": SWARM,
        "together": 1,
        "best": best({key: point[key] for key in curve[0]} for point in curve),
        "last": dict(curve[-1]),
        "curve": curve,
        "missing": missing,
        "bytes_sent": summary["bytes_sent"],
        "settings": _portable(run.chosen),
    }


class _Checkpoint:
    """Of runs that train together, in a folder named after their cases."""

    def __init__(self, plan: Plan, runs: Sequence[Run]) -> None:
        self._folder = RunFolder(_folder(plan, [run.case for run in runs]))
        self._device = torch.device(plan.device)

    def load(self, runs: Sequence[Run]) -> Iterate | None:
        """The iterate, if there is one; curves and losses go to the runs."""
        if not self._folder.checkpoint.exists():
            return None
        iterate, meta = self._folder.load_iterate(self._device)
        for run, saved in zip(runs, meta["runs"], strict=True):
            run.curve, run.losses = saved["curve"], saved["losses"]
        return iterate

    def save(self, iterate: Iterate, runs: Sequence[Run]) -> None:
        self._folder.create()
        meta = {"runs": [{"curve": run.curve, "losses": run.losses} for run in runs]}
        self._folder.save_iterate(iterate, meta)

    def forget(self) -> None:
        shutil.rmtree(self._folder.path, ignore_errors=True)


def _folder(plan: Plan, cases: Sequence[Case]) -> Path:
    """Where cases that are not finished keep what they need to go on."""
    name = json.dumps([plan.scale, *map(dict, cases)], sort_keys=True)
    return plan.work / hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


def _batch(runs: Sequence[Run], plan: Plan) -> Batch:
    batch = Batch(
        [run.simulation for run in runs],
        [run.chosen.seed for run in runs],
        cast(Engine, plan.engine),
        runs[0].chosen.rounds,
        overwrite=len(runs) == 1,  # when one of several diverges, the others go on from the round before
    )
    require(batch.footprint().training, batch.device)
    return batch


def _prepared(plan: Plan, case: Case) -> Run:
    chosen = settings(case, plan)
    tasks = make_tasks(chosen)
    samples = getattr(tasks[0], "total_samples", None) or sum(task.samples for task in tasks)
    chosen = timed(chosen, samples, plan)
    # The batch has an engine of its own.
    return Run(case, chosen, assemble(chosen, tasks, engine="loop", device=plan.device))


def _point(part: Iterate, losses: Sequence[float]) -> dict[str, Any]:
    """One point of a curve: scores, the mean training loss since the point before, the norm of the models."""
    assert part.scores is not None
    norm = float(part.x.norm(dim=1).mean())
    return _rounded({"round": part.round, "lr": part.lr, "norm": norm, **part.scores.numbers()}, losses)


def _measured(lines: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Points of a curve from what a swarm measured in each round."""
    losses: list[float] = []
    for line in lines:
        if line.get("train_loss") is not None:
            losses.append(line["train_loss"])
        if "mean_accuracy" in line:
            keys = ("round", "lr", *HIGHER_IS_BETTER, *LOWER_IS_BETTER)
            yield _rounded({key: line[key] for key in keys if key in line}, losses)
            losses = []


def _result(run: Run, batch: Batch, r: int, iterate: Iterate, diverged: dict[str, Any] | None) -> Result:
    sent = batch.part(iterate, r).sent
    return {
        "diverged": diverged,
        "rounds": iterate.round,
        "parameters": batch.spec.d,
        "engine": batch.gradients.name,
        "together": len(batch.runs),
        "best": best(run.curve),
        "last": dict(run.curve[-1]) if run.curve else {},
        "curve": run.curve,
        "bytes_sent": {"mean": sent.double().mean().item(), "max": int(sent.max())},
        "settings": _portable(run.chosen),
    }


def _portable(chosen: SimulationSettings) -> dict[str, Any]:
    """The settings, with data and weights named by their files and not by where they lay."""
    table = chosen.model_dump(mode="json")
    if chosen.task.data is not None:
        table["task"]["data"] = chosen.task.data.name
    if weights := chosen.task.options.get("weights"):
        table["task"]["options"]["weights"] = Path(weights).name
    return table


def _rounded(numbers: Mapping[str, Any], losses: Sequence[float]) -> dict[str, Any]:
    """A point of a curve as it stands in a record."""
    point = {**numbers, "train_loss": math.fsum(losses) / len(losses) if losses else None}
    return {
        key: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
        for key, value in point.items()
    }
