"""After a reset, the reset entries move as in an optimizer built at that moment, the others as if nothing had happened."""

import copy

import pytest
import schedulefree
import torch
from torch import nn
from torch.testing import assert_close

from pliant import ContinualBackprop, chain_groups, reset_network
from pliant.engine.optimizer_state import RULES, OptimizerState
from pliant.engine.optimizer_state.young import NEVER
from pliant.units.bound import BoundGroup
from pliant.units.entries import SelectedUnits
from pliant.units.groups import Slice, Tap, UnitGroup

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, maximize=True),
    "momentum fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, foreach=False, weight_decay=1e-2),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "adam equal betas": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.99, 0.99)),
    "adam without first average": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.99)),
    "adam decoupled": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, decoupled_weight_decay=True),
    "adam maximize, step size on the device": lambda p: torch.optim.Adam(
        p, lr=torch.tensor(0.1), maximize=True, weight_decay=1e-2, foreach=False, capturable=False
    ),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "adamw fused amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True, amsgrad=True),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.1, weight_decay=1e-2, maximize=True),
    "adamax foreach": lambda p: torch.optim.Adamax(p, lr=0.1, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True, weight_decay=1e-2),
    "rmsprop foreach": lambda p: torch.optim.RMSprop(p, lr=0.01, foreach=True, maximize=True),
    "adadelta": lambda p: torch.optim.Adadelta(p, weight_decay=1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.5),
    "adagrad fused": lambda p: torch.optim.Adagrad(p, lr=0.1, fused=True),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1, lambd=0.0, t0=10, weight_decay=1e-2),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def give_gradients(model, size, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = (size * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)


def train(model, optimizer, size, steps):
    for step in steps:
        give_gradients(model, size, step)
        optimizer.step()


def touched(model, group, chosen):
    """By parameter name, which entries belong to the chosen units."""
    masks = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for part in group.slices():
        part.write(chosen, 1.0, masks[part.part.parameter])
    return {name: mask > 0 for name, mask in masks.items()}


def chosen_units(*units):
    return SelectedUnits(
        torch.zeros(len(units), dtype=torch.int64), torch.tensor(units), torch.ones(len(units)), [len(units)]
    )


def bound(policy, optimizer, model, number=0):
    group = BoundGroup(chain_groups(model)[number], model)
    memory = OptimizerState(policy)
    memory.bind([optimizer] if isinstance(optimizer, torch.optim.Optimizer) else optimizer, [group])
    return group, memory


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-8])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fresh_equals_a_freshly_built_optimizer_on_the_reset_entries_and_touches_no_other(name, size):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    group = BoundGroup(chain_groups(model)[0], model)
    memory = OptimizerState("fresh")
    memory.bind([optimizer], [group])
    train(model, optimizer, size, range(30))

    untouched_model = copy.deepcopy(model)
    untouched = OPTIMIZERS[name](untouched_model.parameters())
    untouched.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    fresh_model = copy.deepcopy(model)
    fresh = OPTIMIZERS[name](fresh_model.parameters())

    chosen = chosen_units(1, 4)
    memory.forget(group, chosen)
    masks = touched(model, group, chosen)
    for step in range(30, 60):
        train(model, optimizer, size, [step])
        train(untouched_model, untouched, size, [step])
        train(fresh_model, fresh, size, [step])
        for key, parameter in model.named_parameters():
            mask = masks[key]
            expected, other = fresh_model.get_parameter(key), untouched_model.get_parameter(key)
            assert_close(parameter[mask], expected[mask], rtol=2e-6, atol=1e-6)
            assert torch.equal(parameter[~mask], other[~mask])


def one_cycle(optimizer, step_size):
    moves = {"betas", "momentum"} & set(optimizer.defaults)
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 4 * step_size, total_steps=90, cycle_momentum=bool(moves))


def cyclic(optimizer, step_size):
    """Triangles that begin at the largest momentum, where OneCycleLR's only pass."""
    moves = {"betas", "momentum"} & set(optimizer.defaults)
    return torch.optim.lr_scheduler.CyclicLR(
        optimizer, step_size, 3 * step_size, step_size_up=7, cycle_momentum=bool(moves)
    )


