"""What goes wrong in a laboratory because of what was asked of it, each said in one line."""

from __future__ import annotations

import traceback
from collections.abc import Iterable

from pliant.base.choices import nearest, shortened


class LabError(ValueError):
    """Something asked for cannot be done. The message is one line: where, what, and what to do.

    The command line prints it and exits with status 2.
    """


class NoRows(LabError):
    """A study that has measured nothing so far."""


def ended(error: SystemExit) -> LabError:
    """The error for a program that an experiment ended, with the place where it did."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return LabError(
        f"the experiment ended the program by sys.exit({'' if error.code is None else repr(error.code)}) in {place.name} "
        f"({place.filename}:{place.lineno}): let it raise an error instead"
    )


def unknown(kind: str, word: str, known: Iterable[str]) -> LabError:
    """The error for a name that nobody knows, with the nearest one that somebody does.

    >>> print(unknown("method", "cpb", ["bp", "cbp", "linear"]))
    unknown method 'cpb': did you mean 'cbp'? Known: bp, cbp, linear
    """
    names = list(known)
    near = nearest(word, names, 0.0)
    guess = f": did you mean '{near}'? Known: {shortened(', '.join(names), 2000)}" if near else ": there is none"
    return LabError(f"unknown {kind} '{shortened(word)}'{guess}")
