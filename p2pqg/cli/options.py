"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path

import click

config_option = click.option(
    "--config", "file", type=click.Path(path_type=Path), default=Path("agent.toml"), show_default=True,
    envvar="P2PQG_CONFIG", help="The agent's settings.",
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="As JSON.")
