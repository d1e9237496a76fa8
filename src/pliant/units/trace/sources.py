"""Numbers computed from parameters: a unit's own parameter may reach it through any function.

    h * exp(s)        h > softplus(t)        batch_norm(x, 1 + w, b * mask)

A copy of a parameter keeps the addresses of its elements (`shadows`). A function of it keeps, for each parameter, the block on
which each number depends (`blocks`): an element, a row, MANY if it may be any, NONE if there is none. Sources are moved with the
numbers (`layout`), and join elementwise and in reductions; every other operation gives MANY.

Where a source meets the label of a unit, its block belongs to that unit. Where MANY meets several units, these are left
alone: the elements of the parameter cannot be assigned to single units. A weight whose rows have sources of their own is a
product's weight like any other (`contractions`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pliant.units.trace import blocks
from pliant.units.trace.blocks import MANY
from pliant.units.trace.call import Call
from pliant.units.trace.labels import NONE, broadcast, compress
from pliant.units.trace.record import TraceRecord
from pliant.units.trace.shadows import Arrays, source

LARGEST = 2**24  # elements; what is computed from a larger parameter is not followed

Sources = dict[int, Tensor]  # number of the parameter -> block, broadcasts to the tensor's shape


def sources(record: TraceRecord, tensor: Tensor, *, copies: bool = True) -> Sources:
    """What a tensor is a function of; with `copies`, also what it is itself made of."""
    memory = record.memory
    found = {number: memory.labels(tensor, source(number)) for number in memory.sources(tensor)}
    addresses = (
        memory.addresses(tensor) if copies and memory.has_addresses(tensor) and followed(record, tensor) else None
    )
    if addresses is not None:
        for number in memory.parameters_in(tensor):
            if memory.parameters[number].requires_grad:
                index = addresses - memory.first[number]
                inside = (index >= 0) & (index < memory.parameters[number].numel())
                own = blocks.elements(shape_of(record, number), torch.where(inside, index, NONE))
                found[number] = _merged(record, number, [found[number], own]) if number in found else own
    return found


def followed(record: TraceRecord, tensor: Tensor) -> bool:
    """Whether functions of a tensor's parameters are small enough to be followed."""
    return all(record.memory.parameters[n].numel() <= LARGEST for n in record.memory.parameters_in(tensor))


def meet(call: Call, operand: Tensor, found: Sources, arrays: Arrays) -> None:
    """The sources of an operand meet labels: whose elements are they?"""
    record = call.record
    for number, block in found.items() if arrays else ():
        record.mingled.setdefault(number, call.where)
        for axes, positions in blocks.by_axes(shape_of(record, number), block).items():
            if axes:
                record.own_positions(number, axes, positions, arrays, "own")
                continue
            name = record.memory.names[number]
            told_apart = [family for family, labels in arrays.items() if _varies(operand, labels)]
            record.kill(told_apart, f"'{name}' reaches it through more than an entry of its own, in {call.where}")


def shape_of(record: TraceRecord, number: int) -> blocks.Shape:
    return tuple(record.memory.parameters[number].shape)


def _varies(operand: Tensor, labels: Tensor) -> bool:
    """Whether units differ along an axis along which the operand may."""
    axes = zip(reversed(operand.shape), reversed(compress(labels).shape), strict=False)
    return any(size > 1 and units > 1 for size, units in axes)


def leave(call: Call, found: Iterable[Sources], arrays: Arrays) -> None:
    """The output is an elementwise function of operands with these sources; where there is a label, the unit stands for all."""
    for number, each in _by_parameter(found).items():
        call.record.functions.setdefault(number, call.where)
        merged = _merged(call.record, number, each)
        _write(call, number, merged, arrays, [call.output])  # not the statistics that a norm returns as well


def reduce(call: Call, found: Iterable[Sources], dims: Sequence[int], *, keep: bool, arrays: Arrays) -> None:
    """The outputs join numbers along `dims`."""
    for number, each in _by_parameter(found).items():
        one = blocks.along(shape_of(call.record, number), _merged(call.record, number, each), dims)
        if not keep:
            one = one.reshape([size for dim, size in enumerate(one.shape) if dim not in dims])
        call.record.functions.setdefault(number, call.where)
        meet(call, call.output, {number: one}, arrays)
        _write(call, number, one, arrays, call.outputs)


def lose(call: Call, found: Iterable[Sources]) -> None:
    """No more is known of how the outputs depend on the sources than that they do."""
    for number in _by_parameter(found):
        call.record.functions.setdefault(number, call.where)
        for output in call.outputs:
            arrays = call.record.arrays(output)
            meet(call, output, {number: torch.full((1,) * output.dim(), MANY)}, arrays)
            call.record.memory.add(output, source(number), torch.full((1,) * output.dim(), MANY))


def _write(call: Call, number: int, index: Tensor, arrays: Arrays, outputs: Sequence[Tensor]) -> None:
    for labels in arrays.values():
        index, labels = broadcast(index, labels)
        index = torch.where(labels == NONE, index, NONE)
    for output in outputs:
        call.record.memory.add(output, source(number), index)


def _by_parameter(found: Iterable[Sources]) -> dict[int, list[Tensor]]:
    every: dict[int, list[Tensor]] = {}
    for each in found:
        for number, index in each.items():
            every.setdefault(number, []).append(index)
    return every


def _merged(record: TraceRecord, number: int, every: Sequence[Tensor]) -> Tensor:
    """The block on which each number depends, of operands that meet elementwise."""
    merged = every[0]
    for other in every[1:]:
        merged = blocks.both(shape_of(record, number), merged, other)
    return merged
