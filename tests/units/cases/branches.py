"""Networks whose layers branch, join, shuffle or come again."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.units.cases.table import (
    PICTURE,
    VECTOR,
    Along,
    Case,
    Elements,
    Net,
    Units,
    columns,
    inputs,
    rows,
    several,
    weight,
)


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


EXCITE = "excite.weight excite.bias"

CASES = [
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
]
