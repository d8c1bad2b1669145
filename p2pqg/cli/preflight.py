"""`p2pqg preflight`: look before you join."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import click

from p2pqg.cli.options import config_option, json_option

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@config_option
@json_option
@click.option("--insecure", is_flag=True, help="As `p2pqg join --insecure` would be run.")
def preflight(file: Path, as_json: bool, insecure: bool) -> None:
    """Check settings, certificates, clock, port, home, data, model, disk, GPU, and the neighbours one by one.

    Exit code 0 if the agent can join, warnings or not; 2 if something must be done first.
    """
    from p2pqg.preflight import preflight as look

    findings = []
    for finding in look(file, insecure=insecure):
        findings.append(finding)
        if not as_json:
            click.echo(f"{click.style(f'{finding.level:<4}', COLOURS[finding.level])}  {finding.check}: "
                       f"{finding.text}")  # fmt: skip
            if finding.advice:
                click.echo(f"      -> {finding.advice}")
    failed = [finding for finding in findings if finding.level == "fail"]
    if as_json:
        record = {"ok": not failed, "findings": [dataclasses.asdict(finding) for finding in findings]}
        click.echo(json.dumps(record, indent=2))
    else:
        verdict = f"{len(failed)} to be put right first" if failed else "ready to join"
        click.echo(verdict)
    if failed:
        sys.exit(2)
