"""CReLU, deep Fourier features, AID and the smooth leaky ReLU: values by hand, gradients, and one unit with two outputs."""

import copy
import math

import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close

from pliant import ContinualBackprop, trace
from pliant.nn import AID, CReLU, DeepFourier, SmoothLeakyReLU
from tests.networks import batch, enough, train

ALL = {"crelu": CReLU, "deep fourier": DeepFourier, "aid": AID, "smooth leaky": SmoothLeakyReLU}
DOUBLING = {"crelu": CReLU, "deep fourier": DeepFourier}


def test_crelu_passes_the_positive_and_the_negative_part():
    z = tensor([[2.0, -3.0, 0.0]])
    assert CReLU()(z).tolist() == [[2.0, 0.0, 0.0, 0.0, 3.0, 0.0]]


def test_deep_fourier_features_are_sine_and_cosine():
    z = tensor([[math.pi / 6, 0.0]], dtype=torch.float64)
    assert_close(DeepFourier()(z), tensor([[0.5, 0.0, math.sqrt(3) / 2, 1.0]], dtype=torch.float64))


def test_smooth_leaky_relu_is_its_formula():
    x = tensor([-6.0, -0.6, 0.0, 0.6], dtype=torch.float64)
    # 0.1 x + 0.9 x sigmoid(5 x / 3): sigmoid(1) = 0.731058578630005, sigmoid(-10) = 4.5397868702434e-05
    by_hand = [-0.6 - 5.4 * 4.5397868702434e-05, -0.06 - 0.54 * 0.268941421369995, 0.0, 0.06 + 0.54 * 0.731058578630005]
    assert_close(SmoothLeakyReLU()(x), tensor(by_hand, dtype=torch.float64))
    assert_close(SmoothLeakyReLU(a=0.25, c=2.0, p=4.0)(tensor([2.0])), tensor([0.5 + 1.5 * 0.731058578630005]))


def test_smooth_leaky_relu_refuses_a_steepness_of_zero():
    with pytest.raises(ValueError, match=r"^c must be above 0, got 0"):
        SmoothLeakyReLU(c=0)


def test_aid_in_evaluation_is_the_mean_of_its_two_sides():
    assert_close(AID(p=0.9).eval()(tensor([2.0, -2.0, 0.0])), tensor([1.8, -0.2, 0.0]))


def test_aid_in_training_passes_each_number_through_one_of_two_relus():
    torch.manual_seed(0)
    x = torch.randn(100_000, dtype=torch.float64)
    y = AID(p=0.8)(x)
    passed = y == x
    assert (passed | (y == 0.0)).all()
    assert_close(passed[x > 0].double().mean(), tensor(0.8, dtype=torch.float64), atol=0.01, rtol=0)
    assert_close(passed[x < 0].double().mean(), tensor(0.2, dtype=torch.float64), atol=0.01, rtol=0)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_aid_at_its_ends_is_a_relu(p):
    x = tensor([3.0, -4.0])
    kept = x.clamp(min=0.0) if p else x.clamp(max=0.0)
    assert AID(p)(x).tolist() == AID(p).eval()(x).tolist() == kept.tolist()


def test_aid_draws_from_the_generator_that_dropout_draws_from():
    x = torch.ones(1000)
    torch.manual_seed(3)
    y, after = AID(p=0.7)(x), torch.get_rng_state()
    torch.manual_seed(3)
    dropped = nn.functional.dropout(x, 0.3)
    assert torch.equal(y > 0, dropped > 0)
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_those_of_the_function(name):
    torch.manual_seed(0)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    act = ALL[name]()

    def run(x):
        torch.manual_seed(1)  # AID draws
        return act(x)

    assert torch.autograd.gradcheck(run, (x,))


@pytest.mark.parametrize("name", ALL)
def test_nan_is_passed_on_and_nothing_else_is_remembered(name):
    act = ALL[name]()
    assert act(tensor([math.nan, 1.0])).isnan().any()
    assert not act.state_dict()
    assert repr(copy.deepcopy(act)) == repr(act)


@pytest.mark.parametrize("name", ALL)
def test_compiled_is_the_same(name):
    x = torch.randn(5, 4)
    act = ALL[name]().eval()
    assert_close(torch.compile(act, backend="aot_eager", fullgraph=True)(x), act(x))


