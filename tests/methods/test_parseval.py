import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close

from pliant import Parseval
from pliant.methods.parseval import apart_from_orthogonal
from tests.networks import convnet, mlp


@pytest.mark.parametrize(
    ("w", "s", "gradient"),
    [
        # W Wᵀ - s I = [[1 + 1 - 2, 1], [1, 1 - 2]] = [[0, 1], [1, -1]]; times W, times 4
        ([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]], 2.0, [[0.0, 4.0, 0.0], [4.0, 0.0, 0.0]]),
        # of the transpose, the transpose: columns instead of rows
        ([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], 2.0, [[0.0, 4.0], [4.0, 0.0], [0.0, 0.0]]),
        ([[0.0, 3.0], [-3.0, 0.0]], 9.0, [[0.0, 0.0], [0.0, 0.0]]),  # at home
    ],
)
def test_the_pull_is_4_w_wt_minus_s_times_w(w, s, gradient):
    assert_close(apart_from_orthogonal(tensor(w), s), tensor(gradient))


@pytest.mark.parametrize("name", ["1.0.weight", "4.weight"])
def test_it_is_the_gradient_of_the_penalty_of_a_filter_and_of_a_matrix(name):
    model = convnet().double()
    w = model.get_parameter(name)
    wide = w.flatten(1)
    (wide @ wide.T - 2.0 * torch.eye(len(wide))).square().sum().backward()
    expected, before = w.grad.clone(), w.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    Parseval(model, optimizer, strength=0.5, parameters=name)
    w.grad.zero_()
    optimizer.step()
    assert_close(before - w.detach(), 0.5 * expected)


def test_it_pulls_to_rows_or_columns_that_are_orthogonal_and_of_length_root_s():
    model = mlp()  # 12 x 6, and 9 x 12
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    Parseval(model, optimizer, strength=0.2, parameters=["0.weight", "2.weight"])
    for _ in range(400):
        optimizer.zero_grad()
        sum(0.0 * each.sum() for each in model.parameters()).backward()
        optimizer.step()
    assert_close(model[0].weight.T @ model[0].weight, 2.0 * torch.eye(6), rtol=1e-4, atol=1e-4)
    assert_close(model[2].weight @ model[2].weight.T, 2.0 * torch.eye(9), rtol=1e-4, atol=1e-4)
    assert torch.equal(model[4].weight, mlp()[4].weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": -1.0}, "scale must be 0 or more"),
        ({"parameters": "0.*"}, r"'0.bias' is no matrix \(shape \(12,\)\); name the weights of hidden layers"),
        ({"parameters": None}, "'0.bias' is no matrix"),
    ],
)
def test_bad_settings_are_named(settings, message):
    model = mlp()
    given = {"strength": 0.1, "parameters": "0.weight", **settings}
    with pytest.raises(ValueError, match=message):
        Parseval(model, torch.optim.SGD(model.parameters(), lr=0.1), **given)


def test_the_layers_must_be_named_since_the_last_is_left_free():
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="parameters"):
        Parseval(model, torch.optim.SGD(model.parameters(), lr=0.1), strength=0.1)
