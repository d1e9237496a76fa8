"""The engine of methods that reset units, apart from what they compute: attaching, clocks, devices, saving."""

import copy
import gc
import re
import weakref
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from pliant import ContinualBackprop, UnitReset, chain_groups
from pliant.engine.optimizer_state import OptimizerState
from pliant.engine.redraw import Redraw
from pliant.engine.score import RunningUtility
from pliant.units.entries import SelectedUnits
from tests.networks import NETWORKS, OPTIMIZERS, ages, batch, enough, mlp, train

OFTEN = {"replacement_rate": 0.05, "maturity_threshold": 5, "seed": 1}


def attached(model, optimizer="sgd", **settings):
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    return optimizer, ContinualBackprop(model, optimizer, groups=chain_groups(model), **{**OFTEN, **settings})


def same(first, second):
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


# -- attaching and stepping -----------------------------------------------------------------------------------------------


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


def test_without_a_seed_torch_s_initial_seed_is_read_and_not_drawn_from():
    model = mlp()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    _, cbp = attached(model, seed=None)
    assert torch.equal(torch.get_rng_state(), before)
    assert cbp.seeds == [7]


def test_stepping_by_hand_equals_stepping_by_hook():
    hooked, manual = mlp(), mlp()
    hooked_optimizer, cbp = attached(hooked, "adam")
    manual_optimizer, by_hand = attached(manual, "adam", attach=False)
    train(hooked, hooked_optimizer, range(100))
    train(manual, manual_optimizer, range(100), after=by_hand.step)
    enough(cbp)
    assert same(hooked, manual)


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


def test_training_in_evaluation_mode_is_an_error_at_the_first_step():
    model = mlp().eval()
    stepper, _ = attached(model)
    with pytest.raises(RuntimeError, match=r"none of the tapped modules \('2', '4'\) ran in training mode"):
        train(model, stepper, range(1))


def test_a_group_that_is_never_read_is_named_in_the_log(caplog):
    model = mlp()
    optimizer, _ = attached(model)
    model[4].eval()  # what group '2' is read by
    train(model, optimizer, range(100))
    assert "never read in 100 steps, so never replaced: '2'" in caplog.text


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


# -- beside other methods -------------------------------------------------------------------------------------------------


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


# -- devices --------------------------------------------------------------------------------------------------------------


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


# -- saving ---------------------------------------------------------------------------------------------------------------


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


def test_forgetting_train_after_loading_a_state_is_an_error_at_the_first_step():
    model = mlp()
    stepper, cbp = attached(model)
    train(model, stepper, range(10))
    twin = mlp().eval()
    twin_stepper, twin_cbp = attached(twin)
    twin_cbp.load_state_dict(cbp.state_dict())
    with pytest.raises(RuntimeError, match="ran in training mode"):
        train(twin, twin_stepper, range(1))


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


# -- on_replace -----------------------------------------------------------------------------------------------------------------


def told(steps, **settings):
    """What a listener is told of in so many steps, each with the outgoing weights as they were then."""
    model, found = mlp(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    layer = {"0": 2, "2": 4}

    def listen(replacement):
        left = model[layer[replacement.group]].weight[:, replacement.units]
        found.append((replacement.group, replacement.step, replacement.units.tolist(), float(left.abs().sum())))

    x = torch.randn(32, 6)
    settings = {"replacement_rate": 0.1, "maturity_threshold": 3, "seed": 5, **settings}
    cbp = ContinualBackprop(model, optimizer, example_inputs=x, on_replace=listen, **settings)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return cbp, found


def test_on_replace_is_told_of_each_replacement_when_it_is_done():
    cbp, found = told(40)
    for name, group in cbp.stats().items():
        of_group = [each for each in found if each[0] == name]
        assert sum(len(units) for _, _, units, _ in of_group) == group["replaced"][0] >= 20
        assert of_group[-1][1] == group["last_replaced_at"]
    assert {left for *_, left in found} == {0.0}


def test_on_replace_is_told_of_nothing_where_nothing_is_replaced():
    assert told(40, replacement_rate=0.0)[1] == []


def test_on_replace_is_a_function_of_one_argument():
    model = mlp()
    with pytest.raises(
        TypeError, match=r"on_replace is called with 1 argument \(replacement\), which <lambda> does not take"
    ):
        ContinualBackprop(
            model, torch.optim.SGD(model.parameters(), lr=0.1), example_inputs=torch.ones(2, 6), on_replace=lambda: None
        )
