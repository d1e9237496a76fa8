"""A step that a GradScaler leaves out is no step for any method, whoever decides and whoever knows."""

import copy
from math import floor

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pliant import L2, ContinualBackprop, ReDo, ShrinkAndPerturb, chain_groups
from pliant.engine import taken_steps
from pliant.engine.optimizer_state import OptimizerState
from pliant.units.bound import BoundGroup
from pliant.units.entries import SelectedUnits
from tests.networks import batch, enough, mlp

FUSED = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, fused=True),
}


def cbp(model, optimizer, **settings):
    often = {
        "replacement_rate": 0.05,
        "maturity_threshold": 5,
        "seed": 1,
        "example_inputs": torch.zeros(2, 6).to(model[0].weight),
    }
    return ContinualBackprop(model, optimizer, **{**often, **settings})


METHODS = {
    "continual backprop": lambda m, o: [cbp(m, o)],
    "centred utility": lambda m, o: [cbp(m, o, utility="zero_contribution", count="bernoulli")],
    "redo": lambda m, o: [ReDo(m, o, tau=0.8, period=3, seed=1, example_inputs=torch.zeros(2, 6))],
    "three at once": lambda m, o: [cbp(m, o), ShrinkAndPerturb(m, o, noise_std=1e-3, seed=1), L2(m, o, strength=0.1)],
}


def new_scaler():
    return torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=10_000)


def scaled_step(model, optimizers, scaler, step, overflow=(), after=lambda: None):
    """One step; gradients of the `overflow` optimizers, by number, are infinite, and where it is the only one activity is too."""
    x, y = batch(step, (6,), size=8)
    x, y = x.to(model[0].weight), y.to(model[0].weight)
    if overflow and len(optimizers) == 1:
        x[0] = torch.inf
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    scaler.scale(loss).backward()
    for number in overflow:
        optimizers[number].param_groups[0]["params"][0].grad.fill_(torch.inf)
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    after()


def leaves_out(step):
    return step % 3 == 1 or step in (20, 21, 24)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("method", ["centred utility", "three at once"])  # the others: tests/methods/promises.py
@pytest.mark.parametrize("kind", FUSED)
def test_training_is_to_the_bit_as_if_batches_that_overflow_had_been_left_out(kind, method):
    runs = []
    for all_batches in (True, False):
        model = mlp()
        optimizer = FUSED[kind](model.parameters())
        methods = METHODS[method](model, optimizer)
        scaler = new_scaler()
        for step in range(90):
            if all_batches or not leaves_out(step):
                scaled_step(model, [optimizer], scaler, step, [0] if leaves_out(step) else [])
        runs.append((model, methods))
    (model, methods), (other, others) = runs
    assert same(model, other)
    for one, two in zip(methods, others, strict=True):
        if not isinstance(one, L2 | ShrinkAndPerturb):
            enough(one, 10)
            assert one.stats() == two.stats()
        if isinstance(one, ShrinkAndPerturb):
            assert one.steps == two.steps == [sum(not leaves_out(step) for step in range(90))]


def plainly_counted(units, rate, maturity, taken):
    """Steps and replacements: every unit with its own age."""
    ages, steps, eligible, replaced = [0] * units, 0, 0, 0
    for happened in taken:
        if not happened:
            continue
        steps += 1
        ages = [age + 1 for age in ages]
        mature = [unit for unit in range(units) if ages[unit] > maturity]
        eligible += len(mature)
        due = min(floor(rate * eligible) - replaced, len(mature))
        for unit in mature[:due]:
            ages[unit] = 0
        replaced += due
    return steps, replaced


def counted(method):
    return {name: (group["steps"], *group["replaced"]) for name, group in method.stats().items()}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("by_hand", [False, True])
