"""Promises of every method that acts on whole parameters: one grid."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pliant import L2, ContinualBackprop, ShrinkAndPerturb, chain_groups
from tests.networks import NETWORKS, OPTIMIZERS, batch, enough, mlp, train

METHODS = {
    "l2": lambda model, optimizer, **also: L2(model, optimizer, **{"strength": 0.02, **also}),
    "l2 init": lambda model, optimizer, **also: L2(model, optimizer, **{"strength": 0.02, "toward": "initial", **also}),
    "snp": lambda model, optimizer, **also: ShrinkAndPerturb(
        model, optimizer, **{"noise_std": 1e-3, "shrink": 0.999, "seed": 1, **also}
    ),
    "snp by init": lambda model, optimizer, **also: ShrinkAndPerturb(
        model, optimizer, **{"noise_std": 0.01, "source": "init", "period": 5, "seed": 1, **also}
    ),
}
OFF = {"l2": {"strength": 0.0}, "l2 init": {"strength": 0.0}, "snp": {"noise_std": 0.0, "shrink": 1.0}}

GRID = pytest.mark.parametrize(
    ("method", "network", "optimizer"), [(m, n, o) for m in METHODS for n in NETWORKS for o in OPTIMIZERS]
)


def same(first, second):
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def start(method, network="mlp", optimizer="sgd", **also):
    model = NETWORKS[network][0]()
    stepper = OPTIMIZERS[optimizer](model.parameters())
    return model, stepper, METHODS[method](model, stepper, **also)


def plain(network="mlp", optimizer="sgd", steps=30):
    model = NETWORKS[network][0]()
    train(model, OPTIMIZERS[optimizer](model.parameters()), range(steps), NETWORKS[network][1])
    return model


@GRID
def test_stopping_and_resuming_changes_nothing(method, network, optimizer):
    shape = NETWORKS[network][1]
    straight, stepper, _ = start(method, network, optimizer)
    train(straight, stepper, range(24), shape)
    assert not same(straight, plain(network, optimizer, 24))  # something happened

    first, first_stepper, first_method = start(method, network, optimizer)
    train(first, first_stepper, range(13), shape)
    saved = io.BytesIO()
    state = {"model": first.state_dict(), "optimizer": first_stepper.state_dict(), "method": first_method.state_dict()}
    torch.save(state, saved)
    train(first, first_stepper, range(13, 16), shape)  # what was saved must not follow
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)

    second = NETWORKS[network][0](seed=5)
    second_stepper = OPTIMIZERS[optimizer](second.parameters())
    resumed = METHODS[method](second, second_stepper, **({"seed": 99} if "snp" in method else {}))
    second.load_state_dict(loaded["model"])
    second_stepper.load_state_dict(loaded["optimizer"])
    resumed.load_state_dict(loaded["method"])
    train(second, second_stepper, range(13, 24), shape)
    assert same(straight, second)


@pytest.mark.parametrize(
    ("method", "network", "optimizer"), [(m, n, o) for m in OFF for n in NETWORKS for o in OPTIMIZERS]
)
def test_at_strength_zero_training_stays_bit_identical(method, network, optimizer):
    model, stepper, _ = start(method, network, optimizer, **OFF[method])
    train(model, stepper, range(30), NETWORKS[network][1])
    assert same(model, plain(network, optimizer))


@GRID
def test_dtype_is_kept(method, network, optimizer):
    build, shape = NETWORKS[network]
    for dtype in (torch.float64, torch.bfloat16) if network == "mlp" else (torch.float64,):
        model = build().to(dtype)
        stepper = OPTIMIZERS[optimizer](model.parameters())
        METHODS[method](model, stepper)
        train(model, stepper, range(12), shape, dtype=dtype)
        assert all(parameter.dtype is dtype and parameter.isfinite().all() for parameter in model.parameters())


@GRID
def test_the_global_random_state_is_left_alone(method, network, optimizer):
    model, stepper, _ = start(method, network, optimizer)
    model.eval()
    before = torch.get_rng_state()
    x, _ = batch(0, NETWORKS[network][1])
    for _ in range(6):
        model(x).square().mean().backward()
        stepper.step()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", METHODS)
def test_detached_training_is_plain_training_and_no_hook_is_left(method):
    model, stepper, attached = start(method)
    with attached:
        pass
    train(model, stepper, range(30))
    assert same(model, plain())
    assert not stepper._optimizer_step_pre_hooks
    assert not stepper._optimizer_step_post_hooks


@pytest.mark.parametrize("method", METHODS)
def test_a_copy_of_model_and_optimizer_carries_no_method(method):
    model, stepper, _ = start(method)
    for twins in (copy.deepcopy((model, stepper)), pickle.loads(pickle.dumps((model, stepper)))):
        train(*twins, range(30))
        assert same(twins[0], plain())
    assert same(model, mlp())


@pytest.mark.parametrize("method", METHODS)
def test_copying_or_pickling_the_method_is_an_error_that_says_what_to_do(method):
    attached = start(method)[2]
    with pytest.raises(TypeError, match=r"load this one's state_dict\(\)"):
        copy.deepcopy(attached)
    with pytest.raises(TypeError, match=r"save its state_dict\(\)"):
        pickle.dumps(attached)


@pytest.mark.parametrize("method", METHODS)
def test_two_optimizers_each_act_on_their_own_parameters_when_they_step(method):
    model = mlp()
    first = torch.optim.SGD(model[0].parameters(), lr=0.01)
    second = torch.optim.SGD([*model[2].parameters(), *model[4].parameters()], lr=0.01)
    attached = METHODS[method](model, [first, second])
    assert attached.names == [name for name, _ in model.named_parameters()]
    reference = copy.deepcopy(model)
    for step in range(10):
        x, y = batch(step, (6,))
        model.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        second.step()
    assert torch.equal(model[0].weight, reference[0].weight)
    assert not torch.equal(model[2].weight, reference[2].weight)


@pytest.mark.parametrize("method", METHODS)
def test_only_the_chosen_parameters_are_touched(method):
    for chosen in ("*.weight", ["0.weight", "2.weight", "4.weight"], lambda name, parameter: parameter.dim() == 2):
        model, stepper, attached = start(method, parameters=chosen)
        assert attached.names == ["0.weight", "2.weight", "4.weight"]
        (0.0 * sum(p.sum() for p in model.parameters())).backward()
        for _ in range(5):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.1  # away from where it began
            stepper.step()
        untouched = mlp()
        assert torch.allclose(model[0].bias, untouched[0].bias + 0.5, atol=1e-6)
        assert not torch.allclose(model[0].weight, untouched[0].weight + 0.5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_replaced_after_attaching_is_named(method):
    model, stepper, _ = start(method)
    model[2].weight = nn.Parameter(torch.zeros(9, 12))
    with pytest.raises(RuntimeError, match=r"'2\.weight' was replaced by another tensor"):
        train(model, stepper, range(5))


@pytest.mark.parametrize("method", METHODS)
def test_a_choice_that_cannot_be_is_an_error_at_construction(method):
    model = mlp()
    stepper = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"parameters='2\.\*' matches none .* those are: 0\.weight, 0\.bias"):
        METHODS[method](model, stepper, parameters="2.*")
    with pytest.raises(ValueError, match="no parameters are left to act on"):
        METHODS[method](mlp(), stepper)
    with pytest.raises(ValueError, match="stepped by two of the optimizers"):
        METHODS[method](model, [stepper, torch.optim.SGD(model.parameters(), lr=0.1)])
    assert not stepper._optimizer_step_pre_hooks
    assert not stepper._optimizer_step_post_hooks


@pytest.mark.parametrize("method", METHODS)
def test_a_state_of_something_else_is_refused(method):
    attached = start(method)[2]
    other = start(method, parameters="*.weight")[2]
    with pytest.raises(ValueError, match=r"was saved with names = .*, here it is"):
        attached.load_state_dict(other.state_dict())


@pytest.mark.parametrize("method", METHODS)
def test_it_goes_together_with_continual_backprop(method):
    model, stepper, _ = start(method, optimizer="adam")
    cbp = ContinualBackprop(
        model, stepper, groups=chain_groups(model), replacement_rate=0.05, maturity_threshold=5, seed=1
    )
    train(model, stepper, range(100))
    enough(cbp)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def a_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    model = DistributedDataParallel(mlp(seed=rank))  # wrapping copies rank 0's weights
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    torch.manual_seed(100 + rank)
    snp = ShrinkAndPerturb(model, optimizer, noise_std=0.1)
    assert snp.seeds == [100]
    assert snp.names == [name for name, _ in mlp().named_parameters()]
    L2(model, optimizer, strength=0.1, toward="initial")
    for step in range(5):
        x, y = batch(2 * step + rank, (6,))
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    mine = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    both = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(both, mine)
    assert torch.equal(*both)
    dist.destroy_process_group()


def test_ranks_of_a_data_parallel_model_get_the_same_noise_and_stay_equal(tmp_path):
    mp.spawn(a_rank, args=(tmp_path,), nprocs=2)
