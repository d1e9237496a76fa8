"""An experiment by its address: `package.module:Class`, or `path/to/file.py:Class` for one's own.

With it go the methods of a user's own that join it, each a class in a file (`pliant.lab.study.own_method`).
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, Field, field_validator, model_serializer

from pliant.base.choices import shortened
from pliant.lab.errors import LabError, unknown
from pliant.lab.experiment import AnyExperiment, RunConfig
from pliant.lab.study.modules import classes_of, module_of_file, search_in
from pliant.lab.study.own_method import RESERVED, MethodTarget, load_method

REQUIRED = ("Config", "columns", "profiles", "runs", "stack_key", "start", "advance", "figure")


class Target(BaseModel, frozen=True):
    """Where an experiment is found again, from any folder and by any process."""

    address: str  # module:Class, or an absolute file.py:Class
    folder: str = Field(
        pattern=r"^[^\x00]*$"
    )  # joined to the module search path, for the experiment and what it imports
    methods: tuple[MethodTarget, ...] = ()  # of a user's own, that join it

    @field_validator("address")
    @classmethod
    def _check(cls, address: str) -> str:
        if not _names_a_class(address):
            raise ValueError(f"'{shortened(address)}' is neither module:Class nor file.py:Class")
        return address

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, handler: Any) -> dict[str, Any]:
        """As before there were methods of one's own, where there are none."""
        return {name: value for name, value in handler(self).items() if name != "methods" or value}

    @property
    def shown(self) -> str:
        """The address without the folders of this machine."""
        return f"{self.file.name}:{self.address.rpartition(':')[2]}" if self.file else self.address

    @property
    def file(self) -> Path | None:
        path = self.address.rpartition(":")[0]
        return Path(path) if path.endswith(".py") else None

    @property
    def is_shipped(self) -> bool:
        """Whether its code is part of this package, and so known to who installed it."""
        return self.address.startswith("pliant.") and self.file is None

    @property
    def own_code(self) -> list[str]:
        """Where the code lies that is run to load it, but for what is shipped. Imports nothing."""
        own = [] if self.is_shipped else [f"{self.file.resolve() if self.file else self._found_module()}"]
        return [*own, *(str(each.file.resolve()) for each in self.methods)]

    def _found_module(self) -> str:
        module = self.address.rpartition(":")[0]
        top = module.partition(".")[0]
        found = PathFinder.find_spec(top, [*sys.path, self.folder])
        place = (found.origin or next(iter(found.submodule_search_locations or []), None)) if found else None
        return f"module {module} ({Path(place).resolve() if place else 'which is not found'})"


def _names_a_class(address: str) -> bool:
    place, _, name = address.rpartition(":")
    in_file = place.endswith(".py") and "\0" not in place
    return name.isidentifier() and (in_file or all(part.isidentifier() for part in place.split(".")))


def target(address: str) -> Target:
    """`address`, as typed in the current folder, made independent of it. Raises LabError where it names no class."""
    if address.endswith(".py"):
        raise _which_class(Path(address))
    place, _, name = address.rpartition(":")
    if not _names_a_class(address):
        raise LabError(f"'{shortened(address)}' is no experiment: write module:Class or path/to/file.py:Class")
    if not place.endswith(".py"):
        return Target(address=address, folder=os.getcwd())
    file = Path(place).resolve()
    return Target(address=f"{file}:{name}", folder=str(file.parent))


def _which_class(file: Path) -> LabError:
    """The error for a file without a class: it names the experiments in it."""
    search_in(str(file.resolve().parent))
    module = module_of_file(file.resolve())
    names = [name for name in classes_of(module) if all(hasattr(getattr(module, name), word) for word in REQUIRED)]
    if not names:
        return LabError(f"{file} holds no experiment: no class in it has {', '.join(REQUIRED)}")
    return LabError(f"which experiment in {file}? Write {' or '.join(f'{file}:{name}' for name in names)}")


def load(where: Target) -> AnyExperiment:
    """The experiment itself, its methods of a user's own included. Raises LabError where there is none, or it lacks something."""
    experiment: Any = load_alone(where)
    if not where.methods:
        return experiment
    if not hasattr(experiment, "with_methods"):
        raise LabError(f"{where.shown} takes no method of one's own: it has no with_methods (docs/your-own-method.md)")
    return experiment.with_methods([load_method(each) for each in where.methods])


def load_alone(where: Target) -> AnyExperiment:
    """The experiment without methods of a user's own: of a shipped one, no other code is run."""
    if not where.is_shipped:
        search_in(where.folder)
    name = where.address.rpartition(":")[2]
    module = _module(where)
    if not hasattr(module, name):
        raise unknown(f"class in {where.address.rpartition(':')[0]}", name, classes_of(module))
    return _checked(getattr(module, name), where.address)()


def _module(where: Target) -> ModuleType:
    place = where.address.rpartition(":")[0]
    if where.file is not None:
        return module_of_file(where.file)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(error.name + ".")):
            raise LabError(f"no module '{place}' in the environment or in {where.folder}") from None
        raise  # the module is there, and something that it imports is not


def _is_a_name(column: Any) -> bool:
    """Whether it reads the same in every file and figure."""
    return isinstance(column, str) and column.isprintable() and column == " ".join(column.split()) != ""


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
    odd = next((name for name in columns if not _is_a_name(name)), None)
    if odd is not None:
        raise LabError(
            f"{address}: {shortened(repr(odd))} is no name of a column: a file or a figure could not show it. Give it letters"
        )
    twice = sorted({*columns, *RESERVED} & set(config.model_fields) | set(columns) & set(RESERVED))
    if twice:
        raise LabError(f"{address}: a column, a field of Config and {', '.join(RESERVED)} share the name {twice[0]}")
    return kind
