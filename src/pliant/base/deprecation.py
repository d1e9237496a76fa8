"""Names of the version before, which still work for one version and say so.

Modules that moved are found under their old names; a module's own names are listed where they lived.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, TypeVar
from warnings import warn

Class = TypeVar("Class", bound=type)

MOVED = {  # old -> new; what is below an old one is below the new one
    "pliant.initial": "pliant.base.initial",
    "pliant.process": "pliant.base.process",
    "pliant.state_files": "pliant.base.saving",
    "pliant.feedback": "pliant.engine.feedback",
    "pliant.fresh_weights": "pliant.engine.fresh_weights",
    "pliant.optimizer_state": "pliant.engine.optimizer_state",
    "pliant.parts": "pliant.engine.interfaces",
    "pliant.planning": "pliant.engine.planning",
    "pliant.ranks": "pliant.engine.data_parallel",
    "pliant.redraw": "pliant.engine.redraw",
    "pliant.replacement": "pliant.engine.replacement",
    "pliant.score": "pliant.engine.score",
    "pliant.select": "pliant.engine.select",
    "pliant.taken_steps": "pliant.engine.taken_steps",
    "pliant.unit_reset": "pliant.engine.unit_reset",
    "pliant.utility": "pliant.engine.utility",
    "pliant.young_entries": "pliant.engine.optimizer_state.young",
    "pliant.methods.fresh_copy": "pliant.engine.fresh_copy",
    "pliant.methods.normal_stream": "pliant.engine.normal_stream",
    "pliant.methods.whole_parameters": "pliant.engine.whole_parameters",
    "pliant.units.activity": "pliant.engine.activity",
    "pliant.units.magnitude": "pliant.engine.magnitude",
    "pliant.units.panel": "pliant.engine.statistics",
    "pliant.rl.ppo.normalisation": "pliant.rl.ppo.normalization",
    "pliant.experiments.parts": "pliant.experiments.images",
    "pliant.lab.about": "pliant.lab.report.about",
    "pliant.lab.checkpoint": "pliant.lab.stored.checkpoint",
    "pliant.lab.facts": "pliant.lab.study.facts",
    "pliant.lab.files": "pliant.lab.stored.files",
    "pliant.lab.identity": "pliant.lab.stored.identity",
    "pliant.lab.labels": "pliant.lab.study.labels",
    "pliant.lab.preview": "pliant.lab.study.preview",
    "pliant.lab.progress": "pliant.lab.run.progress",
    "pliant.lab.promises": "pliant.lab.run.promises",
    "pliant.lab.records": "pliant.lab.stored.records",
    "pliant.lab.runner": "pliant.lab.run.runner",
    "pliant.lab.seals": "pliant.lab.stored.seals",
    "pliant.lab.settings": "pliant.lab.study.settings",
    "pliant.lab.store": "pliant.lab.stored.store",
    "pliant.lab.summary": "pliant.lab.report.summary",
    "pliant.lab.table": "pliant.lab.report.table",
    "pliant.lab.target": "pliant.lab.study.target",
    "pliant.lab.worker": "pliant.lab.run.worker",
}  # fmt: skip


class MovedModules(Loader):
    """Finds a module under its old name: the module itself, not a copy. To stand last in `sys.meta_path`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        new = self.new_name(fullname)
        return None if new is None or find_spec(new) is None else ModuleSpec(fullname, self)

    @staticmethod
    def new_name(fullname: str) -> str | None:
        stem = fullname
        while stem and stem not in MOVED:
            stem = stem.rpartition(".")[0]
        return MOVED[stem] + fullname.removeprefix(stem) if stem else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = str(self.new_name(spec.name))
        _say(spec.name, new)
        return import_module(new)

    def exec_module(self, module: ModuleType) -> None:
        """It has run under its own name."""


def install() -> None:
    """Once per process."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` that knows its names of before: old -> new, of this module or, with dots, of another."""

    def look_up(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        home, _, new = names[name].rpartition(".")
        _say(f"{module}.{name}", names[name])
        return getattr(import_module(home or module), new)

    return look_up


def renamed_attributes(names: Mapping[str, str]) -> Callable[[Class], Class]:
    """A class whose attributes and methods are also found under their names of before: old -> new."""

    def decorate(owner: Class) -> Class:
        for old, new in names.items():
            setattr(owner, old, property(lambda self, old=old, new=new: _found(self, old, new)))
        return owner

    return decorate


def renamed_arguments(names: Mapping[str, str]) -> Callable[[Class], Class]:
    """A class whose keyword arguments may have their names of before: old -> new.

    Where both are given the old one counts: `dataclasses.replace(settings, old=value)` fills in the new one by itself.
    """

    def decorate(owner: Class) -> Class:
        construct = owner.__init__

        @wraps(construct)
        def init(self: object, *args: Any, **given: Any) -> None:
            for old in [name for name in given if name in names]:
                _say(f"{owner.__name__}({old}=...)", f"{names[old]}=...")
                given[names[old]] = given.pop(old)
            construct(self, *args, **given)

        owner.__init__ = init
        return owner

    return decorate


def _found(owner: object, old: str, new: str) -> Any:
    _say(f"{type(owner).__name__}.{old}", f"{type(owner).__name__}.{new}", stacklevel=4)
    return getattr(owner, new)


def _say(old: str, new: str, stacklevel: int = 3) -> None:
    warn(f"{old} is now {new}; the old name goes with the next version", DeprecationWarning, stacklevel=stacklevel)
