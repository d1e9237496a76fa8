"""Operations that move numbers: the same operation runs on their labels.

Flatten, concatenation, shuffles, head splits, window partitions and writes into slices need no index arithmetic here: the
operation moves labels, and addresses of parameters, as it moves numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pliant.units.models import tensors_in
from pliant.units.trace import blocks
from pliant.units.trace.call import Call
from pliant.units.trace.labels import NONE, broadcast
from pliant.units.trace.shadows import ADDRESSES, Arrays, source
from pliant.units.trace.sources import shape_of, sources

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
    """Indexing by integer and boolean operands; units on which an index depends are left alone, unless what it picks depends on
    the same units already (a quantile) or is a constant (a function given by a table)."""
    where = [tensor for tensor in call.inputs[1:] if not (tensor.is_floating_point() or tensor.is_complex())]
    lookup = call.name in ("index", "gather", "take") and not call.record.memory.knows(call.inputs[0])
    relabel(call, call.op, fixed={id(tensor) for tensor in where})
    for tensor in where:
        if not (_placed(call, tensor) and _depends_already(call, tensor, lookup)):
            _decides(call, tensor, f"decides what {call.where} picks")


def _placed(call: Call, index: Tensor) -> bool:
    """Whether each number of an index picks the number of the result at its own place, counted from the end."""
    if call.name == "index":
        return index.dtype is not torch.bool and index.dim() == call.output.dim()
    return call.name in ("gather", "take")


def _depends_already(call: Call, index: Tensor, lookup: bool) -> bool:
    """Whether the result depends on the units of an index; with `lookup` it does from now on."""
    record = call.record
    if record.memory.sources(index):
        return False
    for family, labels in record.arrays(index).items():
        known = record.arrays(call.output).get(family)
        joined = labels if known is None else record.labels.join(known, labels)
        if lookup:
            record.memory.add(call.output, family, joined)
        elif known is None or not torch.equal(*broadcast(joined, known)):
            return False
    return True


def put(call: Call) -> None:
    """`a[index] = b`, or, accumulating, `a[index] += b`: what is added may land anywhere along the axes of the indices."""
    if not call.argument("accumulate"):
        indexed(call)
        return
    x, indices, values = call.args[:3]
    for index in indices:
        if index is not None:
            _decides(call, index, f"decides where {call.where} adds")
    axes, before, block = _indexed(indices)

    def spread(labels: Tensor) -> Tensor:
        rank = x.dim() - len(axes) + block
        placed = labels.reshape(*[1] * (rank - labels.dim()), *labels.shape)
        union = call.record.labels.reduce(placed, range(before, before + block)) if block else placed
        kept = iter([*union.shape[:before], *union.shape[before + block :]])
        return union.reshape([1 if axis in axes else next(kept) for axis in range(x.dim())])

    _added(call, x, values, spread)


def _indexed(indices: Sequence[Tensor | None]) -> tuple[list[int], int, int]:
    """The axes that are indexed, how many others come before the block that takes their place, and the axes of that block."""
    axes: list[int] = []
    axis, block = 0, 0
    for index in indices:
        mask = index is not None and index.dtype in (torch.bool, torch.uint8)
        wide = index.dim() if index is not None and mask else 1
        if index is not None:
            axes += range(axis, axis + wide)
            block = max(block, 1 if mask else index.dim())
        axis += wide
    adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
    return axes, axes[0] if adjacent else 0, block


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
    x, record = call.inputs[0], call.record
    found, apart = sources(record, x), call.name == "view_as_real"
    arrays: Arrays = {}
    for family, labels in record.arrays(x).items():
        arrays[family] = labels.unsqueeze(-1) if apart else record.labels.reduce(labels, (-1,)).squeeze(-1)
    call.write(arrays)
    for number, block in found.items():
        pair = block.unsqueeze(-1) if apart else blocks.along(shape_of(record, number), block, (-1,)).squeeze(-1)
        record.functions.setdefault(number, call.where)
        record.memory.add(call.output, source(number), pair)
    call.followed = True


def scattered(call: Call) -> None:
    """index_add, scatter_add, scatter_reduce: what is added may land anywhere along the axis."""
    x, axis, index, source = call.args[:4]
    _decides(call, index, f"decides where {call.where} adds")
    if not isinstance(source, Tensor):
        call.write(call.record.arrays(x))
        return

    def spread(labels: Tensor) -> Tensor:
        union = call.record.labels.reduce(labels.reshape(1) if labels.dim() == 0 else labels, (axis,))
        if index.dim() != x.dim() or not call.name.startswith("scatter"):
            return union
        sizes = [1 if dim == axis % x.dim() else size for dim, size in enumerate(index.shape)]
        part = tuple(slice(size) for size in sizes)  # what lies beyond the index is not added
        whole = torch.full([1 if dim == axis % x.dim() else size for dim, size in enumerate(x.shape)], NONE)
        whole[part] = union.expand([max(a, b) for a, b in zip(union.shape, sizes, strict=True)])[part]
        return whole

    _added(call, x, source, spread)


def _added(call: Call, x: Tensor, source: Tensor, spread: Callable[[Tensor], Tensor]) -> None:
    known = call.record.arrays(x)
    for family, labels in call.record.arrays(source).items():
        union = spread(labels)
        known[family] = call.record.labels.join(known[family], union) if family in known else union
    call.record.unexplained([source])
    call.write(known)
