"""Utility-based perturbed gradient descent, on numbers that fit in a head."""

from math import exp

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pliant import UPGD


def weights(*values):
    return [nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in values]


def stepped(parameters, gradients, steps=1, **settings):
    optimizer = UPGD(parameters, **{"lr": 1.0, "sigma": 0.0, **settings})
    for _ in range(steps):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    return optimizer


def gate(a):
    """1 - sigmoid(a)"""
    return 1.0 / (1.0 + exp(a))


def test_the_most_useful_weight_moves_by_a_quarter_one_of_no_use_by_half_a_harmful_one_by_most():
    first, second = weights([4.0, 0.0], [-2.0])
    stepped([first, second], [[-1.0, 1.0], [-1.0]])  # utilities -g w: 4, 0 and -2; over 4: 1, 0, -1/2
    assert_close(first.tolist(), [4.0 + gate(1.0), -gate(0.0)])
    assert_close(second.tolist(), [-2.0 + gate(-0.5)])
    assert_close([gate(1.0), gate(0.0), gate(-0.5)], [0.26894, 0.5, 0.62246], rtol=0, atol=1e-5)


def test_without_protection_every_weight_moves_by_its_gradient():
    first, second = weights([4.0, 0.0], [-2.0])
    stepped([first, second], [[-1.0, 1.0], [-1.0]], protecting=False)
    assert [*first.tolist(), *second.tolist()] == [5.0, -1.0, -1.0]


def test_where_all_gates_are_alike_it_is_gradient_descent_of_a_scaled_step_size():
    """Equal utilities: each is the largest, so every gate is 1 - sigmoid(1)."""
    torch.manual_seed(0)
    (mine,), (plain,) = weights([1.0, 2.0, -4.0]), weights([1.0, 2.0, -4.0])
    gradient = (-3.0 / mine.detach()).tolist()
    stepped([mine], [gradient], lr=0.1)
    sgd = torch.optim.SGD([plain], lr=0.1 * gate(1.0))
    plain.grad = torch.tensor(gradient, dtype=torch.float64)
    sgd.step()
    assert_close(mine, plain)


def test_the_utility_is_a_running_mean_corrected_for_its_beginning():
    (weight,) = weights([1.0])
    optimizer = UPGD([weight], lr=0.0, sigma=0.0, beta_utility=0.75)
    seen = []
    for gradient in (-8.0, -16.0):  # utilities 8, then 0.75 · 2 + 0.25 · 16
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        seen.append(optimizer.state[weight]["avg_utility"].item())
    assert seen == [2.0, 5.5]
    assert optimizer.state[weight]["step"] == 2
    corrected = optimizer._utilities(optimizer.param_groups[0], [weight], [torch.zeros(1, dtype=torch.float64)])
    assert_close(corrected[0].item(), 0.75 * 5.5 / (1 - 0.75**3))


def test_the_raw_maximum_closes_gates_at_first():
    """U = 0.001 û at β 0.999, so Û over the largest U is 1000 and 500: both are 0 to double precision."""
    for maximum, expected in (("corrected", [gate(1.0), gate(0.5)]), ("raw", [gate(700.0), gate(500.0)])):
        (weight,) = weights([4.0, 2.0])
        stepped([weight], [[-1.0, -1.0]], maximum=maximum)
        assert_close(weight.tolist(), [4.0 + expected[0], 2.0 + expected[1]])


def test_with_the_factor_the_step_doubles_and_the_decay_does_not():
    (weight,) = weights([4.0])
    stepped([weight], [[-1.0]], lr=0.5, weight_decay=0.5, factor=2.0)
    assert_close(weight.item(), 0.75 * 4.0 + 2.0 * 0.5 * gate(1.0))


def test_of_harmful_weights_alone_the_most_harmful_moves_most():
    """As released the maximum, -1, would turn the order around: sigmoid(-4 / -1) protects the worst."""
    (weight,) = weights([4.0, 1.0])
    stepped([weight], [[1.0, 1.0]])  # utilities -4 and -1; over 1
    assert_close(weight.tolist(), [4.0 - gate(-4.0), 1.0 - gate(-1.0)])
    assert gate(-4.0) > gate(-1.0) > 0.5


def test_of_a_maximum_of_zero_weights_of_no_use_move_by_half_and_harmful_ones_by_all():
    (weight,) = weights([0.0, 1.0])
    stepped([weight], [[1.0, 1.0]])
    assert_close(weight.tolist(), [-0.5, 0.0])


def test_noise_is_scaled_by_step_size_and_gate_and_differs_by_weight_and_step():
    def moved(**settings):
        (weight,) = weights([0.0] * 2000)  # of no use: half
        optimizer = UPGD([weight], lr=0.1, sigma=3.0, seed=1, **settings)
        seen = []
        for _ in range(2):
            weight.grad = torch.zeros_like(weight)
            before = weight.detach().clone()
            optimizer.step()
            seen.append(weight.detach() - before)
            with torch.no_grad():
                weight.zero_()
        return seen

    for protecting in (True, False):
        first, second = moved(protecting=protecting)
        assert_close(first.std().item(), 0.1 * 3.0 * 0.5, rtol=0.05, atol=0)
        assert abs(first.mean().item()) < 0.02
        assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.1


def test_two_parameters_and_two_groups_draw_apart_and_a_seed_repeats():
    def drawn(seed):
        pairs = weights([0.0] * 50, [0.0] * 50, [0.0] * 50)
        optimizer = UPGD([{"params": pairs[:2]}, {"params": pairs[2:]}], sigma=1.0, seed=seed)
        for parameter in pairs:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        return torch.stack([parameter.detach() for parameter in pairs])

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))
    assert (torch.corrcoef(drawn(3)) - torch.eye(3)).abs().max() < 0.4


def test_without_noise_no_seed_matters():
    pair = [weights([1.0])[0] for _ in range(2)]
    for seed, parameter in enumerate(pair):
        stepped([parameter], [[2.0]], sigma=0.0, seed=seed)
    assert torch.equal(*pair)


def test_wrong_settings_are_named_of_a_group_too():
    (weight,) = weights([1.0])
    with pytest.raises(ValueError, match=r"beta_utility must lie in \[0, 1\), got 1"):
        UPGD([weight], beta_utility=1.0)
    with pytest.raises(ValueError, match="sigma must be 0 or more, got -1"):
        UPGD([{"params": [weight], "sigma": -1.0}])
    with pytest.raises(ValueError, match="unknown maximum 'largest'"):
        UPGD([weight], maximum="largest")
