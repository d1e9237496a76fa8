from math import exp, sqrt

import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close

from pliant import L2, ContinualBackprop, SoftResets
from pliant.engine.normal_stream import normal_like
from pliant.methods.soft_resets import spread_after
from pliant.streams import stream_key
from tests.methods.runs import differences
from tests.networks import batch, convnet, mlp

MILD = {"gamma_step_size": 0.05, "spread": 0.5, "seed": 3}


def line(initial, now, lr=0.1, **settings):
    """A weight per input, and soft resets that began at `initial`; the loss is the output."""
    model = nn.Linear(len(initial), 1, bias=False)
    model.weight.data.copy_(tensor([initial]))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    soft = SoftResets(model, optimizer, **{**MILD, **settings})
    model.weight.data.copy_(tensor([now]))
    return model, optimizer, soft


# -- γ and the drift -----------------------------------------------------------------------------------------------------


def test_a_parameter_drifts_where_the_loss_falls_on_the_way_back():
    """σ = 0 of equal entries, so γ = 1 - η ∂L/∂θ · (θ - θ0) = 1 - 0.05 (1 · 2 + 2 · 1) = 0.8, and θ = θ0 + 0.8 (θ - θ0)."""
    model, _, soft = line([1.0, 1.0], [3.0, 2.0])
    soft.apply(lambda: model(tensor([[1.0, 2.0]])).sum())
    assert soft.gammas() == pytest.approx({"weight": 0.8})
    assert_close(model.weight.detach(), tensor([[2.6, 1.8]]))


def test_it_stays_where_the_loss_rises_on_the_way_back():
    model, _, soft = line([1.0, 1.0], [3.0, 2.0])
    soft.apply(lambda: -model(tensor([[1.0, 2.0]])).sum())
    assert soft.gammas() == {"weight": 1.0}
    assert model.weight.tolist() == [[3.0, 2.0]]


def test_gamma_ends_at_0_a_full_reset():
    model, _, soft = line([1.0, 1.0], [3.0, 2.0], gamma_step_size=10.0)
    soft.apply(lambda: model(tensor([[1.0, 2.0]])).sum())
    assert soft.gammas() == {"weight": 0.0}
    assert_close(model.weight.detach(), tensor([[1.0, 1.0]]))


def test_toward_zero_a_parameter_shrinks():
    """1 - 0.05 (3 + 4) = 0.65."""
    model, _, soft = line([1.0, 1.0], [3.0, 2.0], toward="zero")
    soft.apply(lambda: model(tensor([[1.0, 2.0]])).sum())
    assert_close(model.weight.detach(), 0.65 * tensor([[3.0, 2.0]]))


def test_inner_steps_go_on_from_where_the_first_ended():
    """L = θ²/2, θ0 = 0, θ = 2, so dL/dγ = 4 γ: γ = 1 - 0.05 · 4 = 0.8, then 0.8 - 0.05 · 3.2 = 0.64."""
    model, _, soft = line([0.0], [2.0], inner_steps=2)
    soft.apply(lambda: 0.5 * model.weight.square().sum())
    assert soft.gammas() == pytest.approx({"weight": 0.64})


@pytest.mark.parametrize(("samples", "inner_steps"), [(1, 1), (3, 2)])
def test_gamma_climbs_the_likelihood_of_the_batch_over_draws_of_the_parameters(samples, inner_steps):
    """By autograd through the drift, with the same numbers ε."""
    settings = {"samples": samples, "inner_steps": inner_steps, "gamma_step_size": 0.02, "spread": 0.7, "seed": 3}
    model = mlp().double()
    initial = {name: each.detach().clone() for name, each in model.named_parameters()}
    soft = SoftResets(model, torch.optim.SGD(model.parameters(), lr=0.1), **settings)
    with torch.no_grad():
        for each in model.parameters():
            each.mul_(1.5).add_(0.1)
    now = {name: each.detach().clone() for name, each in model.named_parameters()}
    x, y = batch(0, (6,), dtype=torch.float64)
    gamma = torch.ones(len(now), dtype=torch.float64)
    for inner in range(inner_steps):
        gamma.requires_grad_(True)
        likelihoods = []
        for sample in range(samples):
            noise = normal_like(list(now.values()), [stream_key(3, "soft resets", 1, inner, sample)])
            drifted = {
                name: g * now[name]
                + (1 - g) * initial[name]
                + e.double() * initial[name].std(correction=0) * (g**2 * 0.7**2 + 1 - g**2).sqrt()
                for name, g, e in zip(now, gamma, noise, strict=True)
            }
            likelihoods.append((-nn.functional.mse_loss(torch.func.functional_call(model, drifted, (x,)), y)).exp())
        (slope,) = torch.autograd.grad(torch.stack(likelihoods).mean().log(), gamma)
        gamma = (gamma.detach() + 0.02 * slope).clamp(0.0, 1.0)
    soft.apply(lambda: nn.functional.mse_loss(model(x), y))
    assert_close(tensor(list(soft.gammas().values()), dtype=torch.float64), gamma)
    assert 0.5 < gamma.min() < 0.999
    for name, g in zip(now, gamma, strict=True):
        assert_close(model.get_parameter(name).detach(), g * now[name] + (1 - g) * initial[name])


