"""Everything that can be known to be wrong before a run, one finding for each matter, with what to do.

A finding fails if `p2pqg join` would; it warns if the run would start but somebody should look. Neighbours
are dialled as the agent will dial them, so that their refusals are seen too; each of them notes a stranger
that left.
"""

from __future__ import annotations

import asyncio
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from p2pqg import config
from p2pqg.addresses import is_local
from p2pqg.config import AgentSettings, NetworkFile
from p2pqg.control.client import NotRunning, ask
from p2pqg.daemon import build_task, read_identity
from p2pqg.errors import ConfigError, P2PQGError, StorageError, TransportError
from p2pqg.home import Home
from p2pqg.privacy import protect_agent
from p2pqg.security import Identity, TlsFiles
from p2pqg.security.certificates import outside_its_dates
from p2pqg.security.identity import RENEW_DAYS
from p2pqg.storage import write_atomically
from p2pqg.tasks.base import Task
from p2pqg.transport.grpc import GrpcTransport, why_not_bound

COPIES = 10
"""Models that a home holds at most: three checkpoints with state, a final one, an export."""
SPARE_BYTES = 100_000_000
"""For logs and measurements."""

Level = Literal["ok", "warn", "fail"]

CAUSES: tuple[tuple[tuple[str, ...], Level, str], ...] = (
    (("unauthenticated", "is revoked", "allow-list", "not of this network", "does not prove"), "fail",
     "the two operators must agree on who is let in"),
    (("hostname verification", "peer name"), "fail",
     "another agent answers there: check its address in the network's file"),
    (("certificate", "handshake", "ssl"), "fail",
     "one of the two has a certificate of another authority, an expired one or none"),
    (("refused",), "warn", "it is not running yet, or listens at another port"),
)  # fmt: skip
"""What the reason a neighbour cannot be reached contains, how bad that is, and what to do."""
UNREACHABLE: tuple[Level, str] = ("warn", "it is down, or a firewall is between: does its port let us in?")


@dataclass(frozen=True, slots=True)
class Finding:
    """One matter that was looked at, and what to do about it unless it is in order."""

    check: str
    level: Level
    text: str
    advice: str = ""


def preflight(file: Path, *, insecure: bool = False) -> Iterator[Finding]:
    """Look at everything, in the order in which it matters; nothing is left behind."""
    try:
        settings, network = config.load_agent(file)
    except P2PQGError as error:
        yield Finding("settings", "fail", str(error), "correct the file")
        return
    yield Finding("settings", "ok", f"{file} and {settings.network.file} can be read")
    running = _is_running(settings.agent.home)
    identity = None
    try:
        identity = read_identity(settings, network, file, insecure=insecure)
    except P2PQGError as error:
        yield Finding("certificates", "fail", str(error), _certificate_advice(settings))
    else:
        yield from _identity(settings, identity)
    yield from _clock(settings)
    yield _port(settings, running=running)
    yield from _own_address(settings, network)
    yield from _home(settings.agent.home, running=running)
    yield from _task(settings, network, file)
    yield _device()
    known = settings.agent.name in network.names or network.membership == "alive"
    if known and (settings.tls is None) == (identity is None):
        yield from _neighbours(settings, network, identity)


def _identity(settings: AgentSettings, identity: Identity | None) -> Iterator[Finding]:
    if identity is None:
        alone = is_local(settings.agent.listen)
        yield Finding(
            "certificates",
            "ok" if alone else "warn",
            "none: " + ("connections stay on this machine" if alone else "anyone can listen and join"),
            "" if alone else "ask the network's operator to sign a request: p2pqg init",
        )
        return
    assert settings.tls is not None
    yield Finding("certificates", "ok", f"the authority signed {identity.name}, key {identity.fingerprint}")
    days = identity.days_left
    soon = days < RENEW_DAYS
    advice = "ask the operator: p2pqg network renew" if soon else ""
    yield Finding("certificates", "warn" if soon else "ok", f"valid for {days:.1f} more days", advice)
    try:
        identity.admission.check(identity.x509)
    except P2PQGError as error:
        if "allow-list" not in str(error):  # it need not let itself in
            yield Finding("certificates", "fail", str(error), "ask the operator for a new certificate")
    mode = stat.S_IMODE(settings.tls.private_key.stat().st_mode)
    if mode & 0o077:
        yield Finding(
            "certificates", "warn", f"others can read {settings.tls.private_key} (mode {mode:o})",
            f"chmod 600 {settings.tls.private_key}",
        )  # fmt: skip


