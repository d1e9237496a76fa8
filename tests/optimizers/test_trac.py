"""How far to follow an optimizer, on numbers that fit in a head."""

from math import sqrt

import mpmath
import numpy as np
import pytest
import scipy.special
import torch
from torch import nn
from torch.testing import assert_close

from pliant import TRAC
from pliant.optimizers.trac import BETAS, erfi

UNIT = scipy.special.erfi(sqrt(0.5))


def test_erfi_is_that_of_scipy_over_the_whole_range():
    x = np.concatenate([np.geomspace(1e-300, 1e-3, 500), np.linspace(1e-3, 26.6, 20_001), [6.0, np.nextafter(6, 7)]])
    for sign in (1.0, -1.0):
        assert_close(erfi(torch.tensor(sign * x)).numpy(), scipy.special.erfi(sign * x), rtol=1e-13, atol=0)


def test_erfi_goes_on_where_exp_of_the_square_overflows_and_is_infinite_beyond():
    """scipy's is infinite from 26.64 on; erfi exceeds double precision from 26.7147 on."""
    large = torch.tensor([26.65, 26.7, 26.71], dtype=torch.float64)
    for x, value in zip(large.tolist(), erfi(large).tolist(), strict=True):
        assert mpmath.mpf(value) == pytest.approx(mpmath.erfi(x), rel=1e-12)
    beyond = torch.tensor([26.72, 1e10, torch.inf, -30.0, torch.nan, 0.0, -0.0], dtype=torch.float64)
    assert erfi(beyond).tolist()[:4] == [torch.inf, torch.inf, torch.inf, -torch.inf]
    assert erfi(beyond)[4].isnan()
    assert erfi(beyond).tolist()[5:] == [0.0, 0.0]


class Reference:
    """The algorithm box of the article on one array, in plain NumPy: base iterate, h, tuners, S, iterate."""

    def __init__(self, start, lr, betas, scale, eps=1e-8):
        self.start, self.base, self.at = start.copy(), start.copy(), start.copy()
        self.betas, self.lr, self.scale, self.eps = np.array(betas), lr, scale, eps
        self.v, self.sigma = np.zeros(len(betas)), np.zeros(len(betas))

    def step(self, g):
        h = g @ (self.base - self.start)
        self.base = self.base - self.lr * g  # of gradient descent
        self.v = self.betas**2 * self.v + h**2
        self.sigma = self.betas * self.sigma - h
        tuners = self.scale / UNIT * scipy.special.erfi(self.sigma / (np.sqrt(2 * self.v) + self.eps))
        self.S = max(tuners.sum(), 0.0)
        self.at = self.start + self.S * (self.base - self.start)


def test_it_is_the_algorithm_of_the_article():
    generator = np.random.default_rng(0)
    start = generator.normal(size=5)
    reference = Reference(start, 0.05, BETAS, scale=1e-3)
    weight = nn.Parameter(torch.tensor(start))
    optimizer = TRAC(torch.optim.SGD([weight], lr=0.05), scale=1e-3)
    followed = []
    for _ in range(60):
        g = 2.0 * (weight.detach().numpy() - 3.0) + generator.normal(size=5)
        weight.grad = torch.tensor(g)
        optimizer.step()
        reference.step(g)
        followed.append(reference.S)
        assert_close(weight.detach().numpy(), reference.at, rtol=1e-9, atol=1e-9)
    assert followed[0] == 0.0
    assert max(followed) > 0.05
    assert 0.0 < optimizer.state[weight]["scale"] == pytest.approx(followed[-1])


def test_steps_that_agree_are_followed_and_steps_that_lead_astray_are_taken_back():
    """One tuner of β = 1, gradient 1: Δ = -0.1, -0.2, ..., h = 0, -0.1, -0.2, ..., so S grows; a gradient of -1 ends that."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = TRAC(torch.optim.SGD([weight], lr=0.1), betas=(1.0,), scale=1.0, eps=1e-12)
    scales = []
    for gradient in (1.0, 1.0, 1.0, -1.0):
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        scales.append(optimizer.state[weight]["scale"].item())
    ratios = [0.0, 0.1 / 0.1, 0.3 / sqrt(0.01 + 0.04), 0.0]  # -Σ h over √Σ h²; then h = +0.3
    expected = [scipy.special.erfi(ratio / sqrt(2)) / UNIT for ratio in ratios]
    assert_close(scales, expected)
    assert weight.item() == 0.0


def test_no_step_is_followed_backward():
    """A gradient of -9: h = +2.7, σ = 0.3 - 2.7, so the tuner is below 0, and counts as 0."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = TRAC(torch.optim.SGD([weight], lr=0.1), betas=(1.0,), scale=1.0)
    for gradient in (1.0, 1.0, 1.0, -9.0):
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
    assert optimizer.state["tuners"]["sigma"].item() == pytest.approx(-2.4)
    assert weight.item() == 1.0


