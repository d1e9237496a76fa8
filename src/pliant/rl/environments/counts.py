"""Checks of the whole numbers that an environment is constructed with, seeds, copies, steps, and of those in a state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from operator import index
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pliant.base.choices import shortened
from pliant.base.saving import entry


def is_count(value: object, least: int = 1) -> bool:
    """Whether it is an integer, and no less; True and False are none.

    >>> is_count(3), is_count(0), is_count(3.0)
    (True, False, False)
    """
    return isinstance(value, Integral) and not isinstance(cast(object, value), bool) and int(value) >= least


def one_seed_each(seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds as integers. Raises ValueError where `seeds` is no sequence of whole numbers.

    >>> one_seed_each(range(3))
    (0, 1, 2)
    """
    try:
        if isinstance(seeds, bytes | Mapping):
            raise TypeError
        return tuple(index(seed) for seed in seeds)
    except TypeError:
        raise ValueError(
            f"seeds={shortened(repr(seeds))}: give a whole number for each agent, as in seeds=[0] or seeds=range(8)"
        ) from None


def check_counts(seeds: Sequence[int], counts: Mapping[str, int], least: Mapping[str, int]) -> None:
    """Raise ValueError where there is no seed, or a count is no whole number from its least on (1, unless `least` says)."""
    if not seeds:
        raise ValueError("0 seeds: give one for each agent, as in seeds=[0]")
    for name, count in counts.items():
        if not is_count(count, least.get(name, 1)):
            raise ValueError(f"{name}={shortened(repr(count))}: a whole number, {least.get(name, 1)} or more")


def counts(state: Mapping[str, Any], name: str, like: NDArray[Any]) -> NDArray[Any]:
    """The whole numbers that a state holds under `name`, a copy. Raises ValueError for another shape or dtype, and below 0."""
    held: NDArray[Any] = entry(state, name, like)
    if (held < 0).any():
        raise ValueError(f"'{name}' of this state holds {np.min(held)}: these are whole numbers from 0 on")
    return held


def finite(state: Mapping[str, Any], name: str, like: NDArray[Any]) -> NDArray[Any]:
    """The numbers that a state holds under `name`, a copy. Raises ValueError for another shape or dtype, infinities and NaN."""
    held: NDArray[Any] = entry(state, name, like)
    if not np.isfinite(held).all():
        raise ValueError(f"'{name}' of this state holds {held[~np.isfinite(held)][0]}: these are finite numbers")
    return held
