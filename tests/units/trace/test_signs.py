"""Whether an activity can be below zero, proved while tracing."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from pliant import ContinualBackprop, trace


class Between(nn.Module):
    """Two linear layers and a function between."""

    def __init__(self, between, wide=8):
        super().__init__()
        self.first, self.second, self.between = nn.Linear(3, 8), nn.Linear(wide, 2), between

    def forward(self, x):
        return self.second(self.between(self.first(x)))


def sign(between, **settings):
    (row,) = trace(Between(between, **settings), torch.randn(4, 3)).rows
    return row.group.taps[0].nonnegative


@pytest.mark.parametrize(
    "between",
    [
        F.relu,
        torch.sigmoid,
        torch.abs,
        lambda h: F.dropout(F.relu(h), 0.5),
        lambda h: F.relu_(h),
        lambda h: F.relu(h) + F.softplus(h),
        lambda h: F.relu(h) * torch.ones(8).sigmoid(),
        lambda h: F.max_pool1d(F.relu(h).unsqueeze(-1).expand(-1, -1, 4), 2).mean(-1),
    ],
)
def test_behind_a_function_that_is_never_below_zero_nothing_is(between):
    assert sign(between)


@pytest.mark.parametrize(
    "between",
    [
        torch.tanh,
        F.gelu,
        lambda h: F.relu(h) - 1.0,
        lambda h: F.relu(h) * -1.0,
        lambda h: F.relu(h) * 2.0,  # of Python: the next pass may have another
        lambda h: torch.add(F.relu(h), F.relu(h), alpha=-1),
        lambda h: F.relu(h) + h,
        lambda h: F.leaky_relu(F.relu(h)).neg(),
        lambda h: torch.cat([F.relu(h[:, :4]), h[:, 4:]], dim=1),
        lambda h: F.pad(F.relu(h[:, :7]), (0, 1), value=-1.0),
    ],
)
def test_what_may_be_below_zero_is_not_taken_for_it(between):
    assert not sign(between)


def relu_of_the_first_half(h):
    h = h.clone()
    h[:, :4].relu_()
    return h


def test_writing_a_part_says_nothing_of_the_rest():
    assert not sign(relu_of_the_first_half)


def test_several_examples_may_take_other_ways_so_no_sign_is_trusted():
    (row,) = trace(Between(F.relu), [torch.randn(4, 3), torch.randn(2, 3)]).rows
    assert not row.group.taps[0].nonnegative


def test_reading_once_behind_a_relu_gives_the_utilities_of_reading_twice():
    """The same network with its sign known and not known, and one group of each kind in one model."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 1)

        def forward(self, x):
            return self.third(torch.tanh(self.second(F.relu(self.first(x)))))

    torch.manual_seed(0)
    model = Both()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(16, 3)
    known = trace(model, x)
    assert [row.group.taps[0].nonnegative for row in known.rows] == [True, False]
    unknown = trace(model, [x, x])
    methods = [ContinualBackprop(model, optimizer, groups=plan, attach=False) for plan in (known, unknown)]
    model(x)
    for method in methods:
        method.step()
    for a, b in zip(*(method.groups for method in methods), strict=True):
        assert_close(methods[0].score.value(a, []), methods[1].score.value(b, []))
