"""An experiment by its address: `package.module:Class`, or `path/to/file.py:Class` for one's own."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from pliant.lab.errors import LabError, unknown
from pliant.lab.experiment import AnyExperiment, RunConfig

REQUIRED = ("Config", "columns", "profiles", "runs", "stack_key", "start", "advance", "figure")
RESERVED = ("run", "status", "diverged_at", "commit")  # columns that the laboratory adds to every table of rows


class Target(BaseModel, frozen=True):
    """Where an experiment is found again, from any folder and by any process."""

    address: str  # module:Class, or an absolute file.py:Class
    folder: str  # joined to the module search path, for the experiment and what it imports

    @property
    def shown(self) -> str:
        """The address without the folders of this machine."""
        return f"{self.file.name}:{self.address.rpartition(':')[2]}" if self.file else self.address

    @property
    def file(self) -> Path | None:
        path = self.address.rpartition(":")[0]
        return Path(path) if path.endswith(".py") else None


def target(address: str) -> Target:
    """`address`, as typed in the current folder, made independent of it. Raises LabError where it names no class."""
    if address.endswith(".py"):
        raise _which_class(Path(address))
    place, _, name = address.rpartition(":")
    if not place or not name.isidentifier():
        raise LabError(f"'{address}' is no experiment: write module:Class or path/to/file.py:Class")
    if not place.endswith(".py"):
        return Target(address=address, folder=os.getcwd())
    file = Path(place).resolve()
    return Target(address=f"{file}:{name}", folder=str(file.parent))


def _which_class(file: Path) -> LabError:
    """The error for a file without a class: it names the experiments in it."""
    _search_in(str(file.resolve().parent))
    module = _module_of_file(file.resolve())
    names = [name for name in _classes(module) if all(hasattr(getattr(module, name), word) for word in REQUIRED)]
    if not names:
        return LabError(f"{file} holds no experiment: no class in it has {', '.join(REQUIRED)}")
    return LabError(f"which experiment in {file}? Write {' or '.join(f'{file}:{name}' for name in names)}")


def load(where: Target) -> AnyExperiment:
    """The experiment itself. Raises LabError where there is none, or where it lacks something."""
    _search_in(where.folder)
    name = where.address.rpartition(":")[2]
    module = _module(where)
    if not hasattr(module, name):
        raise unknown(f"class in {where.address.rpartition(':')[0]}", name, _classes(module))
    return _checked(getattr(module, name), where.address)()


def _search_in(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)  # at the end: a file there must not hide an installed module


def _classes(module: ModuleType) -> list[str]:
    """The classes that are written in the module."""
    return [name for name, item in vars(module).items() if inspect.isclass(item) and item.__module__ == module.__name__]


def _module(where: Target) -> ModuleType:
    place = where.address.rpartition(":")[0]
    if where.file is not None:
        return _module_of_file(where.file)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(error.name + ".")):
            raise LabError(f"no module '{place}' in the environment or in {where.folder}") from None
        raise  # the module is there, and something that it imports is not


def _module_of_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise LabError(f"no experiment at {file}: the file is not there")
    name = f"pliant_experiment_{file.stem}"
    if name not in sys.modules or sys.modules[name].__file__ != str(file):
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise LabError(f"{file} cannot be imported as a Python module")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # before it runs: dataclasses and pydantic look their module up
        spec.loader.exec_module(module)
    return sys.modules[name]


def _checked(kind: Any, address: str) -> type[AnyExperiment]:
    missing = [name for name in REQUIRED if not hasattr(kind, name)]
    if missing:
        raise LabError(f"{address} is no experiment: it lacks {', '.join(missing)}")
    config = kind.Config
    if not (inspect.isclass(config) and issubclass(config, RunConfig)):
        raise LabError(f"{address}: Config must be a subclass of pliant.lab.RunConfig")
    if not config.model_config.get("frozen"):
        raise LabError(f"{address}: Config must be frozen, as RunConfig is: what a run learned by is what its rows say")
    columns = list(kind.columns)
    twice = sorted({*columns, *RESERVED} & set(config.model_fields) | set(columns) & set(RESERVED))
    if twice:
        raise LabError(f"{address}: a column, a field of Config and {', '.join(RESERVED)} share the name {twice[0]}")
    return kind
