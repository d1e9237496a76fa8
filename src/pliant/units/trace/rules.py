"""How each ATen operation computes labels: the table is at the end, one line per way of treating them.

    layout        moves numbers: the same operation runs on the labels
    elementwise   joins labels (the default of every operation that PyTorch tags as pointwise)
    pooled        joins over space, channel by channel
    along         joins along the axis it works on and keeps the shape
    reduced       joins along the axes it removes
    norms         pass labels; units that share a mean or variance are mixed
    products      consume units and begin new ones: `contractions`

The units that enter an operation without a rule are left alone (their family is *dead*): nothing is elementwise by default. To
add an operation, write its name in the line that fits; a new way of treating labels is a function of a `Call`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from pliant.units.trace import blocks
from pliant.units.trace.call import Call
from pliant.units.trace.contractions import bilinear, convolution, embedding, grouped_matmul, matmul, sparse_matmul
from pliant.units.trace.elementwise import elementwise
from pliant.units.trace.layout import (
    copied,
    copied_into,
    filled,
    indexed,
    layout,
    packed,
    padded,
    paired,
    put,
    scattered,
    windows,
)
from pliant.units.trace.norms import batch_norm, group_norm, layer_norm, weight_norm
from pliant.units.trace.shadows import Arrays
from pliant.units.trace.sources import followed, meet, reduce, shape_of, sources

Rule = Callable[[Call], None]


def rule_of(call: Call) -> Rule:
    """The rule by name and overload, by name, or by the tag "pointwise"; else `unknown`."""
    if call.op.namespace not in ("aten", "prims"):
        return unknown
    if any(tensor.layout is not torch.strided for tensor in call.every_tensor):
        return SPARSE.get(call.name, unknown)
    by_tag = elementwise if torch.Tag.pointwise in call.op.tags else unknown
    return RULES.get(f"{call.name}.{call.overload}", RULES.get(call.name, by_tag))


def unknown(call: Call) -> None:
    """No rule: the units of all operands are left alone."""
    call.give_up(f"no rule for {call.where}")


def constant(call: Call) -> None:
    """The result does not depend on the numbers of the operands."""
    call.write({})
    call.followed = True


def joined(call: Call, dims: list[int], *, keep: bool, operands: Sequence[Tensor] = ()) -> None:
    """Union along `dims` of the first operand, or of several of one rank."""
    operands = operands or call.inputs[:1]
    if not all(operand.numel() for operand in operands):  # a sum over nothing
        constant(call)
        return
    found = [sources(call.record, operand) for operand in operands]
    call.lose_others(*operands)
    call.record.unexplained(
        [each for each in call.inputs if not (_among(each, operands) and followed(call.record, each))]
    )
    arrays: Arrays = {}
    for operand in operands:
        for family, labels in call.record.arrays(operand).items():
            union = call.record.labels.reduce(labels, dims)
            if not keep:
                union = union.reshape([size for dim, size in enumerate(union.shape) if dim not in dims])
            arrays[family] = call.record.labels.join(arrays[family], union) if family in arrays else union
    call.write(arrays)
    reduce(call, found, dims, keep=keep, arrays=arrays)
    call.followed = True


def _among(tensor: Tensor, operands: Sequence[Tensor]) -> bool:
    return any(tensor is each for each in operands)


def gated(call: Call) -> None:
    """One half of the axis gates the other."""
    x, dim = call.inputs[0], call.argument("dim", -1)
    call.record.unexplained(call.inputs)
    halves = {f: labels.expand(x.shape).chunk(2, dim) for f, labels in call.record.arrays(x).items()}
    call.write({family: call.record.labels.join(*half) for family, half in halves.items()})


def pooled(space: int) -> Rule:
    """Each channel keeps to itself; the last `space` axes do not."""
    return lambda call: joined(call, list(range(call.inputs[0].dim() - space, call.inputs[0].dim())), keep=True)


def unpooled(space: int) -> Rule:
    """Numbers of a channel go to the places that its indices name, which are the same channel's."""

    def rule(call: Call) -> None:
        rank = call.inputs[0].dim()
        joined(call, list(range(rank - space, rank)), keep=True, operands=call.inputs[:2])

    return rule


