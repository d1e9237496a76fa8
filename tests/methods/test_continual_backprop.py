import copy
import gc
import math
import re
import weakref
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from pliant import BN, ContinualBackprop, Slice, Tap, UnitGroup, UnitReset, chain_groups
from pliant.engine.optimizer_state import OptimizerState
from pliant.engine.redraw import Redraw
from pliant.engine.score import RunningUtility
from pliant.streams import stream_key
from pliant.units.entries import SelectedUnits
from tests.networks import NETWORKS, OPTIMIZERS, ages, batch, enough, mlp, replaced, train

OFTEN = {"replacement_rate": 0.05, "maturity_threshold": 5, "seed": 1}


def attached(model, optimizer="sgd", **settings):
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    return optimizer, ContinualBackprop(model, optimizer, groups=chain_groups(model), **{**OFTEN, **settings})


def same(first, second):
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


# -- what it keeps of units ----------------------------------------------------------------------------------------------


def test_at_rate_zero_it_observes_and_draws_nothing():
    model = mlp()
    stepper, cbp = attached(model, replacement_rate=0.0)
    before = cbp.state_dict()["generators"][0]
    train(model, stepper, range(30))
    assert torch.equal(cbp.state_dict()["generators"][0], before)
    assert all((age == 30).all() for age in cbp.ages().values())
    assert all((utility > 0).any() for utility in cbp.utilities().values())


def test_without_a_seed_torch_s_initial_seed_is_read_and_not_drawn_from():
    model = mlp()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    _, cbp = attached(model, seed=None)
    assert torch.equal(torch.get_rng_state(), before)
    assert cbp.seeds == [7]


# -- what a replacement does -------------------------------------------------------------------------------------