def test_of_sixty_steps_of_which_every_second_overflows_thirty_count(fused, by_hand):
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    method = cbp(model, optimizer, attach=not by_hand)
    scaler = new_scaler()
    for step in range(60):
        scaled_step(model, [optimizer], scaler, step, [0] if step % 2 else [], method.step if by_hand else lambda: None)
    taken = [step % 2 == 0 for step in range(60)]
    assert counted(method) == {group.name: plainly_counted(group.units, 0.05, 5, taken) for group in method.groups}
    assert all(replaced > 5 for _, replaced in counted(method).values())
    assert all(int(age.max()) <= 30 for age in method.ages().values())


def test_of_several_optimizers_only_the_groups_of_the_one_that_is_left_out_keep_their_clock():
    """The first layer's units step with the first optimizer, the others' with the second."""
    model = mlp()
    first = torch.optim.Adam(model[0].parameters(), lr=0.01, fused=True)
    second = torch.optim.SGD(model[2:].parameters(), lr=0.01, fused=True)
    method = cbp(model, (first, second))
    noise = ShrinkAndPerturb(model, (first, second), noise_std=1e-4, seed=0)
    scaler = new_scaler()
    for step in range(40):
        scaled_step(model, [first, second], scaler, step, [0] if step % 4 == 0 else [])
    assert {name: steps for name, (steps, _) in counted(method).items()} == {"0": 30, "2": 40}
    assert noise.steps == [30, 40]


def test_gradients_that_are_unscaled_and_clipped_by_the_user_make_no_difference():
    runs = []
    for all_batches in (True, False):
        model = mlp()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        method, scaler = cbp(model, optimizer), new_scaler()
        for step in range(90):
            if not all_batches and leaves_out(step):
                continue
            x, y = batch(step, (6,))
            optimizer.zero_grad()
            scaler.scale(nn.functional.mse_loss(model(x), y)).backward()
            if leaves_out(step):
                model[0].weight.grad[0, 0] = torch.nan
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        enough(method, 10)
        runs.append(model)
    assert same(*runs)


# -- where only the device knows: the same code on CPU tensors ---------------------------------------------------------


@pytest.fixture
def known_late(monkeypatch):
    monkeypatch.setattr(taken_steps, "known_at_once", lambda flag: False)


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.usefixtures("known_late")
def test_units_due_by_a_step_are_replaced_after_the_next_and_the_same_ones(kind):
    """Every taken step is followed by one that is left out: what comes one step late comes before anything has moved."""
    runs = []
    for left_out in (True, False):
        model = mlp(dtype=torch.float64)
        optimizer = FUSED[kind](model.parameters())
        method = cbp(model, optimizer)
        noise = ShrinkAndPerturb(model, optimizer, noise_std=1e-3, period=2, seed=1)
        scaler = new_scaler()
        for step in range(90):
            if left_out:
                scaled_step(model, [optimizer], scaler, step)
                scaled_step(model, [optimizer], scaler, 1000 + step, [0])
            else:
                x, y = (each.double() for each in batch(step, (6,), size=8))
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()
        runs.append((model, method, noise))
    (model, method, noise), (other, plain, plain_noise) = runs
    enough(method)
    assert method.stats() == plain.stats()
    assert noise.steps == plain_noise.steps == [90]
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert_close(a, b, rtol=1e-7, atol=1e-9)
    assert_close(method.ages(), plain.ages(), rtol=0, atol=0)


@pytest.mark.usefixtures("known_late")
def test_late_counts_are_those_of_the_steps_taken_and_replacements_lag_by_one():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    method, scaler = cbp(model, optimizer), new_scaler()
    for step in range(90):
        scaled_step(model, [optimizer], scaler, step, [0] if leaves_out(step) else [])
        taken = [not leaves_out(each) for each in range(step + 1)]
        for group in method.groups:
            steps, replaced = counted(method)[group.name]
            assert steps == plainly_counted(group.units, 0.05, 5, taken)[0]
            assert replaced == plainly_counted(group.units, 0.05, 5, taken[:-1])[1]
    enough(method, 10)


