"""The statistics of all groups side by side: the fast sums against the plain ones, and what counts as having run."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pliant import ContinualBackprop, Slice, Tap, UnitGroup
from tests.units.hard_cases import CASES

FOUND = [case for case in CASES if case.groups and not case.unread]


@pytest.mark.parametrize("case", FOUND, ids=lambda case: case.name)
def test_outgoing_sizes_of_all_groups_at_once_are_those_of_each_group(case):
    model, inputs = case.make()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    cbp = ContinualBackprop(model, optimizer, example_inputs=inputs, attach=False, **case.options)
    (statistics,) = cbp.all_statistics
    with torch.no_grad():
        fast = statistics.outgoing_magnitude()
    for group in statistics.groups:
        assert_close(statistics.by_unit(fast, group), group.outgoing_magnitude().detach())


def test_contribution_of_a_unit_with_two_consumers_is_the_sum_over_both_divided_by_all_their_weights():
    """Unit 0 is 2 everywhere. Sizes 1 x 2 in a head of one row, then 3 x 2 and 5 x 2 in one of two: (2 + 6 + 10) / 3."""

    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.one, self.two = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 2)

        def forward(self, x):
            h = self.trunk(x)
            return self.one(h), self.two(h)

    model = TwoHeads()
    with torch.no_grad():
        for parameter, value in (
            (model.trunk.weight, [[0.0]]), (model.trunk.bias, [2.0]),
            (model.one.weight, [[1.0]]), (model.two.weight, [[3.0], [-5.0]]),
        ):  # fmt: skip
            parameter.copy_(torch.tensor(value))
    group = UnitGroup(
        "trunk",
        incoming=[Slice("trunk.weight", 0), Slice("trunk.bias", 0)],
        outgoing=[Slice("one.weight", 1), Slice("two.weight", 1)],
        tap=[Tap("one"), Tap("two")],
    )
    cbp = ContinualBackprop(model, torch.optim.SGD(model.parameters(), lr=0.1), groups=[group], attach=False)
    model(torch.ones(4, 1))
    cbp.step()
    assert_close(cbp.score.value(cbp.groups[0], []), torch.tensor([[6.0]]))