@pytest.mark.parametrize("name", DOUBLING)
def test_the_axis_of_units_is_doubled(name):
    images = torch.randn(2, 3, 5, 5)
    assert DOUBLING[name](dim=1)(images).shape == (2, 6, 5, 5)
    assert torch.equal(DOUBLING[name](dim=-3)(images), DOUBLING[name](dim=1)(images))


# -- units -------------------------------------------------------------------------------------------------------


def doubled(kind):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), kind(), nn.Linear(16, 5), kind(), nn.Linear(10, 2))


@pytest.mark.parametrize("name", DOUBLING)
def test_a_pre_activation_and_its_two_outputs_are_one_unit(name):
    model, x = doubled(DOUBLING[name]), batch(0, (6,))[0]
    plan = trace(model, x)
    assert [row.units for row in plan.rows] == [8, 5]
    assert plan.groups[0].outgoing[0].index == tuple((i, i + 8) for i in range(8))
    assert [row.verdict for row in plan.verify(model, x).rows] == ["exact", "exact"]


@pytest.mark.parametrize("name", DOUBLING)
def test_of_a_convolution_too_and_through_a_flatten(name):
    torch.manual_seed(0)
    kind = DOUBLING[name]
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), kind(-3), nn.Conv2d(8, 3, 2), kind(-3), nn.Flatten(), nn.Linear(24, 2)
    )
    x = torch.randn(3, 2, 5, 5)
    plan = trace(model, x)
    assert [row.units for row in plan.rows] == [4, 3]
    assert plan.groups[1].outgoing[0].index[1] == (4, 5, 6, 7, 16, 17, 18, 19)
    assert [row.verdict for row in plan.verify(model, x).rows] == ["exact", "exact"]


@pytest.mark.parametrize("name", DOUBLING)
def test_replacing_a_unit_zeroes_both_columns_and_keeps_the_function_but_for_its_own_part(name):
    model, x = doubled(DOUBLING[name]), batch(0, (6,))[0]
    cbp = ContinualBackprop(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        example_inputs=x,
        replacement_rate=0.2,
        maturity_threshold=2,
        hand_over_mean=False,
        include=["0"],
        seed=0,
    )
    compared = 0

    def check():
        nonlocal compared
        new = [unit for unit, age in enumerate(cbp.ages()["0"][0].tolist()) if age == 0]
        if not cbp.stats()["0"]["steps"] or not new:
            return
        columns = [column for unit in new for column in (unit, unit + 8)]
        assert not model[2].weight[:, columns].any()
        before = model(x)
        with torch.no_grad():
            model[0].weight[new] = 7.0 * torch.randn(len(new), 6)
            assert torch.equal(model(x), before)
        compared += len(new)

    train(model, cbp.optimizers[0], range(60), after=check)
    enough(cbp)
    assert compared >= 20


def test_the_utility_of_a_unit_counts_both_of_its_columns():
    """|z| reaches one column or the other, so the mean over both columns of |h| |w| is |z| times half of |w|, by its sign."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), CReLU(), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[2].weight.copy_(tensor([[1.0, 3.0, 5.0, 7.0]]))  # unit 0: 1 and 5, unit 1: 3 and 7
    cbp = ContinualBackprop(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        example_inputs=torch.ones(1, 2),
        utility="contribution",
        decay_rate=0.0,
        replacement_rate=0.0,
    )
    model(tensor([[2.0, -4.0]])).sum().backward()
    cbp.optimizers[0].step()
    # unit 0: (2 * 1 + 0 * 5) / 2;  unit 1: (0 * 3 + 4 * 7) / 2
    assert_close(cbp.utilities()["0"][0], tensor([1.0, 14.0]), check_dtype=False)


@pytest.mark.parametrize("name", ["aid", "smooth leaky"])
def test_elementwise_activations_keep_units_apart(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), ALL[name](), nn.Linear(8, 5), ALL[name](), nn.Linear(5, 2))
    x = torch.randn(4, 6)
    plan = trace(model, x)
    assert [row.units for row in plan.rows] == [8, 5]
    assert not plan.notes  # AID draws in training; its trial runs in evaluation
    assert [row.verdict for row in plan.verify(model, x).rows] == ["exact", "exact"]
