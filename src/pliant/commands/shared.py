"""What commands share: a study's folder, notes on where rows come from, files that are whole or as they were."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pliant.base.files import refuse_link, replacing
from pliant.base.interrupts import interruptible

if TYPE_CHECKING:
    from pliant.lab.study.study import Study

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="a study's folder")]


def tell_note(study: Study, of_rows: bool = False) -> None:
    """What a reader should know of where rows come from; beside what is asked for, not in it."""
    for note in (study.note, study.unsaid if of_rows else None):
        if note is not None:
            print(f"pliant: note: {note}", file=sys.stderr)


def tell_code(study: Study) -> None:
    """Which code is about to run because the study says so."""
    if study.code is not None:
        print(f"pliant: note: {study.code}", file=sys.stderr, flush=True)


@contextmanager
def output(file: Path, read: Path) -> Generator[Path]:
    """Where to write what is to be at `file`, which is as it was until all is written; `read` is what it is made of.

    A link that the folder of a study holds is not followed: whoever made it may have laid it there.
    """
    with writing(file), interruptible():
        if file.parent.resolve().is_relative_to(read.resolve()):
            refuse_link(file)
        file = file.resolve()
        if file.exists() and not file.is_file():  # such as a pipe
            yield file
            return
        with replacing(file) as unfinished:
            yield unfinished


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Says in one line why `path` cannot be written."""
    from pliant.lab.errors import LabError

    try:
        yield
    except OSError as error:
        raise LabError(f"cannot write {error.filename2 or error.filename or path}: {error.strerror or error}") from None
