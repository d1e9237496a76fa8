"""Networks whose units were worked out by hand: what `pliant.units.trace` must find, element by element, and must leave alone.

A `Case` is data. By default unit i owns row i of everything incoming (entry i of a norm) and, where an outgoing weight has r
times as many columns as there are units, its columns i r .. i r + r - 1. Whatever differs is said in `Units.enter` and
`Units.leave`: the positions of each unit along an axis (`Along`) or, where no axis will do, its elements (`Elements`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Table = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Along:
    """Positions of each unit along an axis."""

    axis: int
    table: Table


@dataclass(frozen=True)
class Elements:
    """Flat numbers of the elements of each unit."""

    table: Table


@dataclass(frozen=True)
class Units:
    """One expected group. Names are separated by blanks: of a module for a batch norm, of a parameter for everything else."""

    count: int
    incoming: str
    outgoing: str
    kind: str = "exact"
    enter: Mapping[str, Along | Elements] = field(default_factory=dict)
    leave: Mapping[str, Along | Elements] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A network, its inputs, its groups by first incoming weight, and what must be skipped: pattern -> regular expression.

    `unread` groups can be reset, but no hook sees their activity.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    groups: Mapping[str, Units]
    skipped: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, bool] = field(default_factory=dict)
    unread: Sequence[str] = ()

    def make(self) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        return self.build(), self.inputs()


class Net(nn.Module):
    """Named parts and a forward pass that is a function of the net and its inputs."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, *inputs: Any) -> Any:
        return self.run(self, *inputs)


def inputs(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape)


def several(*shapes: tuple[int, ...]) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(torch.randn(shape) for shape in shapes)


def tokens(words: int, *shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(words, shape)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.5)


def columns(units: int, start: int = 0, repeat: int = 1) -> Along:
    """Unit i reads into `repeat` columns from start + i * repeat on (a concatenation)."""
    return Along(1, [range(start + i * repeat, start + (i + 1) * repeat) for i in range(units)])


def rows(units: int, start: int = 0, repeat: int = 1) -> Along:
    return Along(0, columns(units, start, repeat).table)


def gates(units: int, count: int) -> Along:
    """Row j of each gate."""
    return Along(0, [range(j, count * units, units) for j in range(units)])


# -- chains --------------------------------------------------------------------------------------------------------


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


# -- branches ------------------------------------------------------------------------------------------------------


def one_layer_blocks() -> nn.Module:
    """x + f(W x): the weights of a block both read the stream and write it."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = x + F.relu(net.first(x))
        x = x + F.relu(net.second(x))
        return net.head(F.relu(net.hidden(x)))

    linear = [nn.Linear(i, o) for i, o in ((6, 8), (8, 8), (8, 8), (8, 5), (5, 2))]
    return Net(run, **dict(zip(("stem", "first", "second", "hidden", "head"), linear, strict=True)))


class BasicBlock(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(h + self.shortcut(x))


def resnet18() -> nn.Module:
    """Two blocks in each of four stages, 4 to 10 channels."""
    widths = (4, 4, 6, 8, 10)
    stages = {
        f"layer{n}": nn.Sequential(BasicBlock(i, o, 1 if n == 1 else 2), BasicBlock(o, o, 1))
        for n, (i, o) in enumerate(pairwise(widths), start=1)
    }

    def run(net: Any, x: Tensor) -> Tensor:
        x = F.relu(net.bn1(net.conv1(x)))
        for name in stages:
            x = getattr(net, name)(x)
        return net.fc(x.mean((2, 3)))

    stem = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
    return Net(run, conv1=stem, bn1=nn.BatchNorm2d(4), **stages, fc=nn.Linear(10, 3))


RESNET_INNER = {
    f"layer{n}.{b}.conv1.weight": Units(
        width, f"layer{n}.{b}.conv1.weight layer{n}.{b}.bn1", f"layer{n}.{b}.conv2.weight"
    )
    for n, width in enumerate((4, 6, 8, 10), start=1)
    for b in (0, 1)
}


def _stage(n: int, width: int) -> Units:
    """Channels of a stage: the stem or the shortcut and both second convolutions write them, as many layers read them."""
    first = "conv1.weight bn1" if n == 1 else f"layer{n}.0.shortcut.0.weight layer{n}.0.shortcut.1"
    blocks = " ".join(f"layer{n}.{b}.conv2.weight layer{n}.{b}.bn2" for b in (0, 1))
    inside = f"layer1.0.conv1.weight layer{n}.1.conv1.weight" if n == 1 else f"layer{n}.1.conv1.weight"
    beyond = "fc.weight" if n == 4 else f"layer{n + 1}.0.conv1.weight layer{n + 1}.0.shortcut.0.weight"
    return Units(width, f"{first} {blocks}", f"{inside} {beyond}")


RESNET_STAGES = {
    ("conv1.weight" if n == 1 else f"layer{n}.0.conv2.weight"): _stage(n, width)
    for n, width in enumerate((4, 6, 8, 10), start=1)
}


def bottleneck() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        x = F.relu(net.bn(net.stem(x)))
        h = F.relu(net.bn1(net.conv1(x)))
        h = F.relu(net.bn2(net.conv2(h)))
        x = F.relu(x + net.bn3(net.conv3(h)))
        return net.fc(x.mean((2, 3)))

    return Net(
        run,
        stem=nn.Conv2d(3, 8, 3),
        bn=nn.BatchNorm2d(8),
        conv1=nn.Conv2d(8, 4, 1),
        bn1=nn.BatchNorm2d(4),
        conv2=nn.Conv2d(4, 5, 3, padding=1),
        bn2=nn.BatchNorm2d(5),
        conv3=nn.Conv2d(5, 8, 1),
        bn3=nn.BatchNorm2d(8),
        fc=nn.Linear(8, 2),
    )


def densenet() -> nn.Module:
    """Each layer's output is read by every later one, behind a norm of that layer's own."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = torch.cat([x, net.conv1(F.relu(net.norm1(x)))], 1)
        x = torch.cat([x, net.conv2(F.relu(net.norm2(x)))], 1)
        return net.fc(F.relu(net.norm3(x)).mean((2, 3)))

    return Net(
        run,
        stem=nn.Conv2d(3, 4, 3, bias=False),
        norm1=nn.BatchNorm2d(4),
        conv1=nn.Conv2d(4, 3, 3, padding=1),
        norm2=nn.BatchNorm2d(7),
        conv2=nn.Conv2d(7, 3, 3, padding=1),
        norm3=nn.BatchNorm2d(10),
        fc=nn.Linear(10, 2),
    )


