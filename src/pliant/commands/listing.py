"""`pliant list`: without importing torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from pliant.commands.known import experiment_named, joined
from pliant.experiments import TABLE


def list_experiments(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="profiles, fields and columns of this one")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="with NAME: a method of your own, file.py:Class, that joins it")
    ] = None,
) -> None:
    """Experiments, methods, profiles; or all of one experiment."""
    for line in _all_experiments() if name is None else _one_experiment(name, method):
        print(line)


def _all_experiments() -> Iterator[str]:
    for name, entry in TABLE.items():
        yield f"{name}   {entry.question}"
        yield f"  methods   {', '.join(entry.methods)}"
        yield f"  profiles  {', '.join(entry.profiles)}"
    yield "An experiment of your own: pliant run path/to/file.py:Class"


def _one_experiment(name: str, methods: Sequence[str] | None) -> Iterator[str]:
    from pliant.lab.report.about import experiment_lines
    from pliant.lab.study.target import load

    short, where = experiment_named(name)
    return experiment_lines(short, TABLE[name].question if name in TABLE else where.shown, load(joined(where, methods)))
