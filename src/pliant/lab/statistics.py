"""Means over seeds, how far they can be trusted, and how two curves, or several, compare.

    standard error    s / √n,  s² = Σ (x - mean)² / (n - 1)
    interval          mean ± t(n - 1) s / √n,  t Student's quantile
    interquartile     mean of the runs between the quartiles: without ⌊n / 4⌋ runs at either end
    paired            the same of d = x - y, seed by seed: what both share, such as the stream, cancels
    permutation test  share of sign flips of d whose mean is at least as far from 0 (Fisher, 1935); of all 2ⁿ, or of 9,999
    Holm              p of m comparisons, from the smallest: the largest so far of (m - rank) p (Holm, 1979)
    effect size       mean d / √((sₓ² + s_y²) / 2), times 1 - 3 / (4 (n - 1) - 1): Hedges' g of pairs (Lakens, 2013, eqs. 10, 4)
    improvement       P(X > Y) + P(X = Y) / 2, over all pairs of a run of each (Mann and Whitney, 1947)
    profile           share of runs above each threshold

Sources: any textbook; Henderson et al., AAAI 2018, for why a curve needs an interval; Agarwal et al., NeurIPS 2021, for the
interquartile mean, the probability of improvement and performance profiles in this field.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# (SciPy is typed in part, and imported where it is used: it is slow to load)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import ArrayLike

from pliant.lab.intervals import Array, as_runs

FEW = 5  # runs: with fewer, an interval rests on the shape of a distribution that nobody has seen
FLIPS = 9_999  # of signs, where there are more than these


@dataclass(frozen=True)
class Estimate:
    """A mean over runs, elementwise. One run has no standard error: it is NaN."""

    mean: Array
    standard_error: Array
    count: int

    def interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """Lower and upper end of Student's confidence interval."""
        from scipy.special import stdtrit

        reach = float(stdtrit(max(1, self.count - 1), 0.5 + level / 2)) * self.standard_error
        return self.mean - reach, self.mean + reach


def estimate(values: ArrayLike, axis: int = 0) -> Estimate:
    """Mean and standard error over `axis`, the runs. A NaN among them makes both NaN: a run is not left out unsaid.

    >>> estimate([1.0, 2.0, 3.0]).mean, estimate([1.0, 2.0, 3.0]).standard_error
    (array(2.), array(0.57735027))
    """
    runs = as_runs(values)
    if not -runs.ndim <= axis < runs.ndim:
        raise ValueError(f"axis {axis} of runs with {runs.ndim} axes is not there")
    count = runs.shape[axis]
    if count == 0:
        raise ValueError("an estimate needs at least one run")
    spread = runs.std(axis=axis, ddof=1) if count > 1 else np.full(runs.mean(axis=axis).shape, np.nan)
    return Estimate(np.asarray(runs.mean(axis=axis)), np.asarray(spread / np.sqrt(count)), count)


def interquartile_mean(values: ArrayLike, axis: int = -1) -> Array:
    """Mean over `axis` without the ⌊n / 4⌋ smallest and largest runs; the mean itself where n is below 4.

    >>> float(interquartile_mean([0.0, 1.0, 2.0, 3.0, 100.0]))
    2.0
    """
    runs = np.sort(np.moveaxis(as_runs(values), axis, -1), axis=-1)  # NaN last, so that it would be cut off
    cut = runs.shape[-1] // 4
    middle = runs[..., cut : runs.shape[-1] - cut].mean(axis=-1)
    return np.where(np.isnan(runs).any(axis=-1), np.nan, middle)


# -- two curves, seed by seed -------------------------------------------------------------------------------------------


def differences(first: ArrayLike, second: ArrayLike) -> Array:
    """first - second, run by run. Both name the same seeds in the same order. Infinite less infinite is NaN."""
    a, b = as_runs(first), as_runs(second)
    if a.shape != b.shape:
        raise ValueError(f"paired runs have equal shapes, not {a.shape} and {b.shape}")
    with np.errstate(invalid="ignore"):
        return a - b


def paired_difference(first: ArrayLike, second: ArrayLike, axis: int = 0) -> Estimate:
    """The mean of first - second, run by run. Both name the same seeds in the same order along `axis`."""
    return estimate(differences(first, second), axis)


