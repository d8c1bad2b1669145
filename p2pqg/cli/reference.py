"""`docs/commands.md`, made from the commands themselves; a test holds the page to this.

python -m p2pqg.cli.reference > docs/commands.md
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from p2pqg.cli.main import EXIT_CODES, cli

HEAD = """\
# All commands

Made from the program itself by `python -m p2pqg.cli.reference`. `p2pqg COMMAND --help` says the same.

Commands that speak to a running agent find it through its settings: `--config`, or the environment variable
`P2PQG_CONFIG`, or `agent.toml` in the current folder.

For completion in the shell, put this into `~/.bashrc` (likewise for zsh and fish):

    eval "$(p2pqg completion bash)"
"""


def markdown() -> str:
    """The whole page."""
    codes = ["## Exit codes\n", "| code | meaning |", "|---|---|"]
    codes += [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    context = click.Context(cli, info_name="p2pqg")
    sections = [HEAD, "\n".join(codes) + "\n"]
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        sections += _sections(command, f"p2pqg {name}")
    return "\n".join(sections)


def _sections(command: click.Command, name: str) -> Iterator[str]:
    """A command's own section, then those of its commands."""
    arguments = " ".join(p.make_metavar(click.Context(command)) for p in command.params if is_argument(p))
    yield f"## `{' '.join(filter(None, [name, arguments]))}`\n"
    yield inspect.cleandoc(command.help or "").replace("\b\n", "") + "\n"
    rows = [
        f"| {_names(option)} | {_meaning(option)} |" for option in command.params if not is_argument(option)
    ]
    if rows:
        yield "\n".join(["| option | |", "|---|---|", *rows]) + "\n"
    if isinstance(command, click.Group):
        for sub in command.commands.values():
            yield from _sections(sub, f"{name} {sub.name}")


def is_argument(parameter: click.Parameter) -> bool:
    """Whether it stands by its place and not by a name."""
    return isinstance(parameter, click.Argument)


def _names(parameter: click.Parameter) -> str:
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    takes = isinstance(parameter, click.Option) and not (parameter.is_flag or parameter.count)
    value = parameter.make_metavar(click.Context(cli)) if takes else ""
    return f"`{names}{' ' + value if value else ''}`".replace("|", "\\|")


def _meaning(parameter: click.Parameter) -> str:
    assert isinstance(parameter, click.Option)
    text = (parameter.help or "").replace("|", "\\|")
    default = parameter.default
    plain = isinstance(default, str | int | float) and not isinstance(default, bool)
    if parameter.show_default and plain:
        text = f"{text} Default: {default}.".strip()
    return text


if __name__ == "__main__":
    print(markdown(), end="")
