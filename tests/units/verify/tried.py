"""Small networks with one group of units each, and how to have it verified."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from pliant.units import Slice, Tap, UnitGroup, UnitMap
from pliant.units.bound import BoundGroup


def plan(net, *groups):
    return UnitMap([BoundGroup(group, net).plan_row(hand_over=True) for group in groups])


def only(net, group, x, **options):
    (row,) = plan(net, group).verify(net, x, **options).rows
    return row


def mlp(*between, units=8, head=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, units), *between, nn.ReLU(), nn.Linear(units, head))


def hidden(consumer="2", **changes):
    group = UnitGroup("0", [Slice("0.weight", 0), Slice("0.bias", 0)], [Slice(f"{consumer}.weight", 1)], Tap(consumer))
    return replace(group, **changes)


def examples(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def shifted(units, by=1):
    return tuple(((unit + by) % units,) for unit in range(units))


class Net(nn.Module):
    """Named parts and a forward pass that is a function of the net and its inputs."""

    def __init__(self, run, **parts):
        super().__init__()
        torch.manual_seed(0)
        for name, part in parts.items():
            setattr(self, name, part() if isinstance(part, type(lambda: 0)) else part)
        self.run = run

    def forward(self, *inputs):
        return self.run(self, *inputs)


def two_heads():
    def run(net, x):
        h = F.relu(net.trunk(x))
        return net.actor(h), net.critic(h)

    return Net(run, trunk=nn.Linear(4, 8), actor=nn.Linear(8, 3), critic=nn.Linear(8, 1))


def trunk(*readers):
    incoming = [Slice("trunk.weight", 0), Slice("trunk.bias", 0)]
    return UnitGroup("trunk", incoming, [Slice(f"{reader}.weight", 1) for reader in readers], Tap(readers[0]))
