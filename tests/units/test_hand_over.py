"""A constant unit handed over exactly leaves the output as it was. Where that cannot be promised, nothing is handed over."""

import pytest
import torch
from torch import nn

from pliant import ContinualBackprop, trace
from tests.units.hard_cases import Net


def jump(model, x):
    """(the plan's word, by how much the output moves) when all units of the first layer, made constant 1, are replaced."""
    first = next(module for module in model.modules() if hasattr(module, "weight"))
    with torch.no_grad():
        first.weight.zero_()
        first.bias.fill_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    cbp = ContinualBackprop(
        model, optimizer, example_inputs=x, replacement_rate=1.0, maturity_threshold=0, attach=False
    )
    before = model(x).detach()
    cbp.step()
    return cbp.plan.rows[0].hand_over, float((model(x).detach() - before).abs().max())


def linear(combine):
    parts = {"f1": nn.Linear(4, 6), "f2": nn.Linear(6, 3, bias=False), "t": nn.Parameter(torch.randn(3))}
    return Net(lambda net, x: combine(net.f2(torch.relu(net.f1(x))), net.t), **parts)


EXACT = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), (5, 4)),
    "a bias added by hand": (lambda: linear(lambda z, t: z + t), (5, 4)),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)), (2, 3, 12, 12)),
}
NONE = {
    "a parameter subtracted": (lambda: linear(lambda z, t: z - t), (5, 4)),
    "subtracted from a parameter": (lambda: linear(lambda z, t: t - z), (5, 4)),
    "a bias that counts twice": (lambda: linear(lambda z, t: torch.add(z, t, alpha=2.0)), (5, 4)),
    "a result that is read bare as well": (lambda: linear(lambda z, t: (z + t) * z), (5, 4)),
    "transposed convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, stride=2)),
        (2, 3, 12, 12),
    ),
    "padding of its own": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ZeroPad2d(1), nn.Conv2d(6, 4, 3)),
        (2, 3, 12, 12),
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_hand_over_leaves_the_output_as_it_was(name):
    build, shape = EXACT[name]
    torch.manual_seed(0)
    said, moved = jump(build(), torch.randn(shape))
    assert said == "exact"
    assert moved < 1e-5


@pytest.mark.parametrize("name", NONE)
def test_what_cannot_take_a_mean_over_takes_none(name):
    build, shape = NONE[name]
    torch.manual_seed(0)
    assert jump(build(), torch.randn(shape))[0] == "none"


def test_a_result_that_feeds_two_batch_norms_hands_over_to_neither():
    model = Net(
        lambda net, x: net.last((lambda z: torch.relu(net.bn1(z)) + net.bn2(z))(net.conv(net.first(x).relu()))),
        first=nn.Conv2d(3, 6, 1), conv=nn.Conv2d(6, 4, 1, bias=False), bn1=nn.BatchNorm2d(4), bn2=nn.BatchNorm2d(4),
        last=nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    (first,) = (row for row in trace(model, torch.randn(2, 3, 4, 4)).rows if row.group.name == "first")
    assert first.hand_over == "none"


def test_fresh_weights_of_a_transposed_convolution_are_torch_s():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(64, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    row = ContinualBackprop(model, optimizer, example_inputs=torch.randn(2, 64, 4, 4)).plan.rows[0]
    assert row.fresh_std == pytest.approx(row.current_std, rel=0.05)
