"""Networks from libraries other than transformers and timm, chosen for odd structure; the columns are those of `models`.

A network of which a reader expects something that is left alone says so in a comment, with what stands against it; its
`groups` counts what a reader expects of the rest.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from tests.zoo.models import Model
from tests.zoo.torchvision_names import torchvision_names

Row = tuple[str, str, int, Callable[[], nn.Module], Callable[[], Any]]  # name, hidden, groups, build, inputs


def more() -> Iterator[Model]:
    for source, rows in SOURCES.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what other libraries import is not ours to mend
            found = list(rows())
        for name, hidden, groups, build, inputs in found:
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
    # two frequencies, computed from both by blocks of one weight: high and low channels apart but in the last stage
    ("octresnet10_ad2", "* !output.*", 15, 64),
    # the last convolution of a block is shared by all blocks of a stage
    ("sharesnet18", "*.body.conv1.conv.weight", 4, 64),
    ("nin_cifar10", "features.* !features.stage3.unit3.*", 8, 32),  # no linear layer: the last convolution is the head
    ("shakeshakeresnet20_2x16d_cifar10", "*.branch?.conv1.conv.weight", 18, 32),  # branches mixed at random
    ("ror3_56_cifar10", "*.body.conv1.conv.weight", 24, 32),  # shortcuts over blocks, stages and the network
    ("sqnxt23_w1", "features.init_block.* *.unit*.conv[1234].conv.weight", 85, 64),
)


def from_pytorchcv() -> Iterator[Row]:
    with torchvision_names():
        from pytorchcv.model_provider import get_model

    def build(name: str) -> nn.Module:
        net: Any = get_model(name) if name.endswith("cifar10") else get_model(name, num_classes=5)
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
    # an LSTM reads the layers one after another, so that channel i of every layer is one unit
    yield (
        "GCN, layers read by an LSTM",
        "convs.* jk.lstm.weight_*",
        3,
        lambda: models.GCN(5, 16, 3, 4, jk="lstm"),
        nodes,
    )
    # the state of a GRU cell, and its messages: a matrix for each step, in one parameter
    gated = (gnn.GCNConv, gnn.GatedGraphConv, gnn.GCNConv)
    sizes = ((5, 16), (16, 3), (16, 4))
    yield (
        "GatedGraphConv",
        "layers.[01].*weight*",
        2,
        lambda: Layers(*(layer(*size) for layer, size in zip(gated, sizes, strict=True))),
        nodes,
    )
    # two stacks of two layers: of each layer's mean over stacks, and between the layers of each
    yield (
        "ARMAConv",
        "layers.0.*weight*",
        3,
        lambda: Layers(gnn.ARMAConv(5, 16, 2, 2), gnn.ARMAConv(16, 4, 2, 2)),
        nodes,
    )
    yield "FiLMConv", "layers.0.*", 1, lambda: Layers(gnn.FiLMConv(5, 16), gnn.FiLMConv(16, 4)), nodes
    yield "GENConv", "layers.?.mlp.0.*", 2, lambda: Layers(gnn.GENConv(5, 16), gnn.GENConv(16, 4)), nodes

    def mlp() -> nn.Module:
        return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))

    yield (
        "GPSConv",
        "layers.1.conv.nn.0.weight layers.1.mlp.0.weight",
        2,
        lambda: Layers(gnn.GCNConv(5, 16), gnn.GPSConv(16, gnn.GINConv(mlp()), heads=2), gnn.GCNConv(16, 4)),
        nodes,
    )
    # the reach of a Chebyshev polynomial: a matrix for each power, all of the same units
    yield "ChebConv", "layers.0.*", 1, lambda: Layers(gnn.ChebConv(5, 16, 3), gnn.ChebConv(16, 4, 3)), nodes


# -- vit-pytorch: transformers of images -------------------------------------------------------------------------------

VIT: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "num_classes": 5, "dim": 16, "depth": 2, "heads": 2, "mlp_dim": 24
}  # fmt: skip


def from_vit_pytorch() -> Iterator[Row]:
    with torchvision_names():
        from vit_pytorch import (
            cct,
            cross_vit,
            cvt,
            jumbo_vit,
            levit,
            look_vit,
            max_vit,
            nest,
            parallel_vit,
            regionvit,
            rvt,
            simple_uvit,
            simple_vit_with_fft,
            simple_vit_with_hyper_connections,
            vit_with_patch_merger,
            xcit,
        )

    def image(size: int = 32) -> Callable[[], Any]:
        return lambda: torch.randn(1, 3, size, size)

    compact: dict[str, Any] = {"n_conv_layers": 2, "num_layers": 2, "num_heads": 2, "mlp_ratio": 2.0, "num_classes": 5}
    # the last convolution of the tokenizer writes the stream
    yield (
        "CCT",
        "tokenizer.conv_layers.0.0.weight *.linear1.weight",
        3,
        lambda: cct.CCT(img_size=32, embedding_dim=16, **compact),
        image(),
    )
    # two streams of different width; the projections between them are read by attention alone
    scales: dict[str, Any] = {
        f"{size}_{what}": value
        for size, patch in (("sm", 8), ("lg", 16))
        for what, value in (("patch_size", patch), ("enc_depth", 1), ("enc_heads", 2), ("enc_mlp_dim", 20))
    }
    yield (
        "CrossViT",
        "*.layers.?.1.net.1.weight",
        2,
        lambda: cross_vit.CrossViT(
            image_size=32, num_classes=5, sm_dim=16, lg_dim=24, cross_attn_depth=1, depth=1, **scales
        ),
        image(),
    )
    stages: dict[str, Any] = {
        f"s{stage}_{what}": value
        for stage, width in ((1, 8), (2, 12), (3, 16))
        for what, value in (("emb_dim", width), ("heads", 1 if stage == 1 else 2), ("depth", 1), ("mlp_mult", 2))
    }
    yield "CvT", "*.1.net.1.weight", 3, lambda: cvt.CvT(num_classes=5, **stages), image(64)
    # attention between stages has a wider value; four convolutions in front, of which the last writes the stream
    yield (
        "LeViT",
        "conv_embedding.[012].weight *.1.net.0.weight",
        6,
        lambda: levit.LeViT(image_size=64, num_classes=5, stages=2, dim=(16, 24), depth=1, heads=(2, 2), mlp_mult=2),
        image(64),
    )
    look: dict[str, Any] = {"highres_patch_size": 4, "highres_mlp_factor": 2, "cross_attn_heads": 2}
    yield (
        "LookViT",
        "layers.?.[15].1.weight",
        4,
        lambda: look_vit.LookViT(
            dim=16, image_size=32, num_classes=5, depth=2, patch_size=8, heads=2, mlp_factor=2, **look
        ),
        image(),
    )
    # in each of two blocks an inverted bottleneck with its gate, and an MLP behind block and grid attention
    yield (
        "MaxViT",
        "conv_stem.0.weight layers.?.0.[03].weight layers.?.0.6.gate.1.weight *.fn.net.1.weight",
        9,
        lambda: max_vit.MaxViT(
            num_classes=5, dim=16, depth=(1, 1), dim_head=8, dim_conv_stem=8, window_size=2, mbconv_expansion_rate=2
        ),
        image(),
    )
    yield (
        "NesT",
        "*.1.net.1.weight",
        2,
        lambda: nest.NesT(
            image_size=32, patch_size=4, num_classes=5, dim=8, heads=2, num_hierarchies=2, block_repeats=(1, 1)
        ),
        image(),
    )
    yield "parallel ViT", "*.fns.?.net.1.weight", 4, lambda: parallel_vit.ViT(**VIT, num_parallel_branches=2), image()
    yield (
        "RegionViT",
        "*.layers.0.1.1.weight",
        4,
        lambda: regionvit.RegionViT(dim=(8, 12, 16, 16), depth=(1, 1, 1, 1), num_classes=5, window_size=1),
        image(64),
    )
    # a gated MLP with a depthwise convolution in between
    yield "RvT", "*.1.net.1.weight *.1.net.1.*.weight", 2, lambda: rvt.RvT(**VIT), image()
    yield "U-ViT", "*.2.1.weight", 4, lambda: simple_uvit.SimpleUViT(**{**VIT, "depth": 4}), image()
    yield (
        "ViT of a spectrum",
        "*.1.net.1.weight",
        2,
        lambda: simple_vit_with_fft.SimpleViT(**VIT, freq_patch_size=8),
        image(),
    )
    yield (
        "hyper-connections",
        "*.3.net.1.weight",
        2,
        lambda: simple_vit_with_hyper_connections.SimpleViT(**VIT, num_residual_streams=2),
        image(),
    )
    yield (
        "patch merger",
        "*.1.net.1.weight",
        2,
        lambda: vit_with_patch_merger.ViT(**VIT, patch_merge_layer=1, patch_merge_num_tokens=4),
        image(),
    )
    yield (
        "XCiT",
        "xcit_transformer.*.2.fn.net.1.weight cls_transformer.*.1.fn.net.1.weight",
        3,
        lambda: xcit.XCiT(**VIT, cls_depth=1),
        image(),
    )
    # one MLP for the class token, shared by all blocks
    yield (
        "jumbo ViT",
        "layers.?.1.1.weight jumbo_ff.1.1.weight",
        3,
        lambda: jumbo_vit.JumboViT(**VIT, num_jumbo_cls=1, jumbo_cls_k=2, jumbo_ff_mult=2),
        image(),
    )


# -- snntorch: spiking networks ----------------------------------------------------------------------------------------


class Spiking(nn.Module):
    """Two spiking layers, three steps of time, and the membrane of a third."""

    def __init__(self, first: nn.Module, second: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.a, self.first = nn.Linear(5, 8), first
        self.b, self.second = nn.Linear(8, 6), second
        self.c, self.last = nn.Linear(6, 2), last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states: list[Any] = [layer.reset_mem() for layer in (self.first, self.second, self.last)]
        states = [state if isinstance(state, tuple) else (state,) for state in states]
        for _ in range(3):
            spikes, *states[0] = self.first(self.a(x), *states[0])
            spikes, *states[1] = self.second(self.b(spikes), *states[1])
            _, *states[2] = self.last(self.c(spikes), *states[2])
        return states[2][-1]


def from_snntorch() -> Iterator[Row]:
    import snntorch as snn

    def each(size: int, value: float) -> torch.Tensor:
        return torch.full((size,), value)

    def spiking(layer: Callable[[int], nn.Module]) -> Callable[[], nn.Module]:
        return lambda: Spiking(layer(8), layer(6), snn.Leaky(beta=0.9))

    def current() -> torch.Tensor:
        return 4 * torch.randn(16, 5)

    # a decay and a threshold of its own for each neuron
    own: dict[str, Any] = {"learn_beta": True, "learn_threshold": True}
    leaky = spiking(lambda n: snn.Leaky(each(n, 0.8), threshold=each(n, 0.3), **own))
    yield "leaky neurons", "[ab].weight", 2, leaky, current
    learned: dict[str, Any] = {"learn_alpha": True, "learn_beta": True, "threshold": 0.3}
    yield "synaptic", "[ab].weight", 2, spiking(lambda n: snn.Synaptic(each(n, 0.8), each(n, 0.7), **learned)), current
    recurrent = spiking(lambda n: snn.RLeaky(0.8, linear_features=n, threshold=0.3))
    yield "recurrent leaky", "[ab].weight *.recurrent.weight", 2, recurrent, current
    both = spiking(lambda n: snn.RSynaptic(0.9, 0.8, linear_features=n, threshold=0.3))
    yield "recurrent synaptic", "[ab].weight *.recurrent.weight", 2, both, current
    yield "alpha neurons", "[ab].weight", 2, spiking(lambda n: snn.Alpha(0.9, 0.8, threshold=0.3)), current


SOURCES: dict[str, Callable[[], Iterator[Row]]] = {
    "monai": from_monai,
    "pytorchcv": from_pytorchcv,
    "torch_geometric": from_torch_geometric,
    "vit_pytorch": from_vit_pytorch,
    "snntorch": from_snntorch,
}
