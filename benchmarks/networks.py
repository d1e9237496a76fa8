"""The networks that are timed: a multilayer perceptron, the convolutional net of Continual ImageNet, residual nets, a GPT."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, scaled_dot_product_attention


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between."""
    layers = [part for inputs, outputs in pairwise(sizes) for part in (nn.Linear(inputs, outputs), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def convolutional(classes: int = 2) -> nn.Sequential:
    """Three convolutions and three linear layers for 3x32x32 images. Source: Dohare et al., Nature 632 (2024), methods."""
    sizes = [(3, 32, 5), (32, 64, 3), (64, 128, 3)]
    features = [part for i, o, k in sizes for part in (nn.Conv2d(i, o, k), nn.ReLU(), nn.MaxPool2d(2))]
    return nn.Sequential(*features, nn.Flatten(), *mlp(512, 128, 128, classes))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut. Source: He et al., CVPR 2016."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.shortcut = _shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))
        return relu(self.bn3(self.conv3(inner)) + self.shortcut(x))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def resnet(depths: tuple[int, ...], classes: int = 100) -> nn.Sequential:
    """A residual net of bottlenecks with a 3x3 stem, for 32x32 images. ResNet-50 is (3, 4, 6, 3)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()]
    inputs = 64
    for stage, depth in enumerate(depths):
        for number in range(depth):
            layers.append(Bottleneck(inputs, 64 << stage, 2 if stage and not number else 1))
            inputs = Bottleneck.expansion * (64 << stage)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class Transformer(nn.Module):
    """A block of GPT-2: attention and a perceptron on the residual stream, norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, time, width)
        x = x + self.out(attended)
        return x + self.perceptron(self.norm2(x))


class GPT(nn.Module):
    """A stack of transformer blocks over tokens."""

    def __init__(
        self, vocabulary: int = 1000, width: int = 768, heads: int = 12, depth: int = 12, time: int = 64
    ) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(time, width)
        self.blocks = nn.Sequential(*(Transformer(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.norm(self.blocks(x)))
