import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close

from pliant import NormalizeAndProject
from tests.networks import batch, convnet, mlp, train, transformer


def normed(norm=nn.LayerNorm, bias=True):
    """A norm before each nonlinearity, none after the head."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12, bias=bias),
        norm(12),
        nn.ReLU(),
        nn.Linear(12, 9, bias=bias),
        norm(9),
        nn.ReLU(),
        nn.Linear(9, 2),
    )


X = batch(0, (6,))[0]


def attached(model, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return optimizer, NormalizeAndProject(model, optimizer, example_inputs=X, **settings)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, lambda units: nn.GroupNorm(3, units)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_projection_leaves_the_function_as_it_is(norm, bias):
    """Trained, so that weights have grown and biases are none of 0; in float64, but for the 1e-5 that norms add to a variance."""
    model = normed(norm, bias).double()
    optimizer, nap = attached(model, period=None)
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-14
    train(model, optimizer, range(30), dtype=torch.float64)
    x = batch(99, (6,), dtype=torch.float64)[0]
    before, weight = model(x), model[0].weight.clone()
    nap.apply()
    assert (model[0].weight - weight).norm() > 1e-3
    assert_close(model(x), before, rtol=1e-9, atol=1e-9)


def test_weights_keep_the_norm_that_they_had_and_biases_their_proportion():
    """||W|| = 5 at construction; W and b are doubled and come back."""
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Tanh(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(tensor([[3.0, 0.0], [0.0, 4.0]]))
        model[0].bias.copy_(tensor([1.0, 2.0]))
    nap = NormalizeAndProject(model, period=None, example_inputs=torch.randn(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(tensor([[0.0, 8.0], [6.0, 0.0]]))
        model[0].bias.mul_(4.0)
    nap.apply()
    assert_close(model[0].weight, tensor([[0.0, 4.0], [3.0, 0.0]]))
    assert_close(model[0].bias, tensor([2.0, 4.0]))


def test_a_norm_goes_with_its_shift_to_the_root_of_its_size_where_its_scale_does_not_matter():
    """Behind it a ReLU, and a layer without a bias before the next norm: of 12 units, ||(γ, β)|| becomes √12."""
    model = normed(bias=False)
    _, nap = attached(model, period=None)
    assert nap.names == ["0.weight", "1.weight", "3.weight"]  # behind the norm at 4 is the head
    with torch.no_grad():
        model[1].weight.fill_(3.0)
        model[1].bias.fill_(4.0)
    before = model(X)
    nap.apply()
    assert_close(model[1].weight, torch.full((12,), 3.0 / 5.0))
    assert_close(model[1].bias, torch.full((12,), 4.0 / 5.0))
    assert_close(model(X), before, rtol=1e-3, atol=1e-3)


def test_what_a_layer_s_bias_would_betray_is_left_out():
    assert attached(normed())[1].names == ["0.weight", "3.weight"]


@pytest.mark.parametrize(
    ("model", "x", "name"),
    [
        (normed(), X, "6.weight"),  # the head
        (normed(), X, "1.weight"),  # behind the norm is a layer with a bias
        (mlp(), X, "0.weight"),  # no norm
        (convnet(), torch.randn(4, 2, 8, 8), "0.0.weight"),  # a batch norm divides by what it saw
        (transformer(), torch.randn(4, 4, 6), "layer.linear2.weight"),  # a residual sum
    ],
    ids=["head", "norm", "mlp", "batch norm", "residual"],
)
def test_a_layer_whose_scale_matters_is_refused_with_the_reason(model, x, name):
    with pytest.raises(
        ValueError, match=rf"'{name}' may not be projected: with its layer doubled the output changes by"
    ):
        NormalizeAndProject(model, period=None, example_inputs=x, parameters=name)


def test_a_network_without_such_a_layer_is_refused():
    with pytest.raises(ValueError, match="no layer may be projected"):
        NormalizeAndProject(mlp(), period=None, example_inputs=X)


def test_untried_layers_must_be_named():
    with pytest.raises(ValueError, match="give example_inputs=x"):
        NormalizeAndProject(normed(), period=None)
    assert NormalizeAndProject(mlp(), period=None, parameters="0.weight").names == ["0.weight"]


def test_the_trial_leaves_the_model_alone():
    model, twin = normed(), normed()
    attached(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert model.training
    assert model[1].eps == 1e-5


def test_a_layer_of_zeros_stays_one():
    model = normed(bias=False)
    _, nap = attached(model, period=None)
    nn.init.zeros_(model[0].weight)
    nap.apply()
    assert not model[0].weight.any()
