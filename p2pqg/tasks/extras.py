"""Libraries that only some tasks need, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from p2pqg.errors import ConfigError


def optional(module: str, extra: str) -> Any:
    """An optional library. Raises `ConfigError`, saying how to install it, if it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"this task needs {module.partition('.')[0]}, of the extra {extra}: "
            f"pip install 'p2pqg[{extra}]' ({error})",
            key="task",
        ) from error