def inverted_bottleneck() -> nn.Module:
    """Expand, depthwise, squeeze-and-excite, project, as in MobileNetV3."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = F.relu6(net.bn0(net.stem(x)))
        h = F.relu6(net.bn1(net.expand(x)))
        h = F.hardswish(net.bn2(net.depthwise(h)))
        h = h * torch.sigmoid(net.excite(F.relu(net.squeeze(F.adaptive_avg_pool2d(h, 1)))))
        x = x + net.bn3(net.project(h))
        return net.fc(x.mean((2, 3)))

    return Net(
        run,
        stem=nn.Conv2d(3, 4, 3),
        bn0=nn.BatchNorm2d(4),
        expand=nn.Conv2d(4, 12, 1, bias=False),
        bn1=nn.BatchNorm2d(12),
        depthwise=nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False),
        bn2=nn.BatchNorm2d(12),
        squeeze=nn.Conv2d(12, 3, 1),
        excite=nn.Conv2d(3, 12, 1),
        project=nn.Conv2d(12, 4, 1, bias=False),
        bn3=nn.BatchNorm2d(4),
        fc=nn.Linear(4, 2),
    )


def grouped_shuffle() -> nn.Module:
    """Grouped convolutions with a channel shuffle between them: channel 2 g + c becomes 3 c + g."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = F.relu(net.second(F.relu(net.first(x))))
        batch, _, height, width = h.shape
        h = h.view(batch, 3, 2, height, width).transpose(1, 2).reshape(batch, 6, height, width)
        return net.fc(F.relu(net.third(h)).mean((2, 3)))

    return Net(
        run,
        first=nn.Conv2d(4, 6, 1),
        second=nn.Conv2d(6, 6, 1, groups=3),
        third=nn.Conv2d(6, 4, 2, groups=2),
        fc=nn.Linear(4, 2),
    )


# input channel 2 g + c of a (6, 2, 1, 1) weight in 3 groups, and of a (4, 3, 2, 2) weight in 2 groups behind the shuffle
SECOND_COLUMNS = Elements([[(2 * g + o) * 2 + c for o in range(2)] for g in range(3) for c in range(2)])
THIRD_COLUMNS = Elements(
    [[((2 * c + o) * 3 + g) * 4 + pixel for o in range(2) for pixel in range(4)] for g in range(3) for c in range(2)]
)


def convnext_block() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        h = net.norm(net.depthwise(x).permute(0, 2, 3, 1))
        h = net.gamma * net.second(F.gelu(net.first(h)))
        return net.head((x + h.permute(0, 3, 1, 2)).mean((2, 3)))

    return Net(
        run,
        stem=nn.Conv2d(3, 6, 2, 2),
        depthwise=nn.Conv2d(6, 6, 3, padding=1, groups=6),
        norm=nn.LayerNorm(6),
        first=nn.Linear(6, 12),
        second=nn.Linear(12, 6),
        gamma=nn.Parameter(torch.full((6,), 0.1)),
        head=nn.Linear(6, 2),
    )


