import numpy as np
import pytest

from pliant.lab.measures import area, gap_to_fresh, plasticity_loss, time_to_relearn


def test_plasticity_loss_is_positive_where_the_end_is_worse_than_the_beginning():
    falling = np.linspace(1.0, 0.05, 20)  # a tenth is two places
    assert plasticity_loss(falling) == pytest.approx((1.0 + 0.95) / 2 - (0.1 + 0.05) / 2)
    assert plasticity_loss(falling, least_is_best=True) == -plasticity_loss(falling)  # an error that falls: gained
    assert plasticity_loss([[3.0, 1.0], [1.0, 1.0]]).tolist() == [2.0, 0.0]
    with pytest.raises(ValueError, match=r"share 0\.6 of the places"):
        plasticity_loss(falling, share=0.6)


def test_area_and_gap_are_in_the_unit_of_the_metric():
    assert area([[1.0, 3.0], [0.0, 1.0]]).tolist() == [2.0, 0.5]
    assert gap_to_fresh([0.5, 0.7], [0.75, 0.75]).tolist() == pytest.approx([0.25, 0.05])
    assert gap_to_fresh(2.0, 1.5, least_is_best=True) == 0.5


def test_time_to_relearn_is_the_way_to_the_level_after_each_change():
    steps = [100, 200, 300, 400, 500, 600]
    error = [0.9, 0.4, 0.9, 0.8, 0.7, 0.1]
    task = [1, 1, 2, 2, 2, 3]
    found = time_to_relearn(error, steps, task, level=0.5, least_is_best=True)
    assert found == (np.mean([100, 200, 0]), 1, 3)  # the second never; the third at once


def test_a_task_that_comes_back_is_a_change_of_its_own():
    assert time_to_relearn([1, 1, 1], [0, 1, 2], [1, 2, 1], level=1).changes == 3


def test_a_nan_does_not_reach_the_level():
    assert time_to_relearn([np.nan, 1.0], [0.0, 7.0], [1, 1], level=0.5).time == 7.0


def test_a_run_has_as_many_values_as_places():
    with pytest.raises(ValueError, match=r"of one run, not \(2,\), \(1,\), \(2,\)"):
        time_to_relearn([1, 2], [1], [1, 1], 0.5)
