"""A method takes over from another where the model has changed: a head grew, a layer was added, an optimizer was built anew."""

import copy

import pytest
import torch
from torch import nn

import pliant

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
OFTEN = {"replacement_rate": 0.1, "maturity_threshold": 3, "seed": 5}


class Growing(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.relu(self.first(x)))))

    def grow(self, optimizer):
        """One class more. The optimizer's state of the head grows by zeros, as it does in Avalanche."""
        old, self.head = self.head, nn.Linear(12, self.head.out_features + 1)
        with torch.no_grad():
            for name, before in old.named_parameters():
                now = getattr(self.head, name)
                now[: len(before)] = before
                group = optimizer.param_groups[0]["params"]
                group[next(n for n, each in enumerate(group) if each is before)] = now
                held = optimizer.state.pop(before)
                for key in ("exp_avg", "exp_avg_sq"):
                    grown = torch.zeros_like(now)
                    grown[: len(before)] = held[key]
                    held[key] = grown
                optimizer.state[now] = held


def network():
    model = Growing()
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def train(model, optimizer, steps=40):
    for _ in range(steps):
        optimizer.zero_grad()
        model(X)[:, :2].square().mean().backward()
        optimizer.step()


def attach(model, optimizer, **settings):
    return pliant.ContinualBackprop(model, optimizer, example_inputs=X, **{**OFTEN, **settings})


def replaced(method):
    return min(sum(group["replaced"]) for group in method.stats().values())


def test_where_nothing_changed_it_goes_on_to_the_bit():
    ends = []
    for succeeded in (False, True):
        model, optimizer = network()
        cbp = attach(model, optimizer)
        train(model, optimizer, 20)
        if succeeded:
            cbp = cbp.successor(lambda model=model, optimizer=optimizer: attach(model, optimizer))
        train(model, optimizer, 20)
        assert replaced(cbp) >= 20
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_units_below_a_head_that_grew_keep_ages_utilities_schedules_and_young_entries(caplog):
    model, optimizer = network()
    cbp = attach(model, optimizer)
    train(model, optimizer)
    before = copy.deepcopy(cbp.state_dict())
    ages, utilities, stats = cbp.ages(), cbp.utilities(), cbp.stats()
    model.grow(optimizer)
    new = cbp.successor(lambda: attach(model, optimizer))
    assert new.stats() == stats
    assert caplog.text == ""  # of the scale of fresh weights, which the one before knows
    assert replaced(new) >= 20
    for name in ("first", "second"):
        assert torch.equal(new.ages()[name], ages[name])
        assert torch.equal(new.utilities()[name], utilities[name])
    young = {key: held["age"] for key, held in new.state_dict()["forget"].items()}
    assert {key: held.tolist() for key, held in young.items()} == {
        key: held["age"].tolist() for key, held in before["forget"].items()
    }
    assert min(int(held.min()) for held in young.values()) < 40
    train(model, optimizer)
    assert replaced(new) >= 40


def test_a_group_that_is_new_begins_and_the_others_go_on():
    model, optimizer = network()
    cbp = attach(model, optimizer)
    train(model, optimizer)
    ages = cbp.ages()
    model.second = nn.Linear(16, 20)
    model.head = nn.Linear(20, 2)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    new = cbp.successor(lambda: attach(model, optimizer))
    assert torch.equal(new.ages()["first"], ages["first"])
    assert new.stats()["second"]["steps"] == new.stats()["second"]["replaced"][0] == 0
    train(model, optimizer)
    assert replaced(new) >= 20


def test_the_one_before_is_detached_and_should_the_new_one_fail_neither_is_attached():
    model, optimizer = network()
    cbp = attach(model, optimizer)
    train(model, optimizer, 5)
    with pytest.raises(ValueError, match="replacement_rate"):
        cbp.successor(lambda: attach(model, optimizer, replacement_rate=2.0))
    with pytest.raises(TypeError, match="a ContinualBackprop is succeeded by its like, not by a L2"):
        cbp.successor(lambda: pliant.L2(model, optimizer, strength=0.1))
    assert sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules()) == 0
    assert len(optimizer._optimizer_step_post_hooks) == 0


def test_a_pull_toward_the_start_keeps_the_start_of_what_is_still_there():
    model, optimizer = network()
    start = model.first.weight.detach().clone()
    l2 = pliant.L2(model, optimizer, strength=0.1, toward="initial")
    train(model, optimizer)
    model.grow(optimizer)
    new = l2.successor(lambda: pliant.L2(model, optimizer, strength=0.1, toward="initial"))
    targets = dict(zip(new.names, new.state_dict()["targets"], strict=True))
    assert torch.equal(targets["first.weight"], start)
    assert torch.equal(targets["head.weight"], model.head.weight)


def test_counts_of_a_map_after_the_step_go_on():
    model, optimizer = network()
    noise = pliant.ShrinkAndPerturb(model, optimizer, noise_std=0.01, seed=3)
    train(model, optimizer, 7)
    model.grow(optimizer)
    new = noise.successor(lambda: pliant.ShrinkAndPerturb(model, optimizer, noise_std=0.01, seed=3))
    assert new.steps == [7]
