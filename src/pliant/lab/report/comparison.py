"""Two curves, seed by seed: their difference, whether chance makes one as large, and how large it is.

    difference      first - second, paired by seed, with its interval
    p               two-sided permutation test of the pairs; "p, Holm" for all comparisons of the table together
    effect          difference in units of the spread among seeds (Hedges' g)
    first better    probability that a run of the first is better than one of the second, of any two seeds

See `pliant.lab.statistics`. With n pairs p cannot fall below 2 / 2ⁿ: .25 for 3, .0625 for 5, .002 for 10.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from pliant.lab.intervals import Array
from pliant.lab.measures import area, plasticity_loss, time_to_relearn
from pliant.lab.report.numbers import Format
from pliant.lab.report.parts import Curve
from pliant.lab.statistics import FEW, differences, effect_size, holm, permutation_test, probability_of_improvement

MEASURES = ("last", "first", "area", "plasticity-loss", "time-to-relearn")


@dataclass(frozen=True)
class Measure:
    """One number of each run of a curve (`pliant.lab.measures`).

    Args:
        name: one of `MEASURES`.
        least_is_best: of the curve's values.
        place, metric: columns of the rows, for the time to relearn.
        level: the value to be reached again after a change of the column `task`.
    """

    name: str = "last"
    least_is_best: bool = False
    place: str = ""
    metric: str = ""
    level: float = 0.0

    @property
    def fewer_is_better(self) -> bool:
        """Whether a smaller number is the better one."""
        return self.least_is_best or self.name in ("plasticity-loss", "time-to-relearn")

    def of(self, curve: Curve) -> Array:
        """(seeds,)"""
        if self.name == "time-to-relearn":
            return np.array([self._relearned(curve, seed) for seed in curve.seeds], np.float64)
        if self.name == "area":
            return area(curve.values)
        if self.name == "plasticity-loss":
            return plasticity_loss(curve.values, least_is_best=self.least_is_best)
        return curve.values[:, 0 if self.name == "first" else -1]

    def _relearned(self, curve: Curve, seed: int) -> float:
        rows: Any = curve.rows[curve.rows["seed"] == seed].sort_values(self.place)
        values, places, task = (rows[name].to_numpy(np.float64) for name in (self.metric, self.place, "task"))
        return time_to_relearn(values, places, task, self.level, self.least_is_best).time


@dataclass(frozen=True)
class Pair:
    """What `first` and `second` differ by, over the seeds that both have."""

    first: Curve
    second: Curve
    seeds: list[int]
    differences: Array  # (seeds,)
    p: float
    effect: float
    improvement: float  # probability that a run of `first` is the better one


def paired(first: Curve, second: Curve, measure: Measure) -> Pair | None:
    """None where nothing can be compared: no common seed, no number, or curves that end at different places."""
    seeds = [seed for seed in first.seeds if seed in second.seeds]
    if first.is_empty or second.is_empty or not seeds or first.ends[-1] != second.ends[-1]:
        return None
    mine, theirs = (measure.of(curve) for curve in (first, second))
    a, b = (
        np.array([own[curve.seeds.index(seed)] for seed in seeds]) for own, curve in ((mine, first), (theirs, second))
    )
    better = (theirs, mine) if measure.fewer_is_better else (mine, theirs)
    p, effect = permutation_test(a, b), effect_size(a, b)
    return Pair(first, second, seeds, differences(a, b), p, effect, float(probability_of_improvement(*better)))


def pairs(found: Sequence[Curve], measure: Measure, against: Curve | None = None) -> list[Pair]:
    """Every two curves, or every other one with `against`; without those that cannot be compared."""
    couples = combinations(found, 2) if against is None else ((c, against) for c in found if c is not against)
    return [pair for one, other in couples if (pair := paired(one, other, measure)) is not None]


def pair_cells(compared: Sequence[Pair], layout: Format) -> Iterator[list[str]]:
    """The table of comparisons, its head first."""
    yield ["first", "second", "seeds", "first - second", "p", "p, Holm", "effect", "first better"]
    for pair, together in zip(compared, holm([pair.p for pair in compared]) if compared else [], strict=True):
        yield [
            pair.first.name,
            pair.second.name,
            seeds_in_words(len(pair.seeds)),
            layout.text(pair.differences, signed=True),
            p_in_words(pair.p),
            p_in_words(float(together)),
            "-" if np.isnan(pair.effect) else f"{pair.effect:+.2f}",
            "-" if np.isnan(pair.improvement) else f"{pair.improvement:.2f}",
        ]


def seeds_in_words(count: int) -> str:
    """Their number, and whether it is small: said in the table."""
    return f"{count}, few" if count < FEW else str(count)


def p_in_words(p: float) -> str:
    """
    >>> p_in_words(0.0123), p_in_words(0.00004), p_in_words(float("nan"))
    ('.012', '<.001', '-')
    """
    if np.isnan(p):
        return "-"
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")
