"""A simulation into a folder, with checkpoints and exact resume."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

import p2pqg
from p2pqg.config import SimulationSettings, validate
from p2pqg.errors import ConfigError
from p2pqg.privacy import Secret
from p2pqg.privacy.agent import keep_secret, load_secret
from p2pqg.telemetry import MetricsWriter, read_metrics

from .engine import Iterate, Simulation
from .folder import RunFolder, best
from .gradients import Engine
from .interrupts import interruptible
from .private import privacy_spent
from .simulate import build, effective
from .world import Group, World

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
    group: Group | None = None,
    secret: Secret | None = None,
) -> dict[str, Any] | None:
    """Simulate into the folder `out` (see `RunFolder`) and return the summary.

    A checkpoint is written every minute, after `stop_after` rounds, at the end of training and on Ctrl-C.
    A run that was stopped and resumed leaves the files, bit for bit, of one that never stopped (but for
    the costs in its summary). Returns None for a run that stops. `observe` is shown every iterate; the next
    round may overwrite its `state`, nothing else. Private noise comes from `secret`, else from one that is
    made and kept in `out`.

    In a `group` of several processes all call this alike; only the first one reads and writes the folder. A
    checkpoint does not depend on how many they are, so a run can go on over another number of them.

    `threads` of torch: None is 1 where agents are looped over, because threads wait for each other at every
    operation of a small model (with two, a run of small models takes no less time and up to twice the CPU
    time), and torch's own choice for the large operations of a batched pass. `device` is where everything
    is computed and kept.

    Raises `ConfigError` if `out` holds another run, or on resume one with other settings than `settings`
    (more rounds are allowed), and `StorageError` if files cannot be written or read.
    """
    began_s = time.monotonic()
    group = Group() if group is None else group
    world = World(settings.agents, group)
    settings = effective(settings)
    folder = RunFolder(out)
    saved: Iterate | None = None
    spent = {"wall_s": 0.0, "cpu_s": 0.0, "bytes_between_ranks": dict.fromkeys(group.sent_bytes, 0)}
    with group.together():
        if group.first and resume:
            saved, meta = folder.load_iterate(torch.device("cpu"))
            where = str(folder.checkpoint)
            begun = validate(SimulationSettings, meta["settings"], where=where)  # settings it did not know
            _require_same(begun.model_dump(mode="json"), settings.model_dump(mode="json"), where=where)
            engine, spent = meta["engine"], spent | meta["spent"]
        elif group.first and folder.used:
            raise ConfigError("expected an empty folder, or --resume; found a run", where=str(out))
        if secret is None:
            secret = (load_secret(out) if group.first else None) or Secret.fresh()
    engine, spent, noise = group.said_by(0, [engine, spent, secret.key.hex()])
    secret = Secret(bytes.fromhex(noise))
    # Compiled code is for a number of threads.
    with _torch_threads(threads if engine == "vmap-compile" else threads or 1):
        simulation = build(settings, engine=engine, world=world, device=device, secret=secret, overwrite=True)
    last = simulation.dealt(saved) if resume else simulation.start(settings.seed)
    saved = None  # its memory is needed

    def costs() -> dict[str, Any]:
        """Seconds (of CPU: of all processes, imports included) and bytes between processes, with those of
        the run that this one resumes."""
        cpu_s, *sent = group.total([time.process_time(), *group.sent_bytes.values()])
        before = spent["bytes_between_ranks"]
        return {
            "wall_s": spent["wall_s"] + time.monotonic() - began_s,
            "cpu_s": spent["cpu_s"] + cpu_s,
            "bytes_between_ranks": {
                kind: before[kind] + int(now) for kind, now in zip(group.sent_bytes, sent, strict=True)
            },
        }

    def save(iterate: Iterate) -> None:
        meta = {"settings": settings.model_dump(mode="json"), "engine": simulation.gradients.name}
        meta["spent"], whole = costs(), simulation.collected(iterate)
        with group.together():
            if group.first:
                folder.save_iterate(whole, meta)

    if threads is None and not simulation.gradients.name.startswith("vmap"):
        threads = 1
    with _torch_threads(threads), ExitStack() as files:
        metrics: MetricsWriter | None = None
        with group.together():
            if group.first:
                folder.create()
                if settings.privacy is not None and settings.privacy.dp:
                    keep_secret(out, secret)
                metrics = files.enter_context(
                    MetricsWriter(folder.metrics, resume_after=last.round if resume else None)
                )

        def privacy(round: int) -> dict[str, float]:
            steps = round * simulation.algorithm.local_steps
            return privacy_spent(simulation.tasks, steps, world)

        def watch(iterate: Iterate) -> None:
            cost = {} if iterate.agreement else privacy(iterate.round)
            with group.together():
                if metrics is not None:
                    metrics.write(iterate.round, _measurements(iterate) | cost)
                observe(iterate)

        with interruptible(group, lambda: not simulation.spent(last), lambda: save(last)):
            saved_s = time.monotonic()
            for iterate in simulation.train(last, settings.rounds, eval_every=settings.eval_every):
                watch(iterate)
                last = iterate
                if iterate.round == stop_after and stop_after < settings.rounds:
                    save(iterate)
                    return None
                if group.largest(group.interrupted):
                    raise KeyboardInterrupt
                if group.largest(group.first and time.monotonic() - saved_s > CHECKPOINT_EVERY_S):
                    save(iterate)
                    saved_s = time.monotonic()
        save(last)
        trained = last.round
        for iterate in simulation.agree(last, settings.finish.tolerance, settings.finish.max_rounds):
            watch(iterate)
            last = iterate
        last = last if last.scores else simulation.scored(last)
        last, total = simulation.collected(last), costs() | privacy(trained) | simulation.saturated()
        summary: dict[str, Any] = {}
        with group.together():
            if group.first:
                summary = _summary(settings, simulation, folder, trained, last) | total
                card = {key: summary[key] for key in ("settings", "parameters", "final", "versions")}
                folder.save_models(simulation.spec, last.x, last.buffers, simulation.names, card)
                folder.save_summary(summary)
        told: dict[str, Any] = group.said_by(0, summary)
        return told


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
    settings: SimulationSettings, simulation: Simulation, folder: RunFolder, trained: int, last: Iterate
) -> dict[str, Any]:
    """`best` and `last` are of the `trained` rounds, `final` of the models after the gossip-only rounds."""
    training = [line for line in read_metrics(folder.metrics) if line["round"] <= trained]
    assert last.scores is not None
    return {
        "kind": "simulation",
        "settings": settings.model_dump(mode="json"),
        "seed": settings.seed,
        "engine": simulation.gradients.name,
        "ranks": simulation.world.group.size,
        "agents": list(simulation.names),
        "parameters": simulation.spec.d,
        "rounds": trained,
        "gossip_rounds": last.round - trained,
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
