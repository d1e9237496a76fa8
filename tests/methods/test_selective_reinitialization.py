import pytest
import torch
from torch import nn, tensor

from pliant import L2, ContinualBackprop, SelectiveReinitialization
from pliant.methods.selective_reinitialization import least_useful
from tests.networks import enough, mlp, train

W = tensor([[3.0, -1.0, 0.5, 0.0]])
X = tensor([[1.0, 1.0, 8.0, 1.0]])  # the gradient of a sum of outputs


def after_one_step(optimizer_of=torch.optim.SGD, also=lambda model, optimizer: None, **settings):
    model = nn.Linear(4, 1, bias=False)
    model.weight.data.copy_(W)
    optimizer = optimizer_of(model.parameters(), lr=0.0)
    also(model, optimizer)
    SelectiveReinitialization(model, optimizer, period=1, seed=0, **settings)
    model(X).sum().backward()
    optimizer.step()
    return model, optimizer, (model.weight != W)[0].tolist()


@pytest.mark.parametrize(
    ("utility", "tau", "redrawn"),
    [
        ("gradient", 0.0, [False, False, False, True]),  # |w g| = 3, 1, 4, 0, of mean 2
        ("gradient", 0.5, [False, True, False, True]),
        ("gradient", 1.5, [True, True, False, True]),
        ("magnitude", 0.5, [False, False, True, True]),  # |w| = 3, 1, 0.5, 0, of mean 1.125
    ],
)
def test_weights_at_or_below_a_share_of_the_mean_utility_are_drawn_anew(utility, tau, redrawn):
    model, _, found = after_one_step(utility=utility, tau=tau)
    assert found == redrawn
    assert model.weight[0, redrawn].abs().max() <= 0.5  # 1 / √4
    assert not model.weight.grad[0, redrawn].any()


def test_a_utility_that_is_not_finite_tells_nothing():
    assert not least_useful(tensor([1.0, torch.nan, 0.0]), 0.5).any()


@pytest.mark.parametrize(("policy", "size"), [("fill", 64.5), ("zero", 0.0), ("keep", 1.0)])
def test_what_adam_remembers_of_redrawn_weights(policy, size):
    """Of g = 1, 1, 8, 1 weights 1 and 3 are redrawn; the mean g² of the others is (1 + 64) / 2."""
    _, optimizer, _ = after_one_step(torch.optim.Adam, tau=0.5, optimizer_state=policy)
    (state,) = optimizer.state.values()
    kept = policy == "keep"
    expected = 32.5 if policy == "fill" else size
    assert state["exp_avg_sq"][0].tolist() == pytest.approx([0.001, expected * 0.001, 0.064, expected * 0.001])
    assert state["exp_avg"][0].tolist() == pytest.approx([0.1, 0.1 * kept, 0.8, 0.1 * kept])


def test_it_looks_at_the_loss_s_gradient_and_not_at_what_a_pull_adds():
    _, _, found = after_one_step(also=lambda model, optimizer: L2(model, optimizer, strength=100.0), tau=0.5)
    assert found == [False, True, False, True]


def test_a_parameter_without_a_gradient_is_left_alone_by_gradient_and_not_by_magnitude():
    for utility, moves in (("gradient", False), ("magnitude", True)):
        model = mlp()
        SelectiveReinitialization(
            model, torch.optim.SGD(model.parameters(), lr=0.1), utility=utility, tau=0.5, period=None, seed=1
        ).apply()
        assert torch.equal(model[0].weight, mlp()[0].weight) is not moves


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": -1.0}, "tau must be 0 or more"),
        ({"utility": "weight"}, "unknown utility 'weight'; known: gradient, magnitude"),
        ({"optimizer_state": "fresh"}, "unknown optimizer_state 'fresh'; known: fill, zero, keep"),
        ({"runs": 2}, "leave runs out"),
    ],
)
def test_bad_settings_are_named(settings, message):
    model = mlp()
    with pytest.raises(ValueError, match=message):
        SelectiveReinitialization(model, torch.optim.SGD(model.parameters(), lr=0.1), **settings)


@pytest.mark.parametrize("order", [1, -1])
def test_beside_resets_of_units_sizes_of_gradients_stay_0_or_more(order):
    """It may fill the size of an entry that a reset has just forgotten, of which Adam then starts anew."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    makers = [
        lambda: ContinualBackprop(
            model, optimizer, example_inputs=torch.zeros(2, 6), replacement_rate=0.3, maturity_threshold=1, seed=1
        ),
        lambda: SelectiveReinitialization(model, optimizer, tau=0.1, period=3, seed=1),
    ]
    methods = [make() for make in makers[::order]]
    train(model, optimizer, range(40))
    enough(methods[0 if order == 1 else 1])
    assert all((each["exp_avg_sq"] >= 0).all() for each in optimizer.state.values())
    assert all(each.isfinite().all() for each in model.parameters())