def test_the_spread_of_a_drift_and_its_slope():
    """σ = 2, s = 0.6, γ = 0.5: 2 √(0.09 + 0.75) = 2 √0.84, and half the derivative of 4 (1 - 0.64 γ²), over it."""
    spread, slope = spread_after(tensor([0.5]), tensor([2.0]), 0.6)
    assert spread.item() == pytest.approx(2.0 * sqrt(0.84))
    assert slope.item() == pytest.approx(0.5 * 4.0 * -0.64 * 2 * 0.5 / (2.0 * sqrt(0.84)))


def test_of_two_draws_the_likelier_counts_more():
    """One weight that begins as 0 and 2 (σ = 1), a loss of its own choice at each call: 0 and 3, slopes 1 and 5 along θ - θ0."""
    model, _, soft = line([0.0, 2.0], [1.0, 2.0], samples=2, spread=1.0)
    calls = iter([(0.0, 1.0), (3.0, 5.0)])

    def loss():
        value, slope = next(calls)
        first = model.weight[0, 0]
        return value + slope * (first - first.detach())

    soft.apply(loss)
    share = 1.0 / (1.0 + exp(-3.0))
    assert soft.gammas()["weight"] == pytest.approx(1.0 - 0.05 * (share * 1.0 + (1.0 - share) * 5.0))


# -- the step that follows -----------------------------------------------------------------------------------------------


def test_the_step_that_follows_is_greater_and_the_next_one_is_not():
    """γ = 0.8, s = 0.5: 0.64 + 0.36 / 0.25 = 2.08 times 0.1 · (1, 2)."""
    model, optimizer, soft = line([1.0, 1.0], [3.0, 2.0])
    soft.apply(lambda: model(tensor([[1.0, 2.0]])).sum())
    model(tensor([[1.0, 2.0]])).sum().backward()
    optimizer.step()
    assert_close(model.weight.detach(), tensor([[2.6 - 0.208, 1.8 - 0.416]]))
    optimizer.step()
    assert_close(model.weight.detach(), tensor([[2.6 - 0.308, 1.8 - 0.616]]))


def test_at_full_spread_steps_are_as_they_are():
    model, optimizer, soft = line([1.0, 1.0], [3.0, 2.0], spread=1.0)
    soft.apply(lambda: model(tensor([[1.0, 2.0]])).sum())
    model(tensor([[1.0, 2.0]])).sum().backward()
    optimizer.step()
    assert_close(model.weight.detach(), tensor([[2.5, 1.6]]))


