"""Imports point one way (the first law of the architecture), read from the source of every module.

To add a law, add a line to `LAWS`: the modules it binds and what they may not import, at any depth of
nesting. `LAZY` names what the command line may import inside functions, or by name, and nobody else.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"p2pqg": ROOT / "p2pqg", "p2pqg_simulator": ROOT / "simulator"}

# wire.tensors is arithmetic on payloads: the gossip machine and the codec share it.
CORE = ("errors", "flat", "seeds", "schedules", "topology", "algorithms", "gossip", "wire.tensors")
ADAPTERS = ("transport", "discovery", "checkpoint", "wire", "telemetry", "security", "control", "web")
SHELL = ("agent", "config", "cli", "daemon", "service")
IO = ("asyncio", "grpc", "socket", "os", "time", "random", "threading", "subprocess", "selectors", "logging")


def inside(*names: str) -> tuple[str, ...]:
    return tuple(f"p2pqg.{name}" for name in names)


@dataclass(frozen=True)
class Law:
    """Modules under `bound` import nothing under `forbidden`, save under `allowed`."""

    name: str
    bound: tuple[str, ...]
    forbidden: tuple[str, ...]
    allowed: tuple[str, ...] = ()


LAWS = [
    Law("core has no input, output, clock or chance", inside(*CORE), IO),
    Law("core imports core", inside(*CORE), ("p2pqg",), inside(*CORE)),
    Law("tasks import what they are made of", inside("tasks"), ("p2pqg",),
        inside("errors", "flat", "seeds", "storage", "tasks")),
    Law("privacy is wired by the shell", inside("privacy"), inside(*SHELL)),
    Law("adapters decide nothing", inside(*ADAPTERS), inside(*SHELL)),
    Law("nothing is unpickled", tuple(PACKAGES), ("pickle", "cPickle", "dill", "cloudpickle", "shelve")),
]  # fmt: skip
LAZY = Law("the simulator is loaded lazily, by the command line", ("p2pqg",), ("p2pqg_simulator",))


def under(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *parts)).removesuffix(".__init__"), path


def imports(module: str, source: str, *, is_package: bool = False) -> Iterator[tuple[str, bool]]:
    """Full name of everything imported, and whether lazily: in a function, or by name in a string."""

    def walk(node: ast.AST, nested: bool) -> Iterator[tuple[str, bool]]:
        match node:
            case ast.Import(names):
                yield from ((alias.name, nested) for alias in names)
            case ast.ImportFrom(base, names, level):
                parts = module.split(".") if level else []
                package = parts[: len(parts) - level + is_package]
                origin = ".".join(filter(None, [*package, base]))
                yield from ((f"{origin}.{alias.name}", nested) for alias in names)
            case ast.Constant(str(text)) if (
                under(text, tuple(PACKAGES)) and text.replace(".", "").isidentifier()
            ):
                yield text, True
        for child in ast.iter_child_nodes(node):
            yield from walk(child, nested or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    yield from walk(ast.parse(source), False)


def violations(law: Law, module: str, source: str, *, is_package: bool = False) -> list[str]:
    """What `module` imports against the law."""
    if not under(module, law.bound):
        return []
    found = imports(module, source, is_package=is_package)
    if law is LAZY:
        may_nest = under(module, inside("cli"))
        return [name for name, nested in found if under(name, law.forbidden) and not (may_nest and nested)]
    return [name for name, _ in found if under(name, law.forbidden) and not under(name, law.allowed)]


@pytest.mark.parametrize("law", [*LAWS, LAZY], ids=lambda law: law.name.replace(" ", "-"))
def test_every_module_keeps_the_law(law: Law) -> None:
    broken = {
        module: names
        for module, path in modules()
        if (names := violations(law, module, path.read_text(), is_package=path.name == "__init__.py"))
    }
    assert not broken


@pytest.mark.parametrize("part", CORE)
def test_every_part_of_the_core_is_there_to_be_bound(part: str) -> None:
    assert any(under(module, inside(part)) for module, _ in modules())


@pytest.mark.parametrize(
    ("module", "source", "broken"),
    [
        ("p2pqg.gossip.machine", "import time", True),
        ("p2pqg.gossip.machine", "def f():\n  from os import path", True),
        ("p2pqg.gossip.machine", "from ..transport import base", True),
        ("p2pqg.gossip.machine", "from p2pqg import transport", True),
        ("p2pqg.gossip.machine", "from ..errors import ConfigError", False),
        ("p2pqg.gossip.machine", "from . import messages", False),
        ("p2pqg.gossip.machine", "import timeit, randomness", False),
        ("p2pqg.flat", "from .config import Settings", True),
        ("p2pqg.wire.codec", "import p2pqg.config", True),
        ("p2pqg.wire.codec", "import asyncio", False),
        ("p2pqg.agent", "import p2pqg_simulator.engine", True),
        ("p2pqg.agent", "def f():\n  import p2pqg_simulator", True),
        ("p2pqg.agent", "import_module('p2pqg_simulator.engine')", True),
        ("p2pqg.agent", "'''p2pqg_simulator is what this docstring talks about'''", False),
        ("p2pqg.cli.main", "import p2pqg_simulator", True),
        ("p2pqg.cli.main", "def f():\n  import p2pqg_simulator", False),
        ("p2pqg.cli.main", "COMMANDS = {'simulate': 'p2pqg_simulator.commands'}", False),
        ("p2pqg_simulator.engine", "from p2pqg.algorithms import drive", False),
        ("p2pqg_simulator.records", "import pickle", True),
    ],
)
def test_the_laws_have_teeth(module: str, source: str, broken: bool) -> None:
    assert any(violations(law, module, source) for law in [*LAWS, LAZY]) == broken
