import numpy as np
import pytest

from pliant.rl.environments import FrictionSchedule


def test_frictions_are_log_uniform_between_the_bounds():
    schedule = FrictionSchedule()
    logs = np.log10([schedule.value(seed, n) for seed in range(40) for n in range(50)])
    assert logs.min() >= np.log10(0.02)
    assert logs.max() <= np.log10(2.0)
    assert abs(logs.mean() - (np.log10(0.02) + np.log10(2.0)) / 2) < 0.04
    assert abs(logs.std() - 2.0 / np.sqrt(12)) < 0.02  # two decades


def test_a_friction_is_looked_up_by_seed_and_number():
    schedule = FrictionSchedule()
    later = schedule.value(7, 5)
    assert [schedule.value(7, n) for n in range(6)][5] == later
    assert schedule.value(8, 5) != later


def test_a_schedule_with_a_seed_is_the_same_for_all():
    schedule, alone = FrictionSchedule(seed=7), FrictionSchedule()
    assert [schedule.value(seed, 3) for seed in (0, 8)] == [alone.value(7, 3)] * 2
    assert repr(schedule) == "FrictionSchedule(low=0.02, high=2.0, period=2000000, seed=7)"
    assert repr(alone) == "FrictionSchedule(low=0.02, high=2.0, period=2000000)"  # as in states that were saved before


def test_the_first_friction_holds_from_step_zero_and_the_next_from_the_period_on():
    schedule = FrictionSchedule(period=100)
    assert [schedule.number(steps) for steps in (0, 99, 100, 199, 200)] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("bad", [0.0, -1.0, 10.5, float("nan"), float("inf")])
def test_friction_outside_physics_is_refused(bad: float):
    with pytest.raises(ValueError, match=r"friction=.*lies in \(0, 10\]"):
        FrictionSchedule(high=bad)


def test_a_schedule_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="the lowest comes first"):
        FrictionSchedule(low=2.0, high=1.0)
    for period in (0, 2.5, float("nan")):
        with pytest.raises(ValueError, match="1 or more whole environment steps"):
            FrictionSchedule(period=period)
