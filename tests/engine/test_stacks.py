"""A stack of runs: axis 0 of every parameter is the run, and each is as if it were alone."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pliant import ContinualBackprop, Slice, Tap, UnitGroup, chain_groups
from tests.networks import OPTIMIZERS, batch, enough, mlp, replaced, train

OFTEN = {"replacement_rate": 0.05, "maturity_threshold": 5, "seed": 1}


def attached(model, optimizer="sgd", **settings):
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    return optimizer, ContinualBackprop(model, optimizer, groups=chain_groups(model), **{**OFTEN, **settings})


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
