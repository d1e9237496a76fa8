"""Norms: which scale and shift belong to which unit."""

import torch
from torch import nn

from pliant import trace
from tests.units.hard_cases import Net


def test_a_gate_of_all_channels_in_front_of_a_batch_norm_takes_no_channel_from_its_unit():
    def run(net, x):
        h = net.inner(x)
        return net.head(torch.relu(net.norm(net.a(h * torch.sigmoid(net.gate(h))))))

    torch.manual_seed(0)
    parts = {name: nn.Conv2d(*size, 1) for name, size in {"inner": (3, 6), "gate": (6, 1), "a": (6, 8)}.items()}
    net, x = Net(run, norm=nn.BatchNorm2d(8), head=nn.Conv2d(8, 2, 1), **parts), torch.randn(2, 3, 4, 4)
    plan = trace(net, x)
    assert [group.name for group in plan.groups] == ["inner", "a"], str(plan)
    a = plan.groups[1]
    assert [each.module for each in a.affine] == ["norm"]
    assert {row.verdict for row in plan.verify(net, x).rows} == {"exact"}
