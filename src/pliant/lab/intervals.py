"""Confidence intervals of a statistic of runs, by resampling: for what Student's interval of a mean does not serve.

    percentile   quantiles of the statistic of runs drawn again with replacement (Efron, 1979)
    BCa          the same quantiles, moved for bias and acceleration (Efron, JASA 82, 1987), by `scipy.stats.bootstrap`
    stratified   percentile, where runs are drawn again within each task or curve, and the statistic is of all of them
                 (Agarwal et al., NeurIPS 2021)

None assumes a shape of the distribution; all are too narrow for few runs (`docs/statistics.md` has their measured coverage). The
draws are always the same. A single run, or a NaN among the runs, has the interval (nan, nan).
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# (SciPy is typed in part)

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pliant.base.choices import shortened

Array = NDArray[np.float64]
Statistic = Callable[..., Any]  # (..., runs), axis=-1 -> (...)
Interval = tuple[float, float]

_NONE = (float("nan"), float("nan"))


def bootstrap_interval(
    values: ArrayLike, level: float = 0.95, resamples: int = 2000, statistic: Statistic = np.mean
) -> Interval:
    """Percentile interval of a statistic of runs (runs,); `statistic` reduces the last axis, given as `axis=-1`.

    >>> bootstrap_interval([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    return stratified_interval([values], lambda strata: statistic(strata[0], axis=-1), level, resamples)


def bca_interval(
    values: ArrayLike, level: float = 0.95, resamples: int = 2000, statistic: Statistic = np.mean
) -> Interval:
    """BCa interval of a statistic of runs (runs,); `statistic` reduces the last axis, given as `axis=-1`.

    >>> low, high = bca_interval([1.0, 2.0, 3.0, 4.0, 9.0])
    >>> low < 3.8 < high and high - 3.8 > 3.8 - low  # it reaches further to the side of the tail
    True
    """
    runs = _checked([values], level, resamples)[0]
    if len(runs) < 2 or np.isnan(runs).any():
        return _NONE
    if np.ptp(runs) == 0:  # which BCa divides by
        return float(runs[0]), float(runs[0])
    from scipy.stats import bootstrap

    with warnings.catch_warnings():
        # Where the jackknife does not spread, as the trimmed mean of equal values, there is no acceleration: NaN, with a warning.
        warnings.simplefilter("ignore")
        found: Any = bootstrap(
            (runs,), statistic, vectorized=True, confidence_level=level, n_resamples=resamples, method="BCa",
            rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
    ends = float(found.low), float(found.high)
    return bootstrap_interval(runs, level, resamples, statistic) if np.isnan(ends).any() else ends


def stratified_interval(
    strata: Sequence[ArrayLike], statistic: Callable[[Sequence[Array]], Any], level: float = 0.95, resamples: int = 2000
) -> Interval:
    """Percentile interval of a statistic of several samples, such as the runs of several tasks or of two methods.

    Args:
        strata: samples, (runs,) each.
        statistic: of as many arrays (resamples, runs), to (resamples,).
        level: share of intervals that should hold the true value.
        resamples: how often all of them are drawn again, each within itself.
    """
    samples = _checked(strata, level, resamples)
    if any(len(runs) < 2 or np.isnan(runs).any() for runs in samples):
        return _NONE
    draw = np.random.default_rng(0)
    again = [runs[draw.integers(len(runs), size=(resamples, len(runs)))] for runs in samples]
    low, high = np.quantile(statistic(again), [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def _checked(strata: Sequence[ArrayLike], level: float, resamples: int) -> list[Array]:
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level {level} is between 0 and 1, and resamples {resamples} is from 1 on")
    return [as_runs(values) for values in strata]


def as_runs(values: ArrayLike) -> Array:
    """Values as numbers along at least one axis. Raises `ValueError` where they are something else."""
    try:
        runs = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{shortened(repr(values))} are no runs: give numbers, along an axis") from None
    if not runs.ndim:
        raise ValueError(f"{shortened(repr(values))} is a number and no runs: give several, along an axis")
    return runs