@pytest.mark.parametrize("schedule", [one_cycle, cyclic])
@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"asgd"}))  # whose step size is the parameter's
def test_under_a_schedule_that_moves_momentum_fresh_equals_an_optimizer_built_at_the_reset(name, schedule):
    """Three units are reset at three times; each is followed by an optimizer of its own, built then, on the same schedule."""
    tolerance = 2e-6 if "device" in name else 1e-9  # that step size is a float32
    model = network().double()
    optimizer = OPTIMIZERS[name](model.parameters())
    scheduler = schedule(optimizer, optimizer.param_groups[0]["lr"])
    group, memory = bound("fresh", optimizer, model)
    twins = []
    for step in range(88):
        if step in (20, 45, 70):
            unit = chosen_units(step // 20)
            memory.forget(group, unit)
            twin = copy.deepcopy(model)
            twins.append((touched(model, group, unit), twin, OPTIMIZERS[name](twin.parameters())))
        for each, stepper in [(model, optimizer), *(pair[1:] for pair in twins)]:
            moved = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
            stepper.param_groups[0].update(moved)
            train(each, stepper, 1.0, [step])
        scheduler.step()
        for masks, twin, _ in twins:
            for key, parameter in model.named_parameters():
                other = twin.get_parameter(key)
                assert_close(parameter[masks[key]], other[masks[key]], rtol=tolerance, atol=tolerance)


def test_an_entry_between_two_reset_units_is_as_young_as_the_younger():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    first, second = (BoundGroup(spec, model) for spec in chain_groups(model))
    memory = OptimizerState("fresh")
    memory.bind([optimizer], [first, second])
    train(model, optimizer, 1.0, range(10))
    memory.forget(first, chosen_units(2))
    train(model, optimizer, 1.0, range(10, 15))
    memory.forget(second, chosen_units(3))
    fresh_model = copy.deepcopy(model)
    fresh = torch.optim.Adam(fresh_model.parameters(), lr=0.1)
    for step in range(15, 25):
        train(model, optimizer, 1.0, [step])
        train(fresh_model, fresh, 1.0, [step])
        assert_close(model[2].weight[3, 2], fresh_model[2].weight[3, 2])
    ages = memory.state_dict()["0|2"]["age"][0, :, 0]
    assert ages[2] == 15
    assert (ages[[0, 1, 3, 4, 5]] >= NEVER).all()


def test_a_later_reset_leaves_an_earlier_one_as_young_as_it_is():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    group = BoundGroup(chain_groups(model)[0], model)
    memory = OptimizerState("fresh")
    memory.bind([optimizer], [group])
    train(model, optimizer, 1.0, range(10))
    memory.forget(group, chosen_units(1))
    fresh_model = copy.deepcopy(model)
    fresh = torch.optim.Adam(fresh_model.parameters(), lr=0.1)
    for step in range(10, 25):
        if step == 15:
            memory.forget(group, chosen_units(4))
        train(model, optimizer, 1.0, [step])
        train(fresh_model, fresh, 1.0, [step])
        assert_close(model[0].weight[1], fresh_model[0].weight[1])


def test_a_step_without_gradient_does_not_age_a_parameter():
    """Adam skips a parameter whose gradient is None; its entries must then stay as young as they are."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    group = BoundGroup(chain_groups(model)[0], model)
    memory = OptimizerState("fresh")
    memory.bind([optimizer], [group])
    train(model, optimizer, 1.0, range(10))
    memory.forget(group, chosen_units(2))
    fresh_model = copy.deepcopy(model)
    fresh = torch.optim.Adam(fresh_model.parameters(), lr=0.1)
    for step in range(10, 20):
        for one, stepper in ((model, optimizer), (fresh_model, fresh)):
            give_gradients(one, 1.0, step)
            if step % 2:
                one[0].weight.grad = None
            stepper.step()
        assert_close(model[0].weight[2], fresh_model[0].weight[2])
    since = memory.state_dict()
    assert since["0|0"]["age"][0, 2] == 5
    assert since["0|2"]["age"][0, 2] == 10


def test_zeroing_moments_alone_moves_a_fresh_entry_by_several_step_sizes():
    """Why "fresh" is the default: the trap that "zero" replicates."""
    moved = {}
    for policy in ("fresh", "zero"):
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        group = BoundGroup(chain_groups(model)[0], model)
        memory = OptimizerState(policy)
        memory.bind([optimizer], [group])
        for step in range(1500):
            if step == 1400:
                memory.forget(group, chosen_units(0))
            before = model[0].weight[0, 0].item()
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            if step >= 1400:
                moved[policy] = max(moved.get(policy, 0), abs(model[0].weight[0, 0].item() - before) / 1e-3)
    assert moved["fresh"] == pytest.approx(1.0, abs=1e-3)
    assert moved["zero"] > 5.0


def test_fill_gives_the_mean_second_moment_of_the_other_entries():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    group = BoundGroup(chain_groups(model)[0], model)
    memory = OptimizerState("fill")
    memory.bind([optimizer], [group])
    train(model, optimizer, 1.0, range(3))
    state = optimizer.state[model[0].weight]
    mean = state["exp_avg_sq"][[0, 1, 3, 4, 5]].mean()
    memory.forget(group, chosen_units(2))
    assert_close(state["exp_avg_sq"][2], mean.expand(4))
    assert not state["exp_avg"][2].any()


def test_keep_touches_nothing_and_takes_any_optimizer():
    model = network()
    optimizer = torch.optim.RMSprop(model.parameters())
    group = BoundGroup(chain_groups(model)[0], model)
    memory = OptimizerState("keep")
    memory.bind([optimizer], [group])
    train(model, optimizer, 1.0, range(3))
    before = copy.deepcopy(optimizer.state_dict())
    memory.forget(group, chosen_units(2))
    assert torch.equal(before["state"][0]["square_avg"], optimizer.state_dict()["state"][0]["square_avg"])


class Lion(torch.optim.SGD):
    """An optimizer that no rule knows: its step is its own."""

    def step(self, closure=None): ...


@pytest.mark.parametrize("build", [torch.optim.LBFGS, torch.optim.SparseAdam, Lion])
def test_an_optimizer_without_a_rule_is_a_named_error_at_construction(build):
    model = network()
    with pytest.raises(ValueError, match=f"no rule to forget the state of {build.__name__}.*optimizer_state='keep'"):
        bound("fresh", build(model.parameters()), model)


def test_state_that_no_rule_knows_is_a_named_error_at_construction_and_at_the_reset():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    group, memory = bound("fresh", optimizer, model)
    train(model, optimizer, 1.0, range(3))
    optimizer.state[model[0].weight]["curvature"] = torch.zeros(6, 4)
    with pytest.raises(ValueError, match=r"SGD keeps 'curvature' for '0\.weight'"):
        memory.forget(group, chosen_units(1))
    with pytest.raises(ValueError, match=r"SGD keeps 'curvature' for '0\.weight'"):
        bound("zero", optimizer, model)


def test_momentum_with_dampening_is_a_named_error():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, dampening=0.5)
    with pytest.raises(ValueError, match="dampening"):
        ContinualBackprop(model, optimizer, groups=chain_groups(model))


def test_dampening_that_comes_later_is_a_named_error_at_the_first_replacement():
    """OneCycleLR gives an optimizer without momentum some."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, dampening=0.5)
    group, memory = bound("fresh", optimizer, model)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    train(model, optimizer, 1.0, range(3))
    with pytest.raises(ValueError, match=r"dampening.*optimizer_state='zero'"):
        memory.forget(group, chosen_units(1))


def test_a_schedule_after_loading_a_state_is_followed():
    """Loading replaces the optimizer's settings; young entries must be stepped with the new ones."""
    model, twin = network(), network()
    optimizer, plain = torch.optim.Adam(model.parameters(), lr=0.1), torch.optim.Adam(twin.parameters(), lr=0.1)
    group = BoundGroup(chain_groups(model)[0], model)
    memory = OptimizerState("fresh")
    memory.bind([optimizer], [group])
    optimizer.load_state_dict(optimizer.state_dict())
    train(model, optimizer, 1.0, [0])
    memory.forget(group, chosen_units(1))
    twin.load_state_dict(model.state_dict())
    for step in range(1, 30):
        for stepper in (optimizer, plain):
            stepper.param_groups[0]["lr"] = 0.1 * 0.9**step
        train(model, optimizer, 1.0, [step])
        train(twin, plain, 1.0, [step])
        assert_close(model[0].weight[1], twin[0].weight[1])


def test_after_detaching_no_entry_moves_by_several_step_sizes():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    group = BoundGroup(chain_groups(model)[0], model)
    memory = OptimizerState("fresh")
    memory.bind([optimizer], [group])
    largest = 0.0
    for step in range(3000):
        if step == 2900:
            memory.forget(group, chosen_units(0))
        if step == 2903:
            memory.detach()
        before = model[0].weight[0, 0].item()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        if step >= 2900:
            largest = max(largest, abs(model[0].weight[0, 0].item() - before) / 1e-3)
    assert not optimizer._optimizer_step_post_hooks
    assert largest == pytest.approx(1.0, abs=0.01)


def test_a_skipped_step_of_a_fused_optimizer_moves_no_young_entry():
    """A GradScaler tells a fused optimizer of overflow by `found_inf`; hooks run all the same."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    group = BoundGroup(chain_groups(model)[0], model)
    memory = OptimizerState("fresh")
    memory.bind([optimizer], [group])
    train(model, optimizer, 1.0, range(5))
    memory.forget(group, chosen_units(1))
    train(model, optimizer, 1.0, [5])
    before = copy.deepcopy(model.state_dict())
    optimizer.found_inf = torch.ones(())
    optimizer.grad_scale = torch.ones(())
    train(model, optimizer, 1.0, [6])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert memory.state_dict()["0|0"]["age"][0, 1] == 1


def test_an_unknown_policy_lists_the_known_ones():
    with pytest.raises(ValueError, match="known: fresh, fill, zero, keep"):
        OptimizerState("reset")


def test_every_optimizer_of_torch_has_a_rule_or_is_refused():
    every = {
        name
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    }
    refused = {"Optimizer", "LBFGS", "SparseAdam"}
    assert {name.removeprefix("torch.") for name in RULES if name.startswith("torch.")} == every - refused


def test_rules_name_every_key_of_every_optimizers_state():
    pairs = {
        "torch.SGD": {"momentum": 0.9}, "torch.Adam": {"amsgrad": True}, "torch.AdamW": {"amsgrad": True},
        "torch.RMSprop": {"momentum": 0.9, "centered": True},
    }  # fmt: skip
    for name in RULES:
        if name.startswith("torch."):
            matrix, vector = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4))
            parameters = [matrix] if name == "torch.Muon" else [matrix, vector]
            optimizer = getattr(torch.optim, name.removeprefix("torch."))(parameters, lr=0.1, **pairs.get(name, {}))
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            found = {key for parameter in parameters for key in optimizer.state[parameter]}
            assert found - set(RULES[name].shared) == RULES[name].keys - set(RULES[name].shared)


@pytest.mark.parametrize("build", [torch.optim.NAdam, torch.optim.RAdam])
def test_where_fresh_is_not_possible_second_moments_are_filled_and_a_note_says_so(build):
    model = network()
    optimizer = build(model.parameters(), lr=0.1)
    group, memory = bound("fresh", optimizer, model)
    train(model, optimizer, 1.0, range(20))
    state = optimizer.state[model[0].weight]
    mean = state["exp_avg_sq"][[0, 1, 3, 4, 5]].mean()
    others = copy.deepcopy(state["exp_avg_sq"][[0, 1, 3, 4, 5]])
    memory.forget(group, chosen_units(2))
    assert_close(state["exp_avg_sq"][2], mean.expand(4))
    assert not state["exp_avg"][2].any()
    assert torch.equal(state["exp_avg_sq"][[0, 1, 3, 4, 5]], others)
    assert memory.notes == [f"{build.__name__}: optimizer_state='fill': 'fresh' is not possible with its shared state"]


def test_a_fresh_unit_under_nadam_and_radam_moves_by_no_more_than_its_neighbours():
    for build in (torch.optim.NAdam, torch.optim.RAdam):
        model = network()
        optimizer = build(model.parameters(), lr=1e-3)
        group, memory = bound("fresh", optimizer, model)
        for step in range(600):
            if step == 500:
                memory.forget(group, chosen_units(0))
            before = model[0].weight.detach().clone()
            train(model, optimizer, 1.0, [step])
            if step >= 500:
                assert (model[0].weight - before)[0].abs().max() < 2e-3


def test_adafactor_fills_only_the_factor_that_is_the_units_own():
    model = network()
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.1)
    group, memory = bound("fresh", optimizer, model)
    train(model, optimizer, 1.0, range(5))
    before = {parameter: copy.deepcopy(state) for parameter, state in optimizer.state.items()}
    memory.forget(group, chosen_units(2))
    first, second, bias = (optimizer.state[p] for p in (model[0].weight, model[2].weight, model[0].bias))
    others = [0, 1, 3, 4, 5]
    assert_close(first["row_var"][2, 0], before[model[0].weight]["row_var"][others].mean())
    assert torch.equal(first["col_var"], before[model[0].weight]["col_var"])
    assert_close(second["col_var"][0, 2], before[model[2].weight]["col_var"][0, others].mean())
    assert torch.equal(second["row_var"], before[model[2].weight]["row_var"])
    assert_close(bias["variance"][2], before[model[0].bias]["variance"][others].mean())


def test_adafactor_of_transformers_fills_only_the_factor_that_is_the_units_own():
    """Its factors are vectors: of a weight (out, in), rows are (out,) and columns (in,)."""
    transformers = pytest.importorskip("transformers.optimization")
    model = network()
    options = {"lr": 0.1, "relative_step": False, "scale_parameter": False, "beta1": 0.9}
    optimizer = transformers.Adafactor(model.parameters(), **options)
    group, memory = bound("fresh", optimizer, model)
    assert memory.notes == ["Adafactor: optimizer_state='fill': 'fresh' is not possible with its shared state"]
    train(model, optimizer, 1.0, range(5))
    before = {parameter: copy.deepcopy(state) for parameter, state in optimizer.state.items()}
    memory.forget(group, chosen_units(2))
    first, second, bias = (optimizer.state[p] for p in (model[0].weight, model[2].weight, model[0].bias))
    others = [0, 1, 3, 4, 5]
    assert_close(first["exp_avg_sq_row"][2], before[model[0].weight]["exp_avg_sq_row"][others].mean())
    assert_close(first["exp_avg_sq_row"][others], before[model[0].weight]["exp_avg_sq_row"][others], rtol=0, atol=0)
    assert torch.equal(first["exp_avg_sq_col"], before[model[0].weight]["exp_avg_sq_col"])
    assert_close(second["exp_avg_sq_col"][2], before[model[2].weight]["exp_avg_sq_col"][others].mean())
    assert torch.equal(second["exp_avg_sq_row"], before[model[2].weight]["exp_avg_sq_row"])
    assert_close(bias["exp_avg_sq"][2], before[model[0].bias]["exp_avg_sq"][others].mean())
    assert not first["exp_avg"][2].any()
    assert not second["exp_avg"][:, 2].any()
    assert second["exp_avg"][:, others].all()
    assert first["step"] == 5
    assert first["RMS"] == before[model[0].weight]["RMS"]


def test_adafactor_of_transformers_starts_over_with_the_whole_network():
    transformers = pytest.importorskip("transformers.optimization")
    model, fresh = network(), network()
    optimizer = transformers.Adafactor(model.parameters())
    train(model, optimizer, 1.0, range(5))
    reset_network(model, optimizer, seed=3)
    reset_network(fresh, seed=3)
    train(model, optimizer, 1.0, range(5))
    train(fresh, transformers.Adafactor(fresh.parameters()), 1.0, range(5))
    for a, b in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)


def test_adafactor_forgets_filters_of_a_grouped_convolution():
    """The slice sees the weight as (groups, filters, in, h, w); row_var has 1 in place of w."""
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(6, 2))
    spec = UnitGroup(
        "conv",
        incoming=[Slice("0.weight", (0, 1), shape=(2, 3, 2, 3, 3)), Slice("0.bias", 0)],
        outgoing=[Slice("2.weight", 1)],
        tap=Tap("2"),
    )
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.1)
    group = BoundGroup(spec, model)
    memory = OptimizerState("zero")
    memory.bind([optimizer], [group])
    train(model, optimizer, 1.0, range(3))
    memory.forget(group, chosen_units(4))
    state = optimizer.state[model[0].weight]
    assert state["row_var"].shape == (6, 2, 3, 1)
    assert [bool(row.any()) for row in state["row_var"]] == [True] * 4 + [False, True]
    assert [bool(row.any()) for row in state["col_var"]] == [True] * 4 + [False, True]


def test_muon_forgets_the_units_momentum_beside_adamw_for_the_vectors():
    model = network()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    muon, adamw = torch.optim.Muon(matrices, lr=0.1), torch.optim.AdamW(vectors, lr=0.1)
    group, memory = bound("fresh", (muon, adamw), model)
    for step in range(5):
        give_gradients(model, 1.0, step)
        muon.step(), adamw.step()
    before = copy.deepcopy(muon.state[model[2].weight]["momentum_buffer"])
    memory.forget(group, chosen_units(2))
    after = muon.state[model[2].weight]["momentum_buffer"]
    others = [0, 1, 3, 4, 5]
    assert not after[:, 2].any()
    assert torch.equal(after[:, others], before[:, others])
    assert not muon.state[model[0].weight]["momentum_buffer"][2].any()
    assert adamw.state[model[0].bias]["exp_avg"][2] == 0
    assert memory.optimizer_of(model[0].weight) is muon
    assert memory.notes == ["Muon: experimental: every entry of a matrix takes part in every other's step"]


def test_rprop_restarts_at_the_step_size_of_now_and_asgd_averages_from_the_new_value():
    model = network()
    rprop = torch.optim.Rprop(model.parameters(), lr=0.1)
    group, memory = bound("fresh", rprop, model)
    train(model, rprop, 1.0, range(5))
    rprop.param_groups[0]["lr"] = 0.05
    memory.forget(group, chosen_units(2))
    assert (rprop.state[model[0].weight]["step_size"][2] == 0.05).all()
    asgd = torch.optim.ASGD(model.parameters(), lr=0.1, t0=2)
    group, memory = bound("fresh", asgd, model)
    train(model, asgd, 1.0, range(5))
    with torch.no_grad():
        model[0].weight[2] = 7.0
    memory.forget(group, chosen_units(2))
    assert (asgd.state[model[0].weight]["ax"][2] == 7.0).all()
    assert (asgd.state[model[0].weight]["ax"][1] != 7.0).all()


@pytest.mark.parametrize("name", ["SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree"])
def test_schedule_free_optimizers_take_the_new_value_for_their_copy(name):
    model = network()
    optimizer = getattr(schedulefree, name)(model.parameters(), lr=0.1)
    group, memory = bound("fresh", optimizer, model)
    optimizer.train()
    train(model, optimizer, 1.0, range(10))
    with torch.no_grad():
        model[0].weight[2] = 7.0
    memory.forget(group, chosen_units(2))
    optimizer.eval()
    assert_close(model[0].weight[2], torch.full((4,), 7.0))  # the average that eval() shows is the new value, too
    with pytest.raises(RuntimeError, match=f"{name} is in eval mode"):
        memory.forget(group, chosen_units(2))


def test_a_young_entry_under_adamw_schedule_free_is_scaled_as_in_a_fresh_one():
    """z moves by lr m / (sqrt(v / (1 - β2^τ)) + ε), of its own τ; at a constant gradient that is lr."""
    model = network()
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=1e-3)
    group, memory = bound("fresh", optimizer, model)
    optimizer.train()
    for step in range(300):
        if step == 200:
            memory.forget(group, chosen_units(0))
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        if step >= 200:
            before = optimizer.state[model[0].weight]["z"].clone()
        optimizer.step()
        if step >= 200:
            moved = before - optimizer.state[model[0].weight]["z"]
            assert_close(moved[0], torch.full((4,), 1e-3), rtol=1e-3, atol=0)
