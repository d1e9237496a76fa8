"""Means over seeds, and how far they can be trusted.

    standard error   s / √n,  s² = Σ (x - mean)² / (n - 1)
    interval         mean ± t(n - 1) s / √n,  t Student's quantile
    bootstrap        percentiles of the mean of runs drawn with replacement (Efron, 1979)
    paired           the same of x - y, seed by seed: what both share, such as the stream, cancels

Source: any textbook; Henderson et al., AAAI 2018, for why a curve needs one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pliant.base.choices import shortened

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over runs, elementwise. One run has no standard error: it is NaN."""

    mean: Array
    standard_error: Array
    count: int

    def interval(self, level: float = 0.95) -> tuple[Array, Array]:
        """Lower and upper end of Student's confidence interval."""
        # imported here: it is slow to load, and only figures ask for it
        from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

        reach = float(stdtrit(max(1, self.count - 1), 0.5 + level / 2)) * self.standard_error
        return self.mean - reach, self.mean + reach


def estimate(values: ArrayLike, axis: int = 0) -> Estimate:
    """Mean and standard error over `axis`, the runs. A NaN among them makes both NaN: a run is not left out unsaid.

    >>> estimate([1.0, 2.0, 3.0]).mean, estimate([1.0, 2.0, 3.0]).standard_error
    (array(2.), array(0.57735027))
    """
    runs = _runs(values)
    if not -runs.ndim <= axis < runs.ndim:
        raise ValueError(f"axis {axis} of runs with {runs.ndim} axes is not there")
    count = runs.shape[axis]
    if count == 0:
        raise ValueError("an estimate needs at least one run")
    spread = runs.std(axis=axis, ddof=1) if count > 1 else np.full(runs.mean(axis=axis).shape, np.nan)
    return Estimate(np.asarray(runs.mean(axis=axis)), np.asarray(spread / np.sqrt(count)), count)


def bootstrap_interval(values: ArrayLike, level: float = 0.95, resamples: int = 2000) -> tuple[float, float]:
    """Percentiles of the mean of runs drawn again with replacement, (runs,) -> lower and upper end; NaN for a single run.

    It assumes no shape of the distribution, and is too narrow for a few runs: five give about nine tenths of what they should.
    The draws are always the same.

    >>> bootstrap_interval([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    runs = _runs(values)
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level {level} is between 0 and 1, and resamples {resamples} is from 1 on")
    if len(runs) < 2:
        return float("nan"), float("nan")
    means = runs[np.random.default_rng(0).integers(len(runs), size=(resamples, len(runs)))].mean(axis=1)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def paired_difference(first: ArrayLike, second: ArrayLike, axis: int = 0) -> Estimate:
    """The mean of first - second, run by run. Both name the same seeds in the same order along `axis`."""
    a, b = _runs(first), _runs(second)
    if a.shape != b.shape:
        raise ValueError(f"paired runs have equal shapes, not {a.shape} and {b.shape}")
    with np.errstate(invalid="ignore"):  # infinite less infinite is no number
        return estimate(a - b, axis)


def _runs(values: ArrayLike) -> Array:
    """Values as numbers along at least one axis. Raises `ValueError` where they are something else."""
    try:
        runs = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{shortened(repr(values))} are no runs: give numbers, along an axis") from None
    if not runs.ndim:
        raise ValueError(f"{shortened(repr(values))} is a number and no runs: give several, along an axis")
    return runs
