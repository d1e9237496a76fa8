"""Networks that hold parameters no rule may touch: tied, computed, frozen, mixed, or read by an unknown operation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.units.cases.sequences import GPT_MLP, LLAMA_MLP, gpt, llama
from tests.units.cases.table import (
    VECTOR,
    WORDS,
    Case,
    Net,
    Units,
)


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


new, old = nn.utils.parametrizations, nn.utils

CASES = [
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
        )
    ),
    *(
        Case(
            name,
            lambda change=change: computed(change),
            VECTOR,
            {f"2.{v}": Units(7, f"2.{v} 2.{g} 2.bias", "4.weight"), **LAST_OF_FOUR},
            {"0.weight": "its outgoing weight, computed from '2[.].*', is not silenced by zeros"},
        )
        for name, change, v, g in (
            ("weight norm", new.weight_norm, "parametrizations.weight.original1", "parametrizations.weight.original0"),
            ("older weight norm", old.weight_norm, "weight_v", "weight_g"),
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