def _certificate_advice(settings: AgentSettings) -> str:
    if settings.tls is None:
        return "p2pqg init makes a request to be signed; --insecure if nobody else can reach the network"
    return "p2pqg install PACKAGE puts the operator's files in their places"


def _clock(settings: AgentSettings) -> Iterator[Finding]:
    """Against the certificate's dates only: nothing else asks what time it is."""
    if settings.tls is None:
        return
    try:
        certificate = TlsFiles(**settings.tls.model_dump()).load().x509
    except P2PQGError:
        return  # said already
    if why := outside_its_dates(certificate):
        yield Finding(
            "clock", "fail", f"by this machine's clock the certificate is {why}",
            "set the clock if it is wrong (date -u), else have the certificate renewed",
        )  # fmt: skip
    else:
        yield Finding("clock", "ok", "within the certificate's dates")


def _port(settings: AgentSettings, *, running: bool) -> Finding:
    listen = settings.agent.listen
    if running:
        return Finding("port", "ok", f"the agent is running, at {listen}")
    if why := why_not_bound(listen):
        return Finding("port", "fail", why, "set agent.listen to an address of this machine and a free port")
    return Finding("port", "ok", f"{listen} is free")


def _own_address(settings: AgentSettings, network: NetworkFile) -> Iterator[Finding]:
    address = network.addresses.get(settings.agent.name)
    if address is None:
        return
    listening, listed = settings.agent.listen.rpartition(":")[2], address.rpartition(":")[2]
    if listening != listed:
        yield Finding(
            "address", "warn", f"others dial {address}, but the agent listens at port {listening}",
            "right if a router forwards the port; else make agent.listen and the network's file agree",
        )  # fmt: skip


def _home(home: Path, *, running: bool) -> Iterator[Finding]:
    if running:
        return
    probe = _nearest(home) / ".preflight"
    try:
        write_atomically(probe, b"")
        probe.unlink()
    except StorageError as error:
        yield Finding("home", "fail", str(error), "set agent.home to a folder that the agent may write to")
    else:
        yield Finding("home", "ok", f"{home} can be written to")


def _task(settings: AgentSettings, network: NetworkFile, file: Path) -> Iterator[Finding]:
    """The data and the model, by one step of training."""
    started = time.perf_counter()
    try:
        task = build_task(settings, network, file)
    except P2PQGError as error:
        yield Finding("data", "fail", str(error), "see docs/data.md, or docs/your-own-task.md for your own")
        return
    except Exception as error:  # the site's own code may raise anything
        yield Finding("data", "fail", f"{settings.task.name}: {type(error).__name__}: {error}", "correct it")
        return
    loaded_s = time.perf_counter() - started
    yield Finding("data", "ok", f"{task.samples} samples, ready in {loaded_s:.1f} s")
    torch.set_num_threads(settings.agent.threads)
    x = task.init(settings.seed)
    started = time.perf_counter()
    loss = task.gradient(x, task.buffers(), 0).loss
    step_s = time.perf_counter() - started
    if loss is None or not loss.isfinite():
        yield Finding("model", "fail", f"the first loss is {loss}", "look at the data and the model")
    else:
        size = task.spec.d * x.element_size()
        text = f"{task.spec.d} parameters, {size / 1e6:.3g} MB; the first step took {step_s:.3g} s"
        told = "" if settings.privacy and settings.privacy.dp else f", loss {float(loss):.4g}"
        yield Finding("model", "ok", text + told)
    yield from _privacy(settings, task)
    yield _disk(settings.agent.home, task.spec.d * x.element_size())
    yield from _checkpoint(settings, network, task)


