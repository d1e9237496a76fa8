"""Gradients by hand: out = v · relu(w x + b), loss = sum over two examples of out, so ∂L/∂h[i] = v[i] at each."""

import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close

from pliant import L2, GraMa
from tests.networks import replaced

V = [4.0, -2.0, 1.0, 1.0]
X = tensor([[1.0], [3.0]])


def network():
    """Of four units, of which the last is silent."""
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.copy_(tensor([0.0, 0.0, 0.0, -9.0]))
        model[2].weight.copy_(tensor([V]))
    return model, torch.optim.SGD(model.parameters(), lr=0.0)


def after_one_step(**settings):
    model, optimizer = network()
    grama = GraMa(model, optimizer, example_inputs=X, seed=0, **settings)
    model(X).sum().backward()
    optimizer.step()
    return grama


def test_by_weights_a_unit_s_gradient_is_that_of_its_incoming_weights():
    """v[i] (1 + 3) = 16, 8, 4 and, of the silent unit, 0; their mean is 7."""
    share = after_one_step(of="weights").utilities()["0"]
    assert_close(share, tensor([[16.0, 8.0, 4.0, 0.0]]) / 7.0)


def test_by_activity_it_is_that_of_its_activation_so_a_silent_unit_that_others_listen_to_has_one():
    """|v[i]| at each example, 4, 2, 1 and 1; their mean is 2."""
    share = after_one_step(of="activity").utilities()["0"]
    assert_close(share, tensor([[2.0, 1.0, 0.5, 0.5]]))


@pytest.mark.parametrize(("of", "tau", "count"), [("weights", 0.0, 1), ("weights", 0.6, 2), ("activity", 0.4, 0)])
def test_units_at_or_below_the_threshold_are_reset(of, tau, count):
    assert replaced(after_one_step(of=of, tau=tau, period=1)) == {"0": count}


def test_the_period_counts_optimizer_steps():
    assert replaced(after_one_step(tau=1.0, period=2)) == {"0": 0}


def test_a_step_without_a_gradient_resets_nothing_and_one_of_zeros_resets_the_layer():
    """As the released code does."""
    for scale, count in ((None, 0), (0.0, 4)):
        model, optimizer = network()
        grama = GraMa(model, optimizer, example_inputs=X, period=1)
        if scale is None:
            model(X)
        else:
            (scale * model(X).sum()).backward()
        optimizer.step()
        assert replaced(grama) == {"0": count}


def test_a_gradient_that_is_not_finite_tells_nothing():
    model, optimizer = network()
    grama = GraMa(model, optimizer, example_inputs=X, tau=1.0, period=1)
    (model(X).sum() * torch.inf).backward()
    optimizer.step()
    assert replaced(grama) == {"0": 0}


def test_gradients_of_activity_are_summed_over_the_passes_of_a_step_by_size():
    """Passes of opposite sign: |v| + |-2 v|, of which the gradients of weights, 1 v - 6 v, know nothing."""
    model, optimizer = network()
    grama = GraMa(model, optimizer, example_inputs=X, of="activity")
    model(X[:1]).sum().backward()
    model[2].weight.data[0, 3] = 5.0  # read in the second pass alone: 1 + 2 · 5 beside 12, 6 and 3
    (-2.0 * model(X[:1])).sum().backward()
    optimizer.step()
    assert_close(grama.utilities()["0"], tensor([[12.0, 6.0, 3.0, 11.0]]) / 8.0)


@pytest.mark.parametrize("l2_first", [True, False])
def test_it_looks_at_the_loss_s_gradient_and_not_at_what_a_pull_adds(l2_first):
    model, optimizer = network()
    if l2_first:
        L2(model, optimizer, strength=100.0)
    grama = GraMa(model, optimizer, example_inputs=X)
    if not l2_first:
        L2(model, optimizer, strength=100.0)
    model(X).sum().backward()
    optimizer.step()
    assert_close(grama.utilities()["0"], tensor([[16.0, 8.0, 4.0, 0.0]]) / 7.0)
