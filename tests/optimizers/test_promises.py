"""What every optimizer promises, beside its arithmetic: it is one of torch's, and resets of units go on under it."""

import copy
import io
import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

import pliant
from pliant import TRAC, UPGD, ContinualBackprop, ObGD
from tests.methods.promises import compiling
from tests.methods.runs import differences
from tests.networks import batch, enough, mlp
from tests.ranks import on_ranks

BUILD = {
    "UPGD": lambda p: UPGD(p, lr=0.05, sigma=0.05, weight_decay=0.01, seed=3),
    "UPGD of noise alone": lambda p: UPGD(p, lr=0.05, sigma=0.05, protecting=False, maximum="raw", factor=2.0, seed=3),
    "ObGD": lambda p: ObGD(p, lr=0.5),
    "ObGD of traces": lambda p: ObGD(p, lr=0.5, lamda=0.8),
    "ObGD of sizes": lambda p: ObGD(p, lr=0.5, lamda=0.5, beta2=0.99),
    "TRAC of Adam": lambda p: TRAC(torch.optim.Adam(p, lr=0.01), scale=0.01),
    "TRAC of SGD": lambda p: TRAC(torch.optim.SGD(p, lr=0.05, momentum=0.9), scale=0.1),
}
STEPS = 32
every = pytest.mark.parametrize("name", BUILD)


def gradients(model, number):
    x, y = (each.to(next(model.parameters())) for each in batch(number, (6,), 8))
    model.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    return loss


def train(model, optimizer, steps=range(STEPS)):
    for number in steps:
        gradients(model, number)
        optimizer.step()
    return model


def same(first, second):
    return differences(first.state_dict(), second.state_dict()) == []


def saved(*parts):
    held = io.BytesIO()
    torch.save([part.state_dict() for part in parts], held)
    return held.getvalue()


def load(state, *parts):
    for part, held in zip(parts, torch.load(io.BytesIO(state), weights_only=True), strict=True):
        part.load_state_dict(held)


@every
def test_it_resumes_to_the_bit(name):
    straight = mlp()
    optimizer = BUILD[name](straight.parameters())
    train(straight, optimizer, range(20))
    state = saved(straight, optimizer)
    train(straight, optimizer, range(20, STEPS))
    resumed = mlp(seed=5)
    other = BUILD[name](resumed.parameters())
    load(state, resumed, other)
    train(resumed, other, range(20, STEPS))
    assert same(straight, resumed)
    assert same(optimizer, other)
    assert not same(straight, mlp())


@every
def test_what_was_loaded_for_all_parameters_together_does_not_follow(name):
    """Torch itself copies what is held for one parameter alone."""
    model = mlp()
    optimizer = BUILD[name](model.parameters())
    train(model, optimizer, range(10))
    kept = copy.deepcopy(optimizer.state_dict())
    loaded = copy.deepcopy(kept)
    optimizer.load_state_dict(loaded)
    train(model, optimizer, range(10, 14))
    shared = {name: held for name, held in kept["state"].items() if isinstance(name, str)}
    assert all(differences(loaded["state"][name], held) == [] for name, held in shared.items())
    assert bool(shared) == name.startswith("TRAC")


@every
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
def test_a_copy_goes_on_alike_and_apart(name, copied):
    model = mlp()
    optimizer = BUILD[name](model.parameters())
    train(model, optimizer, range(10))
    twin, other = copied((model, optimizer))
    train(twin, other, range(10, STEPS))
    assert not same(model, twin)
    train(model, optimizer, range(10, STEPS))
    assert same(model, twin)
    assert same(optimizer, other)


@every
def test_a_closure_changes_nothing_and_its_loss_is_returned(name):
    within, without = mlp(), mlp()
    optimizer = BUILD[name](within.parameters())
    losses = [optimizer.step(lambda number=number: gradients(within, number)) for number in range(STEPS)]
    train(without, BUILD[name](without.parameters()))
    assert same(within, without)
    assert losses[-1].requires_grad
    assert optimizer.step() is None