def _privacy(settings: AgentSettings, task: Task) -> Iterator[Finding]:
    """Whether the model can be trained privately, and how much noise the budget takes."""
    try:
        mechanism, own = settings.mechanism(task), settings.agent
        without = mechanism is None and own.home.exists()  # which the home's ledger may forbid
        home = Home(own.home) if without else None  # with a mechanism it would begin a ledger
        protection = protect_agent(task, mechanism, settings.algorithm.build(), agent=own.name, home=home)
    except P2PQGError as error:
        yield Finding("privacy", "fail", str(error), "see docs/privacy.md")
        return
    if mechanism is None or protection is None:
        return
    budget = "counted without a limit" if mechanism.budget is None else f"up to {mechanism.budget:g}"
    noise = f"noise {mechanism.noise_multiplier:.3g} times the clipping norm"
    drawn = f"each record in a step with probability {mechanism.sample_rate:.3g}"
    yield Finding("privacy", "ok", f"epsilon {budget} at delta {mechanism.delta:g}: {noise}, {drawn}")
    for notice in protection.notices:
        yield Finding("privacy", "warn", notice, "see docs/privacy.md")


def _disk(home: Path, model_bytes: int) -> Finding:
    there = _nearest(home)
    free, needed = shutil.disk_usage(there).free, COPIES * model_bytes + SPARE_BYTES
    text = f"{free / 1e9:.3g} GB free, a run takes about {needed / 1e9:.2g} GB"
    if free < COPIES * model_bytes:
        return Finding("disk", "fail", text, f"make room at {there}, or set agent.home elsewhere")
    return Finding("disk", "ok" if free > needed else "warn", text, "" if free > needed else "make room soon")


def _nearest(home: Path) -> Path:
    """The home, or the folder in which it would be made."""
    return next(folder for folder in (home, *home.absolute().parents) if folder.exists())


def _checkpoint(settings: AgentSettings, network: NetworkFile, task: Task) -> Iterator[Finding]:
    if not settings.agent.home.exists():
        return
    damaged: list[str] = []
    try:
        agreed = config.agreed_in(network, settings, task.spec, settings.agent.wire)
        found = Home(settings.agent.home).load(agreed, damaged.append)
    except P2PQGError as error:
        yield Finding("checkpoint", "fail", str(error), "put it away, or set another agent.home")
        return
    if damaged:
        yield Finding(
            "checkpoint", "warn", damaged[0], "join falls back to the one before; is the disk sound?"
        )
    if found is not None:
        yield Finding("checkpoint", "ok", f"join goes on from round {found[1]['round']}")


def _device() -> Finding:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return Finding("gpu", "ok", "none; training runs on the CPU")
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
    return Finding("gpu", "ok", f"{names}; ready-made tasks train on the CPU, your own may use it")


def _neighbours(
    settings: AgentSettings, network: NetworkFile, identity: Identity | None
) -> Iterator[Finding]:
    own = settings.agent.name
    if network.membership == "alive":  # anyone may become a neighbour
        peers = [peer for peer in network.names if peer != own]
    else:
        peers = [network.names[j] for j in network.build().neighbours(network.names.index(own))]
    for peer in peers:
        if address := network.addresses.get(peer):
            yield asyncio.run(_neighbour(peer, address, identity))


async def _neighbour(peer: str, address: str, identity: Identity | None) -> Finding:
    check = f"neighbour {peer}"
    host, _, port = address.rpartition(":")
    try:
        await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), port)
    except OSError as error:
        text = f"{address} cannot be resolved: {error.strerror or error}"
        return Finding(check, "fail", text, "check its address in the network's file, and the DNS")
    transport = GrpcTransport(identity=identity)
    try:
        connection = await transport.dial(peer, address)
        await connection.close()
    except TransportError as error:
        said = str(error).lower()
        for signs, level, advice in CAUSES:
            if any(sign in said for sign in signs):
                return Finding(check, level, str(error), advice)
        return Finding(check, UNREACHABLE[0], str(error), UNREACHABLE[1])
    except ConfigError as error:
        return Finding(check, "fail", str(error), "correct the network's file")
    finally:
        await transport.close()
    proved = "and proved its name" if identity else "unproven"
    return Finding(check, "ok", f"answers at {address}, {proved}")


def _is_running(home: Path) -> bool:
    try:
        ask(home, "status")
    except P2PQGError as error:
        return not isinstance(error, NotRunning)
    return True
