from math import prod

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pliant.units import Slice
from pliant.units.entries import BoundSlice, SelectedUnits


def one(unit, run=0, strength=1.0, full=False):
    return SelectedUnits(torch.tensor([run]), torch.tensor([unit]), torch.tensor([strength]), [1], full)


def bound(part, *shape, stacked=False):
    return BoundSlice(part, nn.Parameter(torch.arange(float(torch.Size(shape).numel())).view(shape)), stacked=stacked)


def test_a_unit_owns_repeat_columns_from_i_times_repeat_on():
    weight = bound(Slice("w", 1, repeat=3), 2, 6)
    assert weight.units == 2
    assert weight.read(one(1)).tolist() == [[[3.0, 9.0], [4.0, 10.0], [5.0, 11.0]]]
    weight.write(one(1), 0.0)
    assert weight.parameter.tolist() == [[0, 1, 2, 0, 0, 0], [6, 7, 8, 0, 0, 0]]


def test_an_index_names_the_positions_of_each_unit():
    gates = bound(Slice("w", 0, repeat=2, index=((0, 2), (1, 3))), 4, 1)
    assert gates.read(one(1)).flatten().tolist() == [1.0, 3.0]


def test_two_axes_are_read_as_one_the_last_running_fastest():
    experts = bound(Slice("w", (0, 2)), 2, 5, 3)
    assert experts.units == 6
    assert_close(experts.read(one(4))[0, 0], experts.parameter.detach()[1, :, 1])


def test_a_parameter_can_be_seen_in_another_shape():
    """Four filters of two groups over two channels each: unit 3 is channel 1 of group 1, read by filters 2 and 3."""
    grouped = bound(Slice("w", (0, 2), shape=(2, 2, 2, 1)), 4, 2, 1)
    assert grouped.read(one(3)).flatten().tolist() == [5.0, 7.0]


def test_a_stack_of_runs_has_the_run_in_front():
    weight = bound(Slice("w", 0), 2, 4, 3, stacked=True)
    weight.write(one(2, run=1), 1.0)
    assert weight.parameter[1, 2].tolist() == [1, 1, 1]
    assert weight.parameter[0, 2].tolist() == [6, 7, 8]


def test_writing_by_half_goes_halfway():
    weight = bound(Slice("w", 0), 2, 1)
    weight.write(one(1, strength=0.5), 3.0)
    assert weight.parameter.flatten().tolist() == [0.0, 2.0]


def test_views_of_a_channels_last_filter_write_through():
    filters = nn.Parameter(torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last))
    BoundSlice(Slice("w", 1), filters, stacked=False).write(one(2), 1.0)
    assert filters[:, 2].unique().tolist() == [1.0]
    assert filters[:, :2].unique().tolist() == [0.0]


def test_spread_puts_a_unit_s_value_at_all_its_entries_and_the_rest_elsewhere():
    part = bound(Slice("w", 0, repeat=1, index=((2,), (0,))), 3, 2)
    assert part.spread(torch.tensor([[5.0, 7.0]]), rest=-1.0).flatten().tolist() == [7.0, -1.0, 5.0]


def test_magnitude_is_the_sum_of_sizes_over_the_row_of_each_position():
    part = bound(Slice("w", 1), 2, 2)
    part.parameter.data = torch.tensor([[1.0, -2.0], [-3.0, 4.0]])
    assert part.magnitude(torch.float64).flatten().tolist() == [4.0, 6.0]


@pytest.mark.parametrize(
    ("part", "shape"),
    [
        (Slice("w", 0), (4, 3)),
        (Slice("w", 1), (3, 4)),
        (Slice("w", 1, repeat=2), (3, 8, 2)),
        (Slice("w", 0, repeat=2, index=((0, 2), (7, 3), (1, 4), (6, 5))), (8, 2)),
        (Slice("b", 0), (4,)),
    ],
)
def test_units_replaced_in_full_are_written_where_a_strength_of_1_writes_them(part, shape):
    full, by_strength = bound(part, *shape), bound(part, *shape)
    units, runs = torch.tensor([3, 1]), torch.tensor([0, 0])
    fresh = -1.0 - torch.arange(2.0 * full.repeat * prod(full.row)).view(2, full.repeat, *full.row)
    for each, known in ((full, True), (by_strength, False)):
        chosen = SelectedUnits(runs, units, torch.ones(2), [2], known)
        each.write(chosen, fresh)
        assert torch.equal(each.read(chosen), fresh)
    assert torch.equal(full.parameter, by_strength.parameter)
    assert int((full.parameter < 0).sum()) == fresh.numel()
    full.write(SelectedUnits(runs, units, torch.ones(2), [2], True), 0.0)
    by_strength.write(SelectedUnits(runs, units, torch.ones(2), [2], False), 0.0)
    assert torch.equal(full.parameter, by_strength.parameter)
