"""Checks of the whole numbers that an environment is constructed with: seeds, copies, steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from operator import index


def is_count(value: object, least: int = 1) -> bool:
    """Whether it is an integer, and no less.

    >>> is_count(3), is_count(0), is_count(3.0)
    (True, False, False)
    """
    return isinstance(value, Integral) and int(value) >= least


def one_seed_each(seeds: Sequence[int]) -> tuple[int, ...]:
    """The seeds as integers. Raises ValueError where `seeds` is no sequence of whole numbers.

    >>> one_seed_each(range(3))
    (0, 1, 2)
    """
    try:
        return tuple(index(seed) for seed in seeds)
    except TypeError:
        raise ValueError(
            f"seeds={seeds!r}: give a whole number for each agent, as in seeds=[0] or seeds=range(8)"
        ) from None


def check_counts(seeds: Sequence[int], counts: Mapping[str, int], least: Mapping[str, int]) -> None:
    """Raise ValueError where there is no seed, or a count is no whole number from its least on (1, unless `least` says)."""
    if not seeds:
        raise ValueError("0 seeds: give one for each agent, as in seeds=[0]")
    for name, count in counts.items():
        if not is_count(count, least.get(name, 1)):
            raise ValueError(f"{name}={count!r}: a whole number, {least.get(name, 1)} or more")
