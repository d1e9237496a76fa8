"""Norms: labels pass; units that share a mean or variance are mixed; scale and shift belong to the units that they meet.

batch norm          a statistic for each channel                           nothing is mixed
layer, RMS norm     one over the normalized axes of each example           all units along them
group norm          one over the channels of a group                       the units of the group
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pliant.units.trace import blocks
from pliant.units.trace.call import Call
from pliant.units.trace.labels import by_group, by_position, distinct
from pliant.units.trace.record import Normed, Role, TraceRecord
from pliant.units.trace.shadows import Arrays
from pliant.units.trace.sources import Sources, leave, meet, shape_of, sources

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_ROLES: tuple[Role, Role] = ("scale", "shift")


def batch_norm(call: Call) -> None:
    """Each channel has its own mean, variance, scale and shift."""
    record, x = call.record, call.args[0]
    record.note(x, call.name)
    call.lose_others(x)
    arrays = record.arrays(x)
    channels = {family: by_position(labels, 1) for family, labels in arrays.items()}
    record.kill(
        [f for f, labels in channels.items() if labels is None], f"several units in one channel of {call.where}"
    )
    frame = record.stack[-1] if record.stack else None
    whole = {family: labels.expand(x.shape[1]) for family, labels in channels.items() if labels is not None}
    if frame is not None and isinstance(frame.module, _BATCH_NORMS):
        told_apart = [
            labels for labels in whole.values() if len(distinct(labels)) > 1
        ]  # not one unit that gates them all
        record.normed += [Normed(frame.name, labels) for labels in told_apart or whole.values()]
        kept = {id(parameter) for parameter in frame.module.parameters(recurse=False)}
        given = [None if each is None or _is_among(record, each, kept) else each for each in call.args[1:3]]
        affine = _affine(call, given, whole)  # what `Normed` does not stand for: pruned, parametrized
        product = record.product_of(x)
        if product is not None and frame.module.running_mean is not None:
            record.absorb(product, x, frame.name)
    else:
        affine = _affine(call, call.args[1:3], whole)
    kept_apart = {family: labels for family, labels in arrays.items() if family in whole}
    _pass(call, x, kept_apart, [0, *range(2, x.dim())], _by_channel(affine, x.dim()))


def layer_norm(call: Call) -> None:
    x = call.args[0]
    call.record.note(x, call.name)
    call.lose_others(x)
    dims = list(range(x.dim() - len(call.argument("normalized_shape")), x.dim()))
    arrays = call.record.arrays(x)
    _mix(call, arrays, dims)
    affine = _affine(call, [call.argument("weight"), call.argument("bias")], arrays)
    _pass(call, x, arrays, dims, affine)


def group_norm(call: Call) -> None:
    x, groups = call.args[0], call.argument("group")
    call.record.note(x, call.name)
    call.lose_others(x)
    arrays = call.record.arrays(x)
    _mix(call, {f: by_group(labels, x.shape[1], groups) for f, labels in arrays.items()}, list(range(2, x.dim() + 1)))
    channels = {family: by_position(labels, 1) for family, labels in arrays.items()}
    affine = _affine(
        call, call.args[1:3], {family: labels for family, labels in channels.items() if labels is not None}
    )
    _pass(call, x, arrays, list(range(1, x.dim())), _by_channel(affine, x.dim()))


def weight_norm(call: Call) -> None:
    """g v / |v|, with a norm of each slice of v along an axis: depends on these, and on their entries of g."""
    v, g = call.inputs[:2]
    dims = [dim for dim in range(v.dim()) if dim != call.argument("dim") % v.dim()]
    record = call.record
    slices = {
        number: blocks.along(shape_of(record, number), block, dims) for number, block in sources(record, v).items()
    }
    call.write({})
    leave(call, [slices, sources(record, g)], {})
    call.followed = True


def _is_among(record: TraceRecord, operand: Tensor, parameters: set[int]) -> bool:
    """Whether an operand is a copy of parameters among these, by identity."""
    memory = record.memory
    made_of = memory.parameters_in(operand) if memory.has_addresses(operand) else frozenset[int]()
    return bool(made_of) and {id(memory.parameters[number]) for number in made_of} <= parameters


def _pass(call: Call, x: Tensor, arrays: Arrays, dims: list[int], affine: Sequence[Sources]) -> None:
    """Every number keeps its label; the numbers that it shares a statistic with do not count. A number without a label, as of a
    weight that is normalized, depends on the parameters of all that it shares one with, and on its scale and shift.
    """
    record = call.record
    found = {
        number: blocks.along(shape_of(record, number), block, dims) for number, block in sources(record, x).items()
    }
    record.memory.write(call.output, arrays)
    leave(call, [found, *affine], arrays)
    call.followed = True


def _mix(call: Call, arrays: Arrays, dims: list[int]) -> None:
    """Mark all units that share a statistic, of any family."""
    shared: Tensor | None = None
    for labels in arrays.values():
        union = call.record.labels.reduce(labels, dims)
        shared = union if shared is None else call.record.labels.join(shared, union)
    if shared is not None:
        call.record.mix(shared)


def _affine(call: Call, parameters: Sequence[Tensor | None], arrays: Arrays) -> list[Sources]:
    """A scale and a shift, parameters or computed from such; returns their sources."""
    every: list[Sources] = []
    for role, parameter in zip(_ROLES, parameters, strict=True):
        if parameter is not None:
            direct = call.record.memory.has_addresses(parameter)
            if direct:
                call.record.own(parameter, arrays, role)
            found = sources(call.record, parameter, copies=not direct)
            meet(call, parameter, found, arrays)
            every.append(sources(call.record, parameter) if direct and not arrays else found)
    return every


def _by_channel(every: Sequence[Sources], rank: int) -> list[Sources]:
    """Sources of vectors, along the channels of images."""
    shape = (1, -1, *[1] * (rank - 2))
    return [{number: block.reshape(shape) for number, block in found.items()} for found in every]
