from math import exp, log

import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close

from pliant import L2ER, ContinualBackprop
from pliant.diagnostics import effective_rank, singular_values
from pliant.methods.l2_er import mean_effective_rank
from tests.methods.runs import differences
from tests.networks import batch, convnet, mlp, train, transformer

FEATURES = ["1", "3"]  # the two activations of `mlp`


def attached(model, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return optimizer, L2ER(
        model, optimizer, **{"strength": 0.0, "rank_step_size": 0.1, "features": FEATURES, **settings}
    )


def rank_of(model, x):
    """R by the measure of the library, which is in double precision and has no ε."""
    with torch.no_grad():
        first = model[:2](x)
        return torch.stack([effective_rank(singular_values(h)) for h in (first, model[2:4](first))]).mean()


# -- the rank ------------------------------------------------------------------------------------------------------------


def test_the_rank_is_the_mean_of_effective_ranks():
    """Shares 1/2, 1/4, 1/4: exp(log 2 / 2 + 2 · log 4 / 4) = 2 √2; and a matrix of rank 1."""
    found = mean_effective_rank([torch.diag(tensor([2.0, 1.0, 1.0])), tensor([[1.0, 2.0], [2.0, 4.0]])])
    assert found.item() == pytest.approx((2.0 * 2.0**0.5 + 1.0) / 2.0, rel=1e-6)


def test_it_is_the_effective_rank_of_the_diagnostics():
    torch.manual_seed(0)
    h = torch.randn(20, 8)
    assert mean_effective_rank([h]).item() == pytest.approx(effective_rank(singular_values(h)).item(), rel=1e-5)


# -- an event ------------------------------------------------------------------------------------------------------------


def test_a_step_up_the_rank_by_hand():
    """Of diag(3, 1) on the unit vectors: R = exp(H), ∂R/∂σ[j] = -R (log p[j] + H) / 4; and λ 0.5 of each weight off."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1))
    model[0].weight.data.copy_(torch.diag(tensor([3.0, 1.0])))
    head = model[1].weight.detach().clone()
    _, er = attached(model, strength=0.5, features="0")
    er.apply(torch.eye(2))
    entropy = -0.75 * log(0.75) - 0.25 * log(0.25)
    slope = [-exp(entropy) * (log(p) + entropy) / 4.0 for p in (0.75, 0.25)]
    expected = torch.diag(tensor([3.0 + 0.1 * (slope[0] - 0.5 * 3.0), 1.0 + 0.1 * (slope[1] - 0.5 * 1.0)]))
    assert_close(model[0].weight.detach(), expected)
    assert torch.equal(model[1].weight, head)  # R does not depend on it: no λ either


def test_the_step_is_along_the_slope_of_the_rank_of_both_layers():
    """By differences of the library's measure, in double precision."""
    model, x = mlp().double(), batch(0, (6,), size=20, dtype=torch.float64)[0]
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    slopes = {}
    for name, each in model.named_parameters():
        for place in ((0,) * each.dim(), (1,) * each.dim()):
            ranks = []
            for change in (1e-5, -1e-5):
                each.data[place] += change
                ranks.append(rank_of(model, x))
                each.data.copy_(before[name])
            slopes[name, place] = (ranks[0] - ranks[1]) / 2e-5
    _, er = attached(model, rank_step_size=0.01)
    er.apply(x)
    for (name, place), slope in slopes.items():
        moved = (model.get_parameter(name).detach()[place] - before[name][place]) / 0.01
        assert moved.item() == pytest.approx(slope.item(), rel=1e-3, abs=1e-5)
    assert max(abs(slope) for slope in slopes.values()) > 0.1


def test_features_that_had_collapsed_regain_rank():
    model, x = mlp(), batch(0, (6,), size=20)[0]
    with torch.no_grad():
        model[0].weight[1:] = model[0].weight[0] + 0.01 * model[0].weight[1:]
    before = rank_of(model, x)
    _, er = attached(model)
    for _ in range(20):
        er.apply(x)
    assert rank_of(model, x) > before + 1.0


def test_tokens_count_as_examples():
    model, x = transformer(), batch(0, (4, 6))[0]
    _, er = attached(model, features="layer")
    before = model.embed.weight.detach().clone()
    with torch.no_grad():
        rank = mean_effective_rank([model.layer(model.embed(x)).reshape(-1, 8)])
    er.apply(x)
    with torch.no_grad():
        assert mean_effective_rank([model.layer(model.embed(x)).reshape(-1, 8)]) > rank
    assert not torch.equal(model.embed.weight, before)


def test_a_layer_that_is_silent_is_left_out_and_two_are_an_error():
    model, x = mlp(), batch(0, (6,))[0]
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.zero_()
    _, er = attached(model)
    before = model[0].weight.detach().clone()
    er.apply(x)
    assert not torch.equal(model[0].weight, before)
    assert model[0].weight.isfinite().all()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    with pytest.raises(ValueError, match="features are all 0, or depend on no parameter"):
        er.apply(x)


def test_what_an_event_reads_leaves_no_trace():
    """At η = 0, buffers, gradients, random numbers and what other methods have recorded are as without it."""

    def stepped(apply):
        model = convnet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        cbp = ContinualBackprop(model, optimizer, example_inputs=torch.zeros(2, 2, 8, 8), trial=False, seed=0)
        er = L2ER(model, optimizer, strength=0.0, rank_step_size=0.0, features=["3", "5"])
        x, _ = batch(0, (2, 8, 8))
        model(x).square().sum().backward()
        if apply:
            er.apply(x)
        gradients = [each.grad.clone() for each in model.parameters()]
        hooks = [len(each._forward_hooks) for each in model.modules()]
        optimizer.step()
        return [model.state_dict(), gradients, hooks, cbp.state_dict(), torch.get_rng_state()]

    assert differences(stepped(apply=True), stepped(apply=False)) == []


def test_a_frozen_parameter_stays():
    model, x = mlp(), batch(0, (6,))[0]
    _, er = attached(model, strength=0.1)
    model[0].weight.requires_grad_(False)
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    er.apply(x)
    changed = {name for name, each in model.named_parameters() if not torch.equal(each, before[name])}
    assert changed == {"0.bias", "2.weight", "2.bias"}


# -- before each step ----------------------------------------------------------------------------------------------------


def test_between_events_it_is_weight_decay_to_the_bit():
    model, other = mlp(), mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    L2ER(model, optimizer, strength=0.05, rank_step_size=0.1, features=FEATURES)
    train(model, optimizer, range(10))
    train(other, torch.optim.Adam(other.parameters(), lr=0.01, weight_decay=0.05), range(10))
    assert differences(model.state_dict(), other.state_dict()) == []


# -- errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": "9"}, "features: '9' is no module of the model"),
        ({"features": []}, "features is empty"),
        ({"rank_step_size": -1.0}, "rank_step_size must be 0 or more"),
        ({"strength": -1.0}, "strength must be 0 or more"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        attached(mlp(), **settings)


class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize(
    ("build", "shape", "features", "message"),
    [
        (convnet, (2, 8, 8), "0", r"features: '0' gives \(8, 6, 3, 3\), not \(examples, units\)"),
        (lambda: nn.Sequential(nn.GRU(6, 4)), (3, 6), "0", "features: '0' gives a tuple"),
        (Idle, (6,), "idle", "features: 'idle' did not run on this batch"),
    ],
)
def test_a_module_that_gives_no_features_is_named_and_nothing_changes(build, shape, features, message):
    model = build()
    _, er = attached(model, features=features)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        er.apply(batch(0, shape)[0])
    assert differences(model.state_dict(), before) == []
    assert not any(module._forward_hooks for module in model.modules())


def test_a_batch_that_is_not_finite_changes_nothing():
    model = mlp()
    _, er = attached(model)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(ValueError, match="features: what '1' gives is not finite: nothing was changed"):
        er.apply(torch.full((8, 6), torch.inf))
    assert differences(model.state_dict(), before) == []
