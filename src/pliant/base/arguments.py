"""Checks of arguments, at construction: each raises one sentence that names the setting, what it takes and what was given.

`TypeError` where something of another kind was given (a number as text, a bool for a number), `ValueError` where it is out of
range.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from math import inf, isfinite
from numbers import Integral, Real
from typing import Any, TypeVar, cast

from pliant.base.choices import did_you_mean, shown

MOST = 2**62  # of whole numbers: they are counted in 64 bits

F = TypeVar("F", bound=Callable[..., Any])


def number(name: str, value: Any, least: float = 0.0, most: float = inf, *, below: bool = False) -> float:
    """`value`, if it is a finite number from `least` to `most`, or `below` that.

    >>> number("decay_rate", 1.0, 0.0, 1.0, below=True)
    Traceback (most recent call last):
    ValueError: decay_rate must lie in [0, 1), got 1.0
    """
    if not _is_number(value):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    try:
        found = float(value)
    except OverflowError:  # of an integer
        found = inf
    if isfinite(found) and least <= found <= most and not (below and found == most):
        return found
    range_ = f"be {least:g} or more" if most == inf else f"lie in [{least:g}, {most:g}{')' if below else ']'}"
    raise ValueError(f"{name} must {range_}, got {shown(value)}")


def positive(name: str, value: Any) -> float:
    """`value`, if it is a finite number above 0.

    >>> positive("kappa", 0)
    Traceback (most recent call last):
    ValueError: kappa must be above 0, got 0
    """
    if not number(name, value):
        raise ValueError(f"{name} must be above 0, got {shown(value)}")
    return float(value)


def whole(name: str, value: Any, least: int = 0, *, of: str = "", otherwise: str = "") -> int:
    """`value`, if it is a whole number (2000.0 too) of `least` or more.

    >>> whole("period", 2.5, 1, of="optimizer steps")
    Traceback (most recent call last):
    ValueError: period must be 1 or more whole optimizer steps, got 2.5
    """
    wanted = f"{name} must be {least} or more whole {of or 'numbers'}{otherwise}"
    if not _is_number(value):
        raise TypeError(f"{wanted}, got {shown(value)}")
    if not least <= value < MOST or value % 1:
        raise ValueError(f"{wanted}, got {shown(value)}")
    return int(value)


def integer(name: str, value: Any) -> int:
    """`value`, if it is an integer that fits in 64 bits, of either sign."""
    if not is_a(value, Integral) or is_a(value, bool):
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"{name} must fit in 64 bits, got {shown(value)}")
    return int(value)


def flag(name: str, value: Any) -> bool:
    """`value`, if it is True or False.

    >>> flag("trial", "no")
    Traceback (most recent call last):
    TypeError: trial must be True or False, got 'no'
    """
    if type(value).__name__ not in ("bool", "bool_"):  # NumPy's too, in all of its versions
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def text(name: str, value: Any) -> str:
    """`value`, if it is a text and not an empty one.

    >>> text("name", 3)
    Traceback (most recent call last):
    TypeError: name must be a text, got 3
    """
    if not is_a(value, str) or not value:
        raise TypeError(f"{name} must be a text, got {shown(value)}")
    return value


def patterns(name: str, value: Any) -> tuple[str, ...]:
    """One pattern or several, as a tuple.

    >>> patterns("exclude", "head.*"), patterns("exclude", ["a", "b"])
    (('head.*',), ('a', 'b'))
    """
    several = [value] if isinstance(value, str) else listed(value)
    if several is None or not all(isinstance(each, str) and each for each in several):
        raise TypeError(f"{name} takes a pattern or a list of patterns, got {shown(value)}")
    return tuple(several)


def listed(value: object) -> list[Any] | None:
    """What it holds, if it is a collection; None for a single thing, such as a text or a tensor."""
    if isinstance(value, str | bytes | Mapping) or hasattr(value, "shape") or not isinstance(value, Iterable):
        return None
    return list(cast(Iterable[Any], value))


def called_with(name: str, function: F, *arguments: str) -> F:
    """`function`, if it can be called with so many arguments, which are described.

    >>> called_with("init", lambda module: None, "parameter name", "shape", "generator")
    Traceback (most recent call last):
    TypeError: init is called with 3 arguments (parameter name, shape, generator), which <lambda> does not take
    """
    if not callable(function):
        raise TypeError(f"{name} is a function of {', '.join(arguments)}, got {shown(function)}")
    try:
        # a module is called with what its forward takes, its class with what builds one
        called: Any = function if is_a(function, type) else getattr(function, "forward", function)
        inspect.signature(called).bind(*arguments)
    except TypeError:
        count = "1 argument" if len(arguments) == 1 else f"{len(arguments)} arguments"
        given = f"with {count} ({', '.join(arguments)})" if arguments else "without arguments"
        said = getattr(function, "__name__", type(function).__name__)
        raise TypeError(f"{name} is called {given}, which {said} does not take") from None
    except ValueError:  # a builtin that does not tell
        pass
    return function


def known_names(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `TypeError` for a keyword argument that is not known, with the nearest that is.

    >>> known_names("ReDo()", ["perod"], ["period", "tau"])
    Traceback (most recent call last):
    TypeError: ReDo() takes no argument 'perod' (did you mean 'period'?)
    """
    known = list(known)
    for name in given:
        if name not in known:
            raise TypeError(f"{owner} takes no argument '{name}'{did_you_mean(name, known)}")


def is_a(value: object, kinds: type | tuple[type, ...]) -> bool:
    """`isinstance`, of what may be of another kind than its annotation says."""
    return isinstance(value, kinds)


def _is_number(value: object) -> bool:
    return is_a(value, Real) and not is_a(value, bool)
