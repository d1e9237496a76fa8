"""Where the activity that a weight reads can be seen by a hook, in order of preference:

    input     of a module called with the very tensor that met the weight
    output    of a module that returned it
    operand   of the product itself, in the module that ran it

"The very tensor" is decided by storage and version, or a plain copy of it: same shape is not enough.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from pliant.units.map import Tap
from pliant.units.trace.call import tensors_in
from pliant.units.trace.labels import by_position
from pliant.units.trace.record import Frame, Product, Record


def find_tap(record: Record, product: Product, activation: Tensor, weight: Tensor, axis: int) -> Tap | None:
    """The tap of a product; its positions are the rows of `product.inputs`."""
    same = record.memory.identity(activation)
    nonnegative = record.memory.shadow(activation).nonnegative
    channels = activation.dim() > 2 and axis == 1 and weight.dim() == activation.dim()
    for frame in reversed(record.stack):
        for argument, tensor, at_entry in frame.inputs:
            if at_entry in same and not isinstance(frame.module, nn.RNNCellBase):
                found = _axis(record, product, tensor, channels) if tensor.numel() == activation.numel() else None
                if found is not None:
                    return Tap(frame.name, "input", found, argument=argument, nonnegative=nonnegative)
    if any(isinstance(frame.module, nn.RNNBase) for frame in record.stack):
        return None  # the fused kernels of a recurrent module show its input and output alone: see `note_outputs`
    for identity in same:
        if identity in record.outputs:
            frame, argument, tensor = record.outputs[identity]
            found = _axis(record, product, tensor, channels) if tensor.numel() == activation.numel() else None
            if found is not None:
                return Tap(frame.name, "output", found, argument=argument, nonnegative=nonnegative)
    number = record.memory.whole_view(weight)
    if number is None or (activation.dim() == 3 and activation.shape[0] > 1 and not channels):
        return None
    return Tap(record.module, "operand", axis, parameter=record.memory.names[number])


def _axis(record: Record, product: Product, tensor: Tensor, channels: bool) -> int | None:
    """The axis along which the tensor has one position for each input row, with the same labels."""
    axes = [1] if channels else [-1, *range(tensor.dim() - 1)]
    for axis in axes:
        if -tensor.dim() <= axis < tensor.dim() and _carries(record, product, tensor, axis):
            return axis
    return None


def _carries(record: Record, product: Product, tensor: Tensor, axis: int) -> bool:
    for family, labels in product.reads.items():
        if family not in record.memory.families(tensor) or tensor.shape[axis] != len(labels):
            return False
        found = by_position(record.memory.labels(tensor, family), axis)
        if found is None or not torch.equal(found.expand(len(labels)), labels):
            return False
    return True


def returns_always(record: Record, product: Product, tap: Tap) -> bool:
    """Whether every call of the tapped module returns what the product reads, and no call something else."""
    returned = [
        tensor
        for frame, argument, tensor in record.outputs.values()
        if frame.name == tap.module and argument == tap.argument
    ]
    return all(_carries(record, product, tensor, tap.axis) for tensor in returned)


def note_outputs(record: Record, frame: Frame, output: Any) -> None:
    """Remember what a module returned, and by label what a recurrent module returned."""
    if isinstance(frame.module, nn.RNNBase):
        sequence = next(tensors_in(output))
        found = {family: by_position(labels, -1) for family, labels in record.arrays(sequence).items()}
        by_label = {family: labels.expand(sequence.shape[-1]) for family, labels in found.items() if labels is not None}
        record.carried[frame.name] = Tap(frame.name, "output", -1), by_label
        return
    parts = cast(tuple[Any, ...], output) if isinstance(output, tuple) else (output,)
    for argument, tensor in enumerate(parts):
        if isinstance(tensor, Tensor):
            record.memory.shadow(tensor)
            record.outputs.setdefault((record.memory.key(tensor), tensor._version), (frame, argument, tensor))