def unet() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        skip = F.relu(net.down(x))
        h = F.relu(net.middle(F.max_pool2d(skip, 2)))
        h = torch.cat([F.relu(net.up(h)), skip], 1)
        return net.last(F.relu(net.merge(h)))

    return Net(
        run,
        down=nn.Conv2d(3, 4, 3, padding=1),
        middle=nn.Conv2d(4, 6, 3, padding=1),
        up=nn.ConvTranspose2d(6, 5, 2, 2),
        merge=nn.Conv2d(9, 7, 3, padding=1),
        last=nn.Conv2d(7, 1, 1),
    )


def actor_critic(shared: bool) -> nn.Module:
    def trunk(out: int | None) -> nn.Sequential:
        last = [] if out is None else [nn.Linear(7, out)]
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), *last)

    if not shared:
        return Net(lambda net, x: (net.actor(x), net.critic(x)), actor=trunk(3), critic=trunk(1))

    def run(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        h = net.trunk(x)
        return net.actor(h), net.critic(h)

    return Net(run, trunk=trunk(None), actor=nn.Linear(7, 3), critic=nn.Linear(7, 1))


def siamese() -> nn.Module:
    encoder = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    return Net(
        lambda net, a, b: net.head((net.encoder(a) - net.encoder(b)).abs()), encoder=encoder, head=nn.Linear(5, 1)
    )


def slice_writes() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        both = torch.zeros(len(x), 9)
        both[:, :4] = F.relu(net.left(x))
        both[:, 4:] = torch.tanh(net.right(x))
        return net.head(both)

    return Net(run, left=nn.Linear(6, 4), right=nn.Linear(6, 5), head=nn.Linear(9, 2))


def crelu() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.first(x)
        return net.second(torch.cat([F.relu(h), F.relu(-h)], -1))

    return Net(run, first=nn.Linear(6, 4), second=nn.Linear(8, 2))


def maxout() -> nn.Module:
    return Net(
        lambda net, x: net.second(net.first(x).view(len(x), 4, 2).amax(-1)),
        first=nn.Linear(6, 8),
        second=nn.Linear(4, 2),
    )


def experts() -> nn.Module:
    """Three experts in one tensor, their answers averaged."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = F.relu(torch.bmm(x.expand(3, *x.shape), net.w1) + net.b1)
        return torch.bmm(h, net.w2).mean(0)

    return Net(run, w1=weight(3, 6, 4), b1=weight(3, 1, 4), w2=weight(3, 4, 2))


def asks_its_activity() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        h = F.relu(net.first(x))
        if h.sum().item() > 0:
            h = 2 * h
        return net.second(h)

    return Net(run, first=nn.Linear(6, 8), second=nn.Linear(8, 2))


def loop() -> nn.Module:
    """A layer applied as often as the data say, but at least twice."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = torch.tanh(net.first(x))
        for _ in range(2 + int(x.abs().sum().item()) % 3):
            h = torch.tanh(net.again(h))
        return net.last(h)

    return Net(run, first=nn.Linear(6, 8), again=nn.Linear(8, 8), last=nn.Linear(8, 2))


def embedding_mlp() -> nn.Module:
    return nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))


# -- sequences -----------------------------------------------------------------------------------------------------


def recurrent(kind: type[nn.RNNBase], **settings: Any) -> nn.Module:
    width = 8 if settings.get("bidirectional") else 4
    return Net(
        lambda net, x: net.head(net.core(x)[0].mean(1)),
        core=kind(3, 4, batch_first=True, **settings),
        head=nn.Linear(width, 2),
    )


def last_state() -> nn.Module:
    return Net(lambda net, x: net.head(net.core(x)[1][-1]), core=nn.GRU(3, 4, batch_first=True), head=nn.Linear(4, 2))


def cell(kind: type[nn.RNNCellBase]) -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        state: Any = None
        for step in x.unbind(1):
            state = net.core(step, state)
        return net.head(state[0] if isinstance(state, tuple) else state)

    return Net(run, core=kind(3, 4), head=nn.Linear(4, 2))


def _recurrent_units(
    count: int, gate_count: int, end: str = "_l0", to: str = "head.weight", at: Along | None = None
) -> Units:
    names = [f"core.weight_ih{end}", f"core.weight_hh{end}", f"core.bias_ih{end}", f"core.bias_hh{end}"]
    return Units(
        count,
        " ".join(names),
        f"core.weight_hh{end} {to}",
        "recurrent",
        enter={name: gates(count, gate_count) for name in names},
        leave={"head.weight": at} if at else {},
    )


def heads_of(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, fused: bool) -> Tensor:
    if fused:
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -math.inf).softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2)