def permutation_test(first: ArrayLike, second: ArrayLike) -> float:
    """Two-sided p of no difference between pairs of runs (runs,); NaN for a NaN among them.

    With n pairs it cannot fall below 2 / 2ⁿ: five pairs never reach .05.

    >>> permutation_test([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])  # of 8 flips, two are as far from 0: + + + and - - -
    0.25
    """
    gaps = differences(first, second)
    if gaps.ndim != 1 or not len(gaps):
        raise ValueError(f"a permutation test is of pairs of runs, (runs,), not {gaps.shape}")
    if np.isnan(gaps).any():
        return float("nan")
    n = len(gaps)
    if 2**n <= FLIPS:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs = 1.0 - 2.0 * np.random.default_rng(0).integers(0, 2, size=(FLIPS, n))
    # what was found is one of the flips; equal means may differ in their last bits
    sums = cast(Array, signs @ gaps)
    as_far = int((np.abs(sums) >= np.abs(gaps.sum()) * (1 - 1e-12)).sum())
    return as_far / 2**n if 2**n <= FLIPS else (as_far + 1) / (FLIPS + 1)


def holm(p: ArrayLike) -> Array:
    """Values of p for m comparisons, such that one below .05 says so for all of them together; NaN are no comparisons.

    >>> holm([0.01, 0.04, 0.03])
    array([0.03, 0.06, 0.06])
    """
    given = as_runs(p)
    found, real = np.full(given.shape, np.nan), np.flatnonzero(~np.isnan(given))
    order = real[np.argsort(given[real], kind="stable")]
    found[order] = np.minimum(1.0, np.maximum.accumulate(given[order] * np.arange(len(order), 0, -1)))
    return found


def effect_size(first: ArrayLike, second: ArrayLike) -> float:
    """Mean difference of pairs of runs in units of the runs' spread, corrected for few runs; NaN below 2 runs or without spread.

    >>> round(effect_size([1.0, 2.0, 3.0], [0.0, 1.0, 2.0]), 3)  # 1 / 1, times 1 - 3 / 7
    0.571
    """
    gaps, n = differences(first, second), len(as_runs(first))
    if n < 2:
        return float("nan")
    spread = np.sqrt((as_runs(first).var(ddof=1) + as_runs(second).var(ddof=1)) / 2)
    if not spread > 0:
        return float("nan")
    return float(gaps.mean() / spread * (1 - 3 / (4 * (n - 1) - 1)))


# -- several curves, runs in any order --------------------------------------------------------------------------------


def probability_of_improvement(first: ArrayLike, second: ArrayLike) -> Array:
    """How often a run of `first`, (..., runs), exceeds one of `second`, (..., other runs); ties count half. NaN for a NaN.

    >>> float(probability_of_improvement([1.0, 3.0], [0.0, 1.0, 2.0]))  # 1.5 and 3 of 3
    0.75
    """
    a, b = as_runs(first)[..., :, None], as_runs(second)[..., None, :]
    wins = np.where(np.isnan(a + b), np.nan, np.where(a == b, 0.5, a > b))
    return wins.mean(axis=(-2, -1))


def performance_profile(values: ArrayLike, thresholds: ArrayLike) -> Array:
    """Share of runs (..., all of them) above each threshold; a NaN is above none.

    >>> performance_profile([0.2, 0.4, 0.9], [0.0, 0.4, 1.0])
    array([1.        , 0.33333333, 0.        ])
    """
    return (as_runs(values).ravel()[:, None] > as_runs(thresholds)).mean(axis=0)


def mean_ranks(values: Mapping[str, ArrayLike], least_is_best: bool = False) -> dict[str, float]:
    """Of methods by name, their mean rank over the seeds or tasks (runs,) that all have in this order; 1 is best, ties share.

    >>> mean_ranks({"bp": [0.1, 0.2, 0.3], "cbp": [0.2, 0.3, 0.3]})
    {'bp': 1.8333333333333333, 'cbp': 1.1666666666666667}
    """
    from scipy.stats import rankdata

    table: Sequence[Array] = [as_runs(runs) for runs in values.values()]
    if len({runs.shape for runs in table}) > 1:
        raise ValueError(f"ranks are of equally many runs each, not {[len(runs) for runs in table]}")
    signed = np.stack(table) * (1.0 if least_is_best else -1.0)
    ranks = cast(Array, rankdata(signed, axis=0, nan_policy="propagate"))
    return {name: float(own) for name, own in zip(values, ranks.mean(axis=1), strict=True)}