def sampled(call: Call) -> None:
    """Each channel is sampled at the places of a grid, which are the same for all channels of an image."""
    x, grid = call.inputs
    record, found = call.record, sources(call.record, grid)
    record.kill(record.live(grid), f"decides what {call.where} picks")
    joined(call, list(range(2, x.dim())), keep=True)
    space = list(range(1, grid.dim()))
    for number, source in found.items():
        one = blocks.along(shape_of(record, number), source, space)
        record.functions.setdefault(number, call.where)
        meet(call, call.output[:, :1], {number: one}, record.arrays(call.output))


def along(call: Call) -> None:
    """Along one axis, or along several (a Fourier transform)."""
    rank, dims = max(call.inputs[0].dim(), 1), call.argument("dim", call.argument("axis", -1))
    joined(call, [dim % rank for dim in ([dims] if isinstance(dims, int) else dims)], keep=True)


def beside(call: Call) -> None:
    """A norm over all axes but one: `renorm`."""
    rank = call.inputs[0].dim()
    joined(call, [dim for dim in range(rank) if dim != call.argument("dim") % rank], keep=True)


def crossed(call: Call) -> None:
    """A product of vectors that lie along an axis of both operands."""
    rank = call.output.dim()
    joined(call, [call.argument("dim", -1) % rank], keep=True, operands=call.inputs)


def counted(call: Call) -> None:
    """In which of the intervals between given boundaries each number lies."""
    joined(call, [], keep=True, operands=[call.argument("self")])


