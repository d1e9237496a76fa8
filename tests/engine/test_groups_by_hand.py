"""Groups of units that are given by hand, and all that may not fit in them."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pliant import BN, ContinualBackprop, Slice, Tap, UnitGroup, chain_groups
from tests.networks import OPTIMIZERS, ages, batch, enough, mlp, train

OFTEN = {"replacement_rate": 0.05, "maturity_threshold": 5, "seed": 1}


def attached(model, optimizer="sgd", **settings):
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    return optimizer, ContinualBackprop(model, optimizer, groups=chain_groups(model), **{**OFTEN, **settings})


def same(first, second):
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def build(model=None, optimizer=None, **changes):
    model = model or mlp()
    group = {
        "name": "fc",
        "incoming": [Slice("0.weight", 0), Slice("0.bias", 0)],
        "outgoing": [Slice("2.weight", 1)],
        "tap": Tap("2"),
    }
    settings = {key: changes.pop(key) for key in list(changes) if key not in UnitGroup.__dataclass_fields__}
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    return ContinualBackprop(model, optimizer, groups=[UnitGroup(**{**group, **changes})], **settings)


# -- groups by hand -------------------------------------------------------------------------------------------------------


class TwoHeads(nn.Module):
    """One trunk, read by two consumers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.actor, self.critic = nn.Linear(6, 10), nn.Linear(10, 3), nn.Linear(10, 1)

    def forward(self, x):
        hidden = self.trunk(x).relu()
        return torch.cat([self.actor(hidden), self.critic(hidden)], dim=1)

    def groups(self):
        outgoing = [Slice("actor.weight", 1), Slice("critic.weight", 1)]
        return [UnitGroup("trunk", [Slice("trunk.weight", 0), Slice("trunk.bias", 0)], outgoing, Tap("actor"))]