def replace_now(model, x, **settings):
    """One step in which every hidden layer replaces units, with a zero gradient, so that nothing else moves."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    settings = {"replacement_rate": 0.2, "maturity_threshold": 0, "seed": 1, **settings}
    cbp = ContinualBackprop(model, optimizer, groups=chain_groups(model), **settings)
    model(x).sum().backward()
    optimizer.step()
    return cbp, [(age[0] == 0).nonzero().flatten().tolist() for age in cbp.ages().values()]


def test_a_unit_that_never_fires_can_be_replaced_without_moving_the_output():
    model = mlp()
    with torch.no_grad():
        model[0].bias[[2, 7]] = -1e3
        x, _ = batch(0, (6,))
        before = model(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    cbp = ContinualBackprop(
        model, optimizer, groups=chain_groups(model)[:1], replacement_rate=2 / 12, maturity_threshold=0, seed=0
    )
    model(x).sum().backward()
    optimizer.step()
    assert (ages(cbp)[0] == 0).nonzero().flatten().tolist() == [2, 7]
    assert torch.equal(model(x), before)
    assert (model[0].weight[[2, 7]] != 0).all()
    assert not model[0].bias[[2, 7]].any()


def test_a_replaced_unit_leaves_the_mean_input_of_its_consumer_as_it_was():
    model = mlp()
    x, _ = batch(0, (6,), size=500)
    before = model[:3](x).mean(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    ContinualBackprop(
        model, optimizer, groups=chain_groups(model)[:1], replacement_rate=0.5, maturity_threshold=0, seed=0
    )
    model(x).sum().backward()
    optimizer.step()
    assert_close(model[:3](x).mean(0), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("padding", "kind"), [(0, "exact"), (1, "interior")])
def test_a_replaced_channel_hands_its_mean_over_exactly_without_padding_and_inside_with_it(padding, kind):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 1), nn.Conv2d(6, 4, 3, padding=padding), nn.Flatten(), nn.Linear(4 * (2 + 2 * padding) ** 2, 1)
    )
    x = torch.ones(3, 1, 4, 4)
    before = model[:2](x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    cbp = ContinualBackprop(
        model, optimizer, groups=chain_groups(model)[:1], replacement_rate=0.5, maturity_threshold=0, seed=0
    )
    assert cbp.plan.rows[0].hand_over == kind
    model(x).sum().backward()
    optimizer.step()
    moved = (model[:2](x) - before).abs()
    inside = moved[:, :, padding : moved.shape[2] - padding, padding : moved.shape[3] - padding]
    assert inside.max() < 1e-5
    assert (moved.max() > 1e-2) == bool(padding)


def test_after_a_flatten_every_column_hands_over_its_own_mean():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(12, 2))
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]).expand(5, 1, 2, 2)
    before = model(x)
    replace_now(model, x, replacement_rate=1.0)
    assert not model[2].weight.any()
    assert_close(model(x), before)


def test_without_a_bias_the_mean_goes_into_the_running_mean_of_the_batch_norm_behind():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 1))
    x = torch.randn(16, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    settings = {"replacement_rate": 0.5, "maturity_threshold": 200, "seed": 0}
    cbp = ContinualBackprop(model, optimizer, groups=chain_groups(model)[:1], **settings)
    assert cbp.plan.rows[0].group.hand_over == {"1.weight": BN("2")}
    for _ in range(201):
        model(x).sum().backward()
        before = model[:2](x).mean(0)
        optimizer.step()
    assert replaced(cbp)["0"] == 4
    after = model[:2](x).mean(0)
    assert (after - before).abs().max() > 0.1
    assert_close(model[2].running_mean, after)


def test_crossing_weights_of_adjacent_layers_end_at_zero():
    model = mlp()
    _, (first, second) = replace_now(model, batch(0, (6,))[0], replacement_rate=0.4)
    assert len(first) >= 2
    assert len(second) >= 2
    assert not model[2].weight[second][:, first].any()
    assert model[2].weight[second][:, [unit for unit in range(12) if unit not in first]].all()
    assert not model[2].bias[second].any()


def test_nan_is_really_gone_and_is_not_handed_over():
    model = mlp()
    with torch.no_grad():
        model[0].weight[3] = math.nan
        model[0].bias[3] = math.inf
        model[2].weight[:, 3] = math.nan
    x, _ = batch(0, (6,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.state[model[2].weight]["momentum_buffer"] = torch.full_like(model[2].weight, math.nan)
    cbp = ContinualBackprop(
        model, optimizer, groups=chain_groups(model)[:1], replacement_rate=0.1, maturity_threshold=0, attach=False
    )
    assert model(x).isnan().all()
    cbp.step()
    assert ages(cbp)[0].tolist() == [1, 1, 1, 0, *[1] * 8]
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model(x).isfinite().all()
    assert not optimizer.state[model[2].weight]["momentum_buffer"][:, 3].any()


def test_an_activation_that_was_infinite_once_makes_its_unit_the_least_useful():
    model = mlp()
    _, cbp = attached(model, attach=False, replacement_rate=1 / 60)
    for activity in (torch.full((1, 12), math.inf), *[torch.ones(1, 12)] * 9):
        activity[0, [0, 1, 2, *range(4, 12)]] = 1.0
        model[2](activity)
        cbp.step()
    assert ages(cbp)[0].argmin() == 3
    assert replaced(cbp)["0"] == 1


def test_own_batch_norm_is_reset_and_the_others_are_not():
    build, shape = NETWORKS["convnet"]
    model = build()
    stepper, cbp = attached(model, replacement_rate=0.0)
    train(model, stepper, range(20), shape)
    norm = model[0][1]
    before = copy.deepcopy(norm)
    cbp.detach()
    _, (units, *_) = replace_now(model, batch(0, shape)[0], replacement_rate=0.4)
    others = [unit for unit in range(6) if unit not in units]
    assert len(units) == 2
    assert norm.weight[units].tolist() == [1.0, 1.0]
    assert norm.running_var[units].tolist() == [1.0, 1.0]
    assert not norm.bias[units].any()
    assert not norm.running_mean[units].any()
    assert torch.equal(norm.weight[others], before.weight[others])


def test_gradients_of_a_replaced_unit_are_cleared():
    model = mlp()
    _, (first, _) = replace_now(model, batch(0, (6,))[0])
    others = [unit for unit in range(12) if unit not in first]
    assert not model[0].weight.grad[first].any()
    assert not model[2].weight.grad[:, first].any()
    assert model[2].weight.grad[:, others].any()


@pytest.mark.parametrize(
    ("init", "bound"),
    [
        ("module", 6**-0.5),
        ("default", 6**-0.5),
        ("lecun", 0.5**0.5),
        ("kaiming", 1.0),
        ("xavier", 2**0.5 * (6 / 18) ** 0.5),
    ],
)
def test_init_names_give_their_bounds(init, bound):
    model = mlp()
    replace_now(model, batch(0, (6,))[0], replacement_rate=1.0, init=init)
    largest = model[0].weight.abs().max().item()
    assert 0.9 * bound < largest <= bound
    assert abs(model[0].weight.mean().item()) < 0.25 * bound


def test_init_takes_a_callable_that_sees_name_shape_and_generator():
    asked = []

    def init(name, shape, generator):
        asked.append((name, shape))
        return torch.full(shape, 3.0)

    model = mlp()
    _, (first, second) = replace_now(model, batch(0, (6,))[0], init=init)
    assert asked == [("0.weight", (len(first), 6)), ("2.weight", (len(second), 12))]
    assert (model[0].weight[first] == 3.0).all()


def test_init_module_draws_what_the_layer_s_own_reset_draws_and_not_from_the_global_generator():
    class Scaled(nn.Linear):
        def reset_parameters(self):
            nn.init.normal_(self.weight, 5.0, 0.1)
            nn.init.zeros_(self.bias)

    model = nn.Sequential(Scaled(6, 40), nn.ReLU(), nn.Linear(40, 2))
    with torch.no_grad():
        model[2].weight[:, [3, 7]] = 0.0  # the least useful
    _, cbp = attached(model, attach=False, replacement_rate=2 / 40, maturity_threshold=0)
    before = torch.get_rng_state()
    nn.init.zeros_(model[0].weight.data)
    nn.init.ones_(model[0].bias.data)
    model(torch.ones(2, 6)).sum().backward()
    cbp.step()
    assert torch.equal(torch.get_rng_state(), before)
    assert (ages(cbp)[0] == 0).nonzero().flatten().tolist() == [3, 7]
    fresh = model[0].weight[[3, 7]]
    assert fresh.mean().item() == pytest.approx(5.0, abs=0.2)
    assert not torch.equal(fresh[0], fresh[1])
    assert cbp.plan.rows[0].fresh_std == pytest.approx(0.1, rel=0.2)


# -- training loops ----------------------------------------------------------------------------------------------


def test_evaluation_and_no_grad_passes_are_not_seen():
    plain, visited = mlp(), mlp()
    plain_optimizer, plain_cbp = attached(plain)
    visited_optimizer, _ = attached(visited)

    def evaluate():
        with torch.no_grad():
            visited(torch.full((4, 6), 50.0))
        visited.eval()(torch.full((4, 6), 50.0))
        visited.train()

    train(plain, plain_optimizer, range(80))
    train(visited, visited_optimizer, range(80), after=evaluate)
    enough(plain_cbp)
    assert same(plain, visited)


def test_passes_of_a_step_weigh_by_their_examples():
    """Three examples of activity 1, then one of 5: the mean is (3 + 5) / 4 = 2, that of the passes would be 3."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    _, cbp = attached(model, attach=False, decay_rate=0.0)
    with torch.no_grad():
        model[1].weight.fill_(1.0)
    model[1](torch.ones(3, 1))
    model[1](torch.full((1, 1), 5.0))
    cbp.step()
    assert cbp.utilities()["0"].item() == 2.0


