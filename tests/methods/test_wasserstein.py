from itertools import permutations

import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close

from pliant import Wasserstein
from pliant.methods.wasserstein import away_from_values
from tests.networks import convnet, mlp, train


def pulled(model, before, strength=1.0):
    """What is added to a gradient of 0, by name, after the parameters have moved from `before` to where they are."""
    now = {name: each.detach().clone() for name, each in model.named_parameters()}
    with torch.no_grad():
        for name, each in model.named_parameters():
            each.copy_(before[name])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    Wasserstein(model, optimizer, strength=strength)
    with torch.no_grad():
        for name, each in model.named_parameters():
            each.copy_(now[name])
    sum(0.0 * each.sum() for each in model.parameters()).backward()
    optimizer.step()
    return {name: now[name] - each.detach() for name, each in model.named_parameters()}


def test_each_entry_is_pulled_to_the_initial_value_of_its_rank():
    """Initial values -2, 0, 1, 5; of 3, -1, 9, 3 the second is the least, then the first 3, the second 3, and 9."""
    model = nn.Linear(2, 2, bias=False)
    model.weight.data.copy_(tensor([[3.0, -1.0], [9.0, 3.0]]))
    found = pulled(model, {"weight": tensor([[5.0, -2.0], [0.0, 1.0]])}, strength=0.5)
    assert_close(found["weight"], 0.5 * tensor([[3.0, 1.0], [4.0, 2.0]]))


def test_the_pull_is_the_gradient_of_half_the_squared_distance_of_sorted_values():
    """By autograd, on filters, norms and biases."""
    model, before = convnet().double(), dict(convnet(seed=1).double().named_parameters())
    total = 0.0
    for name, each in model.named_parameters():
        total = (
            total + 0.5 * (each.flatten().sort().values - before[name].detach().flatten().sort().values).square().sum()
        )
    total.backward()
    expected = {name: each.grad.clone() for name, each in model.named_parameters()}
    model.zero_grad()
    found = pulled(model, before)
    assert found.keys() == expected.keys()
    assert_close(found, expected)


def test_it_is_the_2_wasserstein_distance_over_all_ways_to_pair_the_entries():
    """The least mean of squares over the 24 pairings of four entries, by hand."""
    now, initial = tensor([0.3, -2.0, 1.1, 0.4]), tensor([1.0, 0.0, -0.5, 2.0])
    least = min((now - initial[list(order)]).square().sum() for order in permutations(range(4)))
    assert_close(away_from_values(now, initial.sort().values).square().sum(), least)


def test_entries_that_have_traded_their_values_are_not_pulled():
    """L2 Init would pull them back."""
    torch.manual_seed(0)
    before = torch.randn(6, 7)
    model = nn.Linear(7, 6, bias=False)
    model.weight.data.copy_(before.flatten()[torch.randperm(42)].view(6, 7))
    assert not torch.equal(model.weight, before)
    assert not pulled(model, {"weight": before})["weight"].any()


def test_permuting_the_entries_permutes_the_pull():
    torch.manual_seed(0)
    now, initial, order = torch.randn(5, 4), torch.randn(20).sort().values, torch.randperm(20)
    away = away_from_values(now, initial)
    permuted = away_from_values(now.flatten()[order].view(5, 4), initial)
    assert away.any()
    assert torch.equal(permuted.flatten(), away.flatten()[order])


def test_weights_that_have_grown_come_back_to_the_initial_distribution():
    model = mlp()
    initial = model[2].weight.detach().flatten().sort().values
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    Wasserstein(model, optimizer, strength=0.2)
    with torch.no_grad():
        model[2].weight.mul_(3.0)
    for _ in range(100):
        optimizer.zero_grad()
        sum(0.0 * each.sum() for each in model.parameters()).backward()
        optimizer.step()
    assert_close(model[2].weight.flatten().sort().values, initial, rtol=1e-3, atol=1e-4)


def test_after_a_restart_it_pulls_to_the_values_of_now():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wasserstein = Wasserstein(model, optimizer, strength=1.0)
    train(model, optimizer, range(5))
    wasserstein.restart()
    for place, values in zip(wasserstein.places, wasserstein.state_dict()["targets"], strict=True):
        assert torch.equal(values, place.parameter.detach().flatten().sort().values)


def test_a_negative_strength_is_refused():
    model = mlp()
    with pytest.raises(ValueError, match="strength must be 0 or more, got -1"):
        Wasserstein(model, torch.optim.SGD(model.parameters(), lr=0.1), strength=-1)
