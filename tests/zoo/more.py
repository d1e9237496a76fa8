"""Networks from libraries other than transformers and timm, chosen for odd structure; the columns are those of `models`.

A network of which a reader expects something that is left alone says so in a comment, with what stands against it; its
`groups` counts what a reader expects of the rest.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from tests.zoo.models import Model
from tests.zoo.torchvision_names import torchvision_names

Row = tuple[str, str, int, Callable[[], nn.Module], Callable[[], Any]]  # name, hidden, groups, build, inputs


def more() -> Iterator[Model]:
    for source, rows in SOURCES.items():
        for name, hidden, groups, build, inputs in rows():
            yield Model(name, source, build, inputs, tuple(hidden.split()), groups)


# -- monai: medical images, U-shaped networks --------------------------------------------------------------------------


def from_monai() -> Iterator[Row]:
    from monai.networks.nets import (
        attentionunet,
        basic_unet,
        basic_unetplusplus,
        dynunet,
        highresnet,
        mednext,
        quicknat,
        restormer,
        segresnet,
        unet,
        unetr,
        vnet,
    )

    def image(size: int) -> Callable[[], Any]:
        return lambda: torch.randn(1, 1, size, size)

    widths = (8, 8, 16, 16, 16, 8)
    # two convolutions on each of 5 floors; on 4 ways up a transposed one and two
    yield "BasicUNet", "* !final_conv.*", 22, lambda: basic_unet.BasicUNet(2, 1, 2, widths), image(32)
    dyn: dict[str, Any] = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}
    yield (
        "DynUNet",
        "*.conv1.conv.weight upsamples.*.weight",
        9,
        lambda: dynunet.DynUNet(2, 1, 2, **dyn, filters=[8, 12, 16], res_block=True),
        image(16),
    )
    yield (
        "SegResNet",
        "*.conv1.conv.weight",
        4,
        lambda: segresnet.SegResNet(2, 8, 1, 2, blocks_down=(1, 2), blocks_up=(1,)),
        image(16),
    )
    # of the n convolutions of a stage all but the last, which writes the stream
    yield (
        "VNet",
        "down_tr64.ops.0.* down_tr128.ops.[01].* down_tr256.ops.0.* up_tr256.ops.0.* up_tr128.ops.0.* out_tr.conv_block.*",
        7,
        lambda: vnet.VNet(2, 1, 2),
        image(32),
    )
    yield (
        "HighResNet",
        "blocks.[1-9].layers.1.conv.weight blocks.10.conv.weight",
        10,
        lambda: highresnet.HighResNet(2, 1, 2),
        image(16),
    )
    # a residual block from a transposed convolution: only its inner convolution; without one: the transposed one too
    yield (
        "UNETR",
        "*.mlp.linear1.weight *.conv1.conv.weight *.transp_conv_init.conv.weight decoder*.transp_conv.conv.weight",
        27,
        lambda: unetr.UNETR(1, 2, (32, 32), 4, 16, 24, 2, spatial_dims=2),
        image(32),
    )
    # the gate's single channel is the only unit of a vector
    yield (
        "AttentionUnet",
        "* !*.psi.* !model.2.*",
        12,
        lambda: attentionunet.AttentionUnet(2, 1, 2, (8, 16, 24), (2, 2)),
        image(16),
    )
    yield (
        "residual UNet",
        "*.unit[01].conv.weight *.residual.weight !*.2.1.*",
        6,
        lambda: unet.UNet(2, 1, 2, (8, 12, 16), (2, 2), num_res_units=2),
        image(16),
    )
    restorer = {"dim": 8, "num_blocks": (1, 1), "heads": (1, 2), "num_refinement_blocks": 1}
    yield (
        "Restormer",
        "*.ffn.project_in.conv.weight",
        4,
        lambda: restormer.Restormer(2, 1, 1, **restorer),
        image(16),
    )
    yield "QuickNAT", "*.layers?.1.weight", 23, lambda: quicknat.Quicknat(2, 1, 8), image(32)
    ratios: dict[str, Any] = {f"{part}_expansion_ratio": 2 for part in ("encoder", "decoder", "bottleneck")}
    blocks: dict[str, Any] = {"blocks_down": (1, 1), "blocks_up": (1, 1), "blocks_bottleneck": 1}
    yield "MedNeXt", "*.conv2.weight", 9, lambda: mednext.MedNeXt(2, 8, 1, 2, **ratios, **blocks), image(32)
    yield (
        "UNet++",
        "* !final_conv_*",
        40,
        lambda: basic_unetplusplus.BasicUNetPlusPlus(2, 1, 2, widths),
        image(32),
    )


# -- pytorchcv: architectures of one article each ----------------------------------------------------------------------

PYTORCHCV = (
    ("revnet38", "*.body.*.conv1.* *.body.conv1.*", 16, 64),  # reversible, by an autograd function of its own
    ("diracnet18v2", "* !output.*", 17, 64),
    ("peleenet", "* !output.*", 113, 64),
    ("hardnet39ds", "* !output.*", 38, 64),
)


def from_pytorchcv() -> Iterator[Row]:
    with torchvision_names():
        from pytorchcv.model_provider import get_model

    def build(name: str) -> nn.Module:
        net: Any = get_model(name, num_classes=5)
        if hasattr(net.features, "final_pool"):
            net.features.final_pool = nn.AdaptiveAvgPool2d(1)  # a fixed size pools images of 224 x 224 alone
        return net

    for name, hidden, groups, size in PYTORCHCV:
        yield name, hidden, groups, lambda name=name: build(name), lambda size=size: torch.randn(2, 3, size, size)


# -- torch_geometric: graph networks -----------------------------------------------------------------------------------


class Layers(nn.Module):
    """Graph layers one after another, a ReLU between."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = layer(x, edges).relu()
        return self.layers[-1](x, edges)


def from_torch_geometric() -> Iterator[Row]:
    from torch_geometric import nn as gnn
    from torch_geometric.nn import models

    ring = torch.tensor([[0, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 0, 0, 1, 2, 3, 4, 5]])

    def nodes() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(6, 5), ring

    yield "GCN", "convs.[01].*", 2, lambda: models.GCN(5, 16, 3, 4), nodes
    yield "GraphSAGE", "convs.[01].*", 2, lambda: models.GraphSAGE(5, 16, 3, 4), nodes
    yield (
        "GIN, jumping knowledge",
        "convs.*",
        6,
        lambda: models.GIN(5, 16, 3, 4, norm="BatchNorm", jk="cat"),
        nodes,
    )
    yield "EdgeCNN", "convs.[01].* convs.2.nn.lins.0.*", 5, lambda: models.EdgeCNN(5, 16, 3, 4), nodes
    degrees = {
        "aggregators": ["mean", "max", "std"], "scalers": ["identity", "amplification"], "deg": torch.tensor([0, 0, 6])
    }  # fmt: skip
    yield "PNA", "* !convs.2.lin.*", 8, lambda: models.PNA(5, 16, 3, 4, **degrees), nodes
    # the reach of a Chebyshev polynomial: a matrix for each power, all of the same units
    yield "ChebConv", "layers.0.*", 1, lambda: Layers(gnn.ChebConv(5, 16, 3), gnn.ChebConv(16, 4, 3)), nodes


SOURCES: dict[str, Callable[[], Iterator[Row]]] = {
    "monai": from_monai,
    "pytorchcv": from_pytorchcv,
    "torch_geometric": from_torch_geometric,
}
