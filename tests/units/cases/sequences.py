"""Networks over sequences: recurrent layers, attention, mixers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.units.cases.table import (
    PATCHES,
    STEPS,
    WORDS,
    Along,
    Case,
    Net,
    Units,
    columns,
    gates,
    rows,
    tokens,
)


def embedding_mlp() -> nn.Module:
    return nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))


def recurrent(kind: type[nn.RNNBase], **settings: Any) -> nn.Module:
    width = settings.get("proj_size", 4) * (2 if settings.get("bidirectional") else 1)
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


CASES = [
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
    Case(
        "lstm with a projection",
        lambda: recurrent(nn.LSTM, proj_size=2),
        STEPS,
        {
            "core.weight_ih_l0": replace(_recurrent_units(4, 4), outgoing="core.weight_hr_l0", kind="exact"),
            "core.weight_hr_l0": Units(2, "core.weight_hr_l0", "core.weight_hh_l0 head.weight"),
        },
        unread=["core.weight_ih_l0"],
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
]