def test_after_loading_a_state_the_step_size_is_that_of_the_inner_optimizer_still():
    weight = nn.Parameter(torch.ones(1))
    optimizer = TRAC(torch.optim.SGD([weight], lr=0.1), scale=1.0)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.5
    weight.grad = torch.ones(1)
    optimizer.step()
    assert_close(optimizer.state[weight]["displacement"].item(), -0.5)


def test_at_first_parameters_do_not_move_and_what_the_optimizer_did_is_not_lost():
    """At 1e-8 of it a step is lost in the rounding of float32, where the released code would forget it."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = TRAC(torch.optim.SGD([weight], lr=0.1))
    for _ in range(3):
        weight.grad = torch.ones(1)
        optimizer.step()
    assert weight.item() == 1.0
    assert_close(optimizer.state[weight]["displacement"], torch.tensor([-0.3]))


def test_what_others_do_to_a_parameter_stays_and_is_not_scaled():
    def trained(shift):
        weight = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
        optimizer = TRAC(torch.optim.SGD([weight], lr=0.1), scale=0.1)
        for number in range(8):
            if number == 4:
                weight.data += shift
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return weight.detach()

    shift = torch.tensor([0.0, 5.0])
    assert trained(0.0)[0] < 1.0 - 0.01
    assert_close(trained(shift), trained(0.0) + shift)


def test_maximizing_is_descent_on_the_other_side():
    def trained(maximize):
        weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        optimizer = TRAC(torch.optim.SGD([weight], lr=0.1, maximize=maximize), scale=0.5)
        for _ in range(8):
            weight.grad = torch.full_like(weight, -1.0 if maximize else 1.0)
            optimizer.step()
        return weight

    assert torch.equal(trained(True), trained(False))
    assert trained(False) < 0.9


def test_a_restart_forgets_what_the_tuners_learned():
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = TRAC(torch.optim.SGD([weight], lr=0.1), scale=0.5)
    for _ in range(8):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert (optimizer.state["tuners"]["sigma"] > 0).all()
    optimizer.restart()
    optimizer.step()
    assert_close(optimizer.state["tuners"]["sigma"], torch.full((6,), 0.8, dtype=torch.float64))  # -h alone


def test_a_group_that_joins_later_is_followed_too():
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = TRAC(torch.optim.SGD([first], lr=0.1), scale=1.0)
    optimizer.add_param_group({"params": [second], "lr": 0.2})
    for _ in range(3):
        for parameter in (first, second):
            parameter.grad = torch.ones(1)
        optimizer.step()
    assert len(optimizer.param_groups) == len(optimizer.base_optimizer.param_groups) == 2
    assert first < 1.0
    assert_close((1.0 - second).item(), 2.0 * (1.0 - first).item())


def test_what_cannot_be_scaled_is_refused():
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(TypeError, match=r"base_optimizer must be an optimizer, such as torch.optim.Adam\(params\)"):
        TRAC([weight])
    with pytest.raises(ValueError, match="LBFGS searches along the loss"):
        TRAC(torch.optim.LBFGS([weight]))
    schedulefree = pytest.importorskip("schedulefree")
    with pytest.raises(ValueError, match="SGDScheduleFree keeps parameters at two places"):
        TRAC(schedulefree.SGDScheduleFree([weight]))
    with pytest.raises(TypeError, match="betas must be a list of one or more numbers"):
        TRAC(torch.optim.SGD([weight]), betas=())
    with pytest.raises(ValueError, match="complex"):
        TRAC(torch.optim.SGD([nn.Parameter(torch.ones(1, dtype=torch.complex64))]))
