"""Which numbers computed from parameters are zero once these parameters are zero: the columns of such a weight can be silenced.

    w * mask           zero with w
    mu + sigma * eps   zero with mu and sigma together
    w - mean(w)        not zero: a column of zeros has a mean to take off
    |w|, w * w         zero, but without a gradient there: a unit that is cut off so would never take part again

Noted per storage, for numbers that depend on the same element of each of these parameters (`sources`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pliant.units.trace.call import Call

KEEPS_ZERO = {
    *("clone", "_to_copy", "contiguous", "_unsafe_view", "flip", "view_as_complex", "view_as_real"),
    *("neg", "tanh", "sin", "atan", "hardtanh", "div"),
}
NONE: frozenset[int] = frozenset()


def zero_with(call: Call, value: object) -> frozenset[int]:
    """The parameters with which an operand is zero; empty where it is not known to be."""
    memory = call.record.memory
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return NONE
    return memory.parameters_in(value) if memory.holds_parameter(value) else memory.shadow(value).zero_with


def note_zeros(call: Call) -> None:
    """Mark what the operation made, if all of it is zero with some parameters."""
    memory = call.record.memory
    found = _found(call) if any(zero_with(call, each) for each in call.inputs) else NONE
    for output in call.outputs:
        shadow = memory.shadow(output)
        shadow.zero_with = found if output.numel() == shadow.length else NONE


def _found(call: Call) -> frozenset[int]:
    first, *rest = [zero_with(call, each) for each in call.args] or [NONE]
    if call.name in KEEPS_ZERO:
        return first
    if call.name == "mul":
        sizes = [each.numel() if isinstance(each, Tensor) else 0 for each in call.args]
        other = rest[0] if rest else NONE
        return other if not first or (other and sizes[1] > sizes[0]) else first
    if call.name in ("add", "sub", "complex", "addcmul", "cat", "stack"):
        return _together(call, first, rest)
    return NONE


def _together(call: Call, first: frozenset[int], rest: list[frozenset[int]]) -> frozenset[int]:
    if call.name in ("cat", "stack"):
        parts = [zero_with(call, each) for each in call.args[0]]
        return frozenset[int]().union(*parts) if all(parts) else NONE
    if call.name == "addcmul":
        product = rest[0] or rest[1]
        return first | product if first and product else NONE
    return first | rest[0] if first and rest and rest[0] else NONE
