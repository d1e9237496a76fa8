from math import sqrt

import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close

from pliant import DASH, ContinualBackprop
from pliant.methods.dash import average_descent, factor
from tests.methods.runs import differences
from tests.networks import batch, convnet, mlp


def losses(model, count=2, shape=(6,)):
    """A generator: each is computed when it is asked for."""
    return (nn.functional.mse_loss(model(x), y) for x, y in (batch(number, shape) for number in range(count)))


def test_a_row_shrinks_by_its_cosine_with_the_descent_but_not_below_the_least():
    """Rows (3, 4), -descent along (1, 0), (-1, 0), (3, 4) and 0: cosines 0.6, -0.6, 1 and 0."""
    w = tensor([[3.0, 4.0]]).repeat(4, 1)
    descent = tensor([[2.0, 0.0], [-2.0, 0.0], [6.0, 8.0], [0.0, 0.0]])
    assert_close(factor(w, descent, 0.3, "channel"), tensor([[0.6], [0.3], [1.0], [0.3]]))
    assert_close(factor(w, descent, 0.0, "unit"), tensor([[0.6], [0.0], [1.0], [0.0]]))


def test_a_filter_shrinks_kernel_by_kernel_or_unit_by_unit():
    """One output, two inputs, kernels (3, 4) and (0, 5); descent (1, 0) and (0, 5): 0.6 and 1; together 28 / (√50 √26)."""
    w = tensor([[[3.0, 4.0], [0.0, 5.0]]])
    descent = tensor([[[1.0, 0.0], [0.0, 5.0]]])
    assert_close(factor(w, descent, 0.3, "channel"), tensor([[[0.6], [1.0]]]))
    assert_close(factor(w, descent, 0.3, "unit"), tensor([[[28.0 / sqrt(50.0 * 26.0)]]]))


def test_a_bias_has_one_cosine_and_tiny_gradients_have_a_direction():
    assert_close(factor(tensor([3.0, 4.0]), 1e-12 * tensor([0.0, 2.0]), 0.3, "channel"), tensor([0.8]))


def test_losses_are_averaged_from_0_on_and_the_last_counts_most():
    """α = 0.25: 0.25 · -1, then 0.75 of it and 0.25 · -3, then 0.75 of that and nothing of a loss that does not depend on it."""
    w, other, never = (tensor([1.0], requires_grad=True) for _ in range(3))
    averages, reached = average_descent([w.sum(), 3.0 * w.sum(), other.sum()], [w, other, never], decay_rate=0.75)
    assert_close(averages, [tensor([0.75 * -0.9375]), tensor([-0.25]), tensor([0.0])])
    assert reached == [True, True, False]


def test_of_a_network_each_layer_shrinks_as_the_released_code_does():
    """Written out beside it: a copy, -gradients averaged, filters by kernels, rows of matrices, biases as a whole."""
    model = convnet().eval()  # before a batch norm in training, a bias has the gradient 0 and rounding
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    averages = {name: torch.zeros_like(each) for name, each in before.items()}
    for loss in losses(model, shape=(2, 8, 8)):
        model.zero_grad()
        loss.backward()
        for name, each in model.named_parameters():
            averages[name] = 0.7 * averages[name] - 0.3 * each.grad
    expected = dict(before)
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            w, g = before[f"{path}.weight"], averages[f"{path}.weight"]
            start = 2 if w.dim() > 2 else 1  # a unit that is dead has no gradient, and the cosine 0
            cosine = torch.cosine_similarity(w.flatten(start), g.flatten(start), dim=-1)
            scale = cosine.clamp(0.3, 1.0)
            expected[f"{path}.weight"] = w * scale.view(*scale.shape, *[1] * (w.dim() - scale.dim()))
            b, g = before[f"{path}.bias"], averages[f"{path}.bias"]
            expected[f"{path}.bias"] = b * torch.cosine_similarity(b, g, dim=0).clamp(0.3, 1.0)
    DASH(model).apply(losses(model, shape=(2, 8, 8)))
    assert_close(dict(model.named_parameters()), expected)
    assert torch.equal(model[0][1].weight, before["0.1.weight"])  # a norm's
    assert not torch.equal(model[0][0].weight, before["0.0.weight"])


