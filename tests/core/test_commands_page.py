"""The page of commands is what the program has; completion knows the commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class
from click.testing import CliRunner

from p2pqg.cli import reference
from p2pqg.cli.main import COMMANDS, cli


def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "commands.md"
    assert page.read_text(encoding="utf-8") == reference.markdown(), (
        "run `python -m p2pqg.cli.reference > docs/commands.md`"
    )


def test_the_page_has_every_command() -> None:
    text = reference.markdown()
    assert all(f"## `p2pqg {name}" in text for name in COMMANDS)
    assert "## `p2pqg network sign REQUEST`" in text


@pytest.mark.parametrize(
    ("arguments", "incomplete", "expected"),
    [
        ([], "sta", ["status"]),
        (["network"], "re", ["renew", "revoke"]),
        (["status"], "--w", ["--watch"]),
        (["completion"], "z", ["zsh"]),
    ],
)
def test_what_the_shell_is_offered(arguments: list[str], incomplete: str, expected: list[str]) -> None:
    kind = get_completion_class("bash")
    assert kind is not None
    offered = kind(cli, {}, "p2pqg", "_P2PQG_COMPLETE").get_completions(arguments, incomplete)
    assert [item.value for item in offered] == expected


def test_the_first_word_is_completed_without_torch() -> None:
    program = (
        "import sys; from p2pqg.cli.main import cli\n"
        "from click.shell_completion import BashComplete\n"
        "items = BashComplete(cli, {}, 'p2pqg', '_P2PQG_COMPLETE').get_completions([], '')\n"
        "print(len(items), 'torch' in sys.modules)"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    count, torch = done.stdout.split()
    assert int(count) >= len(COMMANDS)
    assert torch == "False"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    script = CliRunner().invoke(cli, ["completion", shell])
    assert script.exit_code == 0
    assert "_P2PQG_COMPLETE" in script.output
