from math import sqrt

import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close

from pliant import Spectral
from pliant.methods.spectral import power_iteration
from tests.networks import convnet, mlp, train


def pulled(model, **settings):
    """What is added to a gradient of 0, by name: a step of size 1 subtracts it."""
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    spectral = Spectral(model, optimizer, strength=1.0, **settings)
    sum(0.0 * each.sum() for each in model.parameters()).backward()
    optimizer.step()
    return spectral, {name: before[name] - each.detach() for name, each in model.named_parameters()}


def penalty(model, k, c, p):
    """R, by autograd and the exact singular values."""
    total = 0.0
    for module in model.modules():
        for name, each in module.named_parameters(recurse=False):
            if each.dim() > 1:
                total += (torch.linalg.svdvals(each.flatten(1))[0] ** k - c) ** 2
            elif isinstance(module, nn.BatchNorm2d) and name == "weight":
                total += (each - 1.0).square().sum()
            else:
                total += each.norm() ** p
    return total


@pytest.mark.parametrize(("k", "c", "p"), [(2.0, 1.0, 4.0), (1.0, 1.0, 2.0), (2.0, 2.0, 2.0), (3.0, 1.0, 6.0)])
def test_the_pull_is_the_gradient_of_the_penalty(k, c, p):
    """On a network with filters and norms: the first power iteration begins at the exact vectors."""
    model = convnet().double()
    with torch.no_grad():
        for each in model.parameters():
            each += 0.3
    penalty(model, k, c, p).backward()
    expected = {name: each.grad.clone() for name, each in model.named_parameters()}
    model.zero_grad()
    _, found = pulled(model, power=k, target=c, bias_power=p)
    for name, each in expected.items():
        assert_close(found[name], each, rtol=1e-7, atol=1e-8)


def test_only_the_largest_singular_value_is_pulled():
    """By 2 k (σ^k - 1) σ^(k-1) = 4 (σ² - 1) σ: 24 at σ = 2; a bias of length 5 by 4 · 5² b."""
    model = nn.Linear(2, 2)
    model.weight.data.copy_(torch.diag(tensor([2.0, 1.5])))
    model.bias.data.copy_(tensor([3.0, 4.0]))
    _, found = pulled(model)
    assert_close(found["weight"], torch.diag(tensor([24.0, 0.0])))
    assert_close(found["bias"], tensor([300.0, 400.0]))


def test_a_power_iteration_nears_the_largest_singular_value():
    """One from (1, 1)/√2 on diag(3, 1): v ~ (3, 1), W v ~ (9, 1), so σ = √82 / √10."""
    σ, u, v = power_iteration(torch.diag(tensor([3.0, 1.0])), tensor([1.0, 1.0]) / sqrt(2.0))
    assert_close(v, tensor([3.0, 1.0]) / sqrt(10.0))
    assert_close(u, tensor([9.0, 1.0]) / sqrt(82.0))
    assert σ.item() == pytest.approx(sqrt(8.2))


def test_of_a_matrix_of_zeros_the_vector_is_kept_and_the_pull_is_0():
    """A head that was reset to zero is regularized again as soon as it has learned."""
    model = nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    spectral = Spectral(model, optimizer, strength=1.0)
    (before,) = spectral.state_dict()["targets"]
    nn.init.zeros_(model.weight)
    (0.0 * model.weight.sum()).backward()
    optimizer.step()
    (after,) = spectral.state_dict()["targets"]
    assert torch.equal(after, before)
    assert not model.weight.any()


def test_while_weights_move_one_iteration_a_step_keeps_up_with_the_largest_singular_value():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
    spectral = Spectral(model, optimizer, strength=0.01)
    train(model, optimizer, range(150))
    for name, u in zip(spectral.names, spectral.state_dict()["targets"], strict=True):
        weight = model.get_parameter(name).detach()
        if weight.dim() > 1:
            largest = torch.linalg.svdvals(weight)[0]
            assert (weight.T @ u).norm() == pytest.approx(largest.item(), rel=0.02)


def test_it_pulls_every_layer_to_a_largest_singular_value_of_1():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    Spectral(model, optimizer, strength=0.2)
    with torch.no_grad():
        model[0].weight.mul_(3.0)
    for _ in range(1500):
        optimizer.zero_grad()
        sum(0.0 * each.sum() for each in model.parameters()).backward()
        optimizer.step()
    for layer in (model[0], model[2], model[4]):
        assert torch.linalg.svdvals(layer.weight)[0].item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"power": 0.0}, "power must be above 0, got 0"),
        ({"bias_power": 1.0}, "bias_power must be 2 or more"),
        ({"target": -1.0}, "target must be 0 or more"),
    ],
)
def test_bad_settings_are_named(settings, message):
    model = mlp()
    with pytest.raises(ValueError, match=message):
        Spectral(model, torch.optim.SGD(model.parameters(), lr=0.1), strength=0.1, **settings)
