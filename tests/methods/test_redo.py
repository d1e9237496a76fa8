from math import inf, nan

import pytest
import torch
from torch import nn

from pliant import ReDo, chain_groups, diagnose
from pliant.units import Slice, Tap, UnitGroup
from tests.networks import ages, mlp, replaced, train
from tests.units.hard_cases import Net


def test_dormant_units_are_recycled_at_the_period_and_only_then():
    model = mlp()
    with torch.no_grad():
        model[0].weight[[1, 5]] = 0.0
        model[0].bias[[1, 5]] = -1.0
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    redo = ReDo(model, optimizer, groups=chain_groups(model)[:1], tau=0.01, period=10, seed=0)
    train(model, optimizer, range(9))
    assert replaced(redo) == {"0": 0}
    train(model, optimizer, range(9, 10))
    assert replaced(redo) == {"0": 2}
    assert model[0].weight[[1, 5]].all()
    assert not model[2].weight[:, [1, 5]].any()
    assert (ages(redo)[0] == 0).nonzero().flatten().tolist() == [1, 5]


def test_a_unit_at_the_threshold_is_dormant():
    """Activities 1, 1, 0.5 and 1.5 have mean 1: at tau 0.5 one unit goes, below it none."""
    for tau, count in ((0.5, 1), (0.499, 0)):
        model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        redo = ReDo(model, optimizer, groups=chain_groups(model), tau=tau, period=1)
        model[2](torch.tensor([[1.0, 1.0, 0.5, 1.5]])).sum().backward()
        optimizer.step()
        assert replaced(redo) == {"0": count}


def stacked_readers(runs, units, **settings):
    """Networks side by side whose activity is what is handed to `read`, and a ReDo that looks at every step."""

    def run(net, h):
        return torch.bmm(net.read(h), net.w2.mT)

    net = Net(run, w1=nn.Parameter(torch.ones(runs, units, 1)), w2=nn.Parameter(torch.ones(runs, 1, units)))
    net.read = nn.Identity()
    group = UnitGroup("h", [Slice("w1", 0)], [Slice("w2", 1)], Tap("read"), hand_over={}, runs=runs)
    return net, group, ReDo(net, torch.optim.SGD(net.parameters(), lr=0.0), groups=[group], period=1, **settings)


@pytest.mark.parametrize("tau", [0.0, 0.025, 0.5])
def test_what_redo_replaces_is_what_diagnose_counts_silent_and_broken_layers_too(tau):
    """Runs: all silent; one unit silent, one at 0.4 of the mean; NaN in one unit; inf in one."""
    h = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.4, 1.6, 2.0], [nan, 0.0, 1.0, 1.0], [inf, 0.0, 1.0, 1.0]])
    net, group, redo = stacked_readers(runs=4, units=4, tau=tau)
    rows = diagnose(net, h[:, None], groups=[group], tau=tau).rows
    assert [row.dormant_by_activity for row in rows] == [4, 2 if tau == 0.5 else 1, None, None]
    net(h[:, None]).sum().backward()
    redo.step()
    assert redo.stats()["h"]["replaced"] == [row.dormant_by_activity or 0 for row in rows]


def test_a_layer_that_fell_silent_lives_and_learns_again():
    model, target = mlp(), torch.randn(64, 2)
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, redo = torch.randn(64, 6), ReDo(model, optimizer, groups=chain_groups(model), period=10, seed=0)

    def loss():
        return nn.functional.mse_loss(model(x), target)

    for _ in range(10):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert replaced(redo)["0"] == 12
    assert not model[2].weight.any()
    before = loss().item()
    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.9 * before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": -0.1}, "tau must be 0 or more"),
        ({"tau": float("nan")}, "tau must be 0 or more"),
        ({"period": 0}, "period must be 1 or more whole optimizer steps"),
        ({"period": 10.5}, "period must be 1 or more whole optimizer steps"),
    ],
)
def test_bad_settings_are_named(settings, message):
    model = mlp()
    with pytest.raises(ValueError, match=message):
        ReDo(model, torch.optim.SGD(model.parameters(), lr=0.1), groups=chain_groups(model), **settings)