def test_steps_weigh_alike_however_small_their_batch():
    """A mean of 1 over four examples, then of 5 over one; with η = 0.5 their weights are 0.25 and 0.5: 2.75 / 0.75."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    _, cbp = attached(model, attach=False, decay_rate=0.5)
    with torch.no_grad():
        model[1].weight.fill_(1.0)
    model[1](torch.ones(4, 1))
    cbp.step()
    model[1](torch.full((1, 1), 5.0))
    cbp.step()
    assert cbp.utilities()["0"].item() == pytest.approx(2.75 / 0.75)


def test_layers_without_bias_work_and_hand_nothing_over():
    model = mlp(bias=False)
    stepper, cbp = attached(model)
    train(model, stepper, range(120))
    enough(cbp)
    assert [row.hand_over for row in cbp.plan.rows] == ["none", "none"]


def test_its_repr_says_how_far_it_is():
    model = mlp()
    optimizer, cbp = attached(model)
    assert repr(cbp).startswith("ContinualBackprop(2 groups of ")
    train(model, optimizer, range(40), NETWORKS["mlp"][1])
    total = sum(sum(group["replaced"]) for group in cbp.stats().values())
    assert total > 0
    assert repr(cbp).endswith(f" units, 40 steps, {total} replaced)")
    cbp.detach()
    assert repr(cbp).endswith("replaced, detached)")


def test_a_second_one_on_the_same_units_is_refused_until_the_first_is_detached():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(2, 3)
    first = ContinualBackprop(model, optimizer, example_inputs=x)
    with pytest.raises(ValueError, match="units of '0' are already reset by a ContinualBackprop that is attached"):
        ContinualBackprop(model, optimizer, example_inputs=x)
    ContinualBackprop(model, optimizer, example_inputs=x, attach=False)
    first.detach()
    lower = ContinualBackprop(model, optimizer, example_inputs=x, include="0")
    upper = ContinualBackprop(model, optimizer, example_inputs=x, exclude="0")
    assert [list(each.stats()) for each in (lower, upper)] == [["0"], ["2"]]
    ContinualBackprop(model, torch.optim.SGD(model.parameters(), lr=0.1), example_inputs=x)  # of another optimizer


@pytest.mark.parametrize("whole_first", [True, False])
def test_units_are_the_same_by_whatever_model_and_name_they_are_found(whole_first):
    model = nn.ModuleDict({"actor": mlp(), "critic": mlp()})
    model.forward = lambda x: [model[name](x) for name in ("actor", "critic")]
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(2, 6)
    found, other, name = (model, model["critic"], "0") if whole_first else (model["critic"], model, "critic.0")
    first = ContinualBackprop(found, optimizer, example_inputs=x)
    with pytest.raises(ValueError, match=f"units of '{re.escape(name)}' are already reset by a ContinualBackprop"):
        ContinualBackprop(other, optimizer, example_inputs=x)
    first.detach()
    ContinualBackprop(other, optimizer, example_inputs=x)


def test_networks_side_by_side_in_one_optimizer_each_have_their_own():
    actor, critic = mlp(), mlp()
    optimizer = torch.optim.SGD([*actor.parameters(), *critic.parameters()], lr=0.1)
    both = [ContinualBackprop(each, optimizer, example_inputs=torch.randn(2, 6)) for each in (actor, critic)]
    assert [list(each.stats()) for each in both] == [["0", "2"], ["0", "2"]]


def test_a_method_goes_with_its_optimizer_and_is_then_in_nobody_s_way():
    model, x = mlp(), torch.randn(2, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = weakref.ref(ContinualBackprop(model, optimizer, example_inputs=x))
    gc.collect()
    assert method() is not None  # it still acts
    with pytest.raises(ValueError, match="are already reset"):
        ContinualBackprop(model, optimizer, example_inputs=x)
    del optimizer
    gc.collect()
    assert method() is None
    ContinualBackprop(model, torch.optim.SGD(model.parameters(), lr=0.1), example_inputs=x)


def test_stepping_by_hand_equals_stepping_by_hook():
    hooked, manual = mlp(), mlp()
    hooked_optimizer, cbp = attached(hooked, "adam")
    manual_optimizer, by_hand = attached(manual, "adam", attach=False)
    train(hooked, hooked_optimizer, range(100))
    train(manual, manual_optimizer, range(100), after=by_hand.step)
    enough(cbp)
    assert same(hooked, manual)


class CountReads(TorchDispatchMode):
    """Counts the operations that make the host wait for a number of the device."""

    READS = (
        "aten._local_scalar_dense",
        "aten.nonzero",
        "aten.masked_select",
        "aten.is_nonzero",
        "aten.equal",
        "aten.unique",
    )

    def __init__(self):
        super().__init__()
        self.reads = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indices = args[1] if str(func).startswith("aten.index") and isinstance(args[1], list | tuple) else []
        by_mask = any(index is not None and index.dtype is torch.bool for index in indices)
        if by_mask or str(func).startswith(self.READS):
            self.reads.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("utility", ["contribution", "adaptable_contribution", "random"])
@pytest.mark.parametrize("count", ["accumulate", "bernoulli"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_no_step_reads_the_device(network, optimizer, count, utility):
    build, shape = NETWORKS[network]
    model = build()
    stepper, cbp = attached(model, optimizer, count=count, utility=utility, attach=False)
    reads = []

    def step():
        with CountReads() as counter:
            cbp.step()
        reads.extend(counter.reads)

    train(model, stepper, range(120), shape, after=step)
    enough(cbp, least=15 if count == "bernoulli" else 20)
    assert reads == []


def test_the_guard_against_reads_can_see_one():
    with CountReads() as counter:
        torch.ones(3)[torch.tensor([True, False, True])].sum().item()
    assert len(counter.reads) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_no_step_waits_for_the_device():
    model = mlp().cuda()
    stepper, cbp = attached(model, "adam")
    for step in range(120):
        x, y = (each.cuda() for each in batch(step, (6,)))
        stepper.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        torch.cuda.set_sync_debug_mode("error" if step > 5 else "default")
        stepper.step()
        torch.cuda.set_sync_debug_mode("default")
    enough(cbp)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_state_follows_the_model_to_another_device():
    model = mlp()
    stepper, cbp = attached(model)
    train(model, stepper, range(10))
    model.cuda()
    stepper.load_state_dict(stepper.state_dict())
    x, y = (each.cuda() for each in batch(0, (6,)))
    nn.functional.mse_loss(model(x), y).backward()
    stepper.step()
    assert ages(cbp).device.type == "cuda"
    assert (ages(cbp) <= 11).all()


def test_moving_the_model_and_our_state_within_a_device_changes_nothing():
    still, moved = mlp(), mlp()
    still_optimizer, cbp = attached(still)
    moved_optimizer, moved_cbp = attached(moved)
    train(still, still_optimizer, range(100))
    train(moved, moved_optimizer, range(50))
    moved.to("cpu")
    moved_cbp.to("cpu")
    train(moved, moved_optimizer, range(50, 100))
    enough(cbp)
    assert same(still, moved)


def test_a_model_cast_in_mid_training_is_followed():
    model = mlp()
    stepper, cbp = attached(model, replacement_rate=0.1)
    train(model, stepper, range(20))
    model.double()
    stepper = torch.optim.SGD(model.parameters(), lr=0.01)
    saved = cbp.state_dict()
    cbp.detach()
    cbp = ContinualBackprop(model, stepper, groups=chain_groups(model), **OFTEN)
    cbp.load_state_dict(saved)
    train(model, stepper, range(20, 60), dtype=torch.float64)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


# -- a stack of seeds ---------------------------------------------------------------------------------------------


class Stack(nn.Module):
    """Networks side by side: axis 0 of every parameter is the run."""

    def __init__(self, networks):
        super().__init__()
        for name, index in (("hidden", 0), ("middle", 2), ("out", 4)):
            layer = nn.Module()
            layer.weight = nn.Parameter(torch.stack([net[index].weight.detach() for net in networks]))
            layer.bias = nn.Parameter(torch.stack([net[index].bias.detach() for net in networks]))
            layer.forward = lambda x, layer=layer: torch.baddbmm(layer.bias[:, None], x, layer.weight.mT)
            setattr(self, name, layer)

    def forward(self, x):
        return self.out(self.middle(self.hidden(x).relu()).tanh())

    def groups(self):
        return [
            UnitGroup(
                name,
                incoming=[Slice(f"{name}.weight", 0), Slice(f"{name}.bias", 0)],
                outgoing=[Slice(f"{consumer}.weight", 1)],
                tap=Tap(consumer),
                gain=gain,
                runs=len(self.out.weight),
            )
            for name, consumer, gain in (("hidden", "middle", 2**0.5), ("middle", "out", 5 / 3))
        ]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("count", ["accumulate", "bernoulli"])
@pytest.mark.parametrize("utility", ["contribution", "adaptable_contribution"])
def test_a_stack_of_seeds_equals_the_single_networks(optimizer, count, utility):
    singles = [mlp(dtype=torch.float64, seed=seed) for seed in range(3)]
    stack = Stack(singles)
    settings = {**OFTEN, "count": count, "utility": utility, "init": "kaiming", "replacement_rate": 0.08}
    stack_optimizer = OPTIMIZERS[optimizer](stack.parameters())
    cbp = ContinualBackprop(stack, stack_optimizer, groups=stack.groups(), **{**settings, "seed": [10, 20, 30]})
    for step in range(120):
        data = [batch(1000 * run + step, (6,), dtype=torch.float64) for run in range(3)]
        stack_optimizer.zero_grad()
        errors = stack(torch.stack([x for x, _ in data])) - torch.stack([y for _, y in data])
        errors.square().mean(dim=(1, 2)).sum().backward()
        stack_optimizer.step()
    for run, single in enumerate(singles):
        single_optimizer = OPTIMIZERS[optimizer](single.parameters())
        alone = ContinualBackprop(
            single, single_optimizer, groups=chain_groups(single), **{**settings, "seed": (run + 1) * 10}
        )
        train(single, single_optimizer, range(1000 * run, 1000 * run + 120), dtype=torch.float64)
        enough(alone)
        assert_close(stack.hidden.weight[run], single[0].weight, rtol=1e-9, atol=1e-12)
        assert_close(stack.middle.weight[run], single[2].weight, rtol=1e-9, atol=1e-12)
        assert_close(stack.out.bias[run], single[4].bias, rtol=1e-9, atol=1e-12)
        assert [group["replaced"][run] for group in cbp.stats().values()] == list(replaced(alone).values())


# -- groups by hand ------------------------------------------------------------------------------------------------


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


def test_kaiming_uses_the_gain_of_the_activation_and_xavier_both_sides_of_a_convolution():
    drawn = {}
    for init in ("kaiming", "xavier"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 64, 3), nn.Tanh(), nn.Conv2d(64, 2, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        cbp = ContinualBackprop(
            model,
            optimizer,
            groups=chain_groups(model),
            init=init,
            replacement_rate=1.0,
            maturity_threshold=0,
            attach=False,
        )
        model(torch.randn(4, 2, 5, 5)).sum().backward()
        cbp.step()
        drawn[init] = model[0].weight.abs().max().item()
    assert drawn["kaiming"] == pytest.approx(5 / 3 * (3 / 18) ** 0.5, rel=0.02)
    assert drawn["xavier"] == pytest.approx(5 / 3 * (6 / (18 + 64 * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("dtype", "kept"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)]
)
def test_utilities_are_kept_in_float32_or_better(dtype, kept):
    model = mlp(dtype=dtype)
    optimizer, cbp = attached(model)
    train(model, optimizer, range(60), dtype=dtype)
    enough(cbp, least=10)
    assert {utility.dtype for utility in cbp.utilities().values()} == {kept}


def test_resuming_between_two_accumulated_passes_changes_nothing():
    def passes(model, optimizer, numbers):
        for number in numbers:
            x, y = batch(number, (6,))
            nn.functional.mse_loss(model(x), y).backward()
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()

    straight = mlp()
    optimizer, cbp = attached(straight)
    passes(straight, optimizer, range(121))
    first = mlp()
    first_optimizer, first_cbp = attached(first)
    passes(first, first_optimizer, range(61))
    second = mlp(seed=3)
    second_optimizer, second_cbp = attached(second)
    second.load_state_dict(first.state_dict())
    second_optimizer.load_state_dict(first_optimizer.state_dict())
    second_cbp.load_state_dict(first_cbp.state_dict())
    for mine, theirs in zip(second.parameters(), first.parameters(), strict=True):
        mine.grad = theirs.grad.clone()
    passes(second, second_optimizer, range(61, 121))
    enough(cbp)
    assert same(straight, second)


def test_groups_and_runs_draw_independently():
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 2))
    optimizer, cbp = attached(model, count="bernoulli", maturity_threshold=0)
    when = {name: [] for name in cbp.stats()}
    seen = dict.fromkeys(when, 0)

    def note():
        for name, count in replaced(cbp).items():
            when[name].append(count - seen[name])
            seen[name] = count

    train(model, optimizer, range(100), after=note)
    enough(cbp)
    assert when["0"] != when["2"]
    stack = Stack([mlp(), mlp()])
    by_number = ContinualBackprop(
        stack, OPTIMIZERS["sgd"](stack.parameters()), groups=stack.groups(), init="kaiming", seed=7
    )
    assert by_number.seeds == [7, 8]


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


def test_activity_can_be_read_at_the_output_of_a_module():
    """ReLU's output and its consumer's input are the same numbers."""
    models = [mlp(), mlp()]
    for model, tap in zip(models, (Tap("2"), Tap("1", "output")), strict=True):
        cbp = build(model, tap=tap, optimizer=(optimizer := torch.optim.SGD(model.parameters(), lr=0.05)), **OFTEN)
        train(model, optimizer, range(80))
        enough(cbp)
    assert same(*models)


def test_random_utility_is_drawn_from_the_method_s_own_generator_and_anew_at_each_replacement():
    model = mlp()
    optimizer, cbp = attached(model, utility="random", replacement_rate=1 / 12, maturity_threshold=0)
    own = torch.Generator().manual_seed(stream_key(cbp.seeds[0], "fresh units"))
    drawn = cbp.utilities()["0"]
    assert torch.equal(drawn[0], torch.rand(12, generator=own))
    assert torch.equal(cbp.utilities()["0"], drawn)  # to look is not to draw
    train(model, optimizer, [0])
    assert (ages(cbp)[0] == 0).nonzero().flatten().tolist() == [drawn[0].argmin().item()]
    assert not torch.equal(cbp.utilities()["0"], drawn)


def test_stats_say_what_was_replaced_and_when():
    model = mlp()
    optimizer, cbp = attached(model, replacement_rate=0.02, maturity_threshold=3)
    assert cbp.stats()["0"]["last_replaced_at"] is None
    for step in range(30):
        before = replaced(cbp)["0"]
        train(model, optimizer, [step])
        if replaced(cbp)["0"] > before:
            assert cbp.stats()["0"]["last_replaced_at"] == step + 1
    assert cbp.stats()["0"]["steps"] == 30
    assert cbp.stats()["0"]["last_replaced_at"] <= 30


def test_two_groups_that_claim_the_same_weights_are_an_error():
    model = mlp()
    first, second = chain_groups(model)
    claimed = UnitGroup("again", first.incoming, first.outgoing, first.tap)
    with pytest.raises(
        ValueError, match=r"the same incoming slice is given more than once: 0\.bias, axis 0; 0\.weight"
    ):
        ContinualBackprop(model, torch.optim.SGD(model.parameters(), lr=0.1), groups=[first, second, claimed])


def test_accumulated_passes_are_centred_on_the_passes_so_far():
    """One unit that reads 1, then 3: first centred on 1, then on the mean 2, so (0 + 1) / 2; joint, on 2 throughout: 1."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    cbp = ContinualBackprop(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        groups=chain_groups(model),
        utility="zero_contribution",
        attach=False,
    )
    with torch.no_grad():
        model[1].weight.fill_(1.0)
    model[1](torch.tensor([[1.0]]))
    model[1](torch.tensor([[3.0]]))
    cbp.step()
    assert_close(cbp.utilities()["0"], torch.tensor([[0.5]]))