def folded(call: Call) -> None:
    """Windows of a channel are added up where they lie."""
    x, kernel = call.inputs[0], prod(call.argument("kernel_size"))
    channels = (*x.shape[:-2], x.shape[-2] // kernel, 1, kernel * x.shape[-1])
    found = {family: labels.expand(x.shape).reshape(channels) for family, labels in call.record.arrays(x).items()}
    call.record.unexplained(call.inputs)
    call.write({family: call.record.labels.reduce(labels, (-1,)) for family, labels in found.items()})


def overlapped(call: Call) -> None:
    """Windows along an axis, one behind another in the last, are added up where they lie: the inverse of `Tensor.unfold`."""
    x, dim = call.inputs[0], call.argument("dim") % (call.inputs[0].dim() - 1)
    found = {family: call.record.labels.reduce(labels, (dim, -1)) for family, labels in call.record.arrays(x).items()}
    call.record.unexplained(call.inputs)
    call.write({family: labels.squeeze(-1) for family, labels in found.items()})


def reduced(call: Call) -> None:
    dim, rank = call.argument("dim"), call.inputs[0].dim()
    dims = [dim] if isinstance(dim, int) else list(dim or range(rank))
    joined(call, [d % rank for d in dims], keep=bool(call.argument("keepdim", False)))
    for output in call.outputs:
        shadow = call.record.memory.shadow(output)
        shadow.averaged, shadow.rooted = call.name == "mean", call.name in ("linalg_vector_norm", "norm", "std")


def attention(call: Call) -> None:
    """softmax(q k') v for each head; a key or value head may serve several query heads."""
    record, operands, heads = call.record, call.args[:3], call.output.shape[1]
    call.lose_others(*operands)
    record.unexplained(call.inputs)
    found = [(each, sources(record, each)) for each in call.inputs]
    arrays: Arrays = {}
    for operand, mixed_axes in zip(operands, ((2, 3), (2, 3), (2,)), strict=True):
        for family, labels in record.arrays(operand).items():
            union = record.labels.reduce(labels, mixed_axes)
            if 1 < union.shape[1] < heads:
                union = union.repeat_interleave(heads // union.shape[1], 1)
            arrays[family] = record.labels.join(arrays[family], union) if family in arrays else union
    if sum(bool(record.live(operand)) for operand in operands) > 1:
        record.multiplied.update(arrays)
    heads_of = {family: record.labels.reduce(labels, (2, 3)) for family, labels in arrays.items()}
    for each, computed in found:  # a bias of the scores, a key that is a parameter
        meet(call, each, computed, heads_of)
    record.memory.write(call.output, arrays)
    call.followed = True


WAYS: list[tuple[Rule, str]] = [
    (copied, "clone _to_copy lift_fresh contiguous _unsafe_view"),
    (copied_into, "copy"),
    (
        layout,
        "cat stack flip roll rot90 repeat tile pixel_shuffle pixel_unshuffle "
        "channel_shuffle native_channel_shuffle slice_scatter select_scatter diagonal_scatter "
        "as_strided_scatter unbind_copy unsafe_split unsafe_split_with_sizes unsafe_chunk "
        "split_with_sizes_copy slice_copy expand_copy permute_copy view_copy _reshape_alias",
    ),
    (
        indexed,
        "index _unsafe_index index_select gather take index_copy scatter.src repeat_interleave.self_Tensor "
        "masked_select masked_scatter",
    ),
    (put, "index_put _index_put_impl"),
    (filled, "scatter.value index_fill.int_Scalar"),
    (padded, "constant_pad_nd"),
    (packed, "_pack_padded_sequence"),
    (windows, "im2col"),
    (paired, "view_as_complex view_as_real"),
    (scattered, "index_add scatter_add scatter_reduce index_reduce scatter.reduce scatter.value_reduce"),
    (folded, "col2im"),
    (overlapped, "unfold_backward"),
    (
        constant,
        "zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones "
        "new_empty new_full new_empty_strided zero fill.Scalar bernoulli.p bernoulli.float normal.default "
        "uniform exponential random is_same_size",
    ),
    (
        elementwise,  # from leaky_relu on: tagged as pointwise by torch above 2.10 alone
        "_prelu_kernel native_dropout _fused_dropout rrelu_with_noise log_sigmoid_forward celu selu "
        "hardswish softshrink bernoulli tril triu polar complex masked_fill "
        "leaky_relu elu hardtanh hardsigmoid ldexp",
    ),
    (
        pooled(1),
        "avg_pool1d adaptive_avg_pool1d max_pool1d reflection_pad1d replication_pad1d upsample_nearest1d "
        "upsample_linear1d _upsample_nearest_exact1d",
    ),
    (
        pooled(2),
        "max_pool2d_with_indices max_pool2d avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d "
        "adaptive_max_pool2d fractional_max_pool2d reflection_pad2d replication_pad2d upsample_nearest2d "
        "upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
        "_upsample_nearest_exact2d",
    ),
    (unpooled(2), "max_unpool2d"),
    (unpooled(3), "max_unpool3d"),
    (sampled, "grid_sampler_2d grid_sampler_3d _grid_sampler_2d_cpu_fallback"),
    (
        pooled(3),
        "max_pool3d_with_indices avg_pool3d adaptive_avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d "
        "fractional_max_pool3d reflection_pad3d replication_pad3d upsample_nearest3d upsample_trilinear3d "
        "_upsample_nearest_exact3d",
    ),
    (
        along,
        "_softmax _log_softmax _safe_softmax cumsum cumprod logcumsumexp cummax cummin sort sort.stable topk argsort "
        "_fft_r2c _fft_c2r _fft_c2c segment_reduce",
    ),
    (
        reduced,
        "sum mean amax amin aminmax max.default max.dim min.default min.dim var std var_mean std_mean "
        "prod norm linalg_vector_norm logsumexp any all argmax argmin median.dim median.default "
        "nanmedian nansum "
        "count_nonzero kthvalue mode _is_all_true _is_any_true",
    ),
    (
        attention,
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_fused_attention_overrideable",
    ),
    (
        batch_norm,
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
        "_batch_norm_with_update _batch_norm_no_update",
    ),
    (beside, "renorm"),
    (crossed, "linalg_cross"),
    (counted, "bucketize searchsorted"),
    (gated, "glu"),
    (layer_norm, "native_layer_norm rms_norm _fused_rms_norm"),
    (group_norm, "native_group_norm"),
    (weight_norm, "_weight_norm_interface"),
    (embedding, "embedding _embedding_bag _embedding_bag_forward_only"),
    (bilinear, "_trilinear"),
    (grouped_matmul, "_grouped_mm"),
    (convolution, "convolution _convolution"),
    (matmul, "mm mv bmm addmm baddbmm"),
]

RULES: dict[str, Rule] = {name: rule for rule, names in WAYS for name in names.split()}
SPARSE: dict[str, Rule] = dict.fromkeys(
    ("mm", "mv", "bmm", "addmm", "_sparse_addmm", "_sparse_mm", "_sparse_mm_reduce_impl"), sparse_matmul
)
