"""Intervals by resampling: against SciPy, by hand, and by how often they hold what they should."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from pliant.lab.intervals import bca_interval, bootstrap_interval, stratified_interval
from pliant.lab.statistics import interquartile_mean, probability_of_improvement

SKEWED = np.random.default_rng(1).lognormal(size=12)


def test_bca_is_scipys():
    theirs = stats.bootstrap(
        (SKEWED,), np.mean, method="BCa", n_resamples=2000, rng=np.random.default_rng(0), vectorized=True
    ).confidence_interval
    assert bca_interval(SKEWED) == (theirs.low, theirs.high)


def test_bca_reaches_further_into_the_tail_than_the_percentiles():
    values = [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 20.0]
    (low, high), (lower, higher) = bootstrap_interval(values), bca_interval(values)
    assert lower > low
    assert higher > high


@pytest.mark.parametrize("interval", [bca_interval, bootstrap_interval])
def test_a_single_run_and_a_nan_have_no_interval_and_equal_runs_an_empty_one(interval):
    assert np.isnan(interval([3.0])).all()
    assert np.isnan(interval([3.0, np.nan, 2.0])).all()
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert interval(SKEWED) == interval(SKEWED)  # the draws are always the same


def test_a_statistic_without_spread_in_the_jackknife_falls_back_to_percentiles():
    """Without any one of these runs, the interquartile mean is the same: nothing to measure acceleration by."""
    values = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0]
    ends = bca_interval(values, statistic=interquartile_mean)
    assert ends == bootstrap_interval(values, statistic=interquartile_mean)
    assert np.isfinite(ends).all()


def test_each_stratum_is_drawn_within_itself():
    """Means of two strata, each of equal runs, cannot vary; drawn from all four runs they would."""
    assert stratified_interval([[1.0, 1.0], [5.0, 5.0]], lambda s: np.mean([each.mean(1) for each in s], 0)) == (
        3.0,
        3.0,
    )


def test_a_probability_of_improvement_has_a_stratified_interval():
    draw = np.random.default_rng(2)
    first, second = draw.normal(1, 1, 20), draw.normal(0, 1, 20)
    low, high = stratified_interval([first, second], lambda s: probability_of_improvement(*s))
    found = float(probability_of_improvement(first, second))
    assert low < found < high
    assert_allclose(found, 0.76, atol=0.15)  # of the distributions: Φ(1 / √2)


def test_nine_in_ten_intervals_of_ten_normal_runs_hold_the_mean():
    """95% are meant; ten runs give about 90 (`benchmarks/interval_coverage.py`)."""
    draw = np.random.default_rng(4)
    held = [low < 0 < high for low, high in (bca_interval(draw.normal(size=10), resamples=500) for _ in range(300))]
    assert 0.84 < np.mean(held) < 0.96


@pytest.mark.parametrize(("level", "resamples"), [(0.0, 10), (1.0, 10), (0.95, 0)])
def test_levels_and_resamples_have_bounds(level, resamples):
    with pytest.raises(ValueError, match="is between 0 and 1, and resamples"):
        bca_interval([1.0, 2.0], level, resamples)