@every
def test_a_step_that_a_grad_scaler_skips_is_none(name):
    def trained(numbers):
        model = mlp()
        optimizer = BUILD[name](model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10_000)
        for number in numbers:
            x, y = batch(number, (6,), 8)
            if number % 3 == 1:
                x[0] = torch.inf
            optimizer.zero_grad()
            scaler.scale(nn.functional.mse_loss(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
        return model, optimizer, scaler.get_scale()

    (model, optimizer, scale), (other, alone, _) = trained(range(30)), trained([n for n in range(30) if n % 3 != 1])
    assert scale == 1.0
    assert same(model, other)
    assert same(optimizer, alone)
    assert not same(model, mlp())


@every
def test_groups_have_settings_of_their_own(name):
    model = mlp()
    groups = [
        {"params": model[0].parameters()},
        {"params": [*model[2].parameters(), *model[4].parameters()], "lr": 0.0},
    ]
    train(model, BUILD[name](groups))
    fresh = mlp()
    assert not torch.equal(model[0].weight, fresh[0].weight)
    assert torch.equal(model[2].weight, fresh[2].weight)


@every
def test_a_schedule_is_followed(name):
    def trained(by_hand):
        model = mlp()
        optimizer = BUILD[name](model.parameters())
        first = optimizer.param_groups[0]["lr"]
        schedule = None if by_hand else torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for number in range(8):
            if by_hand:
                optimizer.param_groups[0]["lr"] = first * 0.5**number
            train(model, optimizer, [number])
            if schedule is not None:
                schedule.step()
        return model

    assert all(
        torch.allclose(a, b) for a, b in zip(trained(True).parameters(), trained(False).parameters(), strict=True)
    )
    assert not same(trained(False), train(mlp(), BUILD[name](mlp().parameters()), range(8)))


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parameters_and_state_keep_their_dtype(name, dtype):
    model = mlp(dtype=dtype)
    optimizer = BUILD[name](model.parameters())
    train(model, optimizer)
    state = {k: v for entry in optimizer.state.values() for k, v in entry.items() if k not in ("variance", "sigma")}
    held = [*model.parameters(), *(each for each in state.values() if isinstance(each, torch.Tensor))]
    assert {each.dtype for each in held} == {dtype}
    assert all(each.isfinite().all() for each in held)
    assert not same(model, mlp(dtype=dtype))


@every
def test_it_leaves_the_global_random_state_alone(name):
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    model = mlp()
    before = states()
    optimizer = BUILD[name](model.parameters())
    gradients(model, 0)  # draws its batch with generators of its own
    drawn = states()
    optimizer.step()
    assert states() == drawn
    assert before[1:] == drawn[1:]


@every
def test_parameters_without_a_gradient_stay_and_cost_no_step(name):
    model = mlp()
    optimizer = BUILD[name](model.parameters())
    optimizer.step()
    assert same(model, mlp())
    for number in range(6):
        gradients(model, number)
        model[0].weight.grad = None
        optimizer.step()
    assert torch.equal(model[0].weight, mlp()[0].weight)
    assert not torch.equal(model[2].weight, mlp()[2].weight)


@every
def test_complex_parameters_are_refused_and_so_are_sparse_gradients_before_anything_changes(name):
    with pytest.raises(ValueError, match="complex parameters"):
        BUILD[name]([nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    table, weight = nn.Embedding(4, 2, sparse=True), nn.Parameter(torch.ones(2))
    optimizer = BUILD[name]([weight, *table.parameters()])
    (table(torch.tensor([1])) * weight).sum().backward()
    with pytest.raises(RuntimeError, match=r"needs dense gradients: use sparse=False"):
        optimizer.step()
    assert weight.tolist() == [1.0, 1.0]
    assert not any(optimizer.state.values())


@every
def test_a_group_may_join_later(name):
    model = mlp()
    optimizer = BUILD[name](model[0].parameters())
    train(model, optimizer, range(4))
    optimizer.add_param_group({"params": [*model[2].parameters(), *model[4].parameters()]})
    train(model, optimizer, range(4, STEPS))
    fresh = mlp()
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


@every
def test_a_compiled_step_trains_as_in_eager_mode(name):
    with compiling():
        model = mlp(dtype=torch.float64)
        optimizer = BUILD[name](model.parameters())
        optimizer.step = torch.compile(optimizer.step, backend="eager")
        train(model, optimizer)
    plain = mlp(dtype=torch.float64)
    train(plain, BUILD[name](plain.parameters()))
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(a, b, rtol=1e-7, atol=1e-9)


# -- resets of units, and other methods, under it ------------------------------------------------------------------------

PAIRS = {
    **BUILD,
    "Muon and AdamW": lambda p: [
        torch.optim.Muon([each for each in p if each.dim() == 2], lr=0.01),
        torch.optim.AdamW([each for each in p if each.dim() != 2], lr=0.01),
    ],
}


def with_resets(name, seed=1, also=()):
    model = mlp()
    built = PAIRS[name](list(model.parameters()))
    optimizers = built if isinstance(built, list) else [built]
    often = {"replacement_rate": 0.3, "maturity_threshold": 1, "seed": seed, "trial": False}
    cbp = ContinualBackprop(model, built, example_inputs=torch.zeros(2, 6), **often)
    return [model, *optimizers, cbp, *(make(model, built) for make in also)]


def run(parts, numbers):
    model, *optimizers = [part for part in parts if isinstance(part, nn.Module | torch.optim.Optimizer)]
    for number in numbers:
        gradients(model, number)
        for optimizer in optimizers:
            optimizer.step()


OTHERS = [
    lambda model, optimizer: pliant.L2(model, optimizer, strength=1e-3),
    lambda model, optimizer: pliant.ShrinkAndPerturb(model, optimizer, noise_std=1e-3, seed=2),
    lambda model, optimizer: pliant.SelectiveReinitialization(model, optimizer, tau=0.1, period=5, seed=3),
]


@pytest.mark.parametrize("also", [[], OTHERS], ids=["alone", "beside others"])
@pytest.mark.parametrize("name", PAIRS)
def test_continual_backprop_resumes_to_the_bit_under_it(name, also):
    straight, half = with_resets(name, also=also), 20
    run(straight, range(half))
    state = saved(*straight)
    run(straight, range(half, 60))
    resumed = with_resets(name, seed=9, also=also)
    load(state, *resumed)
    run(resumed, range(half, 60))
    assert all(same(a, b) for a, b in zip(straight, resumed, strict=True))
    (cbp,) = (part for part in straight if isinstance(part, ContinualBackprop))
    enough(cbp)
    assert all(parameter.isfinite().all() for parameter in straight[0].parameters())


@pytest.mark.parametrize("name", PAIRS)
def test_entries_of_replaced_units_start_over(name):
    """Averages are 0, sizes the mean of the others, copies of the parameter its new value; of the inner optimizer too."""
    model, *optimizers, _ = with_resets(name)
    run([model, *optimizers], range(12))
    unit = units_replaced_by_the_next_step(model, optimizers)
    inside = [each.base_optimizer for each in optimizers if isinstance(each, TRAC)]
    states = [(each, each.state[model[0].weight]) for each in [*optimizers, *inside]]
    assert all(state for _, state in states) == (name not in ("ObGD", "Muon and AdamW"))
    for optimizer, state in states:
        for key, held in state.items():
            if key in ("avg_utility", "trace", "displacement", "exp_avg", "momentum_buffer"):
                assert not held[unit].any(), key
                assert held.any(), key
            elif key == "start":
                assert torch.equal(held[unit], model[0].weight[unit])
                assert not torch.equal(held, model[0].weight)
            elif key == "exp_avg_sq" and isinstance(optimizer, ObGD):
                assert (held[unit] > 0).all(), "filled: a small size makes large steps"


def units_replaced_by_the_next_step(model, optimizers):
    """Which units of the first layer have zero outgoing weights after one more step."""
    run([model, *optimizers], [12])
    unit = (model[2].weight == 0).all(0).nonzero().flatten()
    assert 0 < len(unit) < 12
    return unit


def test_a_replaced_unit_moves_as_a_fresh_adam_would_move_it_scaled_as_all_else_is():
    model = mlp()
    trac = BUILD["TRAC of Adam"](model.parameters())
    redo = pliant.ReDo(model, trac, example_inputs=torch.zeros(2, 6), tau=1.0, period=13, seed=1, trial=False)
    run([model, trac], range(12))
    unit = units_replaced_by_the_next_step(model, [trac])
    weight, twin = model[0].weight, nn.Parameter(model[0].weight.detach().clone())
    fresh, start = torch.optim.Adam([twin], lr=0.01), twin.detach().clone()
    for number in range(13, 25):
        gradients(model, number)
        twin.grad = weight.grad.clone()
        trac.step()
        fresh.step()
        scale = trac.state[weight]["scale"]
        assert_close((weight - start)[unit], scale * (twin - start)[unit], rtol=1e-3, atol=1e-7)
    assert scale > 0.01
    assert redo.stats()["0"]["last_replaced_at"] == 13


# -- several ranks -------------------------------------------------------------------------------------------------------


def a_rank(rank, folder, names):
    import torch.distributed as dist

    with pytest.raises(ValueError, match=r"seed: torch.distributed runs 2 ranks"):
        UPGD(mlp().parameters())
    for name in names:
        torch.manual_seed(100 + rank)
        model = mlp()
        wrapped = DistributedDataParallel(model)
        optimizer = BUILD[name](model.parameters())
        for number in range(10):
            x, y = batch(2 * number + rank, (6,), (8, 5)[rank])
            optimizer.zero_grad()
            nn.functional.mse_loss(wrapped(x), y).backward()
            optimizer.step()
        both = [None, None]
        dist.all_gather_object(both, [model.state_dict(), optimizer.state_dict()])
        assert differences(*both) == [], name


def test_ranks_stay_equal(tmp_path):
    on_ranks(a_rank, tmp_path, list(BUILD))
