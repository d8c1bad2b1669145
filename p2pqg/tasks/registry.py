"""From a name in the configuration to a task."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from p2pqg.errors import ConfigError, P2PQGError
from p2pqg.tasks import digits, quadratic
from p2pqg.tasks.base import Task, TaskContext
from p2pqg.tasks.images import IMAGE_TASKS
from p2pqg.tasks.text import TEXT_TASKS

TaskFactory = Callable[[TaskContext], Task]

TASKS: dict[str, TaskFactory] = {
    "digits": digits.make_task,
    "quadratic": quadratic.make_task,
    **IMAGE_TASKS,
    **TEXT_TASKS,
}
"""Ready-made tasks by name."""

KEY = "task.name"


def load_task_factory(name: str, base: Path) -> TaskFactory:
    """The factory that `name` stands for: a ready-made task (`TASKS`), ``my_module:make_task`` for a module
    that Python can import, or ``path/to/file.py:make_task`` with the path relative to `base`, the folder of
    the configuration file.

    Loading runs the operator's own code, with the operator's rights: `name` must come from the operator's
    own configuration or command line and never from a peer.

    Raises `ConfigError` for anything that goes wrong: no such task, module, file or function, an exception
    while it is imported. The returned factory raises `ConfigError` if the function fails or hands back
    something that is not a `Task`.
    """
    if name in TASKS:
        return TASKS[name]
    source, colon, attribute = name.rpartition(":")
    if not colon or not source or not attribute:
        raise ConfigError(
            f"expected one of {', '.join(TASKS)}, my_module:make_task or path/to/file.py:make_task, "
            f"found {name!r}",
            key=KEY,
        )
    module = _import_file(base / source) if source.endswith(".py") else _import_module(source)
    function = getattr(module, attribute, None)
    if not callable(function):
        found = "nothing of that name" if function is None else repr(function)
        raise ConfigError(f"expected a function {attribute} in {source}, found {found}", key=KEY)

    def make_task(context: TaskContext) -> Task:
        try:
            task = function(context)
        except P2PQGError:
            raise
        except Exception as error:
            raise ConfigError(f"{name} raised {_described(error)}", key=KEY) from error
        if not isinstance(task, Task):
            contract = [member for member in vars(Task) if not member.startswith("_")]
            missing = ", ".join(member for member in contract if not hasattr(task, member))
            raise ConfigError(
                f"expected {name} to return a Task, found {type(task).__name__} without {missing}", key=KEY
            )
        return task

    return make_task


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"expected a module that Python can import, or the path of a .py file, found {name!r}",
                key=KEY,
            ) from error
        raise ConfigError(f"importing {name} raised {_described(error)}", key=KEY) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"importing {name} raised {_described(error)}", key=KEY) from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"expected a Python file, found none at {path}", key=KEY)
    path = path.resolve()
    name = f"p2pqg_task_{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None  # for a name that ends in .py there is always a loader
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigError(f"importing {path} raised {_described(error)}", key=KEY) from error
    return module


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
