"""Models that change after attaching, or show only a part of themselves: an error that says so, never silence."""

import copy
import logging

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from pliant import L2, ContinualBackprop, ShrinkAndPerturb, trace
from tests.networks import batch, enough, mlp, train
from tests.ranks import on_ranks


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


def test_a_part_that_the_example_inputs_never_reach_is_in_the_plan():
    _, cbp = attached(Experts(), example_inputs=-torch.ones(2, 6))
    assert cbp.plan.unreached == ("experts.1.weight", "experts.1.bias")
    assert "never ran with the example inputs: experts.1.weight, experts.1.bias. If one receives" in str(cbp.plan)


class Heads(nn.Module):
    """A head for each task, and a layer that is skipped in the first."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Linear(6, 12), nn.Linear(12, 9), nn.Linear(9, 12)
        self.skipped, self.heads = nn.Linear(12, 12), nn.ModuleList(nn.Linear(12, 2) for _ in range(3))
        self.task, self.skips = 0, True

    def forward(self, x):
        h = F.relu(self.second(F.relu(self.first(x))))
        h = F.relu(self.third(h))
        if not self.skips:
            h = h + F.relu(self.skipped(h))
        return self.heads[self.task](h)


OFTEN = {"replacement_rate": 0.3, "maturity_threshold": 2}


def test_units_that_a_later_head_reads_are_held_back_and_all_others_go_on(caplog):
    model = Heads()
    optimizer, cbp = attached(model, **OFTEN)
    with caplog.at_level(logging.WARNING, logger="pliant"):
        train(model, optimizer, range(20))
        assert min(group["replaced"][0] for group in cbp.stats().values()) > 20
        model.task, before = 1, cbp.stats()
        train(model, optimizer, range(20, 60))
        model.task = 2
        train(model, optimizer, range(60, 70))
    after = cbp.stats()
    assert after["third"] == before["third"]
    assert after["first"]["replaced"][0] > before["first"]["replaced"][0] + 20
    assert after["second"]["replaced"][0] > before["second"]["replaced"][0] + 20
    assert [each.getMessage() for each in caplog.records] == [
        "'heads.1.weight' never ran with the example inputs and trains now, with units of 'third': no unit of these is "
        "replaced. Give example inputs that reach it, or a list of several, for it to be part of the plan"
    ]
    assert not model._forward_hooks


def test_a_layer_that_joins_later_holds_back_what_feeds_it_and_what_it_adds_to(caplog):
    model = Heads()
    optimizer, cbp = attached(model, **OFTEN)
    model.skips = False
    with caplog.at_level(logging.WARNING, logger="pliant"):
        train(model, optimizer, range(40))
    assert "'skipped.weight' never ran" in caplog.text
    replaced = {name: group["replaced"][0] for name, group in cbp.stats().items()}
    assert replaced["third"] == 0
    assert min(replaced["first"], replaced["second"]) > 20


def test_no_unit_that_an_unknown_expert_reads_is_replaced():
    """Not even at the step at which it trains for the first time."""
    model = Experts()
    optimizer, cbp = attached(model, example_inputs=-torch.ones(2, 6), **OFTEN)
    for _ in range(20):
        optimizer.zero_grad()
        model(-torch.ones(2, 6)).sum().backward()
        optimizer.step()
    before = {name: group["replaced"] for name, group in cbp.stats().items()}
    assert min(before.values()) > [10]
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.tensor([[-1.0] * 6, [1.0] * 6])).sum().backward()
        optimizer.step()
    assert {name: group["replaced"] for name, group in cbp.stats().items()} == before


def train_by_parts(model, optimizer, numbers):
    """The model itself is never called."""
    for number in numbers:
        optimizer.zero_grad()
        h = model.third(F.relu(model.second(F.relu(model.first(batch(number, (6,))[0])))))
        model.heads[1](F.relu(h)).square().mean().backward()
        optimizer.step()


def test_where_no_forward_shows_what_it_meets_everything_waits_with_a_warning(caplog):
    model = Heads()
    optimizer, cbp = attached(model, **OFTEN)
    train(model, optimizer, range(20))
    before = cbp.stats()
    with caplog.at_level(logging.WARNING, logger="pliant"):
        train_by_parts(model, optimizer, range(20, 40))
    assert cbp.stats() == before
    (warning,) = (each.getMessage() for each in caplog.records)
    assert warning.startswith(
        "'heads.1.weight', 'heads.1.bias' never ran with the example inputs and trains now, and no forward"
    )
    model.task = 1
    train(model, optimizer, range(40, 60))
    assert cbp.stats()["third"] == before["third"]
    assert cbp.stats()["second"]["replaced"][0] > before["second"]["replaced"][0] + 20
    cbp.detach()
    assert not model._forward_hooks


def test_in_the_first_steps_that_is_an_error():
    model = Heads()
    optimizer, _ = attached(model, **OFTEN)
    with pytest.raises(
        RuntimeError, match=r"and no forward of Heads shows with which units\. Give example inputs that reach"
    ):
        train_by_parts(model, optimizer, range(3))


def test_a_newcomer_that_is_rare_is_waited_for_from_the_first_steps_on():
    model = Heads()
    optimizer, cbp = attached(model, **OFTEN)
    for number in range(40):
        model.task = int(number in (0, 9))
        train(model, optimizer, [number])
    steps = {name: group["steps"] for name, group in cbp.stats().items()}
    assert steps["third"] == 0
    assert steps["first"] == steps["second"] == 31  # from the step on that shows it


def test_what_is_held_back_stays_so_when_training_is_resumed():
    straight, stopped = Heads(), Heads()
    optimizer, cbp = attached(straight, **OFTEN)
    other, first = attached(stopped, **OFTEN)
    for model, each in ((straight, optimizer), (stopped, other)):
        train(model, each, range(20))
        model.task = 1
        train(model, each, range(20, 30))
    resumed, saved = Heads(), first.state_dict()
    resumed.load_state_dict(stopped.state_dict())
    last, again = attached(resumed, **OFTEN)
    resumed.task = 1
    last.load_state_dict(other.state_dict())
    again.load_state_dict(saved)
    train(straight, optimizer, range(30, 60))
    train(resumed, last, range(30, 60))
    assert again.stats() == cbp.stats()
    assert torch.equal(entries(straight), entries(resumed))


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


# -- frozen at times ---------------------------------------------------------------------------------------------------


def entries(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


class Gan(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.G = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        self.D = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, z):
        return self.D(self.G(z))


def test_a_network_that_is_frozen_while_another_trains_is_replaced_at_its_own_steps_alone():
    gan, written = Gan(), {"G": 0, "D": 0}
    optimizers = {name: torch.optim.Adam(getattr(gan, name).parameters(), 1e-3) for name in written}
    often = {"replacement_rate": 0.2, "maturity_threshold": 2, "seed": 1, "exclude": "G.2"}  # which D consumes
    cbp = ContinualBackprop(gan, [*optimizers.values()], example_inputs=torch.zeros(2, 4), **often)
    for number in range(80):
        for name, other in (("D", "G"), ("G", "D")):
            getattr(gan, name).requires_grad_(True)
            getattr(gan, other).requires_grad_(False)
            optimizers[name].zero_grad()
            gan(batch(number, (4,))[0]).square().mean().backward()
            before, replaced = entries(getattr(gan, other)), cbp.stats()[f"{other}.0"]["replaced"]
            optimizers[name].step()
            assert torch.equal(entries(getattr(gan, other)), before)
            assert cbp.stats()[f"{other}.0"]["replaced"] == replaced
    enough(cbp)
    assert {group["steps"] for group in cbp.stats().values()} == {80}


def test_units_that_a_frozen_layer_consumes_are_held_back_with_one_warning_and_go_on_when_it_trains_again(caplog):
    """One optimizer, and layer 4 frozen in every other stretch of 30 steps. Layer 2 feeds it, layer 0 does not."""
    model = mlp()
    optimizer, cbp = attached(model, replacement_rate=0.2, maturity_threshold=2)
    seen = []
    for stretch in range(4):
        model[4].requires_grad_(stretch % 2 == 0)
        before = entries(model[4])
        with caplog.at_level(logging.WARNING, logger="pliant"):
            train(model, optimizer, range(30))
        assert torch.equal(entries(model[4]), before) == (stretch % 2 == 1)
        seen.append({name: (group["steps"], group["replaced"][0]) for name, group in cbp.stats().items()})
    assert [each["0"][0] for each in seen] == [30, 60, 90, 120]
    assert [each["2"][0] for each in seen] == [30, 30, 60, 60]
    assert seen[1]["2"] == seen[0]["2"]
    assert seen[3]["2"] == seen[2]["2"]
    assert min(each[1] for each in seen[2].values()) >= 20
    assert [each.getMessage() for each in caplog.records] == [
        "'2' is held back while '4.weight' is frozen: no unit of it is replaced"
    ]


def test_what_takes_over_a_mean_must_train_too():
    model = mlp()
    optimizer, cbp = attached(model, replacement_rate=0.2, maturity_threshold=2)
    model[4].bias.requires_grad_(False)
    train(model, optimizer, range(30))
    assert cbp.stats()["2"]["steps"] == 0
    assert cbp.stats()["0"]["steps"] == 30


def test_what_a_frozen_group_did_is_no_part_of_its_running_means():
    means = []
    for frozen_for in (0, 20):
        model = mlp()
        optimizer, cbp = attached(model, replacement_rate=0.0)
        model.requires_grad_(False)
        for number in range(frozen_for):
            model(batch(100 + number, (6,))[0].requires_grad_()).sum().backward()
            optimizer.step()
        model.requires_grad_(True)
        train(model, optimizer, range(5))
        means.append(list(cbp.utilities().values()))
    assert all(torch.equal(a, b) for a, b in zip(*means, strict=True))
    assert means[0][0].any()


METHODS = {
    "cbp": lambda model, both: ContinualBackprop(model, both, example_inputs=torch.zeros(2, 4), exclude="G.2"),
    "l2": lambda model, both: L2(model, both, strength=0.1),
    "snp": lambda model, both: ShrinkAndPerturb(model, both, noise_std=0.1, seed=0),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_model_that_changed_is_an_error_at_the_step_of_the_optimizer_of_what_changed(name):
    gan = Gan()
    g, d = torch.optim.SGD(gan.G.parameters(), lr=0.1), torch.optim.SGD(gan.D.parameters(), lr=0.1)
    METHODS[name](gan, [g, d])
    gan.D[0].weight = nn.Parameter(torch.ones(8, 2))
    gan(torch.ones(2, 4)).sum().backward()
    for _ in range(3):
        g.step()
    with pytest.raises(RuntimeError, match=r"'D.0.weight' was replaced by another tensor after"):
        d.step()


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


def test_units_are_followed_through_a_sparse_operand():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            neighbours = torch.eye(5).to_sparse()
            h = torch.sparse.mm(neighbours, F.relu(self.first(x)))
            return self.last(F.relu(self.second(h)))

    model, x = Graph(), torch.randn(5, 4)
    plan = trace(model, x)
    assert [row.group.name for row in plan.rows] == ["first", "second"]
    plan.verify(model, x).raise_if_wrong()


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


# -- among ranks -------------------------------------------------------------------------------------------------------


def a_rank_with_its_own_task(rank, folder):
    """From step 20 on rank 1 trains another head, whose gradients both ranks get."""
    inner = Heads()
    model = DistributedDataParallel(inner, find_unused_parameters=True)
    optimizer, cbp = attached(model, **OFTEN)
    for number in range(60):
        inner.task = int(rank == 1 and number >= 20)
        train(model, optimizer, [number])
        if number == 20:
            before = cbp.stats()
    after = cbp.stats()
    assert after["third"] == before["third"]
    assert after["second"]["replaced"][0] > before["second"]["replaced"][0] + 20
    mine, both = entries(inner), [None, None]
    dist.all_gather_object(both, (mine, after))
    assert torch.equal(both[0][0], both[1][0])
    assert both[0][1] == both[1][1]


def test_ranks_hold_back_the_same_groups(tmp_path):
    on_ranks(a_rank_with_its_own_task, tmp_path)
