"""The quick trial of a whole plan: what the tracer got wrong is refused by name before anything is trained."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

import pliant
from pliant.units import AffineEntry
from pliant.units.verify import whole_plan
from pliant.units.verify.whole_plan import tried


class Blind(nn.Module):
    """The scale of each unit is read as a number of Python's, which no trace can follow."""

    def __init__(self):
        super().__init__()
        self.first, self.hidden, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x):
        h = torch.relu(self.hidden(torch.relu(self.first(x))))
        return self.out(torch.stack([h[:, unit] * self.scale[unit].item() for unit in range(8)], dim=1))


def encoder(layers=3):
    layer = nn.TransformerEncoderLayer(16, nhead=2, dim_feedforward=32, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, layers), nn.Linear(16, 3))


def without(plan, name, **changes):
    """The plan with one group changed."""
    rows = [replace(row, group=replace(row.group, **changes)) if row.group.name == name else row for row in plan.rows]
    return replace(plan, rows=rows)


def test_a_group_that_keeps_a_part_of_its_predecessor_is_left_alone_with_the_reason():
    torch.manual_seed(0)
    plan = pliant.trace(Blind(), torch.randn(5, 6))
    assert [group.name for group in plan.groups] == ["first"]
    assert "hidden.weight, hidden.bias" in str(plan)
    assert "failed its trial: 'scale' has entries of one unit alone" in str(plan)


def test_a_method_says_which_group_it_leaves_alone(caplog):
    torch.manual_seed(0)
    net = Blind()
    with caplog.at_level(logging.WARNING, "pliant"):
        cbp = pliant.ContinualBackprop(net, torch.optim.SGD(net.parameters(), 0.1), example_inputs=torch.randn(5, 6))
    assert [group.name for group in cbp.groups] == ["first"]
    assert "'hidden' is left alone: it failed its trial" in caplog.text
    assert "failed its trial" in str(cbp.plan)


def test_it_is_an_error_if_no_group_passes():
    torch.manual_seed(0)
    net = Blind()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.raises(ValueError, match="no group passed its trial"):
        pliant.ContinualBackprop(net, optimizer, example_inputs=torch.randn(5, 6), include="hidden")
    assert not optimizer._optimizer_step_post_hooks
    assert not net.out._forward_pre_hooks


def test_the_trial_can_be_left_out():
    torch.manual_seed(0)
    net, x = Blind(), torch.randn(5, 6)
    assert [group.name for group in pliant.trace(net, x, trial=False).groups] == ["first", "hidden"]
    cbp = pliant.ContinualBackprop(net, torch.optim.SGD(net.parameters(), 0.1), example_inputs=x, trial=False)
    assert len(cbp.groups) == 2


@pytest.mark.parametrize("layers", [1, 3, 8])
def test_a_forgotten_scale_is_found_among_many_groups(layers):
    torch.manual_seed(0)
    net = nn.Sequential(*[each for _ in range(layers + 1) for each in (nn.Linear(8, 8), nn.PReLU(8))], nn.Linear(8, 2))
    x = torch.randn(4, 8)
    plan = pliant.trace(net, x, trial=False)
    assert tried(plan.groups, net, x).wrong == {}
    name = plan.groups[layers // 2].name
    assert list(tried(without(plan, name, affine=[]).groups, net, x).wrong) == [name]


def test_a_reader_that_sees_units_without_telling_them_apart_is_found():
    """Neighbors may change places in a sum; what is redrawn shows in it."""

    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 2)

        def forward(self, x):
            h = torch.tanh(self.a(x))
            return self.b(h) + self.c(h.sum(1, keepdim=True).expand(-1, 8))

    torch.manual_seed(0)
    net, x = Summed(), torch.randn(4, 4)
    (group,) = pliant.trace(nn.Sequential(net.a, nn.Tanh(), net.b), x).groups
    names = {"0": "a", "2": "b"}

    def renamed(part):
        stem, _, leaf = part.parameter.partition(".")
        return replace(part, parameter=f"{names[stem]}.{leaf}")

    by_hand = replace(
        group, incoming=[*map(renamed, group.incoming)], outgoing=[*map(renamed, group.outgoing)], tap=(), hand_over={}
    )
    plan = pliant.units.UnitMap().add(net, by_hand)
    found = tried(plan.groups, net, x).wrong
    assert list(found) == ["0"]
    assert "something else reads it" in found["0"]


