"""Modules of a user's own, found by their files."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from pliant.base.choices import shown
from pliant.lab.errors import LabError, unknown


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


def function_of(address: str, what: str) -> Callable[..., Any]:
    """The function or class at `path/to/file.py:name` or `package.module:name`. Its file is run, with its folder searched for
    what it imports. Raises LabError where there is none; `what` it is said to give."""
    place, _, name = address.rpartition(":")
    if address.endswith(".py"):
        place, name = address, ""
    elif not place or not name:
        raise LabError(f"{shown(address)} names no function: write path/to/file.py:function, or module:function")
    if place.endswith(".py"):
        file = Path(place).resolve()
        search_in(str(file.parent))
        module = module_of_file(file, what)
    else:
        search_in(os.getcwd())
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise LabError(f"no module {shown(place)} for the {what}: {error}") from None
    own: list[str] = getattr(module, "__all__", None) or [
        each
        for each, item in vars(module).items()
        if callable(item) and getattr(item, "__module__", "") == module.__name__
    ]
    if not name:
        raise LabError(f"which function or class in {place}? Write {' or '.join(f'{place}:{each}' for each in own)}")
    found = getattr(module, name, None)
    if not callable(found):
        raise unknown(f"function or class in {place}", name, own)
    return cast(Callable[..., Any], found)
