"""Running statistics in buffers of the model's own: entries of one unit alone are reset with it, all others keep it as it is."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pliant import ContinualBackprop, trace
from pliant.units import RunningStatistic, Slice, UnitGroup


def in_place(net: Any, mean: Tensor, var: Tensor) -> None:
    net.mean.lerp_(mean, 0.1)
    net.var.lerp_(var, 0.1)


def by_terms(net: Any, mean: Tensor, var: Tensor) -> None:
    net.mean.mul_(0.9).add_(0.1 * mean)
    net.var.mul_(0.9).add_(0.1 * var)


def anew(net: Any, mean: Tensor, var: Tensor) -> None:
    net.mean, net.var = 0.9 * net.mean + 0.1 * mean.detach(), 0.9 * net.var + 0.1 * var.detach()


def without_a_version(net: Any, mean: Tensor, var: Tensor) -> None:
    net.mean.data = 0.9 * net.mean.data + 0.1 * mean.data
    net.var.data = 0.9 * net.var.data + 0.1 * var.data


class OwnNorm(nn.Module):
    """A batch norm by hand: statistics of the batch in training, running ones in evaluation."""

    def __init__(self, keep: Any, shape: tuple[int, ...] = (8,)) -> None:
        super().__init__()
        self.keep, self.dims = keep, tuple(dim for dim in range(max(len(shape), 2)) if dim != 1)
        self.scale, self.shift = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.mean, self.var
        if self.training:
            mean, var = (each.view(self.scale.shape) for each in (x.mean(self.dims), x.var(self.dims, unbiased=False)))
            with torch.no_grad():
                self.keep(self, mean, var)
        return (x - mean) * torch.rsqrt(var + 1e-5) * self.scale + self.shift


class Renorm(OwnNorm):
    """Reads its running statistics in training too."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = x.mean(0), x.var(0, unbiased=False)
        out = (x - self.mean) * torch.rsqrt(self.var + 1e-5) * self.scale + self.shift
        if self.training:
            with torch.no_grad():
                self.keep(self, mean, var)
        return out


WAYS = {"in place": in_place, "by terms": by_terms, "anew": anew, "without a version": without_a_version}


def linear(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), norm, nn.ReLU(), nn.Linear(8, 2))


def images() -> nn.Module:
    return nn.Sequential(nn.Conv2d(5, 8, 1), OwnNorm(in_place, (1, 8, 1, 1)), nn.ReLU(), nn.Conv2d(8, 2, 1))


NORMS = {
    **{name: lambda keep=keep: linear(OwnNorm(keep)) for name, keep in WAYS.items()},
    "read in training": lambda: linear(Renorm(in_place)),
    "channels": images,
}


@pytest.mark.parametrize("build", NORMS.values(), ids=NORMS)
def test_a_batch_norm_by_hand_is_reset_as_torch_s_is(build):
    torch.manual_seed(0)
    net = build()
    x = torch.randn(16, 5, 3, 3) if isinstance(net[0], nn.Conv2d) else torch.randn(16, 5)
    plan = trace(net, x)
    (group,) = plan.groups
    kept = [(each.part.parameter, each.value) for each in group.affine if isinstance(each, RunningStatistic)]
    assert kept == [("1.mean", 0.0), ("1.var", 1.0)]
    assert plan.verify(net, x).rows[0].verdict == "exact"
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    cbp = ContinualBackprop(net, optimizer, example_inputs=x, replacement_rate=0.5, maturity_threshold=3)
    replaced = 0
    for _ in range(30):
        optimizer.zero_grad()
        net(3.0 + x).square().mean().backward()
        optimizer.step()
        fresh = cbp.ages()["0"][0] == 0
        replaced += int(fresh.sum())
        assert not net[1].mean.flatten()[fresh].any()
        assert (net[1].var.flatten()[fresh] == 1.0).all()
        assert net[1].mean.flatten()[~fresh].any()
    assert replaced >= 20


def test_statistics_of_a_trained_network_start_as_those_of_a_batch_norm():
    torch.manual_seed(0)
    net, x = NORMS["in place"](), torch.randn(16, 5)
    for _ in range(5):
        net(x)
    (group,) = trace(net, x).groups
    assert {each.part.parameter: each.value for each in group.affine if isinstance(each, RunningStatistic)} == {
        "1.mean": 0.0,
        "1.var": 1.0,
    }


class Keeper(nn.Module):
    """Two layers, and a buffer that takes in what is between them."""

    def __init__(self, kept: Any, shape: tuple[int, ...], read: Any) -> None:
        super().__init__()
        self.a, self.b, self.kept, self.read = nn.Linear(5, 8), nn.Linear(8, 2), kept, read
        self.register_buffer("memory", torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        out = self.read(self, h)
        if self.training:
            with torch.no_grad():
                self.memory.copy_(self.kept(h))
        return out


def test_a_statistic_over_units_keeps_all_of_them_from_being_reset():
    net = Keeper(lambda h: h.mean(), (1,), lambda net, h: net.b(h - net.memory))
    with pytest.raises(ValueError, match=r"all units mixed by|is kept in the buffer 'memory'"):
        trace(net, torch.randn(4, 5), trial=False)
    quiet = Keeper(lambda h: h.mean(), (1,), lambda net, h: net.b(h))
    with pytest.raises(ValueError, match="is kept in the buffer 'memory'"):
        trace(quiet, torch.randn(4, 5), trial=False)


def test_a_buffer_that_reaches_the_output_one_forward_later_keeps_its_units_from_being_reset():
    net = Keeper(lambda h: h.mean(0), (8,), lambda net, h: net.b(h) + net.memory.sum())
    with pytest.raises(ValueError, match=r"a.weight, a.bias +reaches the model output"):
        trace(net, torch.randn(4, 5), trial=False)


def test_a_buffer_that_evaluation_reads_otherwise_is_found_by_the_trial():
    net = Keeper(lambda h: h.mean(0), (8,), lambda net, h: net.b(h) if net.training else net.b(h) + net.memory.mean())
    with pytest.raises(ValueError, match="failed its trial"):
        trace(net, torch.randn(4, 5))


def test_a_state_of_each_example_is_followed_into_the_next_forward_and_not_reset():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.again, self.b = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.register_buffer("state", torch.zeros(4, 8))

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x) + self.again(self.state))
            self.state = h.detach()
            return self.b(h)

    torch.manual_seed(0)
    (group,) = trace(Recurrent(), torch.randn(4, 5)).groups
    assert {part.parameter for part in group.outgoing} == {"again.weight", "b.weight"}
    assert not [each for each in group.affine if isinstance(each, RunningStatistic)]


def test_a_group_by_hand_may_name_a_buffer_and_a_wrong_name_is_told():
    torch.manual_seed(0)
    net, x = NORMS["in place"](), torch.randn(16, 5)
    group = trace(net, x).groups[0]
    wrong = UnitGroup("0", group.incoming, group.outgoing, group.tap, [RunningStatistic(Slice("1.means", 0), 0.0)])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with pytest.raises(ValueError, match=r"group '0': the model has no buffer '1.means'"):
        ContinualBackprop(net, optimizer, groups=[wrong])
