"""Commands that speak to an agent running on this machine, over the control socket in its home.

They start fast: neither torch nor the settings' validation is loaded. After the end of a run `status`,
`peers` and `evaluate` answer from what it left in its home.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pqg import __version__
from p2pqg.cli.options import config_option, json_option
from p2pqg.control.client import NotRunning, ask, home_of
from p2pqg.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from rich.console import RenderableType

WATCH_S = 1.0
LONG_S = 3600.0
"""Evaluating and exporting may wait for a long computation."""
ENDED = ("finished", "stopped", "failed")


@click.command()
@config_option
@json_option
@click.option("--watch", is_flag=True, help="Show it again every second until the agent ends.")
def status(file: Path, as_json: bool, watch: bool) -> None:
    """What the agent is doing, with whom, and what needs an operator.

    After the end: how it ended, who took part in how many rounds and who was missing when. Exit code 0 if the
    agent runs or has finished, 1 otherwise.
    """
    from p2pqg.cli.views import status_view

    home = home_of(file)
    if as_json:
        for found in _follow(home) if watch else [_status(home)]:
            click.echo(json.dumps(found) if watch else json.dumps(found, indent=2))
    elif watch:
        from rich.live import Live

        with Live(refresh_per_second=4) as live:
            for found in _follow(home):
                live.update(status_view(found), refresh=True)
    else:
        found = _status(home)
        _print(status_view(found))
    if not found["running"] and found["state"] != "finished":
        sys.exit(1)


@click.command()
@config_option
@json_option
def peers(file: Path, as_json: bool) -> None:
    """The agent's neighbours: connected or not and why, rounds mixed and missed, bytes."""
    from p2pqg.cli.views import peers_view

    found = _status(home_of(file))
    if as_json:
        click.echo(json.dumps(found["peers"], indent=2))
    else:
        _print(peers_view(found))


@click.command()
@config_option
@click.option("--wait/--no-wait", default=True, help="Wait until the agent has ended.")
def leave(file: Path, wait: bool) -> None:
    """Ask the agent to leave: finish its round, write a checkpoint, say goodbye to its neighbours."""
    home = home_of(file)
    ask(home, "leave")
    while wait:
        time.sleep(0.1)
        try:
            ask(home, "status")
        except NotRunning:
            click.echo("the agent left; `p2pqg join` goes on where it stopped")
            return
    click.echo("the agent is leaving")


@click.command()
@config_option
@json_option
def evaluate(file: Path, as_json: bool) -> None:
    """Score the agent's model as it is now; training waits meanwhile.

    After the end of the run: the final score.
    """
    home = home_of(file)
    try:
        score = ask(home, "evaluate", timeout_s=LONG_S)
    except NotRunning:
        card = _read_json(home / "model.json")
        if card is None or card.get("final") is None:
            raise
        score = {"round": card["rounds"] + card["gossip_only_rounds"], **card["final"]}
    if as_json:
        click.echo(json.dumps(score))
    else:
        accuracy = "" if score["accuracy"] is None else f", accuracy {score['accuracy']:.1%}"
        click.echo(
            f"round {score['round']}: loss {score['loss']:.4g}{accuracy} on {score['samples']} samples"
        )


@click.command()
@config_option
@json_option
@click.option("--output", type=click.Path(path_type=Path), default=Path("model.safetensors"),
              show_default=True, help="The file to write; .npz gives NumPy's format.")  # fmt: skip
def export(file: Path, as_json: bool, output: Path) -> None:
    """Write the agent's model as it is now, or after the end the final one, in a plain format."""
    if output.suffix not in (".safetensors", ".npz"):
        raise ConfigError(
            f"expected a name that ends in .safetensors or .npz, found {output}", where="--output"
        )
    home = home_of(file)
    try:
        exported = ask(home, "export", timeout_s=LONG_S)
    except NotRunning:
        if not (home / "model.safetensors").exists():
            raise
        exported = {"path": str(home / "model.safetensors"), "round": None}
    size = _convert(Path(exported["path"]), output)
    found = {"file": str(output), "round": exported["round"], "bytes": size}
    of = "of the finished run" if found["round"] is None else f"of round {found['round']}"
    click.echo(json.dumps(found) if as_json else f"wrote {output}, {size} bytes, the model {of}")


