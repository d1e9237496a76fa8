"""Which experiment is meant: by a name of `pliant list`, an address of a user's own, or the file that it made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pliant.experiments import TABLE

if TYPE_CHECKING:
    from pliant.lab.study.study import Reading


def experiment_named(name: str) -> tuple[str, Any]:
    """A short name for the study's folder, and where the experiment is."""
    from pliant.lab.errors import unknown
    from pliant.lab.study.target import target

    if name in TABLE:
        return name, target(TABLE[name].target)
    if ":" in name or name.endswith(".py"):
        where = target(name)
        return where.address.rpartition(":")[2].lower(), where
    raise unknown("experiment", name, [*TABLE, "module:Class", "path/to/file.py:Class"])


def joined(where: Any, methods: Sequence[str] | None) -> Any:
    """The target of an experiment with methods of a user's own."""
    from pliant.lab.study.own_method import method_target

    return where.model_copy(update={"methods": tuple(method_target(each) for each in methods or [])})


def experiment_of(attrs: Mapping[Any, Any], path: Path) -> Any:
    """The experiment that made an exported file: one of `TABLE`, as a file of rows is no place to load code by."""
    from pliant.lab.errors import LabError
    from pliant.lab.study.target import load, target

    name = attrs["name"]
    known = TABLE[name].target if name in TABLE else None
    made_by = attrs.get("experiment", known or name)  # earlier exports only have the name
    if known is None or made_by != known:
        raise LabError(f"{path} was made by an experiment of your own, {made_by}: plot its study's folder")
    return load(target(known))


def reading_of(attrs: Mapping[Any, Any]) -> Reading:
    """What an export does not say: what its fields are called now, and, if an earlier version wrote it, more."""
    from pliant.lab.study.study import Reading
    from pliant.lab.study.study import reading_of as of_experiment
    from pliant.lab.study.target import load_alone, target

    name = attrs["name"]
    if name not in TABLE:
        return Reading()
    if "colors" in attrs:
        return Reading(renamed=dict(TABLE[name].renamed))
    return of_experiment(load_alone(target(TABLE[name].target)))
