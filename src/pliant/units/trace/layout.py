"""Operations that move numbers: the same operation runs on their labels.

Flatten, concatenation, shuffles, head splits, window partitions and writes into slices need no index arithmetic here: the
operation moves labels, and addresses of parameters, as it moves numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pliant.units.models import tensors_in
from pliant.units.trace.call import Call
from pliant.units.trace.labels import NONE
from pliant.units.trace.shadows import ADDRESSES, Arrays, source

_NOT_FOR_LABELS = {"dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking", "value"}


def relabel(call: Call, run: Callable[..., Any], fixed: Collection[int] = ()) -> None:
    """Run the operation with the labels of each family, then with the addresses, in place of all tensors but `fixed`."""
    record = call.record
    families = dict.fromkeys(family for tensor in call.inputs for family in record.live(tensor))
    addressed = any(map(record.memory.has_addresses, call.inputs))
    computed = dict.fromkeys(source(number) for tensor in call.inputs for number in record.memory.sources(tensor))
    kwargs = {name: value for name, value in call.kwargs.items() if name not in _NOT_FOR_LABELS}
    results: list[Arrays] = [{} for _ in call.outputs]
    for family in [*families, *([ADDRESSES] if addressed else []), *computed]:

        def instead(value: Any, family: int = family) -> Any:
            return _values(call, family, value) if isinstance(value, Tensor) and id(value) not in fixed else value

        moved = tensors_in(run(*tree_map(instead, call.args), **tree_map(instead, kwargs)))
        for arrays, values in zip(results, moved, strict=False):
            arrays[family] = values
    for output, arrays in zip(call.outputs, results, strict=True):
        record.memory.write(output, arrays)
    call.followed = True


def _values(call: Call, family: int, tensor: Tensor) -> Tensor:
    """Labels (or addresses) of a tensor in its full shape, a copy where the operation would write into it."""
    memory = call.record.memory
    if family == ADDRESSES:
        values = memory.addresses(tensor)
    else:
        values = memory.labels(tensor, family) if memory.has(tensor, family) else None
    full = (torch.full((1,) * tensor.dim(), NONE) if values is None else values).expand(tensor.shape)
    return full.clone() if call.in_place else full


def layout(call: Call) -> None:
    relabel(call, call.op)


def indexed(call: Call) -> None:
    """Indexing by integer and boolean operands; units on which an index depends are left alone."""
    where = [tensor for tensor in call.inputs[1:] if not (tensor.is_floating_point() or tensor.is_complex())]
    for tensor in where:
        _decides(call, tensor, f"decides what {call.where} picks")
    relabel(call, call.op, fixed={id(tensor) for tensor in where})


def put(call: Call) -> None:
    """`a[index] = b`; adding into `a` has no rule."""
    if call.argument("accumulate"):
        call.give_up(f"no rule for {call.where} with accumulate=True")
    else:
        indexed(call)


def filled(call: Call) -> None:
    """A number is written at places along an axis."""
    index = call.args[2]
    _decides(call, index, f"decides where {call.where} writes")

    def run(x: Tensor, dim: int, index: Tensor, *_: Any) -> Any:
        return call.op(x, dim, index, NONE)

    relabel(call, run, fixed={id(index)})


def padded(call: Call) -> None:
    def run(x: Tensor, pad: list[int], *_: Any) -> Any:
        return call.op(x, pad, NONE)

    relabel(call, run)


def packed(call: Call) -> None:
    """Sequences of several lengths, one after another; the lengths are no activity, nor are the batch sizes returned."""

    def run(x: Tensor, lengths: Tensor, batch_first: bool) -> Tensor:
        return call.op(x, lengths, batch_first)[0]

    relabel(call, run, fixed={id(call.args[1])})


def windows(call: Call) -> None:
    """Needs floating point, and pads with zero."""

    def run(x: Tensor, *rest: Any) -> Tensor:
        return call.op((x + 1).double(), *rest).long() - 1

    relabel(call, run)


def copied(call: Call) -> None:
    """A plain copy: a tap may record the original in place of the copy."""
    _copy(call, call.inputs[0], call.output)
    memory = call.record.memory
    memory.shadow(call.output).original = memory.key(call.inputs[0]), call.inputs[0]._version


def copied_into(call: Call) -> None:
    """`a[...] = b`: labels and addresses of these elements are replaced."""
    _copy(call, call.args[1], call.args[0])


def _copy(call: Call, original: Tensor, destination: Tensor) -> None:
    memory = call.record.memory
    computed = {source(number): memory.labels(original, source(number)) for number in memory.sources(original)}
    addresses = call.record.memory.addresses(original)
    found = {**call.record.arrays(original), **computed}
    call.record.memory.write(destination, found if addresses is None else {**found, ADDRESSES: addresses})
    call.followed = True


def _decides(call: Call, index: Tensor, reason: str) -> None:
    """Leave alone the units on which an index depends, and those that an index computed from parameters selects."""
    record = call.record
    record.kill(record.live(index), reason)
    if record.memory.sources(index):
        names = ", ".join(f"'{record.memory.names[number]}'" for number in record.memory.sources(index))
        for tensor in call.inputs:
            record.kill(record.live(tensor), f"{names} {reason}")


def paired(call: Call) -> None:
    """Real pairs seen as complex numbers, and back."""
    arrays = call.record.arrays(call.inputs[0])
    if call.name == "view_as_real":
        call.write({family: labels.unsqueeze(-1) for family, labels in arrays.items()})
    else:
        joined = {family: call.record.labels.reduce(labels, (-1,)) for family, labels in arrays.items()}
        call.write({family: labels.squeeze(-1) for family, labels in joined.items()})


def scattered_sum(call: Call) -> None:
    """index_add, scatter_add: anything that is added may land anywhere along the axis."""
    x, axis, index, source = call.args[:4]
    _decides(call, index, f"decides where {call.where} adds")
    known, added = call.record.arrays(x), call.record.arrays(source)
    for family, labels in added.items():
        spread = call.record.labels.reduce(labels, (axis,))
        known[family] = call.record.labels.join(known[family], spread) if family in known else spread
    call.record.unexplained([source])
    call.write(known)
