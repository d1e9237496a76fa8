"""Weights that a model computes.

A unit whose row of the weight is made of rows of its own is redrawn with these. A column that is zero with columns of parameters
is cut off with these. All others are left alone.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

from pliant import ContinualBackprop, trace
from pliant.units import AffineEntry


class Computed(nn.Module):
    """A linear layer, or a convolution, whose weight is a function of its parameters."""

    def __init__(
        self,
        weight: Any,
        inputs: int = 5,
        outputs: int = 8,
        kernel: tuple[int, ...] = (),
        groups: int = 1,
        **other: Any,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs // groups, *kernel) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))
        for name, value in other.items():
            self.register_parameter(name, nn.Parameter(value)) if value.requires_grad else self.register_buffer(
                name, value
            )
        self.computed, self.groups = weight, groups

    def forward(self, x: Tensor) -> Tensor:
        weight = self.computed(self)
        if weight.dim() == 2:
            return F.linear(x, weight, self.bias)
        return F.conv2d(x, weight, self.bias, padding=1, groups=self.groups)


def learned(*shape: int) -> Tensor:
    return torch.randn(shape).requires_grad_()


def standardized(layer: Any) -> Tensor:
    w, dims = layer.weight, tuple(range(1, layer.weight.dim()))
    return (w - w.mean(dims, keepdim=True)) / (w.std(dims, keepdim=True) + 1e-5)


def scaled_by_batch_norm(layer: Any) -> Tensor:
    flat = layer.weight.reshape(1, len(layer.weight), -1)
    return F.batch_norm(flat, None, None, layer.gain.view(-1), training=True).view_as(layer.weight)


def straight_through(layer: Any) -> Tensor:
    w = layer.weight
    return w + (w.sign() * w.abs().mean(1, keepdim=True) - w).detach()


KERNEL = {"inputs": 3, "kernel": (3, 3)}
ROWS = {  # weight, what else the layer holds, and what of it is the unit's own
    "mask": (lambda net: net.weight * net.mask, {"mask": torch.ones(8, 5).tril()}, []),
    "learned mask": (lambda net: net.weight * net.mask.sigmoid(), {"mask": learned(8, 5)}, ["mask"]),
    "scale": (lambda net: net.weight * 0.3, {}, []),
    "scale of all": (lambda net: net.weight * net.scale, {"scale": learned(1)}, []),
    "scale of columns": (lambda net: net.weight * net.scale, {"scale": learned(5)}, []),
    "noise": (lambda net: net.weight + net.sigma * torch.randn(8, 5), {"sigma": learned(8, 5)}, ["sigma"]),
    "noise, addcmul": (lambda net: torch.addcmul(net.weight, net.sigma, torch.randn(8, 5)), {"sigma": learned(8, 5)}, ["sigma"]),
    "positive": (lambda net: F.softplus(net.weight), {}, []),
    "shorter floats": (lambda net: (net.weight * 1.0).half().float(), {}, []),
    "binary": (straight_through, {}, []),
    "unit length": (lambda net: F.normalize(net.weight, dim=1), {}, []),
    "magnitude and direction": (
        lambda net: net.g[:, None] * net.weight / net.weight.norm(dim=1, keepdim=True), {"g": learned(8)}, ["g"],
    ),
    "standardized": (standardized, {}, []),
    "standardized by a layer norm": (lambda net: F.layer_norm(net.weight, (5,)), {}, []),
    "standardized by a batch norm": (scaled_by_batch_norm, {"gain": learned(8)}, ["gain"]),
    "standardized filters": (standardized, KERNEL, []),
    "standardized filters of groups": (standardized, {**KERNEL, "inputs": 4, "groups": 2}, []),
    "scaled filters": (scaled_by_batch_norm, {**KERNEL, "gain": learned(8, 1, 1, 1)}, ["gain"]),
    "demodulated filters": (
        lambda net: net.weight * torch.rsqrt(net.weight.square().sum((1, 2, 3), keepdim=True) + 1e-8), KERNEL, [],
    ),
    "masked filters": (lambda net: net.weight * net.mask, {**KERNEL, "mask": torch.ones(3, 3).tril()}, []),
}  # fmt: skip
COLUMNS = {
    "mask": lambda net: net.weight * net.mask,
    "learned mask": lambda net: net.weight * net.gate.sigmoid(),
    "scale": lambda net: net.weight * 0.3,
    "noise": lambda net: net.weight + net.gate * net.mask,
    "both": lambda net: (net.weight + net.gate * net.mask) * 0.5,
}
NO_COLUMNS = {
    "standardized": standardized,
    "unit length": lambda net: F.normalize(net.weight, dim=1),
    "positive": lambda net: F.softplus(net.weight),
    "noise of a positive size": lambda net: net.weight + F.softplus(net.gate) * net.mask,
    "size, which has no slope at zero": lambda net: net.weight.abs(),
    "square, which has no slope at zero": lambda net: net.weight.square(),
    "shifted": lambda net: net.weight + net.mask,
}
NO_ROWS = {
    "norm of columns": lambda net: F.normalize(net.weight, dim=0),
    "norm of all": lambda net: net.weight / net.weight.norm(),
    "softmax of columns": lambda net: net.weight.softmax(0),
    "running sum": lambda net: net.weight.cumsum(0),
    "rows that are shared": lambda net: net.weight[:4].repeat(2, 1) * 1.0,
    "transform of columns": lambda net: torch.fft.fft(net.weight, dim=0).real,
}


@pytest.mark.parametrize(("weight", "held", "own"), ROWS.values(), ids=ROWS)
def test_rows_of_a_computed_weight_are_units(weight, held, own):
    torch.manual_seed(0)
    layer = Computed(weight, **held)
    images = layer.weight.dim() > 2
    net = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(8, 2, 1) if images else nn.Linear(8, 2))
    x = torch.randn(2, held.get("inputs", 3), 6, 6) if images else torch.randn(4, 5)
    plan = trace(net, x)
    (group,) = plan.groups
    assert [(part.parameter, part.axis) for part in group.incoming] == [("0.weight", 0), ("0.bias", 0)]
    assert [each.part.parameter for each in group.affine if isinstance(each, AffineEntry)] == [
        f"0.{name}" for name in own
    ]
    assert [part.parameter for part in group.outgoing] == ["2.weight"]
    assert plan.verify(net, x).rows[0].verdict == "exact"


@pytest.mark.parametrize("weight", COLUMNS.values(), ids=COLUMNS)
def test_columns_that_are_zero_with_their_parameters_are_cut_off_with_them(weight):
    torch.manual_seed(0)
    reader = Computed(weight, 8, 6, mask=(torch.rand(6, 8) > 0.3).float(), gate=learned(6, 8))
    net, x = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), reader), torch.randn(16, 5)
    plan = trace(net, x)
    (group,) = plan.groups
    names = ["2.weight", "2.gate"] if weight in (COLUMNS["noise"], COLUMNS["both"]) else ["2.weight"]
    assert [(part.parameter, part.axis) for part in group.outgoing] == [(name, 1) for name in names]
    assert not group.hand_over  # the weight times the mean is not what its parameters say
    assert plan.verify(net, x).rows[0].verdict == "exact"


@pytest.mark.parametrize("weight", NO_COLUMNS.values(), ids=NO_COLUMNS)
def test_units_that_zeros_do_not_silence_are_left_alone(weight):
    torch.manual_seed(0)
    reader = Computed(weight, 8, 6, mask=torch.ones(6, 8), gate=learned(6, 8))
    with pytest.raises(
        ValueError, match=r"its outgoing weight, computed from '2\.weight'.* is not silenced by zeros there"
    ):
        trace(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), reader), torch.randn(4, 5), trial=False)


@pytest.mark.parametrize("weight", NO_ROWS.values(), ids=NO_ROWS)
def test_units_whose_rows_cannot_be_told_apart_are_left_alone(weight):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="computed weight"):
        trace(nn.Sequential(Computed(weight), nn.ReLU(), nn.Linear(8, 2)), torch.randn(4, 5), trial=False)


def trained(net, x, steps=60, **settings):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    cbp = ContinualBackprop(net, optimizer, example_inputs=x, replacement_rate=0.1, maturity_threshold=2, **settings)
    for _ in range(steps):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    return cbp


def test_units_of_pruned_layers_are_replaced_and_what_was_pruned_stays_so():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    for layer in net[::2]:
        prune.random_unstructured(layer, "weight", 0.3)
    prune.random_unstructured(net[0], "bias", 0.3)
    x = torch.randn(16, 5)
    net(x)  # leaves a computed tensor in each layer
    cbp = trained(net, x)
    assert [group.incoming[0].part.parameter for group in cbp.groups] == ["0.weight_orig", "2.weight_orig"]
    assert all(sum(each["replaced"]) >= 20 for each in cbp.stats().values())
    assert all(not layer.weight[layer.weight_mask == 0].any() for layer in net[::2])


def test_a_fresh_unit_of_a_noisy_layer_is_as_noisy_as_at_the_start():
    """NoisyNet: sigma starts at 0.5 / sqrt(inputs) everywhere; the mean weights are drawn."""
    torch.manual_seed(0)
    size = 0.5 / 5**0.5
    sigma = torch.full((8, 5), size).requires_grad_()
    noisy = Computed(lambda net: net.weight + net.sigma * torch.randn_like(net.weight), sigma=sigma)
    net, x = nn.Sequential(noisy, nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    cbp = ContinualBackprop(net, optimizer, example_inputs=x, replacement_rate=1.0, maturity_threshold=1)
    with torch.no_grad():
        noisy.sigma.fill_(3.0)
    before = noisy.weight.detach().clone()
    for _ in range(3):
        net(x).sum().backward()
        optimizer.step()
    assert cbp.stats()["0"]["replaced"][0] >= 8
    assert_close(noisy.sigma.detach(), torch.full((8, 5), size))
    assert (noisy.weight != before).all()


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm], ids=["parametrized", "hook"])
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_a_weight_norm_is_redrawn_row_by_row_with_a_length_from_the_start(norm):
    torch.manual_seed(0)
    net, x = nn.Sequential(norm(nn.Linear(5, 8)), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 5)
    net(x)
    lengths = {round(float(length), 5) for length in net[0].weight.detach().norm(dim=1)}
    cbp = trained(net, x)
    assert sum(cbp.stats()[cbp.groups[0].name]["replaced"]) >= 20
    plan = trace(net, x)
    assert plan.verify(net, x).rows[0].verdict == "exact"
    own = next(each for each in plan.groups[0].affine if isinstance(each, AffineEntry))
    assert len(lengths) == 8
    assert net.get_parameter(own.part.parameter).numel() == 8


def test_a_frozen_part_of_a_computed_weight_leaves_its_units_alone():
    layer = Computed(lambda net: net.weight + net.gate, gate=learned(8, 5))
    layer.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="computed weight"):
        trace(nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 2)), torch.randn(4, 5))


def test_a_parameter_that_also_acts_elsewhere_is_no_row_of_a_computed_weight():
    """The weight is returned for a penalty, as a function of itself."""

    class Returned(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Computed(lambda net: net.weight * 2.0), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(F.relu(self.a(x))), self.a.weight.abs().sum()

    with pytest.raises(ValueError, match=r"'a.weight' is also used elsewhere, by the model output"):
        trace(Returned(), torch.randn(4, 5), trial=False)


def test_a_computed_weight_that_is_also_added_to_the_output_is_no_unit_s_alone():
    class Penalized(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Computed(lambda net: net.weight * 2.0), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(F.relu(self.a(x))) + (self.a.weight * 2.0).norm()

    with pytest.raises(ValueError, match=r"'a.weight' is also used elsewhere, by aten::add"):
        trace(Penalized(), torch.randn(4, 5), trial=False)


def test_filters_of_each_image_join_the_channels_that_they_meet():
    """A modulated convolution, all images as groups of one: with its demodulation each filter depends on every style."""

    class Modulated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.styles, self.b = nn.Conv2d(3, 8, 1), nn.Linear(6, 8), nn.Conv2d(7, 2, 1)
            self.mapping, self.w = nn.Linear(4, 6), nn.Parameter(torch.randn(7, 8, 3, 3))

        def forward(self, x, z):
            w = self.w * self.styles(F.relu(self.mapping(z))).view(-1, 1, 8, 1, 1)
            w = w * torch.rsqrt(w.square().sum((2, 3, 4), keepdim=True) + 1e-8)
            h = F.relu(self.a(x)).reshape(1, -1, *x.shape[2:])
            h = F.conv2d(h, w.flatten(0, 1), padding=1, groups=len(x))
            return self.b(h.view(len(x), 7, *x.shape[2:]))

    torch.manual_seed(0)
    net, inputs = Modulated(), (torch.randn(2, 3, 4, 4), torch.randn(2, 4))
    plan = trace(net, inputs, trial=False)
    assert [group.name for group in plan.groups] == ["mapping"]
    assert not plan.verify(net, inputs).wrong


def test_complex_parameters_are_left_alone_and_their_pairs_are_followed():
    """A spectral layer: one matrix per frequency, on pairs of real numbers; channel o owns its rows at all frequencies."""

    class Spectral(nn.Module):
        def __init__(self, pairs):
            super().__init__()
            self.a, self.b = nn.Conv1d(3, 8, 1), nn.Conv1d(6, 2, 1)
            self.w = nn.Parameter(torch.randn(8, 6, 3, 2) if pairs else torch.randn(8, 6, 3, dtype=torch.cfloat))

        def forward(self, x):
            w = self.w if self.w.is_complex() else torch.view_as_complex(self.w)
            found = torch.einsum("bim,iom->bom", torch.fft.rfft(self.a(x))[..., :3], w)
            return self.b(F.relu(torch.fft.irfft(found, n=8)))

    torch.manual_seed(0)
    x = torch.randn(2, 3, 8)
    net = Spectral(pairs=True)
    plan = trace(net, x)
    assert {row.group.name: row.units for row in plan.rows} == {"w": 6, "a": 8}
    assert {row.verdict for row in plan.verify(net, x).rows} == {"exact"}
    with pytest.raises(ValueError, match=r"'w' is torch.complex64: units are written in real parameters"):
        trace(Spectral(pairs=False), x)
