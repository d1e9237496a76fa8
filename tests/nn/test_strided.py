"""A 1x1 convolution with a stride is computed in two steps, so that no CPU writes where it must not."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from pliant.experiments.images.residual import ResidualNet
from pliant.nn import StackedConv2d
from pliant.nn.strided import conv2d, every

NARROW = range(2, 9)  # input channels: oneDNN errs at 2 to 7


class Convolutions(TorchDispatchMode):
    """Kernel, stride and padding of every convolution, in forward and backward."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        place = {"aten::convolution": 1, "aten::convolution_backward": 2}.get(func._schema.name)
        if place is not None:
            stride, padding = args[place + 2], args[place + 3]
            self.seen.add((tuple(args[place].shape[2:]), tuple(stride), tuple(padding)))
        return func(*args, **(kwargs or {}))


def stacked(runs, width, how):
    """A strided 1x1 layer that is given channels-last memory, as the outputs of a layer of the kind before it are."""
    layers = nn.Sequential(
        StackedConv2d(runs, 3, width, 3, padding=1, how=how), StackedConv2d(runs, width, 8, 1, stride=2, how=how)
    )
    return layers, torch.randn(runs, 10, 32, 32, 3).movedim(-1, 2)


def residual(width):
    return ResidualNet(classes=4, width=width), torch.randn(10, 3, 32, 32).to(memory_format=torch.channels_last)


def networks(widths=NARROW):
    """(name, network, input) of all that have such a layer."""
    for width in widths:
        yield f"residual, width {width}", *residual(width)
        for runs, how in ((1, "auto"), (2, "loop"), (2, "grouped"), (2, "product")):
            yield f"{runs} stacked, {how}, width {width}", *stacked(runs, width, how)


def gradient(network, x):
    """Of all parameters, as one vector."""
    network.zero_grad()
    network(x).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def wrong_gradients():
    """The networks whose gradient in float32 is not that of float64, which no kernel of oneDNN computes."""
    torch.manual_seed(0)
    for name, network, x in networks():
        found, expected = gradient(network, x), gradient(network.double(), x.double())
        error = float((found - expected).norm() / expected.norm())
        if (
            not error <= 0.01
        ):  # a unit that lies within rounding of 0 may be on one side of it here, and on the other there
            yield f"{name}: off by {error}"


def test_without_avx512_networks_of_any_width_learn_and_from_the_right_gradients():
    """The variable makes oneDNN choose as it does on such a CPU. Strided as one step, the process died or learned wrongly."""
    code = "from tests.nn.test_strided import wrong_gradients; print(*wrong_gradients(), sep='\\n')"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout.strip()) == (0, ""), ended.stderr


def test_no_network_of_ours_asks_for_a_strided_1x1_convolution():
    with Convolutions() as calls:
        for _, network, x in networks([4]):
            gradient(network, x)
    assert ((1, 1), (1, 1), (0, 0)) in calls.seen
    assert ((3, 3), (2, 2), (1, 1)) in calls.seen
    assert [call for call in calls.seen if call[0] == (1, 1) and call[1] != (1, 1)] == []


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 2, 7, 5), (2, 1, 1, 1)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_every_nth_position_is_that_of_a_slice_with_its_gradient(shape, stride):
    x, y = (torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    found, expected = every(x, stride), y[..., ::stride, ::stride]
    assert torch.equal(found, expected)
    signal = torch.randn_like(expected)
    found.backward(signal)
    expected.backward(signal)
    assert torch.equal(x.grad, y.grad)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "groups"), [(1, 2, 0, 1), (1, 3, 0, 2), (1, 2, 1, 1), (3, 2, 1, 1)]
)
def test_a_convolution_in_two_steps_is_the_convolution(kernel, stride, padding, groups, memory_format):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 9, 8, generator=draw, dtype=torch.float64).contiguous(memory_format=memory_format)
    weight = torch.randn(6, 4 // groups, kernel, kernel, generator=draw, dtype=torch.float64)
    bias = torch.randn(6, generator=draw, dtype=torch.float64)
    results = []
    for convolution in (conv2d, F.conv2d):
        leaves = [each.clone().requires_grad_() for each in (x, weight, bias)]
        y = convolution(*leaves, stride, padding, groups=groups)
        y.square().sum().backward()
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected, rtol=1e-12, atol=1e-12)
