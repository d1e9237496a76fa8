"""Checks of a word against known ones, with the known words and the nearest of them in the error; no error echoes at length."""

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
    return next(iter(get_close_matches(str(word)[:_LONGEST], list(known), n=1, cutoff=likeness)), None)


_LONGEST = 100  # characters of a word that are compared, and that an error echoes


def shortened(value: object, most: int = _LONGEST) -> str:
    """`value` as text in one line, its middle left out where it is longer than `most` characters.

    >>> shortened("a" * 5000, 20), shortened("two\\nlines")
    ('aaaaaaaa ... aaaaaaa', 'two lines')
    """
    text = " ".join(str(value).split())
    if len(text) <= most:
        return text
    kept = most - len(" ... ")
    return f"{text[: kept - kept // 2]} ... {text[len(text) - kept // 2 :]}"


def shown(value: object) -> str:
    """A value in an error: numbers and short texts as they are, other objects by their kind.

    >>> shown("1e-4"), shown([1, 2]), shown(dict)
    ("'1e-4'", 'a list', 'the class dict')
    """
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"  # Python does not write out the longest
    if value is None or isinstance(value, bool | int | float | str):
        return shortened(repr(value), 60)
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
