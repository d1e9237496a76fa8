import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pliant import ShrinkAndPerturb
from pliant.methods.shrink_and_perturb import shrink_and_perturb
from tests.networks import batch, convnet, mlp, train


class Stack(nn.Module):
    """Linear networks side by side: axis 0 of every parameter is the run."""

    def __init__(self, networks):
        super().__init__()
        self.weight = nn.Parameter(torch.stack([network.weight.detach() for network in networks]))
        self.bias = nn.Parameter(torch.stack([network.bias.detach() for network in networks]))

    def forward(self, x):
        return torch.baddbmm(self.bias[:, None], x, self.weight.mT)


def still(model, **settings):
    """An optimizer that moves nothing, so that what moves is ours."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return optimizer, ShrinkAndPerturb(model, optimizer, **settings)


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_parameters_are_shrunk_and_then_perturbed():
    weight = torch.tensor([2.0, 4.0])
    shrink_and_perturb([weight], [torch.tensor([1.0, -1.0])], shrink=0.5, noise_std=0.1)
    assert_close(weight, torch.tensor([1.1, 1.9]))


def test_noise_of_every_step_is_new_and_adds_up_as_a_random_walk():
    model = nn.Linear(200, 300)
    optimizer, _ = still(model, noise_std=0.01, seed=3)
    before = flat(model)
    steps = []
    for _ in range(4):
        earlier = flat(model)
        optimizer.step()
        steps.append(flat(model) - earlier)
    assert torch.corrcoef(torch.stack(steps)).sub(torch.eye(4)).abs().max() < 0.02
    assert steps[0].std().item() == pytest.approx(0.01, rel=0.02)
    assert (flat(model) - before).std().item() == pytest.approx(0.01 * math.sqrt(4), rel=0.02)


def test_shrinking_alone_draws_nothing_and_shrinks():
    model = nn.Linear(3, 2)
    before = flat(model)
    optimizer, _ = still(model, noise_std=0.0, shrink=0.5)
    optimizer.step()
    optimizer.step()
    assert_close(flat(model), before * 0.25)


def test_the_period_counts_optimizer_steps():
    model = mlp()
    optimizer, snp = still(model, noise_std=0.1, period=3, seed=0)
    moved = []
    for _ in range(7):
        before = flat(model)
        optimizer.step()
        moved.append(not torch.equal(flat(model), before))
    assert moved == [False, False, True, False, False, True, False]
    assert snp.steps == [7]


def test_by_hand_at_each_arrival_of_data_and_only_then():
    model, twin = mlp(), mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    snp = ShrinkAndPerturb(model, optimizer, shrink=0.6, noise_std=0.01, period=None, seed=4)
    optimizer.step()
    assert torch.equal(flat(model), flat(twin))
    snp.apply()
    change = flat(model) - 0.6 * flat(twin)
    assert change.std().item() == pytest.approx(0.01, rel=0.1)
    without = ShrinkAndPerturb(twin, shrink=0.6, noise_std=0.01, period=None, seed=4)
    without.apply()
    assert torch.equal(flat(model), flat(twin))
    snp.apply()
    assert (flat(model) - 0.6 * flat(twin)).sub(change).abs().max() > 0.01  # other noise the second time


def test_stepping_by_hand_equals_stepping_by_hook():
    hooked, manual = convnet(), convnet()
    settings = {"noise_std": 1e-3, "shrink": 0.999, "period": 2, "seed": 1}
    for model, attach in ((hooked, True), (manual, False)):
        optimizer = torch.optim.Adam(model.parameters())
        snp = ShrinkAndPerturb(model, optimizer, attach=attach, **settings)
        train(model, optimizer, range(20), (2, 8, 8), after=(lambda: None) if attach else snp.step)
    assert torch.equal(flat(hooked), flat(manual))


def test_without_a_seed_torch_s_initial_seed_is_read():
    torch.manual_seed(11)
    assert still(mlp(seed=11), noise_std=0.1)[1].seeds == [11]


def test_a_stack_of_runs_gets_the_noise_of_the_single_networks():
    """Whatever stands beside it: runs 3 and 9 of a stack of two, and of one network each."""
    torch.manual_seed(0)
    singles = [nn.Linear(5, 4) for _ in range(2)]
    stack = Stack(singles)
    optimizer, _ = still(stack, noise_std=0.1, shrink=0.9, runs=2, seed=[3, 9])
    for _ in range(5):
        optimizer.step()
    for run, (single, seed) in enumerate(zip(singles, (3, 9), strict=True)):
        alone = still(single, noise_std=0.1, shrink=0.9, seed=seed)[0]
        for _ in range(5):
            alone.step()
        assert torch.equal(stack.weight[run], single.weight)
        assert torch.equal(stack.bias[run], single.bias)


def test_a_run_that_is_not_a_number_any_more_stays_alone():
    stack = Stack([nn.Linear(5, 4) for _ in range(3)])
    with torch.no_grad():
        stack.weight[1] = math.nan
    optimizer, _ = still(stack, noise_std=0.1, runs=3, seed=0)
    optimizer.step()
    assert stack.weight.isnan().flatten(1).all(1).tolist() == [False, True, False]


def test_the_same_noise_comes_in_every_precision():
    single, double = mlp(), mlp().double()
    for model in (single, double):
        still(model, noise_std=0.1, seed=5)[0].step()
    assert_close(flat(single), flat(double).float())


def test_noise_may_be_what_a_fresh_network_draws():
    """s θ + (1 - s) fresh: the scale of a batch norm goes toward 1, its shift toward 0, and weights keep their bounds."""
    model = convnet()
    with torch.no_grad():
        for norm in (model[0][1], model[1][1]):
            norm.weight.fill_(3.0)
            norm.bias.fill_(3.0)
    _, snp = still(model, noise_std=0.75, shrink=0.25, source="init", period=None, seed=2)
    old = model[4].weight.clone()
    snp.apply()
    assert model[0][1].weight.tolist() == [1.5] * 6
    assert model[1][1].bias.tolist() == [0.75] * 5
    drawn = (model[4].weight - 0.25 * old) / 0.75
    assert 0.9 * 20**-0.5 < drawn.abs().max() <= 1.001 * 20**-0.5


def test_a_frozen_parameter_is_left_alone_and_the_others_noise_stays_as_it_was():
    free, frozen = mlp(), mlp()
    optimizers = [still(model, noise_std=0.1, seed=0)[0] for model in (free, frozen)]
    frozen[0].weight.requires_grad_(False)
    for optimizer in optimizers:
        optimizer.step()
    assert torch.equal(frozen[0].weight, mlp()[0].weight)
    assert torch.equal(frozen[2].weight, free[2].weight)


def test_a_wrapped_model_gets_the_noise_of_the_plain_one():
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.module = inner

    for source in ("normal", "init"):
        model, wrapped = mlp(), Wrapper(mlp())
        first = still(model, noise_std=0.1, source=source, seed=0)[1]
        second = still(wrapped, noise_std=0.1, source=source, seed=0)[1]
        second.load_state_dict(first.state_dict())
        first.step()
        second.step()
        assert torch.equal(flat(model), flat(wrapped))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_std": -1.0}, "noise_std must be 0 or more"),
        ({"noise_std": 0.1, "shrink": 1.5}, r"shrink must lie in \[0, 1\], got 1.5"),
        ({"noise_std": 0.1, "period": 0}, "period must be 1 or more whole optimizer steps, or None"),
        ({"noise_std": 0.1, "source": "uniform"}, "unknown source 'uniform'.*; known: normal, init"),
        ({"noise_std": 0.1, "runs": 3}, r"'0\.weight' has shape \(12, 6\); with runs=3, axis 0"),
        ({"noise_std": 0.1, "runs": 12, "source": "init"}, "knows no runs"),
        ({"noise_std": 0.1, "seed": [1, 2]}, "2 seeds for 1 runs"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        still(mlp(), **settings)


def test_without_an_optimizer_no_period_can_be_counted():
    with pytest.raises(ValueError, match=r"give one, or period=None and call apply\(\)"):
        ShrinkAndPerturb(mlp(), noise_std=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_step_is_refused_since_its_replay_would_call_no_hook():
    model = mlp().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1, device="cuda"))
    ShrinkAndPerturb(model, optimizer, noise_std=0.1)
    x = batch(0, (6,))[0].cuda()
    model(x).sum().backward()
    with pytest.raises(RuntimeError, match="attach=False"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()
