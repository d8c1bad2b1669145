"""`p2pqg completion`: commands and options, completed by the shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes `p2pqg` in SHELL; put it into the shell's start-up file:

    \b
        eval "$(p2pqg completion bash)"
    """
    from p2pqg.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "p2pqg", "_P2PQG_COMPLETE").source())
