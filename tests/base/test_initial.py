import math

import pytest

from pliant.base.initial import GAINS, uniform_bound


@pytest.mark.parametrize(
    ("init", "bound"),
    [("kaiming", math.sqrt(2) * math.sqrt(3 / 20)), ("lecun", math.sqrt(3 / 20)), ("default", math.sqrt(1 / 20))],
)
def test_uniform_bounds_of_a_relu_unit_with_20_inputs(init, bound):
    assert uniform_bound(init, fan_in=20, fan_out=5, gain=math.sqrt(2)) == pytest.approx(bound)


def test_xavier_counts_both_sides():
    assert uniform_bound("xavier", fan_in=20, fan_out=4, gain=1.0) == pytest.approx(0.5)


def test_an_unknown_init_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="known: kaiming, xavier, lecun, default"):
        uniform_bound("he", 1, 1, 1.0)


def test_gains_are_the_published_ones():
    assert GAINS["tanh"] == pytest.approx(5 / 3)
    assert GAINS["leaky_relu"] == pytest.approx(math.sqrt(2 / 1.0001))
    assert GAINS["swish"] == GAINS["elu"] == GAINS["relu"] == math.sqrt(2)