class HalfOfTheFirst:
    """A selection for the test: the first unit of each group, by half, at every step."""

    def bind(self, groups, seeds): ...

    def __call__(self, group, age, value):
        first = torch.zeros(1, dtype=torch.int64)
        return SelectedUnits(first, first, torch.tensor([0.5]), [1])

    settings: ClassVar = {}

    def stats(self, group):
        return {}


def test_a_replacement_by_half_goes_halfway_and_keeps_the_unit_s_age():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    method = UnitReset(
        model,
        optimizer,
        groups=chain_groups(model)[:1],
        score=RunningUtility(),
        select=HalfOfTheFirst(),
        redraw=Redraw(lambda name, shape, generator: torch.zeros(shape), hand_over_mean=False),
        forget=OptimizerState("fresh"),
    )
    before = copy.deepcopy(model)
    model(batch(0, (6,))[0]).sum().backward()
    optimizer.step()
    assert_close(model[0].weight[0], before[0].weight[0] / 2)
    assert_close(model[2].weight[:, 0], before[2].weight[:, 0] / 2)
    assert torch.equal(model[0].weight[1:], before[0].weight[1:])
    assert ages(method)[0].tolist() == [1] * 12
    assert any((utility > 0).any() for utility in method.utilities().values())


class Another(ContinualBackprop):
    """A method of another kind, which may act beside it."""


