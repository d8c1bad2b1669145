"""What the README shows is what the program reads."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

from click.testing import CliRunner

from p2pqg.cli.main import COMMANDS, cli
from p2pqg.config import AgentSettings, NetworkFile, validate

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_settings_files_are_valid() -> None:
    blocks = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", README, re.DOTALL)]
    network, agent = blocks
    names = validate(NetworkFile, network, where="network.toml").names
    assert validate(AgentSettings, agent, where="agent.toml").agent.name in names


def test_every_command_exists_with_its_options() -> None:
    lines = [shlex.split(line) for line in re.findall(r"^    (p2pqg .*)$", README, re.MULTILINE)]
    assert {line[1] for line in lines} <= set(COMMANDS)
    for _, command, *arguments in lines:
        words = [command, arguments[0]] if command == "network" else [command]
        text = CliRunner().invoke(cli, [*words, "--help"]).output
        for option in (argument for argument in arguments if argument.startswith("-")):
            assert option in text, f"{command} {option}"


def test_every_page_it_names_exists() -> None:
    root = Path(__file__).parents[2]
    pages = re.findall(r"\]\(([^)]+\.md)\)", README)
    assert pages
    assert all((root / page).exists() for page in pages)