@pytest.mark.parametrize("first", [True, False])
def test_a_unit_that_is_replaced_after_the_step_stays_replaced(first):
    """Only the optimizer's own step is made greater, whichever method was built first: its outgoing weights are 0."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    made = {}

    def soft():
        made["soft"] = SoftResets(model, optimizer, gamma_step_size=0.3, spread=0.5, seed=1)

    def cbp():
        made["cbp"] = ContinualBackprop(
            model, optimizer, example_inputs=torch.zeros(2, 6), replacement_rate=0.5, maturity_threshold=0, seed=1
        )

    for make in (soft, cbp) if first else (cbp, soft):
        make()
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.3)
    x, y = batch(0, (6,))
    made["soft"].apply(lambda: nn.functional.mse_loss(model(x), y))
    assert min(made["soft"].gammas().values()) < 0.999
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()
    replaced = {name: sum(group["replaced"]) for name, group in made["cbp"].stats().items()}
    assert [int((model[layer].weight == 0).all(0).sum()) for layer in (2, 4)] == list(replaced.values())
    assert all(replaced.values())


# -- what it reads -------------------------------------------------------------------------------------------------------


def test_what_an_event_reads_leaves_no_trace():
    """At γ = 1, buffers, gradients, random numbers and what other methods have recorded are as without it."""

    def stepped(apply):
        model = convnet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        cbp = ContinualBackprop(model, optimizer, example_inputs=torch.zeros(2, 2, 8, 8), trial=False, seed=0)
        soft = SoftResets(model, optimizer, gamma_step_size=0.0, spread=0.5, samples=2, seed=0)
        x, _ = batch(0, (2, 8, 8))
        model(x).square().sum().backward()
        if apply:
            soft.apply(lambda: model(x).square().sum())
        gradients = [each.grad.clone() for each in model.parameters()]
        optimizer.step()
        return [model.state_dict(), gradients, cbp.state_dict(), torch.get_rng_state()]

    assert differences(stepped(apply=True), stepped(apply=False)) == []


def test_a_frozen_parameter_and_one_that_the_loss_does_not_depend_on_stay():
    model = mlp()
    soft = SoftResets(model, torch.optim.SGD(model.parameters(), lr=0.1), gamma_step_size=1.0, spread=0.9, seed=0)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(1.0)
    model[0].weight.requires_grad_(False)
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    x, _ = batch(0, (6,))
    soft.apply(lambda: model[2](model[1](model[0](x))).square().sum())
    changed = {name for name, each in model.named_parameters() if not torch.equal(each, before[name])}
    assert changed == {"0.bias", "2.weight", "2.bias"}


def test_an_event_and_its_step_may_lie_on_both_sides_of_a_stop():
    def begun():
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        soft = SoftResets(model, optimizer, gamma_step_size=0.1, spread=0.5, seed=1)
        return model, optimizer, soft

    def go_on(model, optimizer):
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        return model.state_dict()

    x, y = batch(0, (6,))
    model, optimizer, soft = begun()
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.5)
    soft.apply(lambda: nn.functional.mse_loss(model(x), y))
    saved = {name: each.clone() for name, each in model.state_dict().items()}, soft.state_dict()
    other, other_optimizer, other_soft = begun()
    other.load_state_dict(saved[0])
    other_soft.load_state_dict(saved[1])
    assert other_soft.gammas() == soft.gammas()
    assert min(soft.gammas().values()) < 0.99
    assert differences(go_on(model, optimizer), go_on(other, other_optimizer)) == []


def test_after_a_restart_it_drifts_to_where_the_parameters_are():
    model, _, soft = line([1.0, 1.0], [3.0, 2.0])
    soft.restart()
    soft.apply(lambda: model(tensor([[1.0, 2.0]])).sum())
    assert model.weight.tolist() == [[3.0, 2.0]]


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda model: lambda: 0.5, TypeError, r"loss\(\) is 0.5"),
        (lambda model: lambda: model.weight, ValueError, r"loss\(\) has shape \(1, 2\) and a graph"),
        (lambda model: lambda: model.weight.sum() * torch.nan, ValueError, r"loss\(\) is nan: nothing was changed"),
        (lambda model: lambda: (model.weight - model.weight.detach()).abs().pow(0.5).sum(), ValueError, "not finite"),
        (
            lambda model: lambda x: model.weight.sum(),
            TypeError,
            "loss is called without arguments, which <lambda> does not take",
        ),
        (lambda model: model.weight.sum(), TypeError, "loss is a function of"),
    ],
)
def test_what_is_no_loss_is_named_and_changes_nothing(loss, error, message):
    model, _, soft = line([1.0, 1.0], [3.0, 2.0])
    before = soft.state_dict()
    with pytest.raises(error, match=message):
        soft.apply(loss(model))
    assert model.weight.tolist() == [[3.0, 2.0]]
    assert differences(before, soft.state_dict()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma_step_size": -1.0}, "gamma_step_size must be 0 or more"),
        ({"spread": 0.0}, "spread must be above 0"),
        ({"spread": 1.5}, r"spread must lie in \[0, 1\]"),
        ({"inner_steps": 0}, "inner_steps must be 1 or more"),
        ({"samples": 0}, "samples must be 1 or more"),
        ({"toward": "mean"}, "unknown toward 'mean'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    model = mlp()
    with pytest.raises(ValueError, match=message):
        SoftResets(model, torch.optim.SGD(model.parameters(), lr=0.1), **{**MILD, **settings})


def test_a_pull_beside_it_is_part_of_the_step():
    """L2 adds 0.5 θ~ to the gradient: 2.08 · 0.1 · (1 + 0.5 · 2.6), and the second 2 + 0.5 · 1.8."""
    model, optimizer, soft = line([1.0, 1.0], [3.0, 2.0])
    L2(model, optimizer, strength=0.5)
    soft.apply(lambda: model(tensor([[1.0, 2.0]])).sum())
    model(tensor([[1.0, 2.0]])).sum().backward()
    optimizer.step()
    assert_close(model.weight.detach(), tensor([[2.6 - 0.208 * 2.3, 1.8 - 0.208 * 2.9]]))