def test_several_methods_on_one_adam_do_not_undo_each_other():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    groups = chain_groups(model)[:1]
    first = ContinualBackprop(model, optimizer, groups=groups, replacement_rate=0.1, maturity_threshold=4, seed=0)
    second = Another(model, optimizer, groups=groups, replacement_rate=0.1, maturity_threshold=6, seed=1)
    for step in range(60):
        train(model, optimizer, [step])
        for method in (first, second):
            units = (ages(method)[0] == 0).nonzero().flatten()
            assert not model[2].weight[:, units].any()
    enough(first)
    enough(second)
    first.detach()
    second.detach()
    assert not optimizer._optimizer_step_post_hooks


def test_clearing_gradients_before_a_manual_step_changes_nothing():
    kept, cleared = mlp(), mlp()
    kept_optimizer, kept_cbp = attached(kept, "adam", attach=False)
    cleared_optimizer, cleared_cbp = attached(cleared, "adam", attach=False)
    train(kept, kept_optimizer, range(100), after=kept_cbp.step)

    def clear_and_step():
        cleared_optimizer.zero_grad()
        cleared_cbp.step()

    train(cleared, cleared_optimizer, range(100), after=clear_and_step)
    enough(kept_cbp)
    assert same(kept, cleared)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"maturity_threshold": 50}, "saved with maturity_threshold = 5, here it is 50"),
        ({"utility": "weight"}, "saved with utility = contribution, here it is weight"),
        ({"decay_rate": 0.9}, "saved with decay_rate = 0.99, here it is 0.9"),
        ({"eligible": "all"}, "saved with eligible = mature"),
    ],
)
def test_a_state_saved_with_other_settings_is_an_error_and_nothing_is_loaded(changes, message):
    model = mlp()
    optimizer, cbp = attached(model)
    train(model, optimizer, range(20))
    _, other = attached(mlp(), **changes)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(cbp.state_dict())
    assert not ages(other).any()


