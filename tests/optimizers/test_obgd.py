"""Gradient descent with bounded overshooting, on numbers that fit in a head."""

from math import sqrt

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pliant import ObGD


def weight(*values):
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def give(parameter, *gradient):
    parameter.grad = torch.tensor(gradient, dtype=torch.float64)


def test_a_small_step_is_gradient_descent():
    w = weight(1.0, 1.0)
    optimizer = ObGD([w], lr=0.1, kappa=2.0)
    give(w, 1.0, -0.5)  # M = 0.1 · 2 · 1.5 = 0.3
    optimizer.step()
    assert_close(w.tolist(), [0.9, 1.05])


def test_a_large_step_is_cut_to_one_over_kappa():
    w, v = weight(0.0, 0.0), weight(0.0)
    optimizer = ObGD([w, v], lr=1.0, kappa=2.0)
    give(w, 3.0, -1.0)
    give(v, 6.0)  # M = 2 · 10
    optimizer.step()
    assert_close([*w.tolist(), v.item()], [-0.15, 0.05, -0.3])


def test_the_error_multiplies_the_step_and_counts_in_the_bound_from_1_on():
    for delta, expected in ((0.5, -0.1 * 0.5), (3.0, -0.1 * 3.0 / 1.2), (-3.0, 0.1 * 3.0 / 1.2)):
        w = weight(0.0)
        optimizer = ObGD([w], lr=0.1, kappa=4.0)
        give(w, 1.0)  # M = 0.1 · 4 · max(|δ|, 1) · 1
        optimizer.step(delta=delta)
        assert_close(w.item(), expected)
        scalar = weight(0.0)
        give(scalar, 1.0)
        ObGD([scalar], lr=0.1, kappa=4.0).step(delta=torch.tensor(delta))
        assert_close(scalar.item(), expected)


def test_a_trace_decays_by_gamma_lamda_and_a_reset_empties_it_after_the_step():
    w = weight(0.0)
    optimizer = ObGD([w], lr=0.01, gamma=0.5, lamda=0.5)
    seen = []
    for number, reset in enumerate((False, False, True, False)):
        give(w, 4.0**number)
        optimizer.step(delta=0.0, reset=reset)
        seen.append(optimizer.state[w]["trace"].item())
    assert seen == [1.0, 4.25, 0.0, 64.0]
    optimizer.step(delta=-1.0)  # trace 64 / 4 + 64 = 80, M = 0.01 · 2 · 80 = 1.6
    assert_close(w.item(), 0.01 / 1.6 * 80.0)


def test_without_a_trace_nothing_is_kept():
    w = weight(0.0)
    optimizer = ObGD([w])
    give(w, 1.0)
    optimizer.step()
    assert not optimizer.state_dict()["state"]


def test_running_sizes_divide_the_trace_in_the_step_and_in_the_bound():
    """At the first step v / (1 - β₂) is (δ g)², so each entry is g / |δ g| = ±1 / |δ|."""
    w = weight(0.0, 0.0)
    optimizer = ObGD([w], lr=1.0, kappa=2.0, beta2=0.999, eps=1e-30)
    give(w, 3.0, -0.01)
    optimizer.step(delta=2.0)  # z = (1/2, -1/2), M = 2 · 2 · 1
    assert_close(w.tolist(), [-0.25, 0.25])
    give(w, 0.0, 0.01)
    before = w.detach().clone()
    optimizer.step(delta=1.0)  # v̂ = (0.001 · (2 · 0.01)² · 0.999 + 0.001 · 0.01²) / (1 - 0.999²)
    v = 0.001 * (0.999 * 4e-4 + 1e-4) / (1 - 0.999**2)
    z = 0.01 / sqrt(v)
    assert_close((w - before).tolist(), [0.0, -z / max(1.0, 2.0 * z)])


def test_running_sizes_are_those_of_the_step_with_its_error():
    """Unbounded, a first step is α whatever the gradient and the error."""
    w = weight(0.0, 0.0)
    give(w, 3.0, -0.01)
    ObGD([w], lr=0.01, beta2=0.999, eps=1e-30).step(delta=2.0)
    assert_close(w.tolist(), [-0.01, 0.01])


@pytest.mark.parametrize("settings", [{}, {"lamda": 0.9}, {"beta2": 0.999}, {"lamda": 0.5, "beta2": 0.9}], ids=str)
def test_no_step_is_longer_than_one_over_kappa(settings):
    """||Δθ||₁ = α / max(1, M) |δ| ||z||₁ <= 1 / κ, whatever the gradients; and it is reached."""
    torch.manual_seed(0)
    w, v = (nn.Parameter(torch.randn(5, dtype=torch.float64)) for _ in range(2))
    optimizer = ObGD([{"params": [w], "lr": 3.0}, {"params": [v], "lr": 0.5}], kappa=2.5, **settings)
    longest = 0.0
    for _ in range(200):
        before = torch.cat([w, v]).detach().clone()
        for parameter in (w, v):
            parameter.grad = torch.randn(5, dtype=torch.float64) * 10.0 ** torch.randint(-3, 4, ()).item()
        optimizer.step(delta=torch.randn(()).item() * 10.0)
        longest = max(longest, (torch.cat([w, v]) - before).abs().sum().item())
    assert longest == pytest.approx(1 / 2.5)


def test_a_linear_prediction_does_not_overshoot_the_target_it_learns_from():
    """From inputs in [-1, 1] the error shrinks, and keeps its sign, at any step size."""
    torch.manual_seed(0)
    w = nn.Parameter(torch.zeros(20, dtype=torch.float64))
    optimizer = ObGD([w], lr=100.0, kappa=2.0)
    for _ in range(100):
        x, target = 2 * torch.rand(20, dtype=torch.float64) - 1, 10 * torch.randn(()).item()
        optimizer.zero_grad()
        (-(x @ w)).backward()
        error = target - (x @ w).item()
        optimizer.step(delta=error)
        after = target - (x @ w).item()
        assert 0.5 - 1e-9 <= after / error < 1.0


def test_groups_add_up_in_the_bound():
    w, v = weight(0.0), weight(0.0)
    optimizer = ObGD([{"params": [w], "lr": 1.0, "kappa": 1.0}, {"params": [v], "lr": 0.5, "kappa": 4.0}])
    give(w, 2.0)
    give(v, 1.0)
    optimizer.step()  # M = 1 · 1 · 2 + 0.5 · 4 · 1
    assert_close([w.item(), v.item()], [-2.0 / 4.0, -0.5 / 4.0])


def test_wrong_settings_and_errors_are_named():
    w = weight(0.0)
    with pytest.raises(ValueError, match=r"lamda must lie in \[0, 1\], got 1.5"):
        ObGD([w], lamda=1.5)
    with pytest.raises(TypeError, match="beta2 must be a number, got 'none'"):
        ObGD([{"params": [w], "beta2": "none"}])
    optimizer = ObGD([w])
    with pytest.raises(ValueError, match="delta must be one real number, got a tensor of shape"):
        optimizer.step(delta=torch.ones(2))
    with pytest.raises(ValueError, match="delta must"):
        optimizer.step(delta=float("nan"))
    with pytest.raises(TypeError, match="reset must be True or False"):
        optimizer.step(reset=1)
