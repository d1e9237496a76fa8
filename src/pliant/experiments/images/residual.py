"""The 18-layer residual network of class-incremental CIFAR-100, for 32x32 images, at any width.

    stem    3x3 convolution, norm, ReLU                                         width channels, 32x32
    stages  4 of 2 blocks: x -> relu(norm(conv(relu(norm(conv(x))))) + x)        width, 2, 4, 8 times width; strides 1, 2, 2, 2
    head    mean over positions, linear

Every convolution has a bias; where a block changes shape, its shortcut is a 1x1 convolution of every `stride`-th position
(`pliant.nn.strided`) and a norm. Weights start from N(0, 2 / fan_in), those of the head from N(0, 1 / fan_in), biases at 0,
norms at scale 1 and shift 0. At width 64 with 100 classes there are 11,224,932 parameters.

Source: He et al., CVPR 2016; as in Dohare et al., Nature 632 (2024), class-incremental CIFAR-100. Departure: none; the
article has width 64.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import prod, sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from pliant.nn.strided import every
from pliant.units.groups import BN, Slice, Tap, UnitGroup

STRIDES = (1, 2, 2, 2)  # of the stages


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (batch, inputs, h, w) -> (batch, outputs, h / stride, w / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs)
        self.stride = stride
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))

    def inner(self, x: Tensor) -> Tensor:
        """What the units between the two convolutions do."""
        return relu(self.norm1(self.conv1(x)))

    def merge(self, inner: Tensor, x: Tensor) -> Tensor:
        return relu(self.norm2(self.conv2(inner)) + self.shortcut(every(x, self.stride)))

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(self.inner(x), x)


class ResidualNet(nn.Module):
    """Images (batch, channels, h, w) to logits (batch, classes).

    `width` is the number of channels of the first stage, `channels` that of a image.

    >>> network = ResidualNet(classes=100, width=8)
    >>> network(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 100])
    >>> [h.shape[1] for h in network.hidden(torch.zeros(2, 3, 32, 32))]
    [8, 8, 8, 8, 8, 16, 16, 16, 16, 32, 32, 32, 32, 64, 64, 64, 64]
    """

    def __init__(self, classes: int, width: int = 64, channels: int = 3) -> None:
        super().__init__()
        widths = [width, *(width << stage for stage in range(len(STRIDES)))]
        self.stem, self.norm = nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width)
        self.blocks = nn.Sequential()
        for (inputs, outputs), stride in zip(pairwise(widths), STRIDES, strict=True):
            self.blocks.extend([Block(inputs, outputs, stride), Block(outputs, outputs, 1)])
        self.head = nn.Linear(widths[-1], classes)
        self.apply(initialize)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (torch does not type it)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(relu(self.norm(self.stem(x)))).mean((2, 3)))

    def hidden(self, x: Tensor) -> Iterator[Tensor]:
        """Activity of the 17 hidden layers, one at a time: stem, and inside and after each block; the last one pooled."""
        x = relu(self.norm(self.stem(x)))
        for block in self.blocks:
            assert isinstance(block, Block)
            inner = block.inner(x)
            yield x
            yield inner
            x = block.merge(inner, x)
        yield x.mean((2, 3))


def he_normal(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Weights drawn from N(0, 2 / fan_in), `shape` (units, inputs, ...): what a replaced unit gets, as `init=he_normal`."""
    return torch.empty(shape).normal_(0.0, sqrt(2.0 / prod(shape[1:])), generator=generator)


def initialize(module: nn.Module) -> None:
    """Draw a layer's weights, its bias 0: `network.apply(initialize)`, or `reset_network(network, seed=1, init=initialize)`."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        gain = 2.0 if isinstance(module, nn.Conv2d) else 1.0
        nn.init.normal_(module.weight, 0.0, sqrt(gain / prod(module.weight.shape[1:])))
        nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]  (all layers here have one)


def article_groups(network: ResidualNet) -> list[UnitGroup]:
    """The 17 hidden layers as the article's released engine pairs them: each weight layer feeds the next one in order.

    Shortcuts are left out of the list. So for the stem and the outputs of all blocks but the last this is wrong: they also
    feed the shortcut of the next block, which is neither counted in their utility nor cut; replacing one changes what the
    network computes. And where a shortcut is the identity, it goes on carrying the old signal into a block output, the last
    one too. Only the 8 layers inside blocks are paired as they are connected; these are what tracing finds.
    """
    layers, norms = ["stem"], ["norm"]
    for number in range(len(network.blocks)):
        layers += [f"blocks.{number}.conv1", f"blocks.{number}.conv2"]
        norms += [f"blocks.{number}.norm1", f"blocks.{number}.norm2"]
    return [
        UnitGroup(
            name=layer,
            incoming=[Slice(f"{layer}.weight", 0), Slice(f"{layer}.bias", 0)],
            outgoing=[Slice(f"{following}.weight", 1)],
            tap=Tap(following, axis=1, nonnegative=True),
            affine=[BN(norm)],
        )
        for layer, norm, following in zip(layers, norms, [*layers[1:], "head"], strict=True)
    ]