# -- bad input -----------------------------------------------------------------------------------------------------


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
        ({"init": "he"}, "unknown init 'he'; known: module, kaiming"),
        ({"optimizer_state": "forget"}, "unknown optimizer_state 'forget'"),
        ({"seed": [1, 2]}, "2 seeds for 1 runs"),
        ({"hand_over": {"2.wieght": "2.bias"}}, "hand_over names '2.wieght', which is not outgoing"),
        ({"hand_over": {"2.weight": "4.bias"}}, r"has shape \(1, 2\), not \(1, 9\)"),
        ({"runs": 0}, "runs must be at least 1"),
    ],
)
def test_what_does_not_fit_is_one_clear_error_at_construction(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build(**changes)


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


def test_training_in_evaluation_mode_is_an_error_at_the_first_step():
    model = mlp().eval()
    stepper, _ = attached(model)
    with pytest.raises(RuntimeError, match=r"none of the tapped modules \('2', '4'\) ran in training mode"):
        train(model, stepper, range(1))


def test_forgetting_train_after_loading_a_state_is_an_error_at_the_first_step():
    model = mlp()
    stepper, cbp = attached(model)
    train(model, stepper, range(10))
    twin = mlp().eval()
    twin_stepper, twin_cbp = attached(twin)
    twin_cbp.load_state_dict(cbp.state_dict())
    with pytest.raises(RuntimeError, match="ran in training mode"):
        train(twin, twin_stepper, range(1))


def test_a_tap_of_the_wrong_width_is_an_error_at_the_first_pass():
    model = mlp()
    build(model, tap=Tap("0"))
    with pytest.raises(ValueError, match="the input of '0' has 6 entries along axis -1, but its groups have 12"):
        model(torch.ones(1, 6))


def test_a_state_of_other_units_is_an_error_that_names_them():
    _, cbp = attached(mlp())
    other = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2))
    _, theirs = attached(other)
    with pytest.raises(ValueError, match=r"saved for other units; saved: 0 \| 12"):
        theirs.load_state_dict(cbp.state_dict())


