"""Every unit moves toward a fresh one by its strength; what Adam remembers of it shrinks by as much."""

from math import exp

import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close

from pliant import ContinualBackprop, PartialResets, chain_groups
from pliant.engine.select import strength
from tests.methods.test_grama import V, X, network
from tests.networks import batch, enough, mlp, train


def tens(name, shape, generator):
    return torch.full(shape, 10.0)


def test_strength_is_full_up_to_the_threshold_and_falls_above_it():
    u = tensor([0.2, 0.95, 1.0, 1.45])
    assert_close(
        strength(u, 0.012, 16.0, 0.95, "exponential"), tensor([0.012, 0.012, 0.012 * exp(-0.8), 0.012 * exp(-8.0)])
    )
    u = tensor([0.0, 1.0, 1.1])
    assert_close(strength(u, 0.015, 16.0, 1.0, "sigmoid"), tensor([0.015, 0.015, 0.015 * 2.0 / (1.0 + exp(1.6))]))


def test_a_score_that_is_not_known_resets_nothing():
    assert strength(tensor([torch.nan]), 0.5, 1.0, 1.0, "sigmoid").tolist() == [0.0]


def test_utility_starts_at_1_and_averages_shares_of_gradient_until_the_reset_that_reads_it():
    """G = 16/7, 8/7, 4/7 and 0, as in test_grama."""
    model, optimizer = network()
    resets = PartialResets(model, optimizer, example_inputs=X, decay_rate=0.75, replacement_rate=1e-9, period=3)
    share = tensor([[16.0, 8.0, 4.0, 0.0]]) / 7.0
    for expected in (0.75 + 0.25 * share, 0.5625 + 0.4375 * share, torch.ones(1, 4)):
        optimizer.zero_grad()
        model(X).sum().backward()
        optimizer.step()
        assert_close(resets.utilities()["0"], expected)


def test_weights_move_by_their_unit_s_strength_and_biases_stay():
    """η = 0: u = G. With κ = 1 and τ = 1, f = exp(1 - 16/7), exp(1 - 8/7), 1 and 1."""
    model, optimizer = network()
    bias = model[0].bias.clone()
    PartialResets(
        model,
        optimizer,
        example_inputs=X,
        decay_rate=0.0,
        replacement_rate=0.5,
        sharpness=1.0,
        threshold=1.0,
        period=1,
        init=tens,
    )
    model(X).sum().backward()
    optimizer.step()
    r = tensor([0.5 * exp(-9 / 7), 0.5 * exp(-1 / 7), 0.5, 0.5])
    assert_close(model[0].weight[:, 0], 1.0 + 9.0 * r)  # (1 - r) 1 + r 10
    assert_close(model[2].weight[0], (1.0 - r) * tensor(V))
    assert torch.equal(model[0].bias, bias)


@pytest.mark.parametrize(("policy", "share"), [("fresh", 0.75), ("keep", 1.0)])
def test_adam_s_averages_shrink_by_the_strength_and_its_count_goes_on(policy, share):
    """All units at strength 1/4, beside a network without the method that has seen the same gradients."""
    states = []
    for attached in (True, False):
        model, _ = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
        if attached:
            settings = {"replacement_rate": 0.25, "threshold": 99.0, "period": 2, "optimizer_state": policy}
            PartialResets(model, optimizer, example_inputs=X, **settings)
        for scale in (1.0, 3.0):
            optimizer.zero_grad()
            (scale * model(X)).sum().backward()
            optimizer.step()
        states.append([optimizer.state[each] for each in (model[0].weight, model[2].weight)])
    for mine, plain in zip(*states, strict=True):
        assert plain["exp_avg"].any()
        assert_close(mine["exp_avg"], share * plain["exp_avg"])
        assert_close(mine["exp_avg_sq"], share * plain["exp_avg_sq"])
        assert mine["step"] == plain["step"] == 2


def test_entries_that_are_young_after_full_resets_are_stepped_as_by_adams_of_their_own():
    """Beside continual backprop: an Adam for each entry, with a count of its own, by the book (Kingma and Ba, algorithm 1)."""
    lr, b1, b2, eps, ρ = 0.01, 0.9, 0.999, 1e-8, 0.1
    model = mlp(dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(b1, b2), eps=eps)
    m, v, τ = ({p: torch.zeros_like(p) for p in model.parameters()} for _ in range(3))
    before = {}

    def entries(replacement):
        """Of the units, in each parameter: a mask."""
        first = int(replacement.group)
        for name, axis in ((f"{first}.weight", 0), (f"{first}.bias", 0), (f"{first + 2}.weight", 1)):
            parameter = model.get_parameter(name)
            yield parameter, (slice(None),) * axis + (replacement.units,)

    def renewed(replacement):
        for parameter, where in entries(replacement):
            for held in (m, v, τ):
                held[parameter][where] = 0.0

    def shrunk(replacement):
        for parameter, where in entries(replacement):
            for held in (m, v):
                held[parameter][where] *= 1.0 - ρ

    @torch.no_grad()
    def by_the_book(*_):
        for p in model.parameters():
            τ[p] += 1
            m[p] = b1 * m[p] + (1 - b1) * p.grad
            v[p] = b2 * v[p] + (1 - b2) * p.grad**2
            step = lr * (m[p] / (1 - b1 ** τ[p])) / ((v[p] / (1 - b2 ** τ[p])).sqrt() + eps)
            assert_close(p, before[p] - step, rtol=1e-9, atol=1e-11)

    optimizer.register_step_pre_hook(lambda *_: before.update({p: p.detach().clone() for p in model.parameters()}))
    optimizer.register_step_post_hook(by_the_book)
    groups = chain_groups(model)
    cbp = ContinualBackprop(
        model, optimizer, groups=groups, replacement_rate=0.05, maturity_threshold=3, seed=0, on_replace=renewed
    )
    PartialResets(
        model, optimizer, groups=groups, replacement_rate=ρ, threshold=99.0, period=5, seed=0, on_replace=shrunk
    )
    for step in range(60):
        x, y = batch(step, (6,), dtype=torch.float64)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    enough(cbp)


def test_alone_it_makes_no_entry_young_which_would_cost_every_step_after_it():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    resets = PartialResets(model, optimizer, groups=chain_groups(model), period=1)
    train(model, optimizer, range(2))
    (young,) = resets.forget._young.values()
    assert not any(ages.is_young(row) for ages in young._members.values() for row in (0, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replacement_rate": 1.0}, r"replacement_rate must lie in \[0, 1\)"),
        ({"sharpness": -1.0}, "sharpness must be 0 or more"),
        ({"transform": "linear"}, "unknown transform 'linear'; known: exponential, sigmoid"),
        ({"of": "units"}, "unknown of 'units'; known: activity, weights"),
    ],
)
def test_bad_settings_are_named(settings, message):
    model, optimizer = network()
    with pytest.raises(ValueError, match=message):
        PartialResets(model, optimizer, example_inputs=X, **settings)
