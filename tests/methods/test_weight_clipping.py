from math import sqrt

import pytest
import torch
from torch import nn

from pliant import WeightClipping
from tests.networks import convnet, mlp, recurrent, train


def test_bounds_hold_after_every_step_of_every_layer():
    """κ / √fan_in: 6 and 12 inputs, 9 of the head; its weight and its bias."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    WeightClipping(model, optimizer, kappa=1.5)
    at_the_bound = 0

    def check():
        nonlocal at_the_bound
        for name, fan_in in (("0", 6), ("2", 12), ("4", 9)):
            for leaf in ("weight", "bias"):
                largest = model.get_parameter(f"{name}.{leaf}").abs().max().item()
                assert largest <= 1.5 / sqrt(fan_in) * (1 + 1e-6)
                at_the_bound += largest == pytest.approx(1.5 / sqrt(fan_in))

    train(model, optimizer, range(30), after=check)
    assert at_the_bound > 60


def test_weights_within_their_bounds_stay_as_they_are():
    model = mlp()
    before = [each.clone() for each in model.parameters()]
    WeightClipping(model, kappa=1.0, period=None).apply()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_filters_recurrent_weights_and_norms():
    """2 x 3 x 3 inputs of a filter; 1/√6 in a GRU of 6; no bound for a norm."""
    model, core = convnet(), recurrent()
    clips = WeightClipping(model, period=None), WeightClipping(core, period=None)
    with torch.no_grad():
        for network in (model, core):
            for each in network.parameters():
                each.fill_(7.0)
    for each in clips:
        each.apply()
    assert model[0][0].weight.max().item() == pytest.approx(1 / sqrt(2 * 9))
    assert model[0][0].bias.max().item() == pytest.approx(1 / sqrt(2 * 9))
    assert core.core.weight_hh_l0.max().item() == pytest.approx(1 / sqrt(6))
    assert core.core.bias_ih_l0.max().item() == pytest.approx(1 / sqrt(6))
    assert model[0][1].weight.min().item() == 7.0
    assert "0.1.weight" not in clips[0].names


def test_a_stack_of_runs_has_the_bounds_of_one():
    stack = nn.Module()
    stack.weight, stack.bias = (nn.Parameter(torch.full(shape, 7.0)) for shape in ((3, 5, 4), (3, 5)))
    WeightClipping(stack, period=None, runs=3).apply()
    assert stack.weight.max().item() == stack.bias.max().item() == 0.5  # of 4 inputs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kappa": 0.0}, "kappa must be above 0, got 0"),
        ({"kappa": -1.0}, "kappa must be 0 or more"),
        ({"parameters": "0.1.*"}, "'0.1.weight' has no initial bound, since its layer has no matrix"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        WeightClipping(convnet(), period=None, **settings)


def test_a_network_of_norms_alone_has_nothing_to_clip():
    with pytest.raises(ValueError, match="no parameters are left to clip"):
        WeightClipping(nn.Sequential(nn.LayerNorm(3)), period=None)