def test_a_state_of_another_format_is_an_error():
    _, cbp = attached(mlp())
    with pytest.raises(ValueError, match="this state has format 99"):
        cbp.load_state_dict({**cbp.state_dict(), "format": 99})


def test_the_plan_prints_what_feeds_and_what_is_fed():
    _, cbp = attached(NETWORKS["convnet"][0]())
    lines = str(cbp.plan).splitlines()
    assert lines[0].split()[:7] == ["group", "kind", "units", "incoming", "outgoing", "activity", "hand-over"]
    assert "1.0.weight[i]" in lines[2]
    assert "4.weight[:, i x4]" in lines[2]
    assert lines[2].split()[-4:-3] == ["exact"]
    bound = 1 / (6 * 2 * 2) ** 0.5  # what a fresh Conv2d(6, 5, 2) draws, beside what there is
    fresh, now = (float(lines[2].split()[place]) for place in (-3, -1))
    assert fresh == pytest.approx(bound / 3**0.5, rel=1e-2)
    assert now == pytest.approx(fresh, rel=0.1)


def test_it_is_a_unit_reset():
    _, cbp = attached(mlp())
    assert isinstance(cbp, UnitReset)


def test_a_state_remembers_its_seeds_so_another_global_seed_draws_the_same_counts():
    def run(split):
        torch.manual_seed(3)
        model = mlp()
        optimizer, cbp = attached(model, count="bernoulli", seed=None)
        train(model, optimizer, range(60))
        if split:
            held = copy.deepcopy((model.state_dict(), optimizer.state_dict(), cbp.state_dict()))
            torch.manual_seed(99)
            model = mlp(seed=99)
            optimizer, cbp = attached(model, count="bernoulli", seed=None)
            for each, state in zip((model, optimizer, cbp), held, strict=True):
                each.load_state_dict(state)
        train(model, optimizer, range(60, 160))
        return model, cbp

    (straight, cbp), (resumed, _) = run(split=False), run(split=True)
    enough(cbp)
    assert same(straight, resumed)


