"""Records as a page: Markdown, and pictures beside it."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from p2pqg.errors import StorageError
from p2pqg.storage import unwritable, write_atomically

from . import experiments
from .experiments.records import Records

DPI = 110


def render(names: Sequence[str], records: Path, out: Path) -> Path:
    """Write ``report.md`` and its pictures into `out` for the named experiments that have records, and return
    the page's path. Raises `ConfigError` for an unknown name and `StorageError` if there are no records."""
    sections, seen = [], []
    for name in names:
        experiment = experiments.load(name)
        own = tuple(Records(records, experiment.records))
        if not own or experiment in seen:
            continue
        seen.append(experiment)
        report = experiment.report(own)
        if not report.markdown:
            continue
        sections.append(f"## {experiment.title}\n\n{report.markdown.strip()}")
        for file, figure in report.pictures.items():
            content = BytesIO()
            figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
            _create(out)
            write_atomically(out / file, content.getvalue())
    if not sections:
        raise StorageError(f"{records}: expected records of {', '.join(names)}, found none")
    _create(out)
    page = out / "report.md"
    write_atomically(page, ("# The paper, reproduced\n\n" + "\n\n".join(sections) + "\n").encode())
    return page


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
