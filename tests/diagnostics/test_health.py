"""Unit health by hand: a few inputs, a few units, each class seen and not seen."""

import pytest
import torch
from torch import nan, tensor
from torch.testing import assert_close

from pliant.diagnostics import (
    dead,
    dormant_by_activity,
    dormant_by_firing,
    dormant_by_gradient,
    feature_norm,
    features,
    gradient_norm,
    linearized,
    saturated,
    share_of_layer,
    weight_magnitude,
)

RUNS = torch.randn(3, 200, 7, generator=torch.Generator().manual_seed(0)).relu()
RUNS[1, :, 2], RUNS[2, :, 4] = 0.0, 1.0


def test_a_unit_is_dead_only_if_it_is_zero_on_every_input():
    h = tensor([[0.0, 0.0, -1.0], [0.0, 1e-30, 1.0]])
    assert dead(h).tolist() == [True, False, False]


def test_nature_s_dormancy_counts_inputs_above_zero_and_one_percent_is_not_less_than_one_percent():
    h = torch.full((200, 4), -1.0)
    h[:1, 1], h[:2, 2], h[:, 3] = 5.0, 5.0, 5.0  # 0.5%, 1%, 100%
    assert dormant_by_firing(h).tolist() == [True, True, False, False]
    assert dormant_by_firing(h, share=0.002).tolist() == [True, False, False, False]


def test_redo_s_dormancy_is_a_share_of_the_layer_s_mean_size():
    h = tensor([[0.1, -2.0, 1.0], [-0.1, 2.0, 4.8]])  # mean sizes 0.1, 2, 2.9, of a mean of 5/3: 0.06, 1.2, 1.74
    assert_close(share_of_layer(h.abs().mean(0)), tensor([0.06, 1.2, 1.74]))
    assert dormant_by_activity(h, tau=0.0601).tolist() == [True, False, False]
    assert dormant_by_activity(h, tau=0.0599).tolist() == [False, False, False]


def test_a_unit_that_is_dormant_by_one_definition_need_not_be_by_another():
    h = tensor([[-5.0, 0.001, 5.0], [-5.0, 0.001, 5.0]])
    assert dormant_by_firing(h).tolist() == [True, False, False]
    assert dormant_by_activity(h).tolist() == [False, True, False]
    assert dormant_by_gradient(tensor([[1.0, 1.0, 1e-3], [1.0, -1.0, 0.0]])).tolist() == [False, False, True]


def test_all_units_of_a_silent_layer_are_dormant():
    assert dormant_by_activity(torch.zeros(5, 3)).all()
    assert dormant_by_gradient(torch.zeros(5, 3)).all()


@pytest.mark.parametrize("bad", [nan, torch.inf])
def test_a_layer_that_is_not_finite_has_no_unit_dormant_by_its_share(bad):
    h = tensor([[bad, 0.0, 1.0]])
    assert share_of_layer(h[0]).isnan().all()
    assert not dormant_by_activity(h).any()


def test_a_unit_with_a_nan_is_in_no_class():
    h = torch.zeros(300, 1)
    h[7] = nan
    assert not any(each(h).any() for each in (dead, dormant_by_firing, dormant_by_activity, linearized))
    h = torch.ones(300, 1)
    h[7] = nan
    assert not saturated(h).any()
    assert not linearized(h).any()


def test_a_tanh_is_saturated_beyond_0_99_on_99_percent_of_inputs_at_either_end():
    h = torch.full((100, 4), 0.995)
    h[::2, 1] *= -1.0
    h[0, 2] = 0.5  # 99%
    h[:2, 3] = 0.5  # 98%
    assert saturated(h).tolist() == [True, True, True, False]
    assert not saturated(torch.full((100, 1), 0.99)).any()


def test_a_sigmoid_is_saturated_below_0_01_and_above_0_99():
    h = tensor([[0.005, 0.995, 0.5, -0.995]])
    assert saturated(h, "sigmoid").tolist() == [True, True, False, True]


