"""Statuses as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

STYLES = {
    "training": "green",
    "agreeing": "green",
    "finished": "green",
    "failed": "red",
    "lost": "red",
    "stopped": "yellow",
}


def status_view(status: Mapping[str, Any]) -> RenderableType:
    """All about one agent."""
    table = Table.grid(padding=(0, 2))
    state = status["state"] if status["running"] else f"{status['state']} (not running)"
    table.add_row("agent", f"{status['agent']} of {status['network']}, run {status['run']}")
    table.add_row("state", Text(state, STYLES.get(status["state"], "yellow")))
    if status["reason"]:
        table.add_row("reason", Text(status["reason"], "red"))
    table.add_row("round", _progress(status))
    if scores := _scores(status):
        table.add_row("score", scores)
    metrics = status["metrics"]
    if "bytes_sent" in metrics:
        sent, received = bytes_text(metrics["bytes_sent"]), bytes_text(metrics["bytes_received"])
        table.add_row("traffic", f"{sent} sent, {received} received")
    if status.get("privacy"):
        table.add_row("privacy", _privacy(status["privacy"]))
    if "sums_masked" in metrics:
        table.add_row("secure sums", _sums(metrics))
    table.add_row("security", _security(status["security"]))
    table.add_row("address", str(status["address"] or "-"))
    table.add_row("up", duration(status["uptime_s"]))
    parts: list[RenderableType] = [table]
    parts += [Text(f"! {problem}", "bold red") for problem in status["problems"]]
    if status["peers"]:
        parts += ["", peers_view(status)]
    if not status["running"]:
        parts += ["", Text(participation_text(status["participation"]))]
    return Group(*parts)


def peers_view(status: Mapping[str, Any]) -> RenderableType:
    """One line for each neighbour."""
    table = Table("neighbour", "connected", "rounds", "missed", "sent", "received", "last problem", box=None)
    for name, peer in status["peers"].items():
        missed = peer["last_missed"]
        last = peer["problem"] or (f"round {missed['round']}: {missed['reason']}" if missed else "")
        table.add_row(
            name,
            Text("yes", "green") if peer["connected"] else Text("no", "red"),
            str(peer["rounds"]),
            str(peer["missed"]),
            bytes_text(peer["model_bytes_sent"]),
            bytes_text(peer["model_bytes_received"]),
            last,
        )
    return table


def participation_text(participation: Mapping[str, Any]) -> str:
    """Who took part in how many rounds, and who was missing when and why."""
    lines = [f"{peer} took part in {rounds} rounds" for peer, rounds in participation["mixed"].items()]
    for span in participation["missing"]:
        first, last = span["from"], span["to"]
        when = f"round {first}" if first == last else f"rounds {first} to {last}"
        if "rounds" in span:
            when = f"{span['rounds']} of {when}"
        lines.append(f"{span['peer']} was missing in {when}: {span['reason']}")
    return "\n".join(lines) or "nobody else took part in any round"


def duration(seconds: float) -> str:
    """3725 -> "1 h 2 min"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def bytes_text(count: float) -> str:
    """1234567 -> "1.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _progress(status: Mapping[str, Any]) -> str:
    rounds, beyond = status["rounds"], status["round"] - status["rounds"]
    text = f"{min(status['round'], rounds)} of {rounds}"
    if beyond > 0:
        text += f" and {beyond} of gossip only"
    if status["round_s"]:
        text += f", {status['round_s'] * 1000:.3g} ms each"
    if status["remaining_s"] is not None:
        text += f", about {duration(status['remaining_s'])} left"
    return text


def _scores(status: Mapping[str, Any]) -> str:
    scores, loss, parts = status["scores"], status["metrics"].get("loss"), []
    if loss is not None:
        parts.append(f"training loss {loss:.4g}")
    if scores.get("test_accuracy") is not None:
        parts.append(f"accuracy {scores['test_accuracy']:.1%} at round {scores['round']}")
    elif scores.get("test_loss") is not None:
        parts.append(f"test loss {scores['test_loss']:.4g} at round {scores['round']}")
    return ", ".join(parts)


def _privacy(privacy: Mapping[str, Any]) -> str:
    spent = f"epsilon {privacy['epsilon']:.3g}"
    budget = "" if privacy["budget"] is None else f" of {privacy['budget']:g}"
    return f"{spent}{budget} spent, at delta {privacy['delta']:g}"


def _sums(metrics: Mapping[str, Any]) -> str:
    text = f"{metrics['sums_masked']} received"
    if metrics["sums_lost"]:
        text += (
            f", {metrics['sums_lost']} lost (the sum of models moved by about {metrics['sums_drift']:.2g})"
        )
    if metrics["sums_saturated"]:
        text += f", {metrics['sums_saturated']} numbers out of range"
    return text


def _security(security: Mapping[str, Any]) -> RenderableType:
    if security["mode"] == "insecure":
        return Text("none: anyone can listen and join", "bold red")
    if security["mode"] == "loopback":
        return "none, on this machine only"
    key, days = security["key"].split(" "), security["days_left"]
    return f"mutual TLS, key {' '.join(key[:4])} ..., certificate valid for {days:.0f} days"
