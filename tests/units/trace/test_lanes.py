"""Blocks of one weight: rows and columns belong to units whole, whichever parts of them are multiplied at a time."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pliant import trace
from tests.units.hard_cases import Net


def rows_and_columns(plan):
    """Of each group the index of its first incoming and of each outgoing slice: parameter, axis, first and last position."""

    def place(part):
        ends = None if part.index is None else (part.index[0][0], part.index[-1][-1])
        return part.parameter, part.axis, ends

    return {group.name: (place(group.incoming[0]), [place(part) for part in group.outgoing]) for group in plan.groups}


def octave(net, x, *, convolution):
    """Two frequencies, each computed from both: the four blocks of one weight."""
    high, low = F.relu(net.high(x)), F.relu(net.low(x))
    w = net.w
    multiply = F.conv2d if convolution else F.linear
    up = F.relu(multiply(high, w[:5, :4]) + multiply(low, w[:5, 4:]))
    down = F.relu(multiply(high, w[5:, :4]) + multiply(low, w[5:, 4:]))
    return net.head(up) + net.other(down)


@pytest.mark.parametrize("convolution", [False, True])
def test_the_four_blocks_of_a_weight_have_their_rows_and_columns_in_common(convolution):
    layer = (lambda *size: nn.Conv2d(*size, 1)) if convolution else nn.Linear
    torch.manual_seed(0)
    net = Net(
        lambda net, x: octave(net, x, convolution=convolution),
        high=layer(3, 4), low=layer(3, 6), w=nn.Parameter(torch.randn(8, 10, *[3, 3] * convolution)),
        head=layer(5, 2), other=layer(3, 2),
    )  # fmt: skip
    x = torch.randn(2, 3, *[5, 5] * convolution)
    plan = trace(net, x)
    assert rows_and_columns(plan) == {
        "w": (("w", 0, (0, 4)), [("head.weight", 1, None)]),
        "w#2": (("w", 0, (5, 7)), [("other.weight", 1, None)]),
        "high": (("high.weight", 0, None), [("w", 1, (0, 3))]),
        "low": (("low.weight", 0, None), [("w", 1, (4, 9))]),
    }
    assert {row.verdict for row in plan.verify(net, x).rows} == {"exact"}


def test_a_row_whose_parts_compute_two_things_is_one_unit_of_both():
    torch.manual_seed(0)
    net = Net(
        lambda net, x: net.b(F.relu(x @ net.w[:, :3].t())) + net.c(F.tanh(x @ net.w[:, 3:].t())),
        w=nn.Parameter(torch.randn(4, 6)), b=nn.Linear(4, 2), c=nn.Linear(4, 2),
    )  # fmt: skip
    x = torch.randn(5, 3)
    plan = trace(net, x)
    assert rows_and_columns(plan) == {"w": (("w", 0, None), [("b.weight", 1, None), ("c.weight", 1, None)])}
    assert {row.verdict for row in plan.verify(net, x).rows} == {"exact"}


def test_a_column_whose_other_part_reads_what_is_no_unit_s_is_left_alone():
    torch.manual_seed(0)
    net = Net(
        lambda net, x: F.relu(net.a(x)) @ net.w[:2].t() + x @ net.w[2:].t(),
        a=nn.Linear(4, 4), w=nn.Parameter(torch.randn(4, 4)),
    )  # fmt: skip
    with pytest.raises(ValueError, match="its outgoing weight 'w' is also used elsewhere"):
        trace(net, torch.randn(5, 4), trial=False)


def test_a_column_whose_parts_read_two_layers_makes_units_of_both():
    torch.manual_seed(0)
    net = Net(
        lambda net, x: F.relu(net.a(x)) @ net.w[:2].t() + F.relu(net.b(x)) @ net.w[2:].t(),
        a=nn.Linear(3, 4), b=nn.Linear(3, 4), w=nn.Parameter(torch.randn(4, 4)),
    )  # fmt: skip
    x = torch.randn(5, 3)
    (group,) = trace(net, x).groups
    assert [(part.parameter, part.axis) for part in group.incoming[:2]] == [("a.weight", 0), ("b.weight", 0)]
    assert [(part.parameter, part.axis, part.repeat) for part in group.outgoing] == [("w", 1, 1)]


def test_a_diagonal_of_a_weight_is_no_row():
    """Rows of elements that are no box: the first of a matrix's rows, the second of the next."""
    torch.manual_seed(0)
    net = Net(
        lambda net, x: net.b(F.relu(x @ net.w.as_strided((3, 3), (4, 5)))),
        w=nn.Parameter(torch.randn(5, 5)), b=nn.Linear(3, 2),
    )  # fmt: skip
    with pytest.raises(ValueError, match="no resettable unit found"):
        trace(net, torch.randn(4, 3), trial=False)
