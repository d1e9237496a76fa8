"""Checks of a word against known ones, with the known words and the nearest of them in the error."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T", bound=str)


def one_of(name: str, value: T, known: Iterable[str], likeness: float = 0.6) -> T:
    """`value`, if it is known; else raises a `ValueError` that lists the known words.

    >>> one_of("count", "bernouli", ["accumulate", "bernoulli"])
    Traceback (most recent call last):
    ValueError: unknown count 'bernouli' (did you mean 'bernoulli'?); known: accumulate, bernoulli
    """
    names = [str(each) for each in known]
    if type(value).__hash__ is not None and {value}.issubset(names):  # what is given may be of any kind
        return value
    hint = did_you_mean(value, names, likeness)
    raise ValueError(f"unknown {name} {shown(value)}{hint}; known: {', '.join(names)}")


def did_you_mean(word: object, known: Iterable[str], likeness: float = 0.6) -> str:
    """A hint in parentheses, after a space; empty where no word is as similar as `likeness` (1: equal, 0: anything).

    >>> did_you_mean("tahn", ["relu", "tanh"])
    " (did you mean 'tanh'?)"
    """
    near = nearest(word, known, likeness)
    return "" if near is None else f" (did you mean '{near}'?)"


def nearest(word: object, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """The known word that is most similar to `word`, if any is as similar as `likeness`."""
    return next(iter(get_close_matches(str(word), list(known), n=1, cutoff=likeness)), None)


def shown(value: object) -> str:
    """A value in an error: numbers and short texts as they are, other objects by their kind."""
    if value is None or isinstance(value, bool | int | float | str):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:56]}..."
    kind = value.__name__ if isinstance(value, type) else type(value).__name__
    return f"the class {kind}" if isinstance(value, type) else f"a {kind}"