def test_a_unit_with_two_consumers_counts_the_weights_to_both_and_hands_its_mean_to_both():
    model = TwoHeads()
    x, _ = batch(0, (6,), size=200)
    before = model(x).mean(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    cbp = ContinualBackprop(
        model, optimizer, groups=model.groups(), replacement_rate=0.3, maturity_threshold=0, seed=0, attach=False
    )
    expected = torch.cat([model.actor.weight, model.critic.weight]).abs().mean(0)
    assert_close(cbp.groups[0].outgoing_magnitude()[0, :, 0], expected.detach())
    model(x).sum().backward()
    cbp.step()
    units = (ages(cbp)[0] == 0).nonzero().flatten()
    assert len(units) == 3
    assert not model.actor.weight[:, units].any()
    assert not model.critic.weight[:, units].any()
    assert_close(model(x).mean(0), before, rtol=1e-4, atol=1e-5)


def test_a_batch_norm_behind_a_flatten_is_reset_in_all_channels_of_a_unit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 1))
    with torch.no_grad():
        model[2].weight.fill_(5.0)
        model[2].bias.fill_(5.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.state[model[2].weight]["momentum_buffer"] = torch.ones(12)
    cbp = ContinualBackprop(
        model, optimizer, groups=chain_groups(model), replacement_rate=0.4, maturity_threshold=0, attach=False
    )
    model(torch.randn(8, 1, 2, 2)).sum().backward()
    cbp.step()
    unit = (ages(cbp)[0] == 0).nonzero().item()
    mine = torch.arange(12) // 4 == unit
    assert model[2].weight[mine].tolist() == [1.0] * 4
    assert model[2].weight[~mine].tolist() == [5.0] * 8
    assert not model[2].bias[mine].any()
    assert not model[2].weight.grad[mine].any()
    assert optimizer.state[model[2].weight]["momentum_buffer"].tolist() == [0.0 if own else 1.0 for own in mine]


def test_activity_can_be_read_at_the_output_of_a_module():
    """ReLU's output and its consumer's input are the same numbers."""
    models = [mlp(), mlp()]
    for model, tap in zip(models, (Tap("2"), Tap("1", "output")), strict=True):
        cbp = build(model, tap=tap, optimizer=(optimizer := torch.optim.SGD(model.parameters(), lr=0.05)), **OFTEN)
        train(model, optimizer, range(80))
        enough(cbp)
    assert same(*models)


def test_a_state_fits_the_same_model_wrapped():
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.module = inner

    plain = mlp()
    optimizer, cbp = attached(plain, "adam")
    wrapped = Wrapper(mlp())
    groups = [
        UnitGroup(
            "0",
            [Slice("module.0.weight", 0), Slice("module.0.bias", 0)],
            [Slice("module.2.weight", 1)],
            Tap("module.2"),
        ),
        UnitGroup(
            "2",
            [Slice("module.2.weight", 0), Slice("module.2.bias", 0)],
            [Slice("module.4.weight", 1)],
            Tap("module.4"),
        ),
    ]
    their_optimizer = OPTIMIZERS["adam"](wrapped.parameters())
    theirs = ContinualBackprop(wrapped, their_optimizer, groups=groups, **OFTEN)
    train(plain, optimizer, range(60))
    enough(cbp, least=10)
    wrapped.module.load_state_dict(plain.state_dict())
    their_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch would share the moments
    theirs.load_state_dict(cbp.state_dict())
    train(plain, optimizer, range(60, 90))
    train(wrapped.module, their_optimizer, range(60, 90))
    assert same(plain, wrapped.module)


# -- bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"incoming": [Slice("0.wieght", 0)]},
            r"group 'fc': the model has no parameter '0.wieght' \(did you mean '0.weight'",
        ),
        ({"tap": Tap("7")}, "group 'fc': the model has no module '7'"),
        ({"outgoing": [Slice("4.weight", 1)]}, "gives 12 units but .*4.weight.* gives 9"),
        ({"outgoing": [Slice("2.weight", 2)]}, r"shape \(9, 12\) has no axis 2"),
        ({"outgoing": [Slice("2.weight", 1, repeat=5)]}, "12 entries .* do not divide by repeat=5"),
        ({"incoming": [Slice("0.bias", 0)]}, "no incoming slice is a weight"),
        ({"outgoing": []}, "at least one incoming and one outgoing"),
        ({"affine": [BN("1")]}, "names a ReLU, not a batch norm"),
        ({"runs": 3}, "axis 0 of '0.weight' is 12, but runs=3"),
        ({"replacement_rate": 1.5}, r"replacement_rate must lie in \[0, 1\], got 1.5"),
        ({"maturity_threshold": -1}, "maturity_threshold must be 0 or more whole"),
        ({"maturity_threshold": 10.5}, "maturity_threshold must be 0 or more whole"),
        ({"decay_rate": 1.0}, r"decay_rate must lie in \[0, 1\)"),
        ({"utility": "contrib"}, "unknown utility 'contrib'"),
        ({"count": "poisson"}, "unknown count 'poisson'; known: accumulate, bernoulli"),
        ({"eligible": "young"}, "unknown eligible 'young'; known: mature, all"),
        ({"init": "he"}, "unknown init 'he'; known: module, reset, kaiming"),
        ({"optimizer_state": "forget"}, "unknown optimizer_state 'forget'"),
        ({"seed": [1, 2]}, "2 seeds for 1 runs"),
        ({"hand_over": {"2.wieght": "2.bias"}}, "hand_over names '2.wieght', which is not outgoing"),
        ({"hand_over": {"2.weight": "4.bias"}}, r"has shape \(1, 2\), not \(1, 9\)"),
        ({"runs": 0}, "runs must be 1 or more whole numbers"),
    ],
)
def test_what_does_not_fit_is_one_clear_error_at_construction(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build(**changes)


def test_two_groups_that_claim_the_same_weights_are_an_error():
    model = mlp()
    first, second = chain_groups(model)
    claimed = UnitGroup("again", first.incoming, first.outgoing, first.tap)
    with pytest.raises(
        ValueError, match=r"the same incoming slice is given more than once: 0\.bias, axis 0; 0\.weight"
    ):
        ContinualBackprop(model, torch.optim.SGD(model.parameters(), lr=0.1), groups=[first, second, claimed])


def test_an_optimizer_of_other_parameters_is_an_error():
    with pytest.raises(ValueError, match=r"no optimizer given steps '0\.weight'"):
        build(optimizer=torch.optim.SGD(mlp().parameters(), lr=0.1))


def test_a_frozen_layer_is_an_error():
    model = mlp()
    model[2].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"'2.weight' is frozen"):
        build(model)


def test_the_same_units_twice_is_an_error():
    model = mlp()
    groups = chain_groups(model)
    with pytest.raises(ValueError, match="the same group is given more than once: 0"):
        ContinualBackprop(model, torch.optim.SGD(model.parameters(), lr=0.1), groups=[groups[0], groups[0]])


def test_no_groups_is_an_error():
    model = mlp()
    with pytest.raises(ValueError, match="no unit could ever be replaced"):
        ContinualBackprop(model, torch.optim.SGD(model.parameters(), lr=0.1), groups=[])


def test_a_tap_of_the_wrong_width_is_an_error_at_the_first_pass():
    model = mlp()
    build(model, tap=Tap("0"))
    with pytest.raises(ValueError, match="the input of '0' has 6 entries along axis -1, but its groups have 12"):
        model(torch.ones(1, 6))
