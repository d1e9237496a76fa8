"""Young entries step as in Adam written out entry by entry, whatever shape their units have and however they are found."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pliant.engine.optimizer_state import OptimizerState
from pliant.engine.optimizer_state.young import ages, steps_of_youth
from pliant.engine.optimizer_state.young.moves import SparseUpdate
from pliant.units.bound import BoundGroup
from pliant.units.entries import SelectedUnits
from pliant.units.groups import Slice, Tap, UnitGroup


class EntryAdam:
    """Kingma and Ba, algorithm 1, each entry with its own number of steps: the plain version."""

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, amsgrad=False):
        self.lr, self.betas, self.eps, self.amsgrad = lr, betas, eps, amsgrad
        self.kept = [(p, *(torch.zeros_like(p) for _ in range(4))) for p in parameters]

    @torch.no_grad()
    def step(self):
        b1, b2 = self.betas
        for p, m, v, x, t in self.kept:
            t += 1
            m.copy_(b1 * m + (1 - b1) * p.grad)
            v.copy_(b2 * v + (1 - b2) * p.grad**2)
            x.copy_(torch.maximum(x, v) if self.amsgrad else v)
            p -= self.lr * (m / (1 - b1**t)) / ((x / (1 - b2**t)).sqrt() + self.eps)

    def forget(self, masks):
        for (_, *moments), mask in zip(self.kept, masks, strict=True):
            for moment in moments:
                moment[mask] = 0


class Weights(nn.Module):
    """Parameters without a forward pass; a group needs a module to tap."""

    def __init__(self, **shapes):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in shapes.items():
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(values))


def group_of(model, incoming, outgoing, runs=None):
    return BoundGroup(UnitGroup("g", incoming=incoming, outgoing=outgoing, tap=Tap(""), runs=runs), model)


def chosen_units(*units, run=0, runs=1):
    count = len(units)
    counts = [count if each == run else 0 for each in range(runs)]
    return SelectedUnits(torch.full((count,), run), torch.tensor(units), torch.ones(count), counts)


def give_gradients(models, step):
    generator = torch.Generator().manual_seed(step)
    for name, parameter in models[0].named_parameters():
        gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        for model in models:
            model.get_parameter(name).grad = gradient.clone()


def masks_of(model, group, chosen):
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for part in group.slices():
        part.write(chosen, 1.0, zeros[part.part.parameter])
    return [zero > 0 for zero in zeros.values()]


LAYOUTS = {
    "rows and columns": (
        {"w": (6, 4), "b": (6,), "v": (3, 6)},
        [Slice("w", 0), Slice("b", 0)], [Slice("v", 1)], None, [1, 4],
    ),
    "gate rows that feed their own columns": (
        {"w": (12, 5), "r": (12, 3)},
        [Slice("w", 0, 4, tuple((i, i + 3, i + 6, i + 9) for i in range(3))),
         Slice("r", 0, 4, tuple((i, i + 3, i + 6, i + 9) for i in range(3)))], [Slice("r", 1)], None, [2],
    ),
    "columns in blocks after a flatten": (
        {"w": (5, 3), "v": (2, 20)}, [Slice("w", 0)], [Slice("v", 1, 4)], None, [0, 3],
    ),
    "experts and units of a stack": (
        {"w": (2, 4, 3), "v": (2, 3, 4)}, [Slice("w", (0, 2))], [Slice("v", (0, 1))], None, [1, 5],
    ),
    "filters of a grouped convolution": (
        {"w": (6, 2, 3, 3), "v": (4, 6)}, [Slice("w", (0, 1), shape=(2, 3, 2, 3, 3))], [Slice("v", 1)], None, [0, 4],
    ),
    "units on three axes of one tensor": (
        {"w": (4, 4, 4), "v": (2, 4)}, [Slice("w", 0)], [Slice("w", 1), Slice("w", 2), Slice("v", 1)], None, [1, 3],
    ),
    "a stack of runs": (
        {"w": (2, 6, 4), "b": (2, 6), "v": (2, 3, 6)}, [Slice("w", 0), Slice("b", 0)], [Slice("v", 1)], 2, [1, 4],
    ),
    "many entries, few of them young": (
        {"w": (200, 100), "v": (90, 200)}, [Slice("w", 0)], [Slice("v", 1)], None, [1, 150],
    ),
    "many entries, few of them young, on two axes": (
        {"w": (150, 150), "v": (10, 150)}, [Slice("w", 0)], [Slice("w", 1), Slice("v", 1)], None, [3, 70],
    ),
    "many entries, most of them young": ({"w": (200, 100), "v": (90, 200)}, [Slice("w", 0)], [Slice("v", 1)], None, range(150)),
}  # fmt: skip


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_young_entries_step_as_in_adam_entry_by_entry(name, amsgrad, monkeypatch):
    monkeypatch.setattr(ages, "MANY", 10_000 if name.startswith("many") else ages.MANY)
    shapes, incoming, outgoing, runs, units = LAYOUTS[name]
    model, plain = Weights(**shapes), Weights(**shapes)
    group = group_of(model, incoming, outgoing, runs)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, amsgrad=amsgrad, betas=(0.9, 0.98))
    oracle = EntryAdam(plain.parameters(), lr=1e-2, amsgrad=amsgrad, betas=(0.9, 0.98))
    memory = OptimizerState("fresh")
    memory.bind([optimizer], [group])
    resets = {5: chosen_units(*units, runs=runs or 1), 30: chosen_units(2, run=(runs or 1) - 1, runs=runs or 1)}
    for step in range(60):
        if step in resets:
            memory.forget(group, resets[step])
            oracle.forget(masks_of(model, group, resets[step]))
        give_gradients([model, plain], step)
        optimizer.step()
        oracle.step()
        for parameter, expected in zip(model.parameters(), plain.parameters(), strict=True):
            assert_close(parameter, expected, rtol=1e-10, atol=1e-11)


def few_young(ages_of):
    return [isinstance(piece, SparseUpdate) for piece in ages_of.pieces(1, steps_of_youth(0.999, torch.float64))]


def test_few_young_entries_of_a_large_parameter_are_moved_alone(monkeypatch):
    monkeypatch.setattr(ages, "MANY", 100)
    model = Weights(w=(100, 4), v=(3, 100))
    group = group_of(model, [Slice("w", 0)], [Slice("v", 1)])
    rows = group.incoming[0]
    rows_of = ages.Ages(rows.parameter)
    rows_of.add(rows)
    weights = torch.zeros(2, rows_of.size, dtype=torch.float64)
    rows_of.place(torch.empty(rows_of.size, dtype=torch.int64), weights)
    assert few_young(rows_of) == []
    rows_of.renew(rows, chosen_units(1, 2), [10, 10])
    assert few_young(rows_of) == [True]
    rows_of.renew(rows, chosen_units(*range(40)), [10, 10])
    assert few_young(rows_of) == [False]


def pair(lr=1e-2, **options):
    """A model under Adam with own counts, and one under the plain version."""
    shapes = {"w": (6, 4), "v": (3, 6)}
    model, plain = Weights(**shapes), Weights(**shapes)
    group = group_of(model, [Slice("w", 0)], [Slice("v", 1)])
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, **options)
    memory = OptimizerState("fresh")
    memory.bind([optimizer], [group])
    return model, group, optimizer, memory, plain, EntryAdam(plain.parameters(), lr=lr)


def test_an_entry_is_young_until_its_corrections_round_to_one():
    """Past 1,000 steps in float64 the shared average is still not of age; every step must be made up for."""
    model, group, optimizer, memory, plain, oracle = pair(lr=1e-3)
    for step in range(1500):
        if step == 300:
            memory.forget(group, chosen_units(1))
            oracle.forget(masks_of(model, group, chosen_units(1)))
        give_gradients([model, plain], step)
        optimizer.step()
        oracle.step()
    assert steps_of_youth(0.999, torch.float32) == 16629
    assert_close(model.w, plain.w, rtol=1e-10, atol=1e-11)


def steps_as_plain_adam(model, optimizer, step):
    """Whether nothing is made up for in one more step: a copy, which no hook follows, makes the same."""
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    give_gradients([model, twin], step)
    optimizer.step()
    twin_optimizer.step()
    return torch.equal(model.w, twin.w)


def test_beside_a_shared_count_that_is_of_age_youth_ends_to_rounding():
    model, group, optimizer, memory, plain, oracle = pair(lr=1e-3, betas=(0.5, 0.6))
    oracle.betas = (0.5, 0.6)
    converged_after = steps_of_youth(0.6, torch.float64)
    for step in range(3 * converged_after):
        if step == converged_after + 5:
            memory.forget(group, chosen_units(1))
            oracle.forget(masks_of(model, group, chosen_units(1)))
        give_gradients([model, plain], step)
        optimizer.step()
        oracle.step()
        assert_close(model.w, plain.w, rtol=1e-12, atol=1e-13)
    assert steps_as_plain_adam(model, optimizer, step)


def test_a_closure_that_finds_the_gradients_is_waited_for():
    model, group, optimizer, memory, plain, oracle = pair()
    calls = []
    for step in range(20):
        if step == 5:
            memory.forget(group, chosen_units(1))
            oracle.forget(masks_of(model, group, chosen_units(1)))

        def closure(step=step):
            calls.append(torch.is_grad_enabled())
            give_gradients([model, plain], step)
            return torch.tensor(float(step))

        loss = optimizer.step(closure) if step % 2 else optimizer.step(closure=closure)
        assert loss == step
        oracle.step()
    assert calls == [True] * 20
    assert_close(model.w, plain.w, rtol=1e-10, atol=1e-11)


def test_scaled_gradients_of_a_fused_step_are_unscaled_first():
    model, group, optimizer, memory, plain, oracle = pair(fused=True)
    for step in range(20):
        if step == 5:
            memory.forget(group, chosen_units(1))
            oracle.forget(masks_of(model, group, chosen_units(1)))
        give_gradients([model, plain], step)
        for parameter in model.parameters():
            parameter.grad *= 1024.0
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
        optimizer.step()
        oracle.step()
    assert_close(model.w, plain.w, rtol=1e-6, atol=1e-7)


def test_a_step_that_overflowed_leaves_moments_and_ages_as_they_are():
    model, group, optimizer, memory, *_ = pair(fused=True)
    give_gradients([model], 0)
    optimizer.step()
    memory.forget(group, chosen_units(1))
    before = copy.deepcopy(optimizer.state_dict()["state"])
    for parameter in model.parameters():
        parameter.grad.fill_(torch.inf)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(1.0)
    optimizer.step()
    after = optimizer.state_dict()["state"]
    assert torch.equal(after[0]["exp_avg_sq"], before[0]["exp_avg_sq"])
    assert torch.equal(after[0]["exp_avg"], before[0]["exp_avg"])
    assert memory.state_dict()["g|0"]["age"][0, 1] == 0


def test_parameters_whose_counts_differ_are_each_corrected_by_their_own():
    model, group, optimizer, memory, plain, oracle = pair()
    for step in range(30):
        if step == 15:
            memory.forget(group, chosen_units(1))
            oracle.forget(masks_of(model, group, chosen_units(1)))
        give_gradients([model, plain], step)
        optimizer.step()
        oracle.step()
        if step == 10:
            optimizer.state[model.v]["step"].zero_()
            for moment in ("exp_avg", "exp_avg_sq"):
                optimizer.state[model.v][moment].zero_()
            for moment in oracle.kept[1][1:]:
                moment.zero_()
    assert_close(model.v, plain.v, rtol=1e-10, atol=1e-11)
    assert_close(model.w, plain.w, rtol=1e-10, atol=1e-11)


def test_stopping_and_resuming_young_entries_changes_nothing():
    model, group, optimizer, memory, *_ = pair()
    other, _, other_optimizer, other_memory, *_ = pair()
    for step in range(40):
        if step in (5, 18):
            memory.forget(group, chosen_units(step % 4))
        if step == 20:
            other.load_state_dict(model.state_dict())
            other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            other_memory.load_state_dict(copy.deepcopy(memory.state_dict()))
        give_gradients([model, other], step)
        optimizer.step()
        if step >= 20:
            other_optimizer.step()
            assert torch.equal(other.w, model.w)
            assert torch.equal(other.v, model.v)
    assert memory.state_dict()["g|0"]["age"][0, 1] == 35


def test_an_earlier_state_loaded_over_a_later_one_is_as_it_was():
    model, group, optimizer, memory, *_ = pair()
    give_gradients([model], 0)
    optimizer.step()
    before = copy.deepcopy(memory.state_dict())
    memory.forget(group, chosen_units(1))
    later = copy.deepcopy(memory.state_dict())
    memory.load_state_dict(before)
    assert_close(memory.state_dict(), before, rtol=0, atol=0)
    assert steps_as_plain_adam(model, optimizer, 1)
    memory.load_state_dict(later)
    assert_close(memory.state_dict(), later, rtol=0, atol=0)
    assert not steps_as_plain_adam(model, optimizer, 2)


def test_two_methods_on_one_optimizer_share_the_young_entries():
    model, group, optimizer, memory, plain, oracle = pair()
    second = OptimizerState("fresh")
    second.bind([optimizer], [group])
    for step in range(30):
        if step == 5:
            memory.forget(group, chosen_units(1))
            oracle.forget(masks_of(model, group, chosen_units(1)))
        if step == 9:
            memory.detach()
        give_gradients([model, plain], step)
        optimizer.step()
        oracle.step()
    assert_close(model.w, plain.w, rtol=1e-10, atol=1e-11)
    second.detach()
    assert not optimizer._optimizer_step_pre_hooks


def cycled(step):
    """OneCycleLR's betas, and more than it does: β2 moves too, in both directions."""
    return 0.95 - 0.1 * abs(step % 40 - 20) / 20, (0.9, 0.999, 0.99)[step // 25 % 3]


BETAS = {
    "one cycle": lambda step: (0.95 - 0.1 * min(step, 120 - step) / 60, 0.999),
    "both": cycled,
    "a jump up": lambda step: (0.8, 0.95) if step < 70 else (0.95, 0.999),
    "a jump down": lambda step: (0.95, 0.999) if step < 70 else (0.8, 0.95),
    "first average off and on": lambda step: (0.0 if step // 15 % 2 else 0.9, 0.999),
}


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("path", list(BETAS))
@pytest.mark.parametrize(
    "layout", ["rows and columns", "units on three axes of one tensor", "many entries, few of them young, on two axes"]
)
def test_betas_that_move_leave_young_entries_as_in_adam_entry_by_entry(layout, path, amsgrad, monkeypatch):
    monkeypatch.setattr(ages, "MANY", 10_000)
    shapes, incoming, outgoing, runs, units = LAYOUTS[layout]
    model, plain = Weights(**shapes), Weights(**shapes)
    group = group_of(model, incoming, outgoing, runs)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, amsgrad=amsgrad)
    oracle = EntryAdam(plain.parameters(), lr=1e-2, amsgrad=amsgrad)
    memory = OptimizerState("fresh")
    memory.bind([optimizer], [group])
    resets = {5: chosen_units(*units), 30: chosen_units(2), 60: chosen_units(units[0]), 80: chosen_units(2)}
    for step in range(120):
        oracle.betas = optimizer.param_groups[0]["betas"] = BETAS[path](step)
        if step in resets:
            memory.forget(group, resets[step])
            oracle.forget(masks_of(model, group, resets[step]))
        give_gradients([model, plain], step)
        optimizer.step()
        oracle.step()
        for parameter, expected in zip(model.parameters(), plain.parameters(), strict=True):
            assert_close(parameter, expected, rtol=1e-9, atol=1e-10)


def test_entries_that_were_of_age_are_young_again_under_larger_betas():
    """Under (0.5, 0.6) all are of age after 60 steps; a fresh Adam that goes on with (0.9, 0.99) corrects by 1 - 0.99^200."""
    model, group, optimizer, memory, plain, oracle = pair(betas=(0.5, 0.6))
    for step in range(500):
        oracle.betas = optimizer.param_groups[0]["betas"] = (0.5, 0.6) if step < 300 else (0.9, 0.99)
        if step == 200:
            memory.forget(group, chosen_units(1))
            oracle.forget(masks_of(model, group, chosen_units(1)))
        give_gradients([model, plain], step)
        if 220 < step < 230:  # and they did not age where they had no gradient
            model.w.grad = None
            oracle.kept[0][0].grad.zero_()
            kept = [each.clone() for each in (oracle.kept[0][0].detach(), *oracle.kept[0][1:])]
        optimizer.step()
        oracle.step()
        if 220 < step < 230:
            for held, before in zip((oracle.kept[0][0].data, *oracle.kept[0][1:]), kept, strict=True):
                held.copy_(before)
        assert_close(model.w, plain.w, rtol=1e-9, atol=1e-10)


def test_stopping_and_resuming_between_changes_of_betas_changes_nothing():
    """The betas are changed after the step, before the state is saved, as a schedule does."""
    model, group, optimizer, memory, *_ = pair()
    other, _, other_optimizer, other_memory, *_ = pair()
    for step in range(40):
        if step in (5, 18):
            memory.forget(group, chosen_units(step % 4))
        if step == 20:
            other.load_state_dict(model.state_dict())
            other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            other_memory.load_state_dict(copy.deepcopy(memory.state_dict()))
        give_gradients([model, other], step)
        for each in (optimizer, other_optimizer)[: 1 + (step >= 20)]:
            each.step()
            each.param_groups[0]["betas"] = cycled(step + 1)
        if step >= 20:
            assert torch.equal(other.w, model.w)
            assert torch.equal(other.v, model.v)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_young_entries_of_a_low_precision_parameter_keep_its_dtype(dtype):
    model = Weights(w=(6, 4), v=(3, 6)).to(dtype)
    group = group_of(model, [Slice("w", 0)], [Slice("v", 1)])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=1e-4)
    memory = OptimizerState("fresh")
    memory.bind([optimizer], [group])
    for step in range(20):
        if step == 10:
            memory.forget(group, chosen_units(1))
        before = model.w.detach().clone()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        assert optimizer.state[model.w]["exp_avg_sq"].dtype == dtype
    assert_close((before - model.w)[1], torch.full((4,), 1e-2, dtype=dtype), rtol=0.5, atol=0)
