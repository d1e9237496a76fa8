"""Networks that are chains of layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.units.cases.table import (
    PATCHES,
    PICTURE,
    VECTOR,
    Case,
    Net,
    Units,
    columns,
    inputs,
    rows,
    weight,
)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 2))


def mlp_norm(norm: Callable[[int], nn.Module], bias: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8, bias=bias),
        norm(8),
        nn.ReLU(),
        nn.Linear(8, 5),
        nn.ReLU(),
        nn.Linear(5, 2),
    )


def written_out_norm() -> nn.Module:
    """An RMS norm in plain operations, as many transformers write it."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = F.relu(net.first(x))
        h = net.scale * h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
        return net.third(F.relu(net.second(h)))

    return Net(
        run,
        first=nn.Linear(6, 8),
        scale=nn.Parameter(torch.ones(8)),
        second=nn.Linear(8, 5),
        third=nn.Linear(5, 2),
    )


def response_norm() -> nn.Module:
    """Each unit's size over positions, divided by the mean size of all units, scales it (ConvNeXt V2)."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = F.relu(net.first(x))
        size = h.norm(dim=1, keepdim=True)
        h = h + net.scale * h * (size / (size.mean(-1, keepdim=True) + 1e-6))
        return net.third(F.relu(net.second(h)))

    return Net(
        run,
        first=nn.Linear(6, 8),
        scale=nn.Parameter(torch.ones(8)),
        second=nn.Linear(8, 5),
        third=nn.Linear(5, 2),
    )


def functional_mlp() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(x, net.w1, net.b1)), net.w2, net.b2)

    return Net(run, w1=weight(8, 6), b1=weight(8), w2=weight(2, 8), b2=weight(2))


def einsum_mlp() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        h = torch.tanh(torch.einsum("bi,ih->bh", x, net.w1) + net.b1)
        return torch.einsum("bh,ho->bo", h, net.w2)

    return Net(run, w1=weight(6, 8), b1=weight(8), w2=weight(8, 2))


class TransposedLinear(nn.Module):
    """x W + b, W of shape (in, out), as early GPT code writes it."""

    def __init__(self, inside: int, outside: int, fused: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.fused = weight(inside, outside), weight(outside), fused

    def forward(self, x: Tensor) -> Tensor:
        if not self.fused:
            return x @ self.weight + self.bias
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], flat.shape[-1])


def transposed_mlp(fused: bool) -> nn.Module:
    return nn.Sequential(TransposedLinear(6, 8, fused), nn.GELU(), TransposedLinear(8, 2, fused))


def paper_convnet() -> nn.Module:
    """The convolutional network of Dohare et al. for 32 x 32 images, narrower."""
    convolutions = [(3, 4, 5), (4, 6, 3), (6, 8, 3)]
    layers = [each for i, o, k in convolutions for each in (nn.Conv2d(i, o, k), nn.ReLU(), nn.MaxPool2d(2))]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, 9), nn.ReLU(), nn.Linear(9, 2)
    )


def vgg() -> nn.Module:
    def block(i: int, o: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]

    return nn.Sequential(
        *block(3, 4),
        *block(4, 5),
        nn.MaxPool2d(2),
        *block(5, 6),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 7),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(7, 3),
    )


def temporal_convnet() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        for conv, dilation in ((net.first, 1), (net.second, 2)):
            x = F.relu(conv(F.pad(x, (2 * dilation, 0))))
        return net.head(x[:, :, -1])

    return Net(run, first=nn.Conv1d(3, 5, 3), second=nn.Conv1d(5, 4, 3, dilation=2), head=nn.Linear(4, 2))


def generator() -> nn.Module:
    """A vector spread over a map: the four rows of the first layer that make a channel are one unit."""
    return nn.Sequential(
        nn.Linear(5, 16),
        nn.ReLU(),
        nn.Unflatten(1, (4, 2, 2)),
        nn.ConvTranspose2d(4, 3, 2, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(3, 1, 2, stride=2),
    )


def pixel_shuffle() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.PixelShuffle(2),
        nn.Conv2d(2, 4, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


CHAIN = {"0.weight": Units(8, "0.weight 0.bias", "2.weight"), "2.weight": Units(5, "2.weight 2.bias", "4.weight")}
LAST_OF_THREE = {"3.weight": Units(5, "3.weight 3.bias", "5.weight")}

CASES = [
    Case("mlp", mlp, VECTOR, CHAIN, {"4.weight": "output", "4.bias": "output"}),
    Case(
        "mlp, batch norm",
        lambda: mlp_norm(nn.BatchNorm1d, bias=False),
        VECTOR,
        {"0.weight": Units(8, "0.weight 1", "3.weight"), **LAST_OF_THREE},
    ),
    Case(
        "mlp, layer norm",
        lambda: mlp_norm(nn.LayerNorm),
        VECTOR,
        {"0.weight": Units(8, "0.weight 0.bias 1.weight 1.bias", "3.weight", "approximate"), **LAST_OF_THREE},
    ),
    Case(
        "mlp, layer norm, strict",
        lambda: mlp_norm(nn.LayerNorm),
        VECTOR,
        LAST_OF_THREE,
        {"0.weight": "(?i)layer.?norm|norm over units"},
        {"strict": True},
    ),
    Case(
        "mlp, a norm written out",
        written_out_norm,
        VECTOR,
        {
            "first.weight": Units(8, "first.weight first.bias scale", "second.weight", "approximate"),
            "second.weight": Units(5, "second.weight second.bias", "third.weight"),
        },
    ),
    Case(
        "mlp, global response norm",
        response_norm,
        PATCHES,
        {"second.weight": Units(5, "second.weight second.bias", "third.weight")},
        {"first.weight": "all units mixed"},
    ),
    Case(
        "mlp, a learned slope for each unit",
        lambda: mlp_norm(nn.PReLU),
        VECTOR,
        {"0.weight": Units(8, "0.weight 0.bias 1.weight", "3.weight"), **LAST_OF_THREE},
    ),
    Case("functional mlp", functional_mlp, VECTOR, {"w1": Units(8, "w1 b1", "w2")}, {"w2": "output", "b2": "output"}),
    Case(
        "einsum of raw parameters",
        einsum_mlp,
        VECTOR,
        {"w1": Units(8, "w1 b1", "w2", enter={"w1": columns(8)}, leave={"w2": rows(8)})},
        {"w2": "output"},
    ),
    *(
        Case(
            f"transposed linear, {'addmm' if fused else 'matmul'}",
            lambda fused=fused: transposed_mlp(fused),
            PATCHES,
            {
                "0.weight": Units(
                    8, "0.weight 0.bias", "2.weight", enter={"0.weight": columns(8)}, leave={"2.weight": rows(8)}
                )
            },
        )
        for fused in (True, False)
    ),
    Case(
        "the paper's convnet",
        paper_convnet,
        inputs(2, 3, 32, 32),
        {
            "0.weight": Units(4, "0.weight 0.bias", "3.weight"),
            "3.weight": Units(6, "3.weight 3.bias", "6.weight"),
            "6.weight": Units(8, "6.weight 6.bias", "10.weight"),
            "10.weight": Units(10, "10.weight 10.bias", "12.weight"),
            "12.weight": Units(9, "12.weight 12.bias", "14.weight"),
        },
        {"14.weight": "output"},
    ),
    Case(
        "vgg",
        vgg,
        PICTURE,
        {
            "0.weight": Units(4, "0.weight 0.bias 1", "3.weight"),
            "3.weight": Units(5, "3.weight 3.bias 4", "7.weight"),
            "7.weight": Units(6, "7.weight 7.bias 8", "12.weight"),
            "12.weight": Units(7, "12.weight 12.bias", "15.weight"),
        },
    ),
    Case(
        "temporal convnet",
        temporal_convnet,
        inputs(2, 3, 6),
        {
            "first.weight": Units(5, "first.weight first.bias", "second.weight"),
            "second.weight": Units(4, "second.weight second.bias", "head.weight"),
        },
    ),
    Case(
        "generator",
        generator,
        inputs(3, 5),
        {
            "0.weight": Units(
                4,
                "0.weight 0.bias",
                "3.weight",
                enter={"0.weight": rows(4, repeat=4), "0.bias": rows(4, repeat=4)},
                leave={"3.weight": rows(4)},
            ),
            "3.weight": Units(
                3, "3.weight 3.bias", "5.weight", enter={"3.weight": columns(3)}, leave={"5.weight": rows(3)}
            ),
        },
        {"5.weight": "output"},
    ),
    Case(
        "pixel shuffle",
        pixel_shuffle,
        inputs(2, 3, 4, 4),
        {
            "0.weight": Units(
                2,
                "0.weight 0.bias",
                "3.weight",
                enter={"0.weight": rows(2, repeat=4), "0.bias": rows(2, repeat=4)},
            ),
            "3.weight": Units(4, "3.weight 3.bias", "7.weight"),
        },
    ),
]