def gpt(fused: bool, heads: int = 2, tied: bool = False) -> nn.Module:
    def run(net: Any, words: Tensor) -> Tensor:
        x = net.wte(words) + net.wpe.weight[: words.shape[1]]
        q, k, v = (heads_of(each, heads) for each in net.qkv(net.norm1(x)).chunk(3, -1))
        x = x + net.proj(attend(q, k, v, fused))
        x = x + net.down(F.gelu(net.up(net.norm2(x))))
        return net.head(net.norm(x))

    net = Net(
        run,
        wte=nn.Embedding(10, 8),
        wpe=nn.Embedding(6, 8),
        norm1=nn.LayerNorm(8),
        qkv=nn.Linear(8, 24),
        proj=nn.Linear(8, 8),
        norm2=nn.LayerNorm(8),
        up=nn.Linear(8, 12),
        down=nn.Linear(12, 8),
        norm=nn.LayerNorm(8),
        head=nn.Linear(8, 10, bias=False),
    )
    if tied:
        net.head.weight = net.wte.weight
    return net


GPT_MLP = {"up.weight": Units(12, "up.weight up.bias", "down.weight")}
TWO_HEADS = Along(0, [[part * 8 + head * 4 + i for part in range(3) for i in range(4)] for head in range(2)])
GPT_HEADS = Units(2, "qkv.weight qkv.bias", "proj.weight", enter={"qkv.weight": TWO_HEADS, "qkv.bias": TWO_HEADS})
GPT_SKIPPED = {
    "wte.weight": "residual stream",
    "proj.weight": "residual stream",
    "down.weight": "residual stream",
    "head.weight": "output",
}


def rotated(x: Tensor) -> Tensor:
    """Rotary positions, halves of a head turned against each other."""
    steps, half = x.shape[-2], x.shape[-1] // 2
    angle = torch.arange(steps)[:, None] / 10 ** torch.arange(half)
    first, second = x.chunk(2, -1)
    turned = torch.cat([-second, first], -1)
    return x * angle.cos().repeat(1, 2) + turned * angle.sin().repeat(1, 2)


