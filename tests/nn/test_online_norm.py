import copy

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pliant import reset_network
from pliant.nn import OnlineNorm1d

UNITS = 4


class Plain:
    """The equations, for one unit and one example at a time, in Python numbers."""

    def __init__(self, a, b, eps):
        self.a, self.b, self.eps = a, b, eps
        self.mean, self.var, self.e_y, self.e_1 = 0.0, 1.0, 0.0, 0.0

    def forward(self, x):
        self.sigma = (self.var + self.eps) ** 0.5
        self.y = (x - self.mean) / self.sigma
        self.var = self.a * self.var + self.a * (1 - self.a) * (x - self.mean) ** 2
        self.mean = self.a * self.mean + (1 - self.a) * x
        return self.y

    def backward(self, g, y, sigma):
        controlled = g - (1 - self.b) * self.e_y * y
        self.e_y = self.e_y + controlled * y
        dx = controlled / sigma - (1 - self.b) * self.e_1
        self.e_1 = self.e_1 + dx
        return dx


def stream(batches, size, seed=0):
    generator = np.random.default_rng(seed)
    for _ in range(batches):
        yield (
            torch.tensor(generator.normal(3.0, 2.0, (size, UNITS))),
            torch.tensor(generator.normal(0.5, 1, (size, UNITS))),
        )


@pytest.mark.parametrize("size", [1, 7])
def test_both_passes_are_the_published_equations(size):
    norm = OnlineNorm1d(UNITS, 0.97, 0.9, eps=1e-3, affine=False).double()
    plain = [Plain(0.97, 0.9, 1e-3) for _ in range(UNITS)]
    for x, g in stream(40, size):
        x.requires_grad_()
        y = norm(x)
        y.backward(g)
        expected_y, expected_dx = torch.empty_like(x), torch.empty_like(x)
        for unit, each in enumerate(plain):
            kept = []
            for t in range(size):
                expected_y[t, unit] = each.forward(x[t, unit].item())
                kept.append((each.y, each.sigma))
            for t, (out, sigma) in enumerate(kept):
                expected_dx[t, unit] = each.backward(g[t, unit].item(), out, sigma)
        assert_close(y, expected_y, rtol=1e-10, atol=1e-12)
        assert_close(x.grad, expected_dx, rtol=1e-9, atol=1e-11)


def test_a_batch_is_its_examples_one_after_the_other():
    """When every example's backward comes before the next forward or after the batch's: they do not meet."""
    whole, single = OnlineNorm1d(UNITS).double(), OnlineNorm1d(UNITS).double()
    for x, g in stream(20, 5):
        together = x.clone().requires_grad_()
        whole(together).backward(g)
        for t in range(5):
            alone = x[t : t + 1].clone().requires_grad_()
            single(alone).backward(g[t : t + 1])
            assert_close(alone.grad[0], together.grad[t], rtol=1e-10, atol=1e-12)
    for name, held in whole.state_dict().items():
        assert_close(held, single.state_dict()[name], rtol=1e-10, atol=1e-12)


def test_outputs_of_a_stationary_stream_have_mean_zero_and_variance_one():
    norm = OnlineNorm1d(UNITS, decay_forward=0.99).double()
    y = torch.cat([norm(x).detach() for x, _ in stream(60, 100)][10:])
    assert y.mean(0).abs().max() < 0.03
    assert (y.var(0) - 1).abs().max() < 0.05


def test_gradients_are_orthogonal_to_the_outputs_and_to_one_on_average():
    """Without the control the gradients' components along y and 1 stay as they came, 0.5 and more."""
    norm = OnlineNorm1d(UNITS, 0.99, 0.99, affine=False).double()
    along_y, along_1, came_along_y = [], [], []
    for number, (x, g) in enumerate(stream(60, 100)):
        x.requires_grad_()
        y = norm(x)
        g = g + 0.7 * y.detach()
        y.backward(g)
        if number >= 10:
            along_y.append(x.grad * y.detach())
            along_1.append(x.grad)
            came_along_y.append(g * y.detach())
    assert torch.cat(came_along_y).mean(0).min() > 0.6
    assert torch.cat(along_y).mean(0).abs().max() < 0.02
    assert torch.cat(along_1).mean(0).abs().max() < 0.02


def test_evaluation_uses_the_statistics_and_moves_nothing():
    norm = OnlineNorm1d(UNITS, eps=0.0).double()
    with torch.no_grad():
        norm.mean.fill_(3.0)
        norm.var.fill_(4.0)
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    x = torch.full((2, UNITS), 7.0, dtype=torch.float64, requires_grad=True)
    y = norm(x)
    assert_close(y, torch.full_like(y, 2.0))
    y.sum().backward()
    assert_close(x.grad, torch.full_like(x, 0.5))
    assert all(torch.equal(before[name], held) for name, held in norm.state_dict().items())


def test_scale_and_shift_are_learned_and_follow_the_normalization():
    norm = OnlineNorm1d(UNITS).double()
    plain = OnlineNorm1d(UNITS, affine=False).double()
    x, g = next(stream(1, 6))
    with torch.no_grad():
        norm.weight.fill_(2.0)
        norm.bias.fill_(-1.0)
    y = norm(x)
    normal = plain(x)
    assert_close(y, 2.0 * normal - 1.0)
    y.backward(g)
    assert_close(norm.weight.grad, (g * normal).sum(0))
    assert_close(norm.bias.grad, g.sum(0))


def test_layer_scaling_gives_every_example_a_mean_square_of_one():
    norm = OnlineNorm1d(UNITS, layer_scaling=True).double()
    y = norm(next(stream(1, 6))[0])
    assert_close(y.square().mean(1), torch.ones(6, dtype=torch.float64), rtol=1e-4, atol=0)


def test_stopping_and_resuming_changes_nothing():
    straight, first = OnlineNorm1d(UNITS), OnlineNorm1d(UNITS)
    batches = [(x.float(), g.float()) for x, g in stream(20, 3)]

    def go(norm, some):
        found = []
        for x, g in some:
            x = x.clone().requires_grad_()
            y = norm(x)
            y.backward(g)
            found += [y.detach(), x.grad]
        return torch.stack(found)

    whole = go(straight, batches)
    go(first, batches[:10])
    second = OnlineNorm1d(UNITS)
    second.load_state_dict(first.state_dict())
    assert torch.equal(go(second, batches[10:]), whole[20:])


def test_a_full_reset_resets_the_statistics():
    norm = OnlineNorm1d(UNITS)
    for x, g in stream(3, 4):
        norm(x.float()).backward(g.float())
    reset_network(norm, seed=0)
    assert all(torch.equal(held, OnlineNorm1d(UNITS).state_dict()[name]) for name, held in norm.state_dict().items())


@pytest.mark.parametrize("name", ["decay_forward", "decay_backward"])
def test_decays_out_of_range_are_named(name):
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\), got 1.0"):
        OnlineNorm1d(UNITS, **{name: 1.0})


def test_another_shape_is_named():
    with pytest.raises(ValueError, match=r"takes \(batch, 4\), got \(2, 3, 4\)"):
        OnlineNorm1d(UNITS)(torch.zeros(2, 3, 4))
