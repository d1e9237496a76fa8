"""A verdict does not depend on what is drawn."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pliant.units import Slice, Tap, UnitGroup
from pliant.units.verify.probe import Probe
from pliant.units.verify.products import Products
from tests.units.verify.tried import Net, examples, hidden, mlp, only

# -- what is forgotten is found -------------------------------------------------------------------------------------------


SEEDS = range(20)


def verdicts(net, group, x, seeds=SEEDS):
    return {only(net, group, x, seed=seed).verdict for seed in seeds}


def behind(function, units=24, **parts):
    """A net with `function` between two layers, the first of which reads what a tanh left."""

    def run(net, x):
        return net.out(function(net, net.fc(torch.tanh(net.first(x)))))

    net = Net(run, first=nn.Linear(8, 24), fc=nn.Linear(24, units), out=nn.Linear(units, 3), **parts)
    return net, UnitGroup("fc", [Slice("fc.weight", 0), Slice("fc.bias", 0)], [Slice("out.weight", 1)], Tap("out"))


FORGOTTEN = {
    "slope": lambda: behind(lambda net, h: net.act(h), act=nn.PReLU(24)),
    "threshold": lambda: behind(lambda net, h: h * (h > net.t.exp()), t=nn.Parameter(torch.full((24,), -4.0))),
    "plain threshold": lambda: behind(lambda net, h: h * (h > net.t), t=nn.Parameter(torch.full((24,), 1.0))),
    "scale through a function": lambda: behind(lambda net, h: F.relu(h) * net.s.exp(), s=nn.Parameter(torch.zeros(24))),
    "scale and shift": lambda: behind(
        lambda net, h: torch.tanh(net.s.sigmoid() * h + net.b), s=nn.Parameter(torch.ones(24)), b=nn.Parameter(torch.zeros(24))
    ),
    "batch norm": lambda: behind(lambda net, h: F.relu(net.norm(h)), norm=nn.BatchNorm1d(24)),
    "clamp": lambda: behind(lambda net, h: torch.minimum(h, net.top), top=nn.Parameter(torch.full((24,), 2.0))),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGOTTEN)
def test_a_forgotten_part_is_found_whatever_the_seed(name):
    net, group = FORGOTTEN[name]()
    assert verdicts(net, group, examples(16, 8)) == {"wrong"}


@pytest.mark.parametrize("act", [torch.tanh, torch.sigmoid, F.relu, F.hardtanh, F.gelu])
def test_a_forgotten_bias_is_found_whatever_the_seed(act):
    net, group = behind(lambda net, h: act(h))
    assert verdicts(net, group, examples(16, 8)) == {"exact"}
    assert verdicts(net, replace(group, incoming=group.incoming[:1]), examples(16, 8)) == {"wrong"}


@pytest.mark.parametrize("padding", [0, 1])
def test_a_forgotten_depthwise_filter_is_found_whatever_the_seed(padding):
    depthwise = nn.Conv2d(6, 6, 3, padding=padding, groups=6, bias=False)
    net = Net(
        lambda net, x: net.out(F.relu(net.depthwise(F.relu(net.conv(x))))),
        conv=nn.Conv2d(2, 6, 1), depthwise=depthwise, out=nn.Conv2d(6, 3, 1),
    )  # fmt: skip
    group = UnitGroup(
        "conv", [Slice("conv.weight", 0), Slice("conv.bias", 0)], [Slice("out.weight", 1)], Tap("out", axis=1)
    )
    whole = replace(group, incoming=[*group.incoming, Slice("depthwise.weight", 0)])
    assert verdicts(net, group, examples(2, 2, 5, 5), range(8)) == {"wrong"}
    assert verdicts(net, whole, examples(2, 2, 5, 5), range(8)) == {"exact"}


# -- dead units prove nothing ---------------------------------------------------------------------------------------------


class Refusing(nn.Module):
    def forward(self, x):
        if x.isnan().any():
            raise ValueError("what is this?")
        return x


DEAD = {
    "relu that drops nan": (lambda h: torch.where(h > 0, h, 0.0), 2),
    "fmax": (lambda h: torch.fmax(h, torch.zeros(())), 2),
    "nan to number": (lambda h: F.relu(h).nan_to_num(), 2),
    "far below": (lambda h: F.relu(h - 3.0), 4),
    "saturated": (lambda h: F.relu6(40.0 * h), 2),
    "hard sigmoid": (lambda h: F.hardsigmoid(40.0 * h) - 0.5, 2),
    "dropped": (lambda h: F.dropout(F.relu(h), 0.6, training=True), 2),
}


@pytest.mark.parametrize("name", DEAD)
def test_no_seed_takes_dead_units_for_wrong_ones(name):
    function, batch = DEAD[name]
    net, group = behind(lambda net, h: function(h), units=16)
    net.fc.bias.data[:8] = -50.0
    found = verdicts(net, group, examples(batch, 8))
    assert "wrong" not in found
    assert "exact" in found


def test_units_that_compete_notice_each_other_whatever_the_seed():
    net, group = behind(lambda net, h: torch.where(h >= h.topk(2, dim=-1).values[..., -1:], h, 0.0), units=16)
    assert verdicts(net, group, examples(8, 8)) == {"wrong"}


def test_a_model_that_refuses_nan_is_tried_without():
    net, group = behind(lambda net, h: net.refusing(F.relu(h)), refusing=Refusing())
    assert verdicts(net, group, examples(4, 8), range(5)) == {"exact"}
    assert verdicts(net, replace(group, incoming=group.incoming[:1]), examples(4, 8), range(5)) == {"wrong"}


def test_units_that_are_no_equals_are_exact_and_dead_ones_do_not_make_them_wrong():
    signs = torch.linspace(-1.0, 2.0, 16)  # a constant for each unit: they cannot be exchanged
    net, group = behind(lambda net, h: torch.where(h > 0, h, 0.0) * signs, units=16)
    net.fc.bias.data[:8] = -50.0
    assert verdicts(net, group, examples(2, 8)) == {"exact"}
    assert verdicts(net, replace(group, incoming=group.incoming[:1]), examples(4, 8)) == {"wrong"}


def test_a_unit_that_nothing_can_wake_makes_no_group_wrong():
    signs, kept = torch.linspace(-1.0, 2.0, 16), torch.arange(16) != 3  # pruned by a mask that drops NaN too
    net, group = behind(lambda net, h: torch.where(kept, F.relu(h) * signs, 0.0), units=16)
    row = only(net, group, examples(4, 8))
    assert (row.verdict, row.alive) == ("exact", 15 / 16)


def test_a_group_of_equals_takes_a_handful_of_passes_however_many_units_it_has():
    passes = []
    counted = nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: passes.append(module) if isinstance(module, nn.Sequential) else None
    )
    with counted:
        assert only(mlp(units=256), hidden(), examples(4, 4)).verdict == "exact"
    assert 2 <= len(passes) <= 14


def test_products_of_the_pass_before_are_those_that_would_be_computed():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    probe, x = Probe(net, examples(2, 6)), examples(2, 6).double()
    for number in (0, 2, 4, 2):
        with torch.no_grad():
            probe.model[number].weight[3] += 0.5
        assert torch.equal(probe.outputs()[0], probe.model(x))
    computed = []
    with probe.under(Products([probe.model[4].weight], lambda product: computed.append(1) or product.result)):
        probe.outputs()
        probe.model[4].weight.data.add_(1.0)  # has no version
        assert torch.equal(probe.outputs()[0], probe.model(x))
    assert computed


def test_weights_that_follow_others_within_the_forward_are_no_constants():
    def run(net, x):
        net.slow.weight.data.copy_(net.fc.weight.data)  # has no version
        return net.out(F.relu(net.fc(x))) + net.last(F.relu(net.slow(x)))

    parts = {"fc": nn.Linear(4, 64), "slow": nn.Linear(4, 64), "out": nn.Linear(64, 2), "last": nn.Linear(64, 2)}
    net = Net(run, **parts)
    group = UnitGroup("fc", [Slice("fc.weight", 0), Slice("fc.bias", 0)], [Slice("out.weight", 1)], Tap("out"))
    assert "something else reads it" in only(net, group, examples(2, 4)).why
