from math import sqrt

import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close

from pliant import FIRE
from pliant.methods.fire import equal_singular_values
from tests.networks import convnet, mlp, train, transformer


def test_all_singular_values_of_a_layer_become_equal():
    """√(outputs / inputs): 12 x 6, 9 x 12 and 2 x 9."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, range(20))
    FIRE(model).apply()
    for layer, value in ((model[0], sqrt(12 / 6)), (model[2], sqrt(9 / 12)), (model[4], sqrt(2 / 9))):
        values = torch.linalg.svdvals(layer.weight)
        assert_close(values, torch.full_like(values, value))


def test_of_a_filter_at_each_position_of_its_kernel():
    """√(C_out / C_in) / positions: 2 to 6 channels, 3 x 3."""
    model = convnet()
    bias = model[0][0].bias.clone()
    FIRE(model).apply()
    for place in range(9):
        values = torch.linalg.svdvals(model[0][0].weight.flatten(2)[:, :, place])
        assert_close(values, torch.full_like(values, sqrt(6 / 2) / 9))
    assert torch.equal(model[0][0].bias, bias)


def test_it_is_the_nearest_matrix_of_equal_singular_values():
    """A symmetric positive one becomes the identity, a rotation scaled by 5 the rotation; each as by hand."""
    assert_close(equal_singular_values(tensor([[2.0, 1.0], [1.0, 3.0]])), torch.eye(2))
    assert_close(equal_singular_values(tensor([[0.0, -5.0], [5.0, 0.0]])), tensor([[0.0, -1.0], [1.0, 0.0]]))


def test_it_is_where_the_sources_newton_schulz_steps_lead():
    """X <- 1.5 X - 0.5 X Xᵀ X, from W over its length."""
    torch.manual_seed(0)
    w = torch.randn(5, 8, dtype=torch.float64)
    x = w / w.norm()
    for _ in range(30):
        x = 1.5 * x - 0.5 * x @ x.T @ x
    assert_close(equal_singular_values(w), sqrt(5 / 8) * x)


def test_a_direction_that_was_cut_off_gets_one_again():
    w = torch.randn(4, 4)
    w[:, 1] = 0.0
    assert_close(torch.linalg.svdvals(equal_singular_values(w)), torch.ones(4))


def test_queries_keys_and_values_that_share_a_parameter_are_three_matrices():
    model = transformer()
    FIRE(model).apply()
    for block in model.layer.self_attn.in_proj_weight.chunk(3):
        assert_close(block @ block.T, torch.eye(8), rtol=1e-5, atol=1e-5)
    assert model.layer.norm1.weight.tolist() == [1.0] * 8


def test_the_transpose_of_a_filter_has_its_outputs_second():
    layer = nn.ConvTranspose2d(2, 6, 3)
    FIRE(layer).apply()
    values = torch.linalg.svdvals(layer.weight[:, :, 0, 0])
    assert_close(values, torch.full_like(values, sqrt(6 / 2) / 9))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parameters": "*.bias"}, "'0.bias' is no matrix, and has no singular values"),
        ({"runs": 2}, "FIRE knows no runs"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        FIRE(mlp(), **settings)
