"""Norms: labels pass; units that share a mean or variance are mixed; scale and shift belong to the units that they meet.

batch norm          a statistic for each channel                           nothing is mixed
layer, RMS norm     one over the normalized axes of each example           all units along them
group norm          one over the channels of a group                       the units of the group
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pliant.units.trace.call import Call
from pliant.units.trace.labels import by_group, by_position, distinct
from pliant.units.trace.record import Normed, Role, TraceRecord
from pliant.units.trace.shadows import Arrays
from pliant.units.trace.sources import leave, meet, sources

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_ROLES: tuple[Role, Role] = ("scale", "shift")


def batch_norm(call: Call) -> None:
    """Each channel has its own mean, variance, scale and shift."""
    record, x = call.record, call.args[0]
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
        _affine(call, given, whole)  # what `Normed` does not stand for: pruned, parametrized
        product = record.product_of(x)
        if product is not None and frame.module.running_mean is not None:
            record.absorb(product, x, frame.name)
    else:
        _affine(call, call.args[1:3], whole)
    _pass(call, x, {family: labels for family, labels in arrays.items() if family in whole})


def layer_norm(call: Call) -> None:
    x = call.args[0]
    call.lose_others(x)
    dims = list(range(x.dim() - len(call.argument("normalized_shape")), x.dim()))
    arrays = call.record.arrays(x)
    _mix(call, arrays, dims)
    _affine(call, [call.argument("weight"), call.argument("bias")], arrays)
    _pass(call, x, arrays)


def group_norm(call: Call) -> None:
    x, groups = call.args[0], call.argument("group")
    call.lose_others(x)
    arrays = call.record.arrays(x)
    _mix(call, {f: by_group(labels, x.shape[1], groups) for f, labels in arrays.items()}, list(range(2, x.dim() + 1)))
    channels = {family: by_position(labels, 1) for family, labels in arrays.items()}
    _affine(call, call.args[1:3], {family: labels for family, labels in channels.items() if labels is not None})
    _pass(call, x, arrays)


def _is_among(record: TraceRecord, operand: Tensor, parameters: set[int]) -> bool:
    """Whether an operand is a copy of parameters among these, by identity."""
    memory = record.memory
    made_of = memory.parameters_in(operand) if memory.has_addresses(operand) else frozenset[int]()
    return bool(made_of) and {id(memory.parameters[number]) for number in made_of} <= parameters


def _pass(call: Call, x: Tensor, arrays: Arrays) -> None:
    """Every number keeps its label; the numbers that it shares a statistic with do not count."""
    found = sources(call.record, x)
    call.record.memory.write(call.output, arrays)
    leave(call, [found], arrays)
    call.followed = True


def _mix(call: Call, arrays: Arrays, dims: list[int]) -> None:
    """Mark all units that share a statistic, of any family."""
    shared: Tensor | None = None
    for labels in arrays.values():
        union = call.record.labels.reduce(labels, dims)
        shared = union if shared is None else call.record.labels.join(shared, union)
    if shared is not None:
        call.record.mix(shared)


def _affine(call: Call, parameters: Sequence[Tensor | None], arrays: Arrays) -> None:
    """A scale and a shift, parameters or computed from such."""
    for role, parameter in zip(_ROLES, parameters, strict=True):
        if parameter is not None:
            direct = call.record.memory.has_addresses(parameter)
            if direct:
                call.record.own(parameter, arrays, role)
            meet(call, parameter, sources(call.record, parameter, copies=not direct), arrays)