@click.command()
@config_option
@json_option
@click.option("--lines", "-n", type=click.IntRange(min=0), default=50, show_default=True)
@click.option("--follow", "-f", is_flag=True, help="Go on showing new lines.")
@click.option("--audit", is_flag=True, help="The audit log instead.")
def logs(file: Path, as_json: bool, lines: int, follow: bool, audit: bool) -> None:
    """What the agent said, from its home."""
    path = home_of(file) / ("audit.jsonl" if audit else "log.jsonl")
    if not path.exists():
        raise StorageError(f"{path}: no such file; has the agent ever run?")
    for line in _tail(path, lines, follow):
        click.echo(line if as_json else _readable(line))


@click.command()
@json_option
def version(as_json: bool) -> None:
    """The program's version, and the protocol versions that it speaks."""
    import platform
    from importlib import metadata

    from p2pqg.gossip.messages import PROTOCOL_VERSIONS

    record = {
        "p2pqg": __version__,
        "protocol": list(PROTOCOL_VERSIONS),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "grpcio": metadata.version("grpcio"),
    }
    if as_json:
        click.echo(json.dumps(record))
        return
    oldest, newest = PROTOCOL_VERSIONS
    click.echo(f"p2pqg {__version__}, protocol {oldest} to {newest}")
    click.echo(f"Python {record['python']}, torch {record['torch']}, grpcio {record['grpcio']}")


def _status(home: Path) -> dict[str, Any]:
    """The running agent's status, or that of its end."""
    try:
        return {"running": True, **ask(home, "status")}
    except NotRunning:
        last = _read_json(home / "status.json")
        if last is None:
            raise
        if last["state"] not in ENDED:
            last |= {"state": "lost", "reason": "it ended without a word: killed, or the machine went down"}
        return {"running": False, **last}


def _follow(home: Path) -> Iterator[dict[str, Any]]:
    """The status every second, until the agent has ended."""
    while True:
        found = _status(home)
        yield found
        if not found["running"]:
            return
        time.sleep(WATCH_S)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: cannot read: {error}") from None
    return found


def _convert(source: Path, target: Path) -> int:
    """Copy a model into the format of the target's name; returns the bytes written."""
    from p2pqg.storage import write_atomically

    try:
        data = source.read_bytes()
    except OSError as error:
        raise StorageError(f"{source}: cannot read: {error.strerror}") from error
    if target.suffix == ".npz":
        import io

        import numpy as np
        from safetensors.numpy import load

        buffer = io.BytesIO()
        np.savez(buffer, **load(data))  # type: ignore[arg-type]
        data = buffer.getvalue()
    write_atomically(target, data)
    return len(data)


def _tail(path: Path, lines: int, follow: bool) -> Iterator[str]:
    """The last `lines` lines of a file and of the one before it, then new ones as they come."""
    older = path.with_name(path.name + ".1")
    known = [line for file in (older, path) if file.exists() for line in file.read_text().splitlines()]
    yield from known[len(known) - min(lines, len(known)) :]
    if not follow:
        return
    stream = path.open(encoding="utf-8")
    stream.seek(0, 2)
    while True:
        if line := stream.readline():
            yield line.rstrip("\n")
        elif path.exists() and path.stat().st_ino != _inode(stream):  # a new file has begun
            stream.close()
            stream = path.open(encoding="utf-8")
        else:
            time.sleep(0.2)


def _inode(stream: Any) -> int:
    import os

    return os.fstat(stream.fileno()).st_ino


def _readable(line: str) -> str:
    """One JSON line for people: time, event, then what belongs to it."""
    try:
        record = json.loads(line)
    except ValueError:
        return line
    when = record.pop("timestamp", None) or record.pop("time", "")
    event, level = record.pop("event", ""), record.pop("level", "info")
    record.pop("agent", None)
    rest = " ".join(f"{key}={value}" for key, value in record.items())
    mark = "" if level == "info" else f"[{level}] "
    return f"{when[:19].replace('T', ' ')}  {mark}{event}  {rest}".rstrip()


def _print(view: RenderableType) -> None:
    from rich.console import Console

    Console(soft_wrap=False).print(view)
