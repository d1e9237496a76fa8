"""Models that change after attaching, or show only a part of themselves: an error that says so, never silence."""

import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pliant import ContinualBackprop, trace
from tests.networks import enough, mlp, train


def attached(model, optimizer=None, **settings):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)
    often = {"replacement_rate": 0.05, "maturity_threshold": 5, "seed": 1, "example_inputs": torch.zeros(2, 6)}
    return optimizer, ContinualBackprop(model, optimizer, **{**often, **settings})


class Experts(nn.Module):
    """Each example goes to the expert of the sign of its first number."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(4, 2)
        self.experts = nn.ModuleList(nn.Linear(8, 4) for _ in range(2))

    def forward(self, x):
        h = F.relu(self.first(x))
        out = torch.zeros(len(x), 4)
        for number, expert in enumerate(self.experts):
            rows = (x[:, 0] > 0).long() == number
            if rows.any():
                out[rows] = expert(h[rows])
        return self.last(F.relu(out))


def test_a_part_that_the_example_inputs_never_reach_is_in_the_plan_and_an_error_once_it_trains():
    model = Experts()
    optimizer, cbp = attached(model, example_inputs=-torch.ones(2, 6))
    assert cbp.plan.unreached == ("experts.1.weight", "experts.1.bias")
    assert "never ran with the example inputs: experts.1.weight, experts.1.bias" in str(cbp.plan)
    model(-torch.ones(2, 6)).sum().backward()
    optimizer.step()
    model(torch.ones(2, 6)).sum().backward()
    with pytest.raises(
        RuntimeError, match=r"'experts.1.weight' never ran with the example inputs but has a gradient now"
    ):
        optimizer.step()


def test_example_inputs_that_reach_every_expert_make_all_of_them_readers():
    (row,) = trace(Experts(), torch.tensor([[-1.0] * 6, [1.0] * 6])).include("first").rows
    assert {part.parameter for part in row.group.outgoing} == {"experts.0.weight", "experts.1.weight"}


def test_a_replaced_module_is_an_error_at_the_next_step():
    model = mlp()
    optimizer, _ = attached(model)
    model[4] = nn.Linear(9, 5)
    model(torch.zeros(2, 6)).sum().backward()
    with pytest.raises(
        RuntimeError, match=r"'4.weight' was replaced|'4' was replaced by another module after attaching"
    ):
        optimizer.step()


def test_a_weight_that_is_frozen_later_is_an_error_at_the_next_step():
    model = mlp()
    optimizer, _ = attached(model)
    model[2].weight.requires_grad_(False)
    model(torch.zeros(2, 6)).sum().backward()
    with pytest.raises(RuntimeError, match=r"'2.weight' was frozen after attaching. detach\(\)"):
        optimizer.step()


def test_units_whose_weights_no_optimizer_steps_are_left_alone():
    model = mlp()
    _, cbp = attached(model, torch.optim.SGD(model[2:].parameters(), lr=0.1))
    assert [row.group.name for row in cbp.plan.rows] == ["2"]
    assert ("0.weight", "0.bias") in [
        each.parameters for each in cbp.plan.skipped if each.reason == "not in the optimizer"
    ]


def test_an_optimizer_of_another_model_is_an_error_that_names_parameters():
    with pytest.raises(ValueError, match=r"no group has all of its parameters in the optimizer given \('0.weight'"):
        attached(mlp(), torch.optim.SGD(mlp().parameters(), lr=0.1))


def test_a_method_whose_optimizer_no_longer_steps_says_so(caplog):
    model = mlp()
    attached(model)
    another = torch.optim.SGD(model.parameters(), lr=0.01)
    with caplog.at_level(logging.WARNING, logger="pliant"):
        train(model, another, range(1000))
    assert "without a step of the optimizer" in caplog.text


def test_tracing_a_model_that_has_a_method_attached_disturbs_neither():
    model = mlp()
    optimizer, cbp = attached(model)
    train(model, optimizer, range(3))
    model(torch.ones(2, 6))  # half a step is held
    before = copy.deepcopy(cbp.state_dict())
    plan = trace(model, torch.zeros(2, 6))
    assert [row.group.name for row in plan.rows] == ["0", "2"]
    assert torch.equal(cbp.state_dict()["panels"][0]["sums"], before["panels"][0]["sums"])


def test_what_feeds_a_recurrent_layer_is_found_and_read_at_its_input():
    class Net(nn.Module):
        def __init__(self, core):
            super().__init__()
            self.first, self.core, self.last = nn.Linear(5, 8), core, nn.Linear(6, 2)

        def forward(self, x):
            return self.last(self.core(F.relu(self.first(x)))[0])

    for core in (nn.GRU(8, 6), nn.LSTM(8, 6, batch_first=True), nn.RNN(8, 6)):
        model = Net(core)
        x = torch.randn(4, 3, 5)
        optimizer, cbp = attached(model, example_inputs=x, replacement_rate=0.2)
        (first,) = (row.group for row in cbp.plan.rows if row.group.name == "first")
        assert (first.taps[0].module, first.taps[0].at) == ("core", "input")
        cbp.plan.verify(model, x).raise_if_wrong()
        for _ in range(60):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        enough(cbp)


def test_a_scalar_gate_in_front_of_a_layer_leaves_its_bias_to_the_layer_s_units():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.v, self.f, self.o = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            h = torch.tanh(self.e(x))
            return self.o(F.relu(self.f(h * torch.sigmoid(self.v(h)))))

    plan = trace(Gated(), torch.randn(5, 4))
    (f,) = (row.group for row in plan.rows if row.group.name == "f")
    assert [part.parameter for part in f.incoming] == ["f.weight", "f.bias"]


def test_a_gated_linear_unit_is_one_unit_of_both_halves():
    class Glu(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 12), nn.Linear(6, 2)

        def forward(self, x):
            return self.last(F.glu(self.first(x)))

    model, x = Glu(), torch.randn(5, 4)
    plan = trace(model, x)
    assert plan.rows[0].units == 6
    assert plan.rows[0].group.incoming[0].index == tuple((i, i + 6) for i in range(6))
    plan.verify(model, x).raise_if_wrong()


def test_a_sparse_operand_ends_the_units_that_meet_it():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            neighbours = torch.eye(5).to_sparse()
            h = torch.sparse.mm(neighbours, F.relu(self.first(x)))
            return self.last(F.relu(self.second(h)))

    plan = trace(Graph(), torch.randn(5, 4))
    assert [row.group.name for row in plan.rows] == ["second"]
    assert any("no rule for aten::" in each.reason and "first.weight" in each.parameters for each in plan.skipped)


def test_what_is_subtracted_must_be_a_mean_to_be_taken_for_a_norm():
    class LogSoftmax(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            h = self.first(x)
            return self.last(h - h.logsumexp(-1, keepdim=True))

    with pytest.raises(ValueError, match="all units mixed"):
        trace(LogSoftmax(), torch.randn(5, 4))