@pytest.mark.parametrize("method", ["continual backprop", "redo"])
@pytest.mark.usefixtures("known_late")
def test_what_was_read_in_a_step_that_is_left_out_scores_no_unit(method):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=True)
    (units,), scaler = METHODS[method](model, optimizer), new_scaler()
    scaled_step(model, [optimizer], scaler, 0)
    assert [each["steps"] for each in units.stats().values()] == [1, 1]
    before = units.utilities()
    scaled_step(model, [optimizer], scaler, 1, [0])
    assert [each["steps"] for each in units.stats().values()] == [1, 1]
    assert_close(units.utilities(), before, rtol=0, atol=0)


@pytest.mark.parametrize("at", [40, 41, 42])
@pytest.mark.usefixtures("known_late")
def test_stopping_and_resuming_with_a_step_unsettled_changes_nothing(at):
    straight, resumed = [], []
    for runs in (straight, resumed):
        model = mlp()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        methods = [cbp(model, optimizer), ShrinkAndPerturb(model, optimizer, noise_std=1e-3, seed=1)]
        scaler = new_scaler()
        for step in range(90):
            if runs is resumed and step == at:
                held = copy.deepcopy([each.state_dict() for each in (model, optimizer, scaler, *methods)])
                model = mlp(seed=5)
                optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
                methods = [cbp(model, optimizer), ShrinkAndPerturb(model, optimizer, noise_std=1e-3, seed=1)]
                scaler = new_scaler()
                for each, state in zip((model, optimizer, scaler, *methods), held, strict=True):
                    each.load_state_dict(state)
            scaled_step(model, [optimizer], scaler, step, [0] if leaves_out(step) else [])
        runs += [model, methods[0]]
    enough(straight[1], 10)
    assert straight[1].stats() == resumed[1].stats()
    assert same(straight[0], resumed[0])


@pytest.mark.usefixtures("known_late")
def test_entries_do_not_come_of_age_by_steps_that_were_left_out():
    """With β2 = 0.97 an entry is young for 1,206 steps (float64); three of four are left out."""
    trained = []
    for left_out in (3, 0):
        model = mlp(dtype=torch.float64)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.97), fused=True)
        group = BoundGroup(chain_groups(model)[0], model)
        memory = OptimizerState("fresh")
        memory.bind([optimizer], [group])
        for step in range(700):
            for attempt in range(1 + left_out):
                optimizer.found_inf = torch.tensor(float(attempt > 0))
                for parameter in model.parameters():
                    generator = torch.Generator().manual_seed(step)
                    parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                optimizer.step()
            if step == 300:
                memory.forget(group, SelectedUnits(torch.tensor([0]), torch.tensor([2]), torch.ones(1), [1]))
        assert memory.state_dict()["0|0"]["age"][0, 2] == 399
        trained.append(model)
    for a, b in zip(*(model.parameters() for model in trained), strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_on_cuda_skipped_steps_are_no_steps_and_nothing_waits_for_the_device(kind):
    model = mlp().cuda()
    optimizer = FUSED[kind](model.parameters())
    method = cbp(model, optimizer)
    noise = ShrinkAndPerturb(model, optimizer, noise_std=1e-4, seed=0)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**20, growth_interval=10_000)
    for step in range(60):
        scaled_step(model, [optimizer], scaler, step, [0] if step % 2 else [])
    taken = [step % 2 == 0 for step in range(60)]
    assert counted(method) == {group.name: plainly_counted(group.units, 0.05, 5, taken) for group in method.groups}
    assert noise.state_dict()["steps"] == [30]
    x, y = (each.cuda() for each in batch(99, (6,), size=8))
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.zero_grad()
        scaler.scale(nn.functional.mse_loss(model(x), y)).backward()
        scaler.step(optimizer)
    finally:
        torch.cuda.set_sync_debug_mode("default")