def test_saturation_is_decided_in_full_precision():
    """0.99 is no float16: the nearest, 0.99023, is above it."""
    h = tensor([[2027 / 2048, 2028 / 2048]], dtype=torch.float16)
    assert saturated(h).tolist() == [False, True]


def test_an_activation_without_flat_ends_is_an_error_that_names_those_with():
    with pytest.raises(ValueError, match=r"'relu' has no flat ends.*tanh, hardtanh, sigmoid"):
        saturated(torch.zeros(2, 2), "relu")


def test_a_relu_is_linearized_if_it_is_above_zero_on_every_input_before_it_or_behind_it():
    z = tensor([[1.0, -1.0, 0.0], [2.0, 3.0, 4.0]])
    assert linearized(z).tolist() == linearized(z.relu()).tolist() == [True, False, False]


@pytest.mark.parametrize("measure", [dead, dormant_by_firing, dormant_by_activity, linearized, saturated, feature_norm])
def test_a_stack_of_runs_gives_each_run_s_own_answer(measure):
    assert_close(measure(RUNS), torch.stack([measure(run) for run in RUNS]))
    assert measure in (saturated, feature_norm) or measure(RUNS).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sums_are_kept_wide_whatever_the_activity_s_type(dtype):
    h = torch.full((5000, 2), 100.0, dtype=dtype)  # a float16 sum would be infinite, a bfloat16 one would stop at 32768
    h[:, 1] = 1.0
    assert_close(share_of_layer(h.abs().mean(-2, dtype=torch.float64)), tensor([200 / 101, 2 / 101]).double())
    assert dormant_by_activity(h, tau=0.02).tolist() == [False, True]
    assert feature_norm(h.to(dtype)).item() == pytest.approx(10001**0.5)


# -- shapes ------------------------------------------------------------------------------------------------------------


def test_tokens_and_pixels_count_as_inputs():
    tokens = torch.arange(24.0).view(2, 3, 4)  # (batch, time, units)
    assert torch.equal(features(tokens), tokens.view(6, 4))
    channels = torch.arange(48.0).view(2, 4, 3, 2)  # (batch, channels, height, width)
    assert features(channels, axis=1).shape == (12, 4)
    assert torch.equal(features(channels, axis=1)[:, 2], channels[:, 2].flatten())


def test_leading_axes_stay_apart():
    h = torch.arange(96.0).view(2, 2, 4, 3, 2)  # (runs, batch, channels, height, width)
    assert torch.equal(features(h, axis=2, leading=1), torch.stack([features(run, axis=1) for run in h]))


def test_one_example_and_none_are_matrices_too():
    assert features(torch.zeros(5)).shape == (1, 5)
    assert features(torch.zeros(0, 4, 5)).shape == (0, 5)


@pytest.mark.parametrize(("axis", "leading"), [(2, 0), (-3, 0), (0, 1), (-2, 1)])
def test_an_axis_that_cannot_hold_units_is_an_error(axis, leading):
    with pytest.raises(ValueError, match=r"axis -?\d of a tensor of shape \(2, 3\)"):
        features(torch.zeros(2, 3), axis=axis, leading=leading)


# -- weights and gradients -----------------------------------------------------------------------------------------------


def test_weight_magnitude_counts_every_entry_once_whatever_tensor_it_is_in():
    assert weight_magnitude(tensor([[1.0, -1.0], [1.0, -1.0]]), tensor([6.0])).item() == 2.0


def test_gradient_norm_is_that_of_all_tensors_laid_end_to_end():
    tensors = [torch.randn(3, 4), torch.randn(5), torch.randn(2, 2, 2)]
    assert_close(gradient_norm(*tensors), torch.cat([each.flatten() for each in tensors]).norm().double())


def test_sizes_of_a_stack_are_those_of_each_run():
    weights = torch.randn(3, 4, 5), torch.randn(3, 2)
    for measure in (weight_magnitude, gradient_norm):
        each = torch.stack([measure(*run) for run in zip(*weights, strict=True)])
        assert_close(measure(*weights, leading=1), each)
        with pytest.raises(ValueError, match="give at least one tensor"):
            measure()
