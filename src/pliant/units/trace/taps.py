"""The place at which a hook can record the input of a weight, in order of preference:

    input     of a module called with the very tensor that met the weight
    output    of a module that returned it
    operand   of the product itself, in the module that ran it

"The very tensor" has the same storage and version, or is a plain copy: an equal shape is not enough. Channels are counted from
the end, as features are: a convolution also takes (channels, height, width), one image without a batch axis. Where counting from
the end is ambiguous (token mixing, features in front) the tap stores the number of axes, and another number is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from pliant.units.groups import Tap
from pliant.units.models import is_plain, tensors_in
from pliant.units.trace.labels import by_position
from pliant.units.trace.record import Frame, Product, TraceRecord


class Factors(Protocol):
    """The two factors of a product: the axis of the activation that is contracted, and whether it holds channels of images."""

    activation: Tensor
    weight: Tensor
    axis: int
    channels: bool
    joint: bool


def find_tap(record: TraceRecord, product: Product, factors: Factors) -> Tap | None:
    """The tap of a product; its positions are the rows of `product.inputs`."""
    activation, weight = factors.activation, factors.weight
    same = record.memory.identity(activation)
    nonnegative = record.memory.shadow(activation).nonnegative
    space = activation.dim() - 2 if factors.channels else None
    for frame in reversed(record.stack):
        for argument, tensor, at_entry in frame.inputs:
            if at_entry in same and not isinstance(frame.module, nn.RNNCellBase):
                found = _axis(record, product, tensor, space) if tensor.numel() == activation.numel() else None
                if found is not None:
                    dims = None if found < 0 else tensor.dim()
                    return Tap(frame.name, "input", found, None, argument, nonnegative=nonnegative, dims=dims)
    if any(isinstance(frame.module, nn.RNNBase) for frame in record.stack):
        return None  # the fused kernels of a recurrent module show its input and output alone: see `note_outputs`
    for identity in same:
        if identity in record.outputs:
            frame, argument, tensor = record.outputs[identity]
            found = _axis(record, product, tensor, space) if tensor.numel() == activation.numel() else None
            if found is not None:
                dims = None if found < 0 else tensor.dim()
                return Tap(frame.name, "output", found, None, argument, nonnegative=nonnegative, dims=dims)
    place = None if factors.joint else record.memory.place(weight)  # no hook sees which of two activations is meant
    if place is None:
        return None
    number, first, count = place
    part = None if count == record.memory.parameters[number].numel() else (first, count)
    batched = weight.dim() == 3 and len(weight) > 1 and not factors.channels
    return Tap(
        record.module, "operand", -1 if batched else factors.axis, parameter=record.memory.names[number], part=part
    )


def _axis(record: TraceRecord, product: Product, tensor: Tensor, space: int | None) -> int | None:
    """The axis along which the tensor has one position for each input row, with the same labels.

    `space`: axes behind the channels of a convolution's input, None for any other product.
    """
    axes = [-1, *range(tensor.dim() - 1)] if space is None else [-1 - space, 1 - tensor.dim()]
    for axis in axes:
        if -tensor.dim() <= axis < tensor.dim() and _carries(record, product, tensor, axis):
            return axis
    return None


def _carries(record: TraceRecord, product: Product, tensor: Tensor, axis: int) -> bool:
    for family, labels in product.reads.items():
        if family not in record.memory.families(tensor) or tensor.shape[axis] != len(labels):
            return False
        found = by_position(record.memory.labels(tensor, family), axis)
        if found is None or not torch.equal(found.expand(len(labels)), labels):
            return False
    return True


def returns_always(record: TraceRecord, product: Product, tap: Tap) -> bool:
    """Whether every call of the tapped module returns what the product reads, and no call something else."""
    returned = [
        tensor
        for frame, argument, tensor in record.outputs.values()
        if frame.name == tap.module and argument == tap.argument
    ]
    return all(_carries(record, product, tensor, tap.axis) for tensor in returned)


def example_calls(record: TraceRecord, tap: Tap, users: Iterable[Product]) -> tuple[bool, ...] | None:
    """For each call of a tapped module in one forward, whether it shows examples; None if all of them do.

    A call whose input depends on units but not on the model's inputs is auxiliary: an identity matrix or zeros sent through a
    part of the model, to compute a weight, a norm or a shape. One whose input depends on no unit is not auxiliary: the initial
    state of a recurrent layer. Where no call depends on inputs (a generator that draws its noise) all of them count. Raises
    `LookupError` if a call is both.
    """
    shown = [(frame.call, frame.data) for frame in _returned(record, tap)]
    calls = shown or [(each.during[tap.module], each.data) for each in users if each.reads]
    examples, others = ({call for call, data in calls if data is wanted} for wanted in (True, False))
    if examples & others:
        raise LookupError(tap.module)
    return tuple(call not in others for call in range(record.calls[tap.module])) if examples and others else None


def _returned(record: TraceRecord, tap: Tap) -> list[Frame]:
    """The calls that returned what an output tap shows."""
    place = tap.module, tap.argument
    found = [frame for frame, argument, _ in record.outputs.values() if (frame.name, argument) == place]
    return found if tap.at == "output" else []


def note_outputs(record: TraceRecord, frame: Frame, output: Any) -> None:
    """Note the tensors that a module returned, and for a recurrent module their labels."""
    if isinstance(frame.module, nn.RNNBase):
        sequence = next(tensors_in(output))
        found = {family: by_position(labels, -1) for family, labels in record.arrays(sequence).items()}
        by_label = {family: labels.expand(sequence.shape[-1]) for family, labels in found.items() if labels is not None}
        record.carried[frame.name] = Tap(frame.name, "output", -1), by_label
        return
    parts = cast(tuple[Any, ...], output) if isinstance(output, tuple) else (output,)
    for argument, tensor in enumerate(parts):
        if is_plain(tensor):
            frame.data |= record.memory.shadow(tensor).data
            record.outputs.setdefault((record.memory.key(tensor), tensor._version), (frame, argument, tensor))
