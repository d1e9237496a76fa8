"""Elementwise operations: labels join, and parameters that meet them belong to their units."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pliant.base.initial import GAINS, leaky_relu_gain
from pliant.units.trace.call import Call
from pliant.units.trace.labels import compress
from pliant.units.trace.record import Activation, Role, TraceRecord
from pliant.units.trace.shadows import Arrays
from pliant.units.trace.sources import Sources, followed, leave, meet, sources

ROLES: dict[str, Role] = {"add": "shift", "sub": "shift", "mul": "scale", "_prelu_kernel": "slope"}

ACTIVATIONS: dict[str, Callable[[Call], float]] = {
    **dict.fromkeys(("relu", "elu", "silu", "gelu", "mish", "softplus", "threshold"), lambda call: GAINS["relu"]),
    **dict.fromkeys(("hardswish", "hardsigmoid", "log_sigmoid_forward"), lambda call: GAINS["linear"]),
    "tanh": lambda call: GAINS["tanh"],
    "sigmoid": lambda call: GAINS["sigmoid"],
    "leaky_relu": lambda call: leaky_relu_gain(call.argument("negative_slope")),
    "hardtanh": lambda call: GAINS["relu"] if call.argument("min_val") == 0 else GAINS["linear"],
    "_prelu_kernel": lambda call: leaky_relu_gain(0.25),
}
PLAIN = ("relu", "tanh", "sigmoid", "silu", "mish")  # their names say all of them
SELU_SCALE = 1.0507009873554805


def elementwise(call: Call) -> None:
    """The rule of every operation that PyTorch tags as pointwise."""
    _note_activation(call)
    if _is_root(call) or any(call.record.memory.shadow(tensor).rooted for tensor in call.inputs):
        for output in call.outputs:
            call.record.memory.shadow(output).rooted = True
    pointwise(call, call.inputs, ROLES.get(call.name))


def pointwise(call: Call, operands: Sequence[Tensor], role: Role | None) -> None:
    """Join the labels of `operands` into the output; a parameter among them plays `role`."""
    record = call.record
    arrays = [record.arrays(operand) for operand in operands]
    if call.name == "add" and len(operands) == 2:
        _note_residual(record, operands, arrays)
    joined: Arrays = {}
    for family in dict.fromkeys(family for known in arrays for family in known):
        meeting = [(operand, known[family]) for operand, known in zip(operands, arrays, strict=True) if family in known]
        joined[family] = _join(call, meeting)
    if call.name == "add" and len(joined) > 1:
        joined = record.unite({family: compress(labels) for family, labels in joined.items()})
    found = [
        _meeting(call, operand, operands, joined, role if record.memory.has_addresses(operand) else None)
        for operand in operands
    ]
    call.write(joined)
    leave(call, found, joined)
    call.followed = True


def _meeting(call: Call, operand: Tensor, operands: Sequence[Tensor], joined: Arrays, role: Role | None) -> Sources:
    """An operand that is a parameter, or computed from parameters, belongs to the units that it meets."""
    record = call.record
    plays = role is not None and bool(joined)
    if plays and role is not None:
        record.own(operand, joined, role)
        if call.name == "add" and call.argument("alpha", 1) == 1:
            _note_bias(record, operands, operand)
    elif not followed(record, operand):
        record.unexplained([operand])
    found = sources(record, operand, copies=not plays)
    meet(call, operand, found, joined)
    return found


def _join(call: Call, meeting: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Union, but for numbers that meet a mean or norm over themselves: a hand-written layer norm."""
    labels = call.record.labels
    if len(meeting) == 2 and call.name in ("sub", "mul", "div"):
        for (x, known), (statistic, of_all) in (meeting, meeting[::-1]):
            shadow = call.record.memory.shadow(statistic)
            if (shadow.averaged if call.name == "sub" else shadow.rooted) and _is_statistic(
                call.record, x, known, statistic, of_all
            ):
                call.record.mix(of_all)
                return known
    joined = meeting[0][1]
    for _, other in meeting[1:]:
        joined = labels.join(joined, other)
    return joined


def _is_statistic(record: TraceRecord, x: Tensor, known: Tensor, statistic: Tensor, of_all: Tensor) -> bool:
    """Whether `statistic` is broadcast over exactly the units of `x` that it depends on."""
    if statistic.dim() != x.dim():
        return False
    over = [dim for dim in range(x.dim()) if statistic.shape[dim] == 1 < x.shape[dim]]
    if not over or known.shape == of_all.shape:
        return False
    return torch.equal(compress(record.labels.reduce(known, over)), of_all)


def _is_root(call: Call) -> bool:
    exponent = call.argument("exponent") if call.name == "pow" else None
    return call.name in ("sqrt", "rsqrt") or (isinstance(exponent, float) and abs(exponent) == 0.5)


def _note_activation(call: Call) -> None:
    if call.name not in ACTIVATIONS:
        return
    selu = call.name == "elu" and call.argument("scale") == SELU_SCALE
    gain = GAINS["selu"] if selu else ACTIVATIONS[call.name](call)
    name = call.name if call.name in PLAIN or (call.name == "gelu" and call.argument("approximate") == "none") else None
    call.record.note(call.inputs[0], call.name)
    for tensor in call.inputs:
        for family in call.record.live(tensor):
            call.record.activations.setdefault(family, set()).add(Activation(name, gain))


def _note_residual(record: TraceRecord, operands: Sequence[Tensor], arrays: list[Arrays]) -> None:
    """A sum of x and F(x), each with units that the other has not, or F(x) with those of a weight that computed x before:
    channels of a stream."""
    for stream, branch in ((0, 1), (1, 0)):
        old, new = record.memory.shadow(operands[stream]), record.memory.shadow(operands[branch])
        if not old.data or old.made_by is None or not new.ancestors >> old.made_by & 1 or old is new:
            continue
        apart = arrays[branch].keys() - arrays[stream].keys() and (
            arrays[stream].keys() - arrays[branch].keys() or not arrays[stream]
        )
        if apart or _computed_again(record, old.made_by, new.ancestors, arrays[branch].keys() & arrays[stream].keys()):
            record.residual.update(*arrays)


def _computed_again(record: TraceRecord, since: int, ancestors: int, families: set[int]) -> bool:
    """Whether some of these families are computed by a weight between an operation and one that depends on it."""
    products = (each for each in record.products if each.step > since and ancestors >> each.step & 1)
    return any(record.families.get(lanes.lane) in families for each in products for lanes in each.outputs or ())


def _note_bias(record: TraceRecord, operands: Sequence[Tensor], bias: Tensor) -> None:
    """A bias that is added to the very result of a product takes over mean contributions like the product's own."""
    for operand in operands:
        product = record.product_of(operand)
        if product is not None:
            record.take_mean(product, operand, -1, bias)