def llama(key_heads: int, query_heads: int = 4) -> nn.Module:
    """Grouped-query attention, rotary positions, a gated MLP."""

    def run(net: Any, words: Tensor) -> Tensor:
        x = net.embed(words)
        h = net.norm1(x)
        q, k = rotated(heads_of(net.q(h), query_heads)), rotated(heads_of(net.k(h), key_heads))
        k, v = (each.repeat_interleave(query_heads // key_heads, 1) for each in (k, heads_of(net.v(h), key_heads)))
        x = x + net.o(attend(q, k, v, fused=True))
        h = net.norm2(x)
        return net.head(net.norm(x + net.down(F.silu(net.gate(h)) * net.up(h))))

    def linear(i: int, o: int) -> nn.Linear:
        return nn.Linear(i, o, bias=False)

    wide, narrow = 4 * query_heads, 4 * key_heads
    return Net(
        run,
        embed=nn.Embedding(10, 8),
        norm1=nn.RMSNorm(8),
        q=linear(8, wide),
        k=linear(8, narrow),
        v=linear(8, narrow),
        o=linear(wide, 8),
        norm2=nn.RMSNorm(8),
        gate=linear(8, 12),
        up=linear(8, 12),
        down=linear(12, 8),
        norm=nn.RMSNorm(8),
        head=linear(8, 10),
    )


LLAMA_MLP = {"gate.weight": Units(12, "gate.weight up.weight", "down.weight")}
LLAMA_HEADS = Units(
    2,
    "q.weight k.weight v.weight",
    "o.weight",
    enter={"q.weight": rows(2, repeat=8), "k.weight": rows(2, repeat=4), "v.weight": rows(2, repeat=4)},
)


def multihead() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.embed(x)
        return net.head(F.relu(net.attention(h, h, h)[0]).mean(1))

    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    return Net(run, embed=nn.Linear(6, 8), attention=attention, head=nn.Linear(8, 2))


IN_PROJ = "attention.in_proj_weight"
MULTIHEAD = {
    "embed.weight": Units(8, "embed.weight embed.bias", IN_PROJ),
    "attention.out_proj.weight": Units(8, "attention.out_proj.weight attention.out_proj.bias", "head.weight"),
}
MULTIHEAD_HEADS = Units(
    2,
    f"{IN_PROJ} attention.in_proj_bias",
    "attention.out_proj.weight",
    enter={IN_PROJ: TWO_HEADS, "attention.in_proj_bias": TWO_HEADS},
)


def encoder_layer(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=12, batch_first=True, norm_first=norm_first)
    return Net(
        lambda net, x: net.head(net.layer(net.embed(x)).mean(1)),
        embed=nn.Linear(6, 8),
        layer=layer,
        head=nn.Linear(8, 2),
    )


ENCODER_MLP = {"layer.linear1.weight": Units(12, "layer.linear1.weight layer.linear1.bias", "layer.linear2.weight")}
ENCODER_HEADS = Units(
    2,
    "layer.self_attn.in_proj_weight layer.self_attn.in_proj_bias",
    "layer.self_attn.out_proj.weight",
    enter={"layer.self_attn.in_proj_weight": TWO_HEADS, "layer.self_attn.in_proj_bias": TWO_HEADS},
)


def mixer() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.embed(x)
        x = x + net.token2(F.gelu(net.token1(net.norm1(x).mT))).mT
        x = x + net.channel2(F.gelu(net.channel1(net.norm2(x))))
        return net.head(net.norm(x).mean(1))

    return Net(
        run,
        embed=nn.Linear(6, 8),
        norm1=nn.LayerNorm(8),
        token1=nn.Linear(5, 7),
        token2=nn.Linear(7, 5),
        norm2=nn.LayerNorm(8),
        channel1=nn.Linear(8, 12),
        channel2=nn.Linear(12, 8),
        norm=nn.LayerNorm(8),
        head=nn.Linear(8, 2),
    )


# -- what must be left alone ---------------------------------------------------------------------------------------


def tied_autoencoder() -> nn.Module:
    """A decoder that is the encoder transposed, and a branch with nothing special about it."""

    def run(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        code = F.relu(net.encoder(x))
        return F.linear(code, net.encoder.weight.t()), net.second(F.relu(net.first(x)))

    return Net(run, encoder=nn.Linear(6, 4), first=nn.Linear(6, 5), second=nn.Linear(5, 2))


def tied_embedding() -> nn.Module:
    def run(net: Any, words: Tensor) -> Tensor:
        h = F.relu(net.first(net.embed(words)))
        return F.linear(torch.tanh(net.second(h)), net.embed.weight)

    return Net(run, embed=nn.Embedding(10, 6), first=nn.Linear(6, 8), second=nn.Linear(8, 6))


def consumer_used_twice() -> nn.Module:
    """The second layer reads the first, and also the input itself."""

    def run(net: Any, x: Tensor) -> Tensor:
        return net.third(F.relu(net.second(F.relu(net.first(x))) + net.second(x)))

    return Net(run, first=nn.Linear(6, 6), second=nn.Linear(6, 5), third=nn.Linear(5, 2))


def computed(change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Of four layers the second has a computed weight: neither its rows nor its columns can be written."""
    net = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 2)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's older functions say that they are older
        change(net[2])
    return net


def frozen(layer: int) -> nn.Module:
    net = computed(lambda module: module)
    net[layer].requires_grad_(False)
    return net


LAST_OF_FOUR = {"4.weight": Units(5, "4.weight 4.bias", "6.weight")}
FIRST_OF_FOUR = {"0.weight": Units(8, "0.weight 0.bias", "2.weight")}
SECOND_OF_FOUR = {"2.weight": Units(7, "2.weight 2.bias", "4.weight")}


@torch.library.custom_op("pliant_tests::mystery", mutates_args=())
def mystery(x: Tensor) -> Tensor:
    """An operation that nobody has described: here sin of the entry before."""
    return x.roll(1, -1).sin()


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _back(ctx: Any, gradient: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return (gradient * x.roll(1, -1).cos()).roll(-1, -1)


mystery.register_autograd(_back, setup_context=_keep)


def through_mystery() -> nn.Module:
    """The first layer, read through an unknown operation and plainly; the third is plain."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = F.relu(net.first(x))
        return net.fourth(F.relu(net.third(F.relu(net.second(mystery(h)) + net.beside(h)))))

    return Net(
        run,
        first=nn.Linear(6, 8),
        second=nn.Linear(8, 5),
        beside=nn.Linear(8, 5),
        third=nn.Linear(5, 4),
        fourth=nn.Linear(4, 2),
    )


CHAIN = {"0.weight": Units(8, "0.weight 0.bias", "2.weight"), "2.weight": Units(5, "2.weight 2.bias", "4.weight")}
LAST_OF_THREE = {"3.weight": Units(5, "3.weight 3.bias", "5.weight")}
EXCITE = "excite.weight excite.bias"
PICTURE, VECTOR, STEPS, PATCHES, WORDS = (
    inputs(2, 3, 8, 8),
    inputs(4, 6),
    inputs(2, 3, 3),
    inputs(2, 5, 6),
    tokens(10, 2, 5),
)
new, old = nn.utils.parametrizations, nn.utils

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
    Case(
        "resnet-18",
        resnet18,
        inputs(2, 3, 16, 16),
        RESNET_INNER,
        {"conv1.weight": "residual=True", "layer?.?.conv2.weight": "residual=True", "fc.weight": "output"},
    ),
    Case(
        "resnet-18, residual",
        resnet18,
        inputs(2, 3, 16, 16),
        {**RESNET_INNER, **RESNET_STAGES},
        {"fc.weight": "output"},
        {"residual": True},
    ),
    Case(
        "residual blocks of one layer",
        one_layer_blocks,
        VECTOR,
        {"hidden.weight": Units(5, "hidden.weight hidden.bias", "head.weight")},
        dict.fromkeys(("stem.weight", "first.weight", "second.weight"), "residual=True"),
    ),
    Case(
        "residual blocks of one layer, residual",
        one_layer_blocks,
        VECTOR,
        {
            "stem.weight": Units(
                8,
                "stem.weight stem.bias first.weight first.bias second.weight second.bias",
                "first.weight second.weight hidden.weight",
                "recurrent",
            ),
            "hidden.weight": Units(5, "hidden.weight hidden.bias", "head.weight"),
        },
        options={"residual": True},
    ),
    Case(
        "bottleneck",
        bottleneck,
        PICTURE,
        {
            "conv1.weight": Units(4, "conv1.weight conv1.bias bn1", "conv2.weight"),
            "conv2.weight": Units(5, "conv2.weight conv2.bias bn2", "conv3.weight"),
        },
        {"stem.weight": "residual=True", "conv3.weight": "residual=True"},
    ),
    Case(
        "densenet",
        densenet,
        PICTURE,
        {
            "stem.weight": Units(
                4,
                "stem.weight norm1 norm2 norm3",
                "conv1.weight conv2.weight fc.weight",
                enter={"norm2": rows(4), "norm3": rows(4)},
                leave={"conv2.weight": columns(4), "fc.weight": columns(4)},
            ),
            "conv1.weight": Units(
                3,
                "conv1.weight conv1.bias norm2 norm3",
                "conv2.weight fc.weight",
                enter={"norm2": rows(3, 4), "norm3": rows(3, 4)},
                leave={"conv2.weight": columns(3, 4), "fc.weight": columns(3, 4)},
            ),
            "conv2.weight": Units(
                3,
                "conv2.weight conv2.bias norm3",
                "fc.weight",
                enter={"norm3": rows(3, 7)},
                leave={"fc.weight": columns(3, 7)},
            ),
        },
    ),
    Case(
        "inverted bottleneck with squeeze-and-excite",
        inverted_bottleneck,
        PICTURE,
        {
            "expand.weight": Units(
                12, f"expand.weight bn1 depthwise.weight bn2 {EXCITE}", "project.weight squeeze.weight"
            ),
            "squeeze.weight": Units(3, "squeeze.weight squeeze.bias", "excite.weight"),
        },
        {"stem.weight": "residual=True", "project.weight": "residual=True", "fc.weight": "output"},
    ),
    Case(
        "grouped convolutions and a shuffle",
        grouped_shuffle,
        inputs(2, 4, 4, 4),
        {
            "first.weight": Units(
                6, "first.weight first.bias", "second.weight", leave={"second.weight": SECOND_COLUMNS}
            ),
            "second.weight": Units(
                6, "second.weight second.bias", "third.weight", leave={"third.weight": THIRD_COLUMNS}
            ),
            "third.weight": Units(4, "third.weight third.bias", "fc.weight"),
        },
    ),
    Case(
        "convnext block",
        convnext_block,
        PICTURE,
        {"first.weight": Units(12, "first.weight first.bias", "second.weight")},
        {"stem.weight": "residual stream", "second.weight": "residual stream"},
    ),
    Case(
        "u-net",
        unet,
        PICTURE,
        {
            "down.weight": Units(
                4, "down.weight down.bias", "middle.weight merge.weight", leave={"merge.weight": columns(4, 5)}
            ),
            "middle.weight": Units(6, "middle.weight middle.bias", "up.weight", leave={"up.weight": rows(6)}),
            "up.weight": Units(
                5,
                "up.weight up.bias",
                "merge.weight",
                enter={"up.weight": columns(5)},
                leave={"merge.weight": columns(5)},
            ),
            "merge.weight": Units(7, "merge.weight merge.bias", "last.weight"),
        },
    ),
    Case(
        "actor and critic on one trunk",
        lambda: actor_critic(shared=True),
        VECTOR,
        {
            "trunk.0.weight": Units(8, "trunk.0.weight trunk.0.bias", "trunk.2.weight"),
            "trunk.2.weight": Units(7, "trunk.2.weight trunk.2.bias", "actor.weight critic.weight"),
        },
        {"actor.weight": "output", "critic.weight": "output"},
    ),
    Case(
        "actor and critic apart",
        lambda: actor_critic(shared=False),
        VECTOR,
        {
            f"{net}.{layer}.weight": Units(
                units, f"{net}.{layer}.weight {net}.{layer}.bias", f"{net}.{layer + 2}.weight"
            )
            for net in ("actor", "critic")
            for layer, units in ((0, 8), (2, 7))
        },
    ),
    Case(
        "siamese",
        siamese,
        several((4, 6), (4, 6)),
        {
            "encoder.0.weight": Units(8, "encoder.0.weight encoder.0.bias", "encoder.2.weight"),
            "encoder.2.weight": Units(5, "encoder.2.weight encoder.2.bias", "head.weight"),
        },
    ),
    Case(
        "writes into slices",
        slice_writes,
        VECTOR,
        {
            "left.weight": Units(4, "left.weight left.bias", "head.weight", leave={"head.weight": columns(4)}),
            "right.weight": Units(5, "right.weight right.bias", "head.weight", leave={"head.weight": columns(5, 4)}),
        },
    ),
    Case(
        "crelu",
        crelu,
        VECTOR,
        {
            "first.weight": Units(
                4,
                "first.weight first.bias",
                "second.weight",
                leave={"second.weight": Along(1, [(i, i + 4) for i in range(4)])},
            )
        },
    ),
    Case(
        "maxout",
        maxout,
        VECTOR,
        {
            "first.weight": Units(
                4,
                "first.weight first.bias",
                "second.weight",
                enter={"first.weight": rows(4, repeat=2), "first.bias": rows(4, repeat=2)},
            )
        },
    ),
    Case(
        "a stack of experts",
        experts,
        VECTOR,
        {
            "w1": Units(
                12,
                "w1 b1",
                "w2",
                enter={
                    "w1": Elements([[(e * 6 + i) * 4 + h for i in range(6)] for e in range(3) for h in range(4)]),
                    "b1": Elements([[unit] for unit in range(12)]),
                },
                leave={"w2": Elements([[2 * unit, 2 * unit + 1] for unit in range(12)])},
            )
        },
        {"w2": "output"},
        unread=["w1"],
    ),
    Case(
        "a branch on activity",
        asks_its_activity,
        VECTOR,
        {"first.weight": Units(8, "first.weight first.bias", "second.weight")},
    ),
    Case(
        "a loop over one layer",
        loop,
        VECTOR,
        {
            "first.weight": Units(
                8, "first.weight first.bias again.weight again.bias", "again.weight last.weight", "recurrent"
            )
        },
    ),
    Case(
        "embedding and mlp",
        embedding_mlp,
        tokens(10, 4, 3),
        {"2.weight": Units(8, "2.weight 2.bias", "4.weight")},
        {"0.weight": "embedding"},
    ),
    Case("rnn", lambda: recurrent(nn.RNN), STEPS, {"core.weight_ih_l0": _recurrent_units(4, 1)}),
    Case("gru", lambda: recurrent(nn.GRU), STEPS, {"core.weight_ih_l0": _recurrent_units(4, 3)}),
    Case("lstm", lambda: recurrent(nn.LSTM), STEPS, {"core.weight_ih_l0": _recurrent_units(4, 4)}),
    Case("gru, last state", last_state, STEPS, {"core.weight_ih_l0": _recurrent_units(4, 3)}),
    Case("rnn cell", lambda: cell(nn.RNNCell), STEPS, {"core.weight_ih": _recurrent_units(4, 1, "")}),
    Case("gru cell", lambda: cell(nn.GRUCell), STEPS, {"core.weight_ih": _recurrent_units(4, 3, "")}),
    Case("lstm cell", lambda: cell(nn.LSTMCell), STEPS, {"core.weight_ih": _recurrent_units(4, 4, "")}),
    Case(
        "lstm of two layers",
        lambda: recurrent(nn.LSTM, num_layers=2, dropout=0.1),
        STEPS,
        {
            "core.weight_ih_l0": _recurrent_units(4, 4, to="core.weight_ih_l1"),
            "core.weight_ih_l1": _recurrent_units(4, 4, "_l1"),
        },
        unread=["core.weight_ih_l0"],
    ),
    Case(
        "lstm both ways",
        lambda: recurrent(nn.LSTM, bidirectional=True),
        STEPS,
        {
            "core.weight_ih_l0": _recurrent_units(4, 4, at=columns(4)),
            "core.weight_ih_l0_reverse": _recurrent_units(4, 4, "_l0_reverse", at=columns(4, 4)),
        },
    ),
    *(
        case
        for how, fused in (("fused", True), ("manual", False))
        for case in (
            Case(
                f"gpt, {how} attention",
                lambda fused=fused: gpt(fused),
                WORDS,
                GPT_MLP,
                {**GPT_SKIPPED, "qkv.weight": "heads=True"},
            ),
            Case(
                f"gpt, {how} attention, heads",
                lambda fused=fused: gpt(fused),
                WORDS,
                {**GPT_MLP, "qkv.weight": GPT_HEADS},
                GPT_SKIPPED,
                {"heads": True},
            ),
        )
    ),
    Case(
        "gpt, residual",
        lambda: gpt(fused=True),
        WORDS,
        GPT_MLP,
        {"wte.weight": "residual stream", "down.weight": "residual stream"},
        {"residual": True},
    ),
    Case(
        "llama",
        lambda: llama(2),
        WORDS,
        LLAMA_MLP,
        {
            "q.weight": "heads=True",
            "v.weight": "heads=True",
            "embed.weight": "residual stream",
            "head.weight": "output",
        },
    ),
    Case(
        "llama, heads",
        lambda: llama(2),
        WORDS,
        {**LLAMA_MLP, "q.weight": LLAMA_HEADS},
        {"o.weight": "residual stream"},
        {"heads": True},
    ),
    Case("multihead attention", multihead, PATCHES, MULTIHEAD, {IN_PROJ: "heads=True"}),
    Case(
        "multihead attention, heads",
        multihead,
        PATCHES,
        {**MULTIHEAD, IN_PROJ: MULTIHEAD_HEADS},
        {"head.weight": "output"},
        {"heads": True},
    ),
    *(
        case
        for order, first in (("norm first", True), ("norm last", False))
        for case in (
            Case(
                f"encoder layer, {order}",
                lambda first=first: encoder_layer(first),
                PATCHES,
                ENCODER_MLP,
                {"embed.weight": "residual stream", "layer.self_attn.in_proj_weight": "heads=True"},
            ),
            Case(
                f"encoder layer, {order}, heads",
                lambda first=first: encoder_layer(first),
                PATCHES,
                {**ENCODER_MLP, "layer.self_attn.in_proj_weight": ENCODER_HEADS},
                {"layer.linear2.weight": "residual stream"},
                {"heads": True},
            ),
        )
    ),
    Case(
        "mixer",
        mixer,
        PATCHES,
        {
            "token1.weight": Units(7, "token1.weight token1.bias", "token2.weight"),
            "channel1.weight": Units(12, "channel1.weight channel1.bias", "channel2.weight"),
        },
        {"embed.weight": "residual stream", "channel2.weight": "residual stream", "token2.weight": ""},
    ),
    Case(
        "tied auto-encoder",
        tied_autoencoder,
        VECTOR,
        {"first.weight": Units(5, "first.weight first.bias", "second.weight")},
        {"encoder.weight": "tied"},
    ),
    Case(
        "embedding tied to the head",
        tied_embedding,
        WORDS,
        {"first.weight": Units(8, "first.weight first.bias", "second.weight")},
        {"second.weight": "tied|also used elsewhere", "embed.weight": "tied|embedding"},
    ),
    Case("gpt, tied head", lambda: gpt(fused=True, tied=True), WORDS, GPT_MLP, {"wte.weight": "tied|residual stream"}),
    Case(
        "a consumer that also reads the input",
        consumer_used_twice,
        VECTOR,
        {"second.weight": Units(5, "second.weight second.bias", "third.weight")},
        {"first.weight": "also used elsewhere"},
    ),
    *(
        Case(
            name,
            lambda change=change: computed(change),
            VECTOR,
            LAST_OF_FOUR,
            {"0.weight": "computed weight", pattern: "computed weight"},
        )
        for name, change, pattern in (
            ("spectral norm", new.spectral_norm, "2.parametrizations.weight.original"),
            ("older spectral norm", old.spectral_norm, "2.weight_orig"),
            ("weight norm", new.weight_norm, "2.parametrizations.weight.original1"),
            ("older weight norm", old.weight_norm, "2.weight_v"),
        )
    ),
    Case("first layer frozen", lambda: frozen(0), VECTOR, {**SECOND_OF_FOUR, **LAST_OF_FOUR}, {"0.weight": "frozen"}),
    Case(
        "third layer frozen",
        lambda: frozen(4),
        VECTOR,
        FIRST_OF_FOUR,
        {"2.weight": "frozen", "4.weight": "frozen"},
    ),
    Case(
        "multi-query attention",
        lambda: llama(1),
        WORDS,
        LLAMA_MLP,
        {"q.weight": "all units mixed", "k.weight": "all units mixed"},
        {"heads": True},
    ),
    Case(
        "one head",
        lambda: gpt(fused=False, heads=1),
        WORDS,
        GPT_MLP,
        {"qkv.weight": "all units mixed"},
        {"heads": True},
    ),
    Case(
        "an unknown operation",
        through_mystery,
        VECTOR,
        {
            "second.weight": Units(5, "second.weight second.bias beside.weight beside.bias", "third.weight"),
            "third.weight": Units(4, "third.weight third.bias", "fourth.weight"),
        },
        {"first.weight": r"no rule for pliant_tests::mystery"},
    ),
]
BY_NAME = {case.name: case for case in CASES}
