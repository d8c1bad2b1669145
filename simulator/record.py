"""A simulation into a folder, with checkpoints and exact resume."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import p2pqg
from p2pqg.config import SimulationSettings
from p2pqg.errors import ConfigError
from p2pqg.telemetry import MetricsWriter, read_metrics

from .engine import Iterate, Simulation
from .folder import RunFolder, best
from .gradients import Engine
from .placement import device_named
from .simulate import build, effective

CHECKPOINT_EVERY_S = 60.0


def record(
    settings: SimulationSettings,
    out: Path,
    *,
    engine: Engine = "auto",
    device: torch.device | str = "cpu",
    threads: int | None = None,
    resume: bool = False,
    stop_after: int | None = None,
    observe: Callable[[Iterate], None] = lambda iterate: None,
) -> dict[str, Any] | None:
    """Simulate into the folder `out` (see `RunFolder`) and return the summary.

    A checkpoint is written every minute, after `stop_after` rounds, at the end of training and on Ctrl-C.
    A run that was stopped and resumed leaves the files, bit for bit, of one that never stopped (but for
    the costs in its summary). Returns None for a run that stops. `observe` is shown every iterate.

    `threads` of torch: None is 1 where agents are looped over, because threads wait for each other at every
    operation of a small model (with two, a run of small models takes no less time and up to twice the CPU
    time), and torch's own choice for the large operations of a batched pass. `device` is where everything
    is computed and kept.

    Raises `ConfigError` if `out` holds another run, or on resume one with other settings than `settings`
    (more rounds are allowed), and `StorageError` if files cannot be written or read.
    """
    began_s = time.monotonic()
    settings = effective(settings)
    folder = RunFolder(out)
    saved: Iterate | None = None
    spent = {"wall_s": 0.0, "cpu_s": 0.0}
    if resume:
        saved, meta = folder.load_iterate(device_named(device))
        _require_same(meta["settings"], settings.model_dump(mode="json"), where=str(folder.checkpoint))
        engine, spent = meta["engine"], meta["spent"]
    elif folder.used:
        raise ConfigError("expected an empty folder, or --resume; found a run", where=str(out))
    with _torch_threads(threads or 1):  # compiled code is for a number of threads
        simulation = build(settings, engine=engine, device=device)
    folder.create()

    def costs() -> dict[str, float]:
        """Seconds of this process, its imports included, and of those that the run was resumed from."""
        return {
            "wall_s": spent["wall_s"] + time.monotonic() - began_s,
            "cpu_s": spent["cpu_s"] + time.process_time(),
        }

    def save(iterate: Iterate) -> None:
        meta = {"settings": settings.model_dump(mode="json"), "engine": simulation.gradients.name}
        folder.save_iterate(iterate, {**meta, "spent": costs()})

    if threads is None and simulation.gradients.name != "vmap":
        threads = 1
    last = simulation.start(settings.seed) if saved is None else saved
    with (
        _torch_threads(threads),
        MetricsWriter(folder.metrics, resume_after=None if saved is None else saved.round) as metrics,
    ):

        def watch(iterate: Iterate) -> None:
            metrics.write(iterate.round, _measurements(iterate))
            observe(iterate)

        try:
            saved_s = time.monotonic()
            for iterate in simulation.train(last, settings.rounds, eval_every=settings.eval_every):
                watch(iterate)
                last = iterate
                if iterate.round == stop_after and stop_after < settings.rounds:
                    save(iterate)
                    return None
                if time.monotonic() - saved_s > CHECKPOINT_EVERY_S:
                    save(iterate)
                    saved_s = time.monotonic()
        except KeyboardInterrupt:
            save(last)
            raise
        save(last)
        trained = last
        for last in simulation.agree(trained, settings.finish.tolerance, settings.finish.max_rounds):
            watch(last)
        last = last if last.scores else simulation.scored(last)
        summary = _summary(settings, simulation, folder, trained, last) | costs()
        card = {key: summary[key] for key in ("settings", "parameters", "final", "versions")}
        folder.save_models(simulation.spec, last.x, last.buffers, simulation.names, card)
        folder.save_summary(summary)
        return summary


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    """Let torch use so many threads for a while; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measurements(iterate: Iterate) -> dict[str, Any]:
    """One line of ``metrics.jsonl``."""
    if iterate.agreement is None:
        line: dict[str, Any] = {"lr": iterate.lr, "train_loss": iterate.loss}
    else:
        line = {"disagreement": iterate.agreement.disagreement}
    return line | (iterate.scores.numbers() if iterate.scores else {})


def _summary(
    settings: SimulationSettings, simulation: Simulation, folder: RunFolder, trained: Iterate, last: Iterate
) -> dict[str, Any]:
    """`best` and `last` are of the training rounds, `final` of the models after the gossip-only rounds."""
    training = [line for line in read_metrics(folder.metrics) if line["round"] <= trained.round]
    assert last.scores is not None
    return {
        "kind": "simulation",
        "settings": settings.model_dump(mode="json"),
        "seed": settings.seed,
        "engine": simulation.gradients.name,
        "agents": list(simulation.names),
        "parameters": simulation.spec.d,
        "rounds": trained.round,
        "gossip_rounds": last.round - trained.round,
        "best": best(training),
        "last": {key: value for key, value in training[-1].items() if key not in ("round", "lr")},
        "final": last.scores.numbers(),
        "bytes_sent": {"mean": last.sent.double().mean().item(), "max": int(last.sent.max())},
        "versions": {
            "p2pqg": p2pqg.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "torch_threads": torch.get_num_threads(),
    }


def _require_same(saved: Mapping[str, Any], asked: Mapping[str, Any], *, where: str, key: str = "") -> None:
    """Raise `ConfigError` at the first setting, but for `rounds`, that differs from the saved run's."""
    for name, value in asked.items():
        dotted, before = f"{key}{name}", saved.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            _require_same(before, value, where=where, key=f"{dotted}.")
        elif value != before and dotted != "rounds":
            raise ConfigError(
                f"expected {before!r}, as the run began, found {value!r}", where=where, key=dotted
            )
