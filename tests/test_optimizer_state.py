"""After a reset, the reset entries move as in an optimizer built at that moment, the others as if nothing had happened."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pliant import ContinualBackprop, chain_groups
from pliant.optimizer_state import OptimizerState
from pliant.units.bound import BoundGroup, Chosen

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, foreach=False, weight_decay=1e-2),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "adam equal betas": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.99, 0.99)),
    "adam decoupled": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, decoupled_weight_decay=True),
    "adam maximize, step size on the device": lambda p: torch.optim.Adam(
        p, lr=torch.tensor(0.1), maximize=True, foreach=False, capturable=False
    ),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "adamw fused amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True, amsgrad=True),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def give_gradients(model, size, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = size * torch.randn(parameter.shape, generator=generator)


def train(model, optimizer, size, steps):
    for step in steps:
        give_gradients(model, size, step)
        optimizer.step()


def touched(model, group, chosen):
    """By parameter name, which entries belong to the chosen units."""
    masks = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    for part in group.slices():
        group.view(part, masks[part.parameter])[chosen.where] = True
    return masks


def chosen_units(*units):
    return Chosen(torch.zeros(len(units), dtype=torch.int64), torch.tensor(units), torch.ones(len(units)), [len(units)])


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
    assert memory.state_dict()["0|2"]["since"][0].tolist() == [torch.inf] * 2 + [15.0] + [torch.inf] * 3


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
    assert since["0|0"]["since"][0, 2] == 5
    assert since["0|2"]["since"][0, 2] == 10


def test_zeroing_moments_alone_moves_a_fresh_entry_by_several_step_sizes():
    """Why "fresh" is the default: the trap that "zero" replicates."""
    moved = {}
    for policy in ("fresh", "zero"):
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        group = BoundGroup(chain_groups(model)[0], model)
        memory = OptimizerState(policy)
        memory.bind([optimizer], [group])
        for step in range(3000):
            if step == 2900:
                memory.forget(group, chosen_units(0))
            before = model[0].weight[0, 0].item()
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            if step >= 2900:
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


@pytest.mark.parametrize("build", [torch.optim.RMSprop, torch.optim.LBFGS])
def test_an_optimizer_without_a_rule_is_a_named_error_at_construction(build):
    model = network()
    with pytest.raises(ValueError, match=f"no rule to forget the state of {build.__name__}"):
        ContinualBackprop(model, build(model.parameters()), groups=chain_groups(model))


def test_momentum_with_dampening_is_a_named_error():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, dampening=0.5)
    with pytest.raises(ValueError, match="dampening"):
        ContinualBackprop(model, optimizer, groups=chain_groups(model))


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
    assert memory.state_dict()["0|0"]["since"][0, 1] == 1


def test_an_unknown_policy_lists_the_known_ones():
    with pytest.raises(ValueError, match="known: fresh, fill, zero, keep"):
        OptimizerState("reset")
