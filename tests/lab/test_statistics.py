"""Means and how far they can be trusted, against SciPy and by hand."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from pliant.lab.statistics import bootstrap_interval, estimate, paired_difference


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