def test_the_transpose_of_a_filter_has_its_outputs_second():
    """One cosine for all that goes into an output."""
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(2, 3, 2, bias=False)
    w, x = layer.weight.detach().clone(), torch.randn(4, 2, 3, 3)
    g = -torch.autograd.grad(layer(x).square().sum(), layer.weight)[0]
    DASH(layer, filters="unit").apply([-layer(x).square().sum()])
    for output in range(3):
        scale = torch.cosine_similarity(w[:, output].flatten(), -g[:, output].flatten(), dim=0).clamp(0.3, 1.0)
        assert_close(layer.weight[:, output].detach(), scale * w[:, output])


def test_what_the_pass_reads_leaves_no_trace():
    """Buffers, gradients, random numbers and what other methods have recorded are as without it."""

    def stepped(apply):
        model = convnet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        cbp = ContinualBackprop(model, optimizer, example_inputs=torch.zeros(2, 2, 8, 8), trial=False, seed=0)
        model(batch(0, (2, 8, 8))[0]).square().sum().backward()
        if apply:
            DASH(model, optimizer, least=1.0).apply(losses(model, shape=(2, 8, 8)))
        gradients = [each.grad.clone() for each in model.parameters()]
        optimizer.step()
        return [model.state_dict(), gradients, cbp.state_dict(), torch.get_rng_state()]

    assert differences(stepped(apply=True), stepped(apply=False)) == []


def test_a_layer_that_no_loss_depends_on_is_left_alone_and_so_is_a_frozen_one():
    model = mlp()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    model[0].weight.requires_grad_(False)
    x, y = batch(0, (6,))
    DASH(model, least=0.0).apply(
        [nn.functional.mse_loss(model[2](model[1](model[0](x))), torch.cat([y] * 4 + [y[:, :1]], 1))]
    )
    changed = {name for name, each in model.named_parameters() if not torch.equal(each, before[name])}
    assert changed == {"0.bias", "2.weight", "2.bias"}


def test_at_least_1_nothing_changes():
    model = mlp()
    before = [each.detach().clone() for each in model.parameters()]
    DASH(model, least=1.0).apply(losses(model))
    assert all(torch.equal(each, held) for each, held in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (lambda model: [], ValueError, "losses are none, or depend on none of the parameters"),
        (lambda model: [tensor(1.0, requires_grad=True)], ValueError, "depend on none of the parameters to shrink"),
        (lambda model: [tensor(1.0)], ValueError, r"losses\[0\] has shape \(\) and no graph"),
        (
            lambda model: [*losses(model), model(batch(0, (6,))[0])],
            ValueError,
            r"losses\[2\] has shape \(8, 2\) and a graph",
        ),
        (lambda model: [next(losses(model)) * torch.nan], ValueError, r"losses\[0\] is nan: nothing was changed"),
        (lambda model: [0.5], TypeError, r"losses\[0\] is 0.5"),
        (lambda model: next(losses(model)), TypeError, "losses takes a list or a generator of scalars"),
    ],
)
def test_what_is_no_loss_is_named_and_changes_nothing(given, error, message):
    model = mlp()
    before = [each.detach().clone() for each in model.parameters()]
    with pytest.raises(error, match=message):
        DASH(model).apply(given(model))
    assert all(torch.equal(each, held) for each, held in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"least": 1.5}, r"least must lie in \[0, 1\], got 1.5"),
        ({"decay_rate": 1.0}, r"decay_rate must lie in \[0, 1\), got 1"),
        ({"filters": "kernel"}, "unknown filters 'kernel'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        DASH(mlp(), **settings)
