"""`p2pqg join`: one agent of a network, until it is done or told to stop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from p2pqg.cli.options import config_option


@click.command()
@config_option
@click.option("--stop-after", type=click.IntRange(min=1), metavar="ROUND",
              help="Checkpoint after this round and stop.")  # fmt: skip
@click.option("--insecure", is_flag=True,
              help="Without certificates, allow other addresses than loopback.")  # fmt: skip
@click.option("--log", "form", type=click.Choice(["auto", "console", "json"]), default="auto",
              show_default=True, help="The log's form; auto: console on a terminal.")  # fmt: skip
def join(file: Path, stop_after: int | None, insecure: bool, form: str) -> None:
    """Run one agent of a network.

    It goes on from the checkpoint in its home if there is one. SIGTERM, Ctrl-C and `p2pqg leave` end it at
    the next round boundary: a round past the point of no return is finished, then checkpoint and goodbye.
    """
    from p2pqg.cli.views import participation_text
    from p2pqg.daemon import Daemon

    daemon = Daemon(file, stop_after=stop_after, insecure=insecure, form=form)  # type: ignore[arg-type]
    outcome = asyncio.run(daemon.run())
    if outcome.finished and outcome.final is not None:
        score = outcome.final.accuracy
        click.echo(
            f"finished {outcome.round} rounds" + (f", accuracy {score:.1%}" if score is not None else "")
        )
    else:
        click.echo(f"stopped after round {outcome.round}; run the same command to go on")
    click.echo(participation_text(daemon.agent.participation.as_json()))
