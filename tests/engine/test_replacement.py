import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from pliant.engine.replacement import Schedule, due_units, least_useful
from pliant.streams import stream_key
from pliant.units.entries import blend


def ticks(schedule, steps):
    return [schedule.tick() for _ in range(steps)]


def test_a_unit_younger_than_maturity_is_never_chosen():
    utility, age = tensor([0.0, 9.0, 5.0]), tensor([3, 200, 200])
    assert least_useful(utility, age, count=1, maturity_threshold=100).tolist() == [2]


def test_a_unit_is_eligible_only_when_its_age_is_greater_than_the_threshold():
    assert least_useful(tensor([0.0, 1.0]), tensor([100, 101]), count=1, maturity_threshold=100).tolist() == [1]


def test_ties_go_to_the_lowest_index():
    assert least_useful(torch.zeros(5), torch.full((5,), 9), count=3, maturity_threshold=0).tolist() == [0, 1, 2]


def test_nan_counts_as_least_and_infinity_is_still_chosen_before_the_immature():
    utility, age = tensor([1.0, math.nan, math.inf, 0.0]), tensor([9, 9, 9, 0])
    assert least_useful(utility, age, count=3, maturity_threshold=5).tolist() == [1, 0, 2]


def test_a_new_rate_owes_nothing_for_the_past():
    """Watching at rate 0 for 3,000 steps and then switching on must not replace the layer at once."""
    watching = Schedule(units=10, replacement_rate=0.0, maturity_threshold=5)
    ticks(watching, 3000)
    on = Schedule(units=10, replacement_rate=0.01, maturity_threshold=5)
    on.load_state_dict(watching.state_dict())
    assert sum(ticks(on, 30)) == 2


def test_least_useful_takes_a_run_axis():
    utility, age = tensor([[1.0, 2.0], [2.0, 1.0]]), torch.full((2, 2), 9)
    assert least_useful(utility, age, count=1, maturity_threshold=0).tolist() == [[0], [1]]


def test_the_published_timing_of_replacements():
    """Golden values of the released dense engine: 3 units, rate 0.2, maturity 2."""
    schedule = Schedule(units=3, replacement_rate=0.2, maturity_threshold=2)
    assert ticks(schedule, 7) == [0, 0, 0, 1, 0, 1, 0]
    assert schedule.eligible_unit_steps * 0.2 - schedule.replaced == pytest.approx(0.4)


def test_what_a_small_layer_cannot_give_stays_owed():
    """Two units, both due at once and again before they are mature: the released conv engine fails here."""
    schedule = Schedule(units=2, replacement_rate=1.0, maturity_threshold=3)
    assert ticks(schedule, 12) == [0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2]
    every = Schedule(units=2, replacement_rate=0.4, maturity_threshold=5, every_unit_counts=True)
    assert max(ticks(every, 200)) <= 2


def test_counts_do_not_drift():
    """A share of 1e-4 of 2,000 units over 100,000 steps; truncating each step's count would replace nothing."""
    schedule = Schedule(units=2000, replacement_rate=1e-4, maturity_threshold=100)
    total = sum(ticks(schedule, 100_000))
    assert total == math.floor(1e-4 * schedule.eligible_unit_steps)
    assert 19_500 < total < 20_000


@given(
    units=st.integers(1, 30),
    rate=st.floats(0.0, 1.0),
    maturity=st.integers(0, 20),
    count=st.sampled_from(["accumulate", "bernoulli"]),
    every=st.booleans(),
)
def test_never_more_than_are_mature_by_a_plain_simulation_of_ages(units, rate, maturity, count, every):
    draws = stream_key(0, "test") if count == "bernoulli" else None
    schedule = Schedule(units, rate, maturity, every_unit_counts=every, draws=draws)
    ages = [0] * units
    for _ in range(100):
        ages = [age + 1 for age in ages]
        mature = [unit for unit in range(units) if ages[unit] > maturity]
        due = schedule.tick()
        assert 0 <= due <= len(mature)
        assert schedule.mature == len(mature) - due
        for unit in mature[:due]:
            ages[unit] = 0


def test_bernoulli_counts_have_the_right_mean_above_one():
    """The released engine throws the fraction away: 1.5 a step would become 1."""
    schedule = Schedule(units=3, replacement_rate=0.5, maturity_threshold=0, draws=stream_key(1, "test"))
    counts = ticks(schedule, 4000)
    assert set(counts) == {1, 2}
    assert abs(sum(counts) / 4000 - 1.5) < 4 * 0.5 / math.sqrt(4000)


def test_due_units_is_an_integer_count_of_unit_steps():
    assert [due_units(0.1, steps, replaced=2, mature=9) for steps in (20, 29, 30, 39, 50)] == [0, 0, 1, 1, 3]


def test_blend_at_strength_zero_changes_no_bit_and_at_one_removes_nan():
    old = tensor([[0.1], [math.nan], [math.nan]])
    new = blend(old, tensor([[5.0], [6.0], [7.0]]), tensor([0.0, 0.0, 1.0]))
    assert new[0] == old[0]
    assert new[1].isnan()
    assert new[2] == 7.0