def test_norms_over_units_and_attention_pass():
    torch.manual_seed(0)
    net, x = encoder(), torch.randn(2, 5, 16)
    plan = pliant.trace(net, x, trial=False)
    assert {group.kind for group in plan.groups} == {"exact"}
    assert tried(plan.groups, net, x) == whole_plan.Tried()
    normed = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 8))
    plan = pliant.trace(normed, torch.randn(4, 8), trial=False)
    assert {group.kind for group in plan.groups} == {"approximate"}
    assert tried(plan.groups, normed, torch.randn(4, 8)) == whole_plan.Tried()


def test_units_that_a_constant_tells_apart_cannot_change_places_and_are_planned_all_the_same():
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
            self.register_buffer("frequencies", torch.arange(1.0, 9.0))

        def forward(self, x):
            return self.b(torch.sin(self.frequencies * self.a(x)))

    torch.manual_seed(0)
    assert len(pliant.trace(Placed(), torch.randn(4, 4)).groups) == 1


def test_a_grouped_convolution_passes():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)
    )
    plan = pliant.trace(net, torch.randn(2, 3, 6, 6))
    assert [group.name for group in plan.groups] == ["0", "2"]


def test_the_model_and_the_random_state_are_left_as_they_were():
    torch.manual_seed(0)
    net, x = encoder(), torch.randn(2, 5, 16)
    before, random = {name: each.clone() for name, each in net.state_dict().items()}, torch.get_rng_state()
    pliant.trace(net, x)
    assert all(torch.equal(each, before[name]) for name, each in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_the_plan_says_that_a_large_model_was_not_tried(monkeypatch):
    monkeypatch.setattr(whole_plan, "LARGEST", 10)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    plan = pliant.trace(net, torch.randn(4, 3))
    assert "not tried: the model has 0 million parameters" in str(plan)
    cbp = pliant.ContinualBackprop(net, torch.optim.SGD(net.parameters(), 0.1), example_inputs=torch.randn(4, 3))
    assert "not tried" in str(cbp.plan)


def test_the_plan_says_that_a_model_whose_passes_differ_was_not_tried():
    class Counting(nn.Sequential):
        calls = 0

        def forward(self, x):
            Counting.calls += 1  # no copy of the model puts this back
            return super().forward(x) * Counting.calls

    net = Counting(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    plan = pliant.trace(net, torch.randn(4, 3))
    assert len(plan.groups) == 1
    assert "not tried: " in str(plan)


def compiled(net):
    return torch.compile(net, backend="eager")


@pytest.mark.parametrize("wrap", [nn.DataParallel, compiled])
def test_the_model_inside_wrappers_is_tried(wrap):
    torch.manual_seed(0)
    plan = pliant.trace(wrap(Blind()), torch.randn(5, 6))
    assert [group.name for group in plan.groups] == ["first"]
    assert "failed its trial" in str(plan)


def test_a_batch_whose_first_axis_is_not_that_of_the_examples_is_taken_whole():
    class Fixed(nn.Sequential):
        def forward(self, x):
            return super().forward(x.reshape(16, -1))

    plan = pliant.trace(Fixed(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 3))
    assert len(plan.groups) == 1
    assert "not tried" not in str(plan)


def test_every_entry_of_a_unit_changes_places_with_its_neighbors():
    """A recurrent unit's weights are incoming and outgoing at once."""
    torch.manual_seed(0)
    net, x = nn.GRU(4, 6, batch_first=True), torch.randn(3, 5, 4)

    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.out = net, nn.Linear(6, 2)

        def forward(self, x):
            return self.out(self.gru(x)[0])

    read = Read()
    plan = pliant.trace(read, x, trial=False)
    assert plan.groups[0].kind == "recurrent"
    assert tried(plan.groups, read, x).wrong == {}
    assert AffineEntry not in map(type, plan.groups[0].affine)
