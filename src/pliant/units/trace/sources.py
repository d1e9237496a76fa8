"""Numbers computed from parameters: a unit's own parameter may reach it through any function.

    h * exp(s)        h > softplus(t)        batch_norm(x, 1 + w, b * mask)

A copy of a parameter keeps the addresses of its elements (`shadows`). A function of it keeps, for each parameter, the element on
which each number depends: its source, MANY if there are several, NONE if there are none. Sources are moved with the numbers
(`layout`), join elementwise, and survive a reduction over numbers with the same source; every other operation gives MANY.

Where a source meets the label of a unit, its element belongs to that unit. Where MANY meets several units, these are left
alone: the elements of the parameter cannot be assigned to single units.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pliant.units.trace.call import Call
from pliant.units.trace.labels import NONE, broadcast, compress, uniform
from pliant.units.trace.record import TraceRecord
from pliant.units.trace.shadows import Arrays, source

MANY = -2
LARGEST = 2**20  # elements; a larger parameter is no vector of units, and what is computed from it is not followed

Sources = dict[int, Tensor]  # number of the parameter -> index of the element, broadcasts to the tensor's shape


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
                own = torch.where(inside, index, NONE)
                found[number] = _merged([found[number], own]) if number in found else own
    return found


def followed(record: TraceRecord, tensor: Tensor) -> bool:
    """Whether functions of a tensor's parameters are small enough to be followed."""
    return all(record.memory.parameters[n].numel() <= LARGEST for n in record.memory.parameters_in(tensor))


def meet(call: Call, operand: Tensor, found: Sources, arrays: Arrays) -> None:
    """The sources of an operand meet labels: whose elements are they?"""
    record = call.record
    for number, index in found.items():
        exact = torch.where(index >= 0, index + record.memory.first[number], NONE)
        record.own_elements(number, exact, arrays, "own")
        if bool((index == MANY).any()):
            name = record.memory.names[number]
            told_apart = [family for family, labels in arrays.items() if _varies(operand, labels)]
            record.kill(told_apart, f"'{name}' reaches it through more than an entry of its own, in {call.where}")


def _varies(operand: Tensor, labels: Tensor) -> bool:
    """Whether units differ along an axis along which the operand may."""
    axes = zip(reversed(operand.shape), reversed(compress(labels).shape), strict=False)
    return any(size > 1 and units > 1 for size, units in axes)


def leave(call: Call, found: Iterable[Sources], arrays: Arrays) -> None:
    """The output is an elementwise function of operands with these sources; where there is a label, the unit stands for all."""
    for number, each in _by_parameter(found).items():
        call.record.functions.setdefault(number, call.where)
        _write(call, number, _merged(each), arrays, [call.output])  # not the statistics that a norm returns as well


def reduce(call: Call, found: Iterable[Sources], dims: Sequence[int], *, keep: bool, arrays: Arrays) -> None:
    """The outputs join numbers along `dims`."""
    for number, each in _by_parameter(found).items():
        index = _merged(each)
        one = uniform(index, dims)
        one = torch.full([1] * index.dim(), MANY) if one is None or bool((index == MANY).any()) else one
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


def _merged(every: Sequence[Tensor]) -> Tensor:
    """The one element on which each number depends, of operands that meet elementwise."""
    merged = every[0]
    for other in every[1:]:
        merged, other = broadcast(merged, other)
        one = torch.where(merged == NONE, other, merged)
        merged = torch.where((merged != other) & (merged != NONE) & (other != NONE), MANY, one)
    return merged
