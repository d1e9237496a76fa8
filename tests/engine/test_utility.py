import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from pliant.engine.averaging import corrected, running_average
from pliant.engine.utility import UTILITIES, Seen, Utility, dormancy, named_utility


def seen(magnitude, outgoing, centred=None, incoming=None):
    columns = [tensor(x or magnitude) for x in (magnitude, centred, outgoing, incoming)]
    return Seen(magnitude=columns[0], centred=columns[1], outgoing=columns[2], incoming=columns[3])


def test_contribution_is_mean_output_size_times_mean_outgoing_weight_size():
    assert_close(UTILITIES["contribution"](seen([2.0, 1.0], [0.5, 1.5])), tensor([1.0, 1.5]))


def test_adaptable_contribution_divides_by_the_incoming_weights():
    two_units = seen([9.0, 9.0], outgoing=[0.5, 1.5], centred=[2.0, 1.0], incoming=[4.0, 0.5])
    assert_close(UTILITIES["adaptable_contribution"](two_units), tensor([0.25, 3.0]))


def test_an_unknown_utility_is_an_error_that_lists_the_known_ones_and_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'contribution'") as error:
        named_utility("contribusion")
    assert all(name in str(error.value) for name in UTILITIES)


def test_correction_makes_a_constant_its_own_average_at_every_age():
    average, constant = torch.zeros(2), tensor([3.0, 5.0])
    for age in range(1, 6):
        average = running_average(average, constant, decay_rate=0.9)
        assert_close(corrected(average, tensor([age, age]), decay_rate=0.9), constant)


def test_correction_uses_each_unit_s_own_age():
    assert_close(corrected(tensor([0.1, 0.19]), tensor([1, 2]), decay_rate=0.9), tensor([1.0, 1.0]))


def test_with_decay_zero_the_average_is_the_last_value():
    average = running_average(tensor([7.0]), tensor([2.0]), decay_rate=0.0)
    assert_close(corrected(average, tensor([9]), decay_rate=0.0), tensor([2.0]))


def test_dormancy_is_the_share_of_the_layer_mean_and_0_throughout_a_silent_layer():
    assert_close(dormancy(tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])), tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_layer_that_is_not_finite_has_no_dormancy_of_any_unit(bad):
    assert dormancy(tensor([bad, 0.0, 1.0])).isnan().all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"formula": lambda: 0}, r"formula is called with 1 argument \(what was seen\)"),
        ({"formula": "contribution"}, "formula is a function of what was seen, got 'contribution'"),
        (
            {"reads": "magnitude"},
            r"reads of a Utility is a tuple of names \(mean, magnitude, centred\), got 'magnitude'",
        ),
        ({"reads": ("magnitud",)}, r"unknown reads 'magnitud' \(did you mean 'magnitude'\?\)"),
        ({"weights": ("outcoming",)}, r"unknown weights 'outcoming' \(did you mean"),
    ],
)
def test_a_utility_that_no_step_could_compute_is_an_error_where_it_is_made(wrong, message):
    right = {"name": "mine", "formula": lambda seen: seen.outgoing, "reads": (), "weights": ("outgoing",)}
    with pytest.raises((TypeError, ValueError), match=message):
        Utility(**{**right, **wrong})
    assert Utility(**right).name == "mine"
