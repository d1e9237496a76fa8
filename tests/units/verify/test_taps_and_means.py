"""Taps that show what is read, and biases that take a mean over."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pliant.units import BN, Slice, Tap, UnitGroup
from tests.units.verify.tried import Net, examples, hidden, mlp, only, shifted, trunk, two_heads


@pytest.mark.parametrize(
    ("tap", "why"),
    [
        (Tap("2", index=shifted(8)), "does not show"),
        (Tap("1", "output", axis=0), "has 4 entries along axis 0, not 8"),
        (Tap("3"), "never sees a tensor"),
        (Tap("0"), "has 4 entries along axis -1"),
    ],
)
def test_a_tap_in_the_wrong_place_is_wrong(tap, why):
    class BypassingTheLast(nn.Sequential):
        def forward(self, x):
            return self[2](self[1](self[0](x)))

    net = BypassingTheLast(*mlp(), nn.Identity())
    row = only(net, hidden(tap=tap), examples(4, 4))
    assert row.verdict == "wrong"
    assert why in row.why


def test_a_tap_that_reads_something_else_besides_is_wrong():
    def run(net, x):
        return net.out(torch.cat([F.relu(net.fc(x)), x], 1))

    net = Net(run, fc=nn.Linear(4, 4), out=nn.Linear(8, 2))
    own, more = ((0,), (1,), (2,), (3,)), ((0, 4), (1, 5), (2, 6), (3, 7))
    outgoing = [Slice("out.weight", 1, index=own)]
    group = UnitGroup("fc", [Slice("fc.weight", 0), Slice("fc.bias", 0)], outgoing, Tap("out", index=own))
    assert only(net, group, examples(4, 4)).verdict == "exact"
    assert (
        "lists 2 entries for each unit, but out.weight[:, (0), ..] reads 1"
        in only(net, replace(group, tap=Tap("out", index=more)), examples(4, 4)).why
    )


def test_a_tap_in_front_of_the_activation_does_not_show_what_is_read():
    for tap in (Tap("1"), Tap("0", "output")):
        row = only(mlp(), hidden(tap=tap), examples(4, 4))
        assert row.verdict == "wrong"
        assert "does not show what 2.weight[:, i] reads" in row.why
    assert only(mlp(), hidden(tap=Tap("1", "output")), examples(4, 4)).verdict == "exact"


def test_a_tap_that_is_called_with_other_numbers_too_is_wrong():
    def run(net, x):
        return net.out(net.carry(F.relu(net.fc(x)))) + net.carry(torch.eye(8)).sum()

    net = Net(run, fc=nn.Linear(4, 8), carry=nn.Identity(), out=nn.Linear(8, 2))
    group = UnitGroup("fc", [Slice("fc.weight", 0), Slice("fc.bias", 0)], [Slice("out.weight", 1)], Tap("out"))
    assert only(net, group, examples(4, 4)).verdict == "exact"
    row = only(net, replace(group, tap=Tap("carry")), examples(4, 4))
    assert row.verdict == "wrong"
    assert "the input of 'carry'" in row.why


def test_a_tap_of_another_layer_of_the_same_width_is_wrong():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    assert only(net, hidden(), examples(4, 4)).verdict == "exact"
    assert "does not show" in only(net, hidden(tap=Tap("4")), examples(4, 4)).why


def test_one_tap_may_stand_for_two_readers_of_the_same_numbers():
    assert only(two_heads(), trunk("actor", "critic"), examples(4, 4)).verdict == "exact"


def test_a_tap_that_claims_to_be_nonnegative_is():
    assert only(mlp(), hidden(tap=Tap("2", nonnegative=True)), examples(4, 4)).verdict == "exact"
    net = nn.Sequential(nn.Linear(4, 8), nn.ELU(), nn.Linear(8, 2))
    row = only(net, hidden(tap=Tap("2", nonnegative=True)), examples(4, 4))
    assert row.verdict == "wrong"
    assert "is said to be nonnegative, but shows -" in row.why


def with_biases(combine):
    """A net whose second product has no bias of its own, and a group that hands its mean over to `taker`."""

    def run(net, x):
        return net.last(combine(net, net.out(F.relu(net.fc(x)))))

    parts = {"out": nn.Linear(8, 5, bias=False), **{name: nn.Parameter(torch.randn(5)) for name in "bc"}}
    net = Net(run, fc=nn.Linear(4, 8), last=nn.Linear(5, 3), norm=nn.BatchNorm1d(5), **parts)
    return net, UnitGroup("fc", [Slice("fc.weight", 0), Slice("fc.bias", 0)], [Slice("out.weight", 1)], Tap("out"))


TAKERS = {
    "bias": (lambda net, z: F.relu(z + net.b) * net.c, "b", True),
    "bias twice over": (lambda net, z: F.relu(z + 2.0 * net.b), "b", False),
    "behind a nonlinearity": (lambda net, z: F.relu(z) + net.b, "b", False),
    "of something else": (lambda net, z: F.relu(z + net.b) + net.c, "c", False),
    "shared": (lambda net, z: F.relu(z + net.b) + torch.tanh(net.b), "b", False),
    "subtracted": (lambda net, z: F.relu(z - net.b), "b", False),
    "another order": (lambda net, z: F.relu(z + net.b.flip(0)), "b", False),
    "the same product read bare": (lambda net, z: F.relu(z + net.b) + z.square(), "b", False),
    "batch norm": (lambda net, z: F.relu(net.norm(z)), BN("norm"), True),
    "batch norm beside": (lambda net, z: F.relu(net.norm(z)) + z.square(), BN("norm"), False),
    "batch norm of another": (lambda net, z: F.relu(net.norm(F.relu(z))), BN("norm"), False),
}


@pytest.mark.parametrize("name", TAKERS)
def test_what_takes_a_mean_over_makes_up_for_it_everywhere(name):
    combine, taker, right = TAKERS[name]
    net, group = with_biases(combine)
    row = only(net, replace(group, hand_over={"out.weight": taker}), examples(6, 4))
    assert (row.verdict == "exact") == right
    if not right:
        assert "does not take over the mean of what out.weight[:, i] reads" in row.why
    assert only(net, replace(group, hand_over={}), examples(6, 4)).verdict == "exact"


def test_a_bias_of_another_layer_of_the_same_shape_takes_no_mean_over():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    assert only(net, hidden(hand_over={"2.weight": "2.bias"}), examples(4, 4)).verdict == "exact"
    for other in ("0.bias", "4.bias"):
        row = only(net, hidden(hand_over={"2.weight": other}), examples(4, 4))
        assert row.verdict == "wrong"
        assert f"'{other}' does not take over" in row.why


@pytest.mark.parametrize("padding", [0, 1])
def test_the_bias_of_a_convolution_takes_over_inside(padding):
    net = nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=padding), nn.ReLU(), nn.Conv2d(6, 3, 1)
    )
    group = hidden(tap=Tap("2", axis=1))
    assert only(net, group, examples(2, 2, 5, 5)).verdict == "exact"
    row = only(net, replace(group, hand_over={"2.weight": "0.bias"}), examples(2, 2, 5, 5))
    assert row.verdict == "wrong"
