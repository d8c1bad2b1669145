"""`p2pqg`: the commands, and what an error looks like to whoever typed them."""

from __future__ import annotations

import importlib
import sys

import click
from click.shell_completion import CompletionItem

from p2pqg import __version__
from p2pqg.errors import ConfigError, P2PQGError

EXIT_CODES = {
    0: "done; `status`: the agent runs or has finished",
    1: "the run failed (a neighbour missing, training diverged, a disk full); no agent is running",
    2: "the command or a setting is wrong; `preflight`: something must be put right first",
    130: "interrupted",
}
COMMANDS = {
    "init": ("p2pqg.cli.site", "Make an agent's home: a key, a certificate request, settings."),
    "network": ("p2pqg.cli.network", "The operator's commands: make a network, sign, renew, revoke."),
    "install": ("p2pqg.cli.site", "Install what the network's operator sent."),
    "preflight": ("p2pqg.cli.preflight", "Check everything before joining, and say what to do."),
    "join": ("p2pqg.cli.join", "Run one agent of a network."),
    "status": ("p2pqg.cli.control", "What the agent is doing, and what needs an operator."),
    "peers": ("p2pqg.cli.control", "Its neighbours."),
    "logs": ("p2pqg.cli.control", "What it said."),
    "evaluate": ("p2pqg.cli.control", "Score its model as it is now."),
    "export": ("p2pqg.cli.control", "Write its model in a plain format."),
    "leave": ("p2pqg.cli.control", "Ask it to leave."),
    "version": ("p2pqg.cli.control", "The program's version."),
    "completion": ("p2pqg.cli.completion", "The script that completes commands in a shell."),
    "demo": ("p2pqg_simulator.demo", "Eight agents on this machine train on real images."),
    "simulate": (
        "p2pqg_simulator.commands",
        "Train all agents of a network on this host, without a network.",
    ),
    "swarm": ("p2pqg_simulator.commands", "The same with real agents: one process each, over gRPC."),
    "reproduce": ("p2pqg_simulator.reproduce", "Run a table or a figure of the paper."),
    "report": ("p2pqg_simulator.reproduce", "Render records: ours beside the published numbers."),
    "audit": (
        "p2pqg_simulator.audit.command",
        "Attack a network as a curious neighbour would: what do its messages tell?",
    ),
    "compare": ("p2pqg_simulator.commands", "Compare two runs of simulate or swarm."),
}
"""Where each command's click object of the same name is, and its help in the list of commands."""


class LazyGroup(click.Group):
    """Loads a command's module when the command is used."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[name][0]), name)
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        commands = [
            CompletionItem(name, help=text)
            for name, (_, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*commands, *click.Command.shell_complete(self, context, incomplete)]

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="p2pqg")
def cli() -> None:
    """Train one neural network across devices that never share their data, without a server."""


def main() -> None:
    """Entry point of the `p2pqg` program."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as exit:
        sys.exit(exit.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except ConfigError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except P2PQGError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
