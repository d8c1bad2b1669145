"""`p2pqg audit`."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import click
import torch
from rich.console import Console

from p2pqg.storage import write_atomically

from ..experiments.base import SCALES, Plan, Scale, quiet
from ..experiments.records import Record, Records
from ..folder import RunFolder
from ..options import pair
from ..reproduce import run
from . import study, trained
from .membership import Success
from .presentation import present

DPI = 110
CANDIDATES = 200
"""Records of a trained network's victim that are attacked at most."""


@click.command()
@click.argument("run_folder", metavar="[RUN]", required=False, type=click.Path(path_type=Path))
@click.option("--scale", type=click.Choice(SCALES), default="smoke", show_default=True,
              help="Digits in seconds; a minute or two; or more networks that train for longer.")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path),
              help=f"Folder with {study.FILE}: chest X-rays beside the digits.")  # fmt: skip
@click.option(
    "--cell", metavar="KEY=VALUE,...", default="", help="Only these, such as attack=inversion,epsilon=8."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("audit"), show_default=True,
              help="Folder for records and results; what stands there is not run again.")  # fmt: skip
@click.option("--victim", default="agent-000", show_default=True, help="Of RUN: the agent that is attacked.")
@click.option("--networks", type=click.IntRange(min=4), default=8, show_default=True,
              help="Of RUN: reference networks to train.")  # fmt: skip
def audit(
    run_folder: Path | None,
    scale: Scale,
    data: Path | None,
    cell: str,
    out: Path,
    victim: str,
    networks: int,
) -> None:
    """Attack a network as a curious neighbour would: what do messages tell about a victim's records?

    Membership inference and reconstruction of images, against plain gossip, differential privacy, secure
    sums, and both. With RUN, a folder of simulate or swarm: membership inference on its final model.

    (What an agent did is in its audit log: p2pqg logs --audit.)
    """
    torch.set_num_threads(1)
    if run_folder is not None:
        found = trained.attack(RunFolder(run_folder), victim, networks, CANDIDATES)
        click.echo(said(found, victim))
        return
    wanted = dict(pair(part, "cell") for part in cell.split(",") if part)
    plan = Plan(scale=scale, data=data, cell=wanted)
    records, console = Records(out, study.experiment.records), Console()
    for record in run(study.experiment, plan, records, quiet):
        console.print(_line(record), highlight=False, soft_wrap=True)
    report = present([record for record in records if record.scale == scale])
    for name, figure in report.pictures.items():
        content = BytesIO()
        figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
        write_atomically(out / name, content.getvalue())
    page = out / "audit.md"
    write_atomically(page, report.markdown.encode())
    click.echo(f"\n{report.markdown}\nThe table and its pictures are in {out}")


def _line(record: Record) -> str:
    case = " ".join(f"{key}={value}" for key, value in record.case.items() if value is not None)
    found = "  ".join(
        f"{kind}: AUC {own['auc']:.2f}" if "auc" in own else f"{kind}: {own['psnr'][0]:.1f} dB"
        for kind, own in record.result["views"].items()
    )
    return f"{case}  {found}  ({record.made['cpu_s']:.0f} s of CPU)"


def said(found: Success, victim: str) -> str:
    """What an attack on a trained network found, in words."""
    (low, high), (least, most) = found.auc_interval, found.tpr_interval
    return (
        f"who has the final model can tell {victim}'s records from others with\n"
        f"  AUC {found.auc:.3f} (95 %: {low:.3f} to {high:.3f}; chance: 0.5)\n"
        f"  {found.tpr:.1%} of them at 1 % false alarms (95 %: {least:.1%} to {most:.1%}; chance: 1 %)"
    )
