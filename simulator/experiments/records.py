"""Results as records: one JSON line a run, appended to a file an experiment.

A record is told apart by its experiment, scale and case; whoever holds one need not run that case again. A
line that a crash tore is dropped with the next append. Records of the project's own runs are shipped in the
folder `records` of this package.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

import p2pqg
from p2pqg.errors import StorageError
from p2pqg.storage import unwritable
from p2pqg.telemetry import clean

Case = Mapping[str, Any]
"""What tells one run of an experiment from the others: settings by name, each a JSON value."""

Result = Mapping[str, Any]
"""What came out, as JSON values."""

SHIPPED = Path(str(resources.files(__package__))).parent / "records"
"""The committed records."""


@dataclass(frozen=True)
class Record:
    """One run: what was asked, what came out, and with what it was made."""

    experiment: str
    scale: str
    case: Case
    result: Result
    made: Mapping[str, Any] = field(default_factory=dict)
    """Source hash, commit, dirty flag, hardware, library versions and seconds (see `provenance`)."""

    @property
    def key(self) -> str:
        """The same for two runs of the same case."""
        return case_key(self.case, self.scale)


def case_key(case: Case, scale: str) -> str:
    """Canonical text of a case at a scale."""
    return json.dumps({"scale": scale, **case}, sort_keys=True)


class Records:
    """The records of one experiment, in the order in which they were made; a case run twice counts once, with
    its last result. Raises `StorageError` if the file cannot be read or holds anything else."""

    def __init__(self, folder: Path, experiment: str) -> None:
        self.path = folder / f"{experiment}.jsonl"
        self.experiment = experiment
        self._by_key = {record.key: record for record in self._read()}

    def __iter__(self) -> Iterator[Record]:
        return iter(self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def find(self, case: Case, scale: str) -> Record | None:
        """The record of a case, if there is one."""
        return self._by_key.get(case_key(case, scale))

    def append(self, record: Record) -> None:
        """Write one line and flush it to the disk. Several processes may append to one file."""
        line = json.dumps(clean(asdict(record)), sort_keys=True, allow_nan=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"), self.path.open("ab+") as file:
                file.seek(0)
                whole = file.read().rfind(b"\n") + 1
                file.truncate(whole)
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error
        self._by_key[record.key] = record

    def _read(self) -> Iterator[Record]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"{self.path}: cannot be read: {error}") from error
        for number, line in enumerate(text.splitlines(keepends=True), 1):
            if not line.endswith("\n"):
                continue  # torn
            try:
                yield Record(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise StorageError(f"{self.path}: line {number}: expected a record: {error}") from error


def provenance(*, wall_s: float, cpu_s: float) -> dict[str, Any]:
    """With what a result was made, and what it took."""
    return {
        **_source(),
        "hardware": _hardware(),
        "versions": {
            "p2pqg": p2pqg.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "wall_s": round(wall_s, 3),
        "cpu_s": round(cpu_s, 3),
    }


@lru_cache(maxsize=1)
def _source() -> dict[str, Any]:
    """`source`: a hash of all Python files of the package and the simulator; and where they lie in a git
    checkout, `commit` and whether files differ from it (`dirty`)."""
    roots = [Path(p2pqg.__file__).parent, Path(__file__).resolve().parents[1]]
    digest = hashlib.blake2b(digest_size=8)
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{root.name}/{path.relative_to(root)}\n".encode() + path.read_bytes())
    found: dict[str, Any] = {"source": digest.hexdigest(), "commit": None, "dirty": None}
    try:
        git = ["git", "-C", str(roots[0].parent)]
        found["commit"] = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True, stderr=-3).strip()
        changes = subprocess.check_output(
            [*git, "status", "--porcelain", "--", "p2pqg", "simulator/*.py"], text=True, stderr=-3
        )
        found["dirty"] = bool(changes)
    except (OSError, subprocess.CalledProcessError):
        pass  # an installed package
    return found


def _hardware() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }
