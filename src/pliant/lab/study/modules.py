"""Modules of a user's own, found by their files."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from pliant.lab.errors import LabError


def search_in(folder: str) -> None:
    """Let what lies in the folder be imported."""
    if folder not in sys.path:
        sys.path.append(folder)  # at the end: a file there must not hide an installed module


def classes_of(module: ModuleType) -> list[str]:
    """The classes that are written in the module."""
    return [name for name, item in vars(module).items() if inspect.isclass(item) and item.__module__ == module.__name__]


def module_of_file(file: Path, what: str = "experiment") -> ModuleType:
    """The module in a file, run once. Raises LabError where it is not there; `what` it is looked for in it."""
    if not file.is_file():
        raise LabError(f"no {what} at {file}: the file is not there")
    name = f"pliant_experiment_{file.stem}"
    if name not in sys.modules or sys.modules[name].__file__ != str(file):
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise LabError(f"{file} cannot be imported as a Python module")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # before it runs: dataclasses and pydantic look their module up
        spec.loader.exec_module(module)
    return sys.modules[name]
