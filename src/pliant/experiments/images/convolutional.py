"""The network of Continual ImageNet: three convolutions and three linear layers for 32x32 images, as a stack of runs.

    conv 5x5 - pool - ReLU - conv 3x3 - pool - ReLU - conv 3x3 - pool - ReLU - linear - ReLU - linear - ReLU - head of 2

No padding, pools of 2x2. Weights and biases start uniform in +-1/sqrt(fan_in).

Source: Dohare et al., Nature 632 (2024), methods. There ReLU stands before the pool: the same numbers and gradients, on four
times the places.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pliant.nn import StackedConv2d, StackedLinear
from pliant.streams import stream_key
from pliant.units import Slice, Tap, UnitGroup

MIDDLE, SPREAD = 0.45, 0.27  # of pixels / 255: near the mean and standard deviation of photographs
POSITIONS = 4  # places in the last feature map


class ConvNet(nn.Module):
    """The network for each run of a stack, with so many `channels` (3) and `hidden` units (2)."""

    def __init__(self, runs: int, channels: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = StackedConv2d(runs, 3, channels[0], kernel=5)
        self.conv2 = StackedConv2d(runs, channels[0], channels[1], kernel=3)
        self.conv3 = StackedConv2d(runs, channels[1], channels[2], kernel=3)
        self.linear1 = StackedLinear(runs, POSITIONS * channels[2], hidden[0])
        self.linear2 = StackedLinear(runs, hidden[0], hidden[1])
        self.head = StackedLinear(runs, hidden[1], 2)

    def layers(self) -> dict[str, StackedConv2d | StackedLinear]:
        return {
            name: layer for name, layer in self.named_children() if isinstance(layer, StackedConv2d | StackedLinear)
        }

    def hidden(self, x: Tensor) -> list[Tensor]:
        """Activity of the hidden layers for x (runs, batch, 3, 32, 32), channels or units on axis 2."""
        found: list[Tensor] = []
        for convolution in (self.conv1, self.conv2, self.conv3):
            pooled = F.max_pool2d(convolution(x).flatten(0, 1), 2)
            x = torch.relu(pooled).view(*x.shape[:2], *pooled.shape[1:])
            found.append(x)
        x = x.flatten(2)
        for linear in (self.linear1, self.linear2):
            x = torch.relu(linear(x))
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (runs, batch, 2)."""
        return self.head(self.hidden(x)[-1])

    def redraw(self, seeds: Sequence[int], task: int) -> None:
        """The weights that each seed has at the start of a task that is learned afresh; task 0 is where all methods start."""
        keys = [stream_key(seed, "first weights", task) for seed in seeds]
        generators = [torch.Generator().manual_seed(key) for key in keys]
        for layer in self.layers().values():
            layer.reset_parameters(generators)

    def groups(self) -> list[UnitGroup]:
        """The units of each hidden layer and what reads them."""
        return [
            UnitGroup(
                name=name,
                incoming=[Slice(f"{name}.weight", axis=0), Slice(f"{name}.bias", axis=0)],
                outgoing=[Slice(f"{reader}.weight", axis=1, repeat=POSITIONS if name == "conv3" else 1)],
                tap=Tap(reader, axis=1 if reader.startswith("conv") else -1, nonnegative=True),
                runs=self.head.runs,
            )
            for name, reader in pairwise(self.layers())
        ]

    def multiply_accumulates(self) -> int:
        """Of one forward pass of one image in every run."""
        sides = {"conv1": 28, "conv2": 12, "conv3": 4}
        return sum(layer.weight.numel() * sides.get(name, 1) ** 2 for name, layer in self.layers().items())


def normalized(pixels: Tensor) -> Tensor:
    """Bytes (runs, n, 32, 32, 3) as numbers around 0, (runs, n, 3, 32, 32), channels last in memory."""
    return pixels.float().mul_(1 / (255 * SPREAD)).sub_(MIDDLE / SPREAD).movedim(-1, 2)
