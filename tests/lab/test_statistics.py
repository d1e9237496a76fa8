"""Means and how far they can be trusted, against SciPy and by hand."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from pliant.lab.intervals import bootstrap_interval
from pliant.lab.statistics import (
    effect_size,
    estimate,
    holm,
    interquartile_mean,
    mean_ranks,
    paired_difference,
    performance_profile,
    permutation_test,
    probability_of_improvement,
)


def test_the_standard_error_divides_by_n_minus_1():
    one = estimate([1.0, 2.0, 3.0])  # variance (1 + 0 + 1) / 2
    assert (float(one.mean), one.count) == (2.0, 3)
    assert_allclose(one.standard_error, np.sqrt(1 / 3))


def test_the_interval_is_students():
    values = np.random.default_rng(0).normal(size=(7, 4))
    expected = stats.t.interval(0.9, 6, loc=values.mean(0), scale=stats.sem(values))
    assert_allclose(estimate(values).interval(0.9), expected)


def test_pairing_removes_what_both_share():
    shared = np.random.default_rng(1).normal(size=20) * 100
    gap = paired_difference(shared + 1.0, shared)
    assert_allclose([gap.mean, gap.standard_error], [1.0, 0.0], atol=1e-12)


def test_a_nan_is_not_left_out_unsaid():
    assert np.isnan(estimate([1.0, np.nan]).mean)


def test_one_run_has_no_standard_error():
    one = estimate([[1.0, 2.0]])
    assert one.mean.tolist() == [1.0, 2.0]
    assert np.isnan(one.standard_error).all()


def test_no_run_and_unequal_pairs_are_refused():
    with pytest.raises(ValueError, match="at least one run"):
        estimate(np.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"equal shapes, not \(2,\) and \(3,\)"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])


def test_a_bootstrap_interval_holds_the_mean_and_shrinks_with_the_number_of_runs():
    few, many = np.arange(5.0), np.tile(np.arange(5.0), 20)
    (low, high), (lower, higher) = bootstrap_interval(few), bootstrap_interval(many)
    assert low < 2 < high
    assert 3.5 < (high - low) / (higher - lower) < 6  # the root of 20 is 4.5
    assert bootstrap_interval(few) == (low, high)  # and the draws are always the same
    assert np.isnan(bootstrap_interval([3.0])).all()


@pytest.mark.parametrize("values", [None, "x", ["a"], 5.0, [[1.0], [1.0, 2.0]], object()])
@pytest.mark.parametrize("function", [estimate, bootstrap_interval, lambda values: paired_difference(values, values)])
def test_what_are_no_runs_is_refused(function, values):
    with pytest.raises(ValueError, match="no runs: give"):
        function(values)


# -- interquartile mean -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 4, 5, 8, 11, 30])
def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end_as_scipy_trims(n):
    values = np.random.default_rng(n).normal(size=(2, n))
    assert_allclose(interquartile_mean(values), stats.trim_mean(values, 0.25, axis=-1))
    assert_allclose(interquartile_mean(values.T, axis=0), stats.trim_mean(values, 0.25, axis=-1))


def test_the_interquartile_mean_does_not_cut_off_a_nan():
    assert np.isnan(interquartile_mean([0.0, 1.0, 2.0, 3.0, np.nan]))


# -- pairs ------------------------------------------------------------------------------------------------------------


def test_p_is_the_share_of_sign_flips_that_are_as_far_from_zero():
    """Differences 3, 2, -1: sums of the 8 flips are ±6, ±4, ±2, ±0; 4 is found, and 4 flips are as far."""
    assert permutation_test([3.0, 2.0, 0.0], [0.0, 0.0, 1.0]) == 4 / 8


@pytest.mark.parametrize("n", [2, 5, 9, 13])
def test_p_is_scipys_exact_one(n):
    draw = np.random.default_rng(n)
    first, second = draw.normal(0.5, 1, n), draw.normal(0, 1, n)
    theirs = stats.permutation_test(
        (first, second), lambda a, b, axis: (a - b).mean(axis), permutation_type="samples", vectorized=True, n_resamples=10**6
    )  # fmt: skip
    assert_allclose(permutation_test(first, second), theirs.pvalue)


def test_p_of_many_pairs_is_drawn_and_near_the_exact_one():
    draw = np.random.default_rng(3)
    first, second = draw.normal(0.35, 1, 30), draw.normal(0, 1, 30)
    exact_enough = stats.ttest_rel(first, second).pvalue
    assert 0.02 < exact_enough < 0.5
    assert abs(permutation_test(first, second) - exact_enough) < 0.03
    assert permutation_test(first + 100, second) == 1 / 10_000  # never 0


def test_equal_runs_differ_by_chance_and_a_nan_has_no_p():
    assert permutation_test([1.0, 2.0], [1.0, 2.0]) == 1.0
    assert permutation_test([0.3, 0.1, 0.2], [0.1, 0.2, 0.3]) == 1.0  # a sum of zero, but for the last bits
    assert np.isnan(permutation_test([1.0, np.nan], [0.0, 0.0]))
    with pytest.raises(ValueError, match=r"of pairs of runs, \(runs,\), not \(2, 1\)"):
        permutation_test([[1.0], [2.0]], [[1.0], [2.0]])


def test_false_alarms_of_p_below_a_twentieth_are_at_most_a_twentieth():
    draw = np.random.default_rng(0)
    found = [permutation_test(draw.exponential(size=8), draw.exponential(size=8)) for _ in range(2000)]
    assert 0.03 < np.mean(np.array(found) <= 0.05) < 0.062  # 2,000 tests: standard error .005


def test_holm_multiplies_the_smallest_p_by_their_number_and_never_lets_them_fall():
    # Holm (1979): .01 x 4; .02 x 3; .03 x 2, which is no more than the one before; .9 x 1
    assert_allclose(holm([0.03, 0.9, 0.01, 0.02]), [0.06, 0.9, 0.04, 0.06])
    assert_allclose(holm([0.6, 0.7]), [1.0, 1.0])
    assert_allclose(holm([np.nan, 0.02, 0.04]), [np.nan, 0.04, 0.04])


def test_the_effect_is_in_units_of_the_spread_of_runs():
    # means differ by 2; both have variance 1; the correction for 4 pairs is 1 - 3 / 11
    first, second = np.array([2.0, 3.0, 4.0, 3.0]), np.array([0.0, 1.0, 2.0, 1.0])
    spread = first.std(ddof=1)
    assert_allclose(effect_size(first, second), 2 / spread * (1 - 3 / 11))
    assert effect_size(second, first) == -effect_size(first, second)
    assert np.isnan(effect_size([1.0], [2.0]))
    assert np.isnan(effect_size([1.0, 1.0], [2.0, 2.0]))


# -- several ----------------------------------------------------------------------------------------------------------


def test_the_probability_of_improvement_is_mann_and_whitneys_u_over_all_pairs():
    draw = np.random.default_rng(5)
    first, second = draw.integers(0, 5, 9).astype(float), draw.integers(1, 6, 7).astype(float)
    u = stats.mannwhitneyu(first, second).statistic
    assert_allclose(probability_of_improvement(first, second), u / 63)
    assert_allclose(probability_of_improvement(second, first), 1 - u / 63)
    assert np.isnan(probability_of_improvement([np.nan], [1.0]))


def test_a_profile_is_the_share_of_runs_above_each_threshold():
    assert performance_profile([[0.0, 1.0], [2.0, np.nan]], [-1, 0, 1.5]).tolist() == [0.75, 0.5, 0.25]


def test_ranks_count_from_the_best_and_ties_share():
    values = {"a": [1.0, 5.0], "b": [1.0, 6.0], "c": [0.0, 7.0]}
    assert mean_ranks(values) == {"a": (1.5 + 3) / 2, "b": (1.5 + 2) / 2, "c": (3 + 1) / 2}
    assert mean_ranks(values, least_is_best=True) == {"a": (2.5 + 1) / 2, "b": (2.5 + 2) / 2, "c": (1 + 3) / 2}
    with pytest.raises(ValueError, match=r"equally many runs each, not \[1, 2\]"):
        mean_ranks({"a": [1.0], "b": [1.0, 2.0]})
