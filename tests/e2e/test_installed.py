"""What is installed, and what of it an agent loads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import torch
from processes import ENVIRONMENT, network

ROOT = Path(__file__).parents[2]
UNUSED = {
    "starlette", "uvicorn", "prometheus_client",  # the page, the metrics
    "sklearn", "scipy", "PIL", "torchvision", "transformers", "tokenizers",  # other tasks
    "matplotlib", "p2pqg_simulator", "zeroconf", "pytest",
}  # fmt: skip
RUN = """
import json, sys
from p2pqg.cli.main import main
try:
    main()
finally:
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def loaded(*arguments: str) -> set[str]:
    """The top-level modules that a command has loaded at its end."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_an_agent_loads_what_it_uses(tmp_path: Path) -> None:
    """One that is alone in its network, so that its run needs nobody else."""
    (name,) = network(tmp_path, 1)
    found = loaded("join", "--config", str(tmp_path / name / "agent.toml"))
    assert {"torch", "grpc"} <= found
    assert not found & UNUSED


def test_help_loads_next_to_nothing() -> None:
    """Which is why it is there in a tenth of a second."""
    found = loaded("--help")
    assert not found & (UNUSED | {"torch", "numpy", "grpc", "networkx", "cryptography", "rich"})


def test_the_wheel_holds_every_package() -> None:
    """An editable installation, such as the tests', has them whether they are listed or not."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {listed["package-dir"][top]: top for top in ("p2pqg", "p2pqg_simulator")}
    there = {
        ".".join((name, *path.parent.relative_to(ROOT / folder).parts))
        for folder, name in folders.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(listed["packages"]) == there


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_containers_installation_runs_the_demo(tmp_path: Path) -> None:
    """The container's own script installs the repository into an empty folder; what it installed runs the
    demo from an empty directory.

    The libraries are those of the tests, which pip finds installed: that they are what the wheel asks for,
    pip checks. What an image lacks of this machine is not seen here.
    """
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("p2pqg", "simulator"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    libraries = sysconfig.get_path("purelib")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment |= {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
    environment |= {"PYTHONPATH": libraries, "VARIANT": "cuda" if torch.version.cuda else "cpu"}
    install = [str(ROOT / "deploy" / "container" / "install.sh"), str(tmp_path / "opt")]
    done = subprocess.run(install, cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("p2pqg, version")

    empty = tmp_path / "empty"
    empty.mkdir()
    python = tmp_path / "opt" / "bin" / "python"
    where = "import p2pqg, p2pqg_simulator; print(p2pqg.__file__, p2pqg_simulator.__file__)"
    found = subprocess.check_output([python, "-c", where], cwd=empty, env=environment, text=True).split()
    assert all(path.startswith(str(tmp_path / "opt")) for path in found)
    demo = [str(tmp_path / "opt" / "bin" / "p2pqg"), "demo", "--out", str(tmp_path / "demo")]
    done = subprocess.run(demo, cwd=empty, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["final"]["mean_accuracy"] > 0.9