def test_a_state_of_another_optimizer_or_of_other_positions_is_an_error():
    _, cbp = attached(mlp())
    _, adam = attached(mlp(), "adam")
    with pytest.raises(ValueError, match="saved with optimizers"):
        adam.load_state_dict(cbp.state_dict())

    def shuffled(groups):
        return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ChannelShuffle(groups), nn.Conv2d(8, 2, 1))

    methods = []
    for model in (shuffled(2), shuffled(4)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        methods.append(ContinualBackprop(model, optimizer, example_inputs=torch.randn(2, 3, 4, 4)))
    with pytest.raises(ValueError, match="saved for other units"):
        methods[1].load_state_dict(methods[0].state_dict())


def test_a_group_that_is_never_read_is_named_in_the_log(caplog):
    model = mlp()
    optimizer, _ = attached(model)
    model[4].eval()  # what group '2' is read by
    train(model, optimizer, range(100))
    assert "never read in 100 steps, so never replaced: '2'" in caplog.text


def test_fresh_units_are_not_those_that_the_same_seed_began_with():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 1))
    first = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    cbp = ContinualBackprop(model, optimizer, groups=chain_groups(model), replacement_rate=0.5, maturity_threshold=2)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.ones(1, 10)).sum().backward()
        optimizer.step()
    new = model[0].weight[(model[0].weight != first).any(dim=1)]
    assert len(new) >= 20
    assert sum(cbp.stats()["0"]["replaced"]) >= 20
    assert not (new[:, None] == first).any()
