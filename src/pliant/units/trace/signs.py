"""Which numbers cannot be below zero: behind a ReLU |activity| is the activity, and need not be recorded separately."""

from __future__ import annotations

from pliant.units.trace.call import Call

NEVER_BELOW_ZERO = {"relu", "abs", "sigmoid", "hardsigmoid", "exp", "softplus", "_softmax", "bernoulli"}
KEEPS_SIGN = {
    *("clone", "_to_copy", "contiguous", "_unsafe_view", "cat", "stack", "constant_pad_nd", "native_dropout"),
    *("add", "mul", "div", "mean", "sum"),
    *("max_pool1d", "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("adaptive_avg_pool1d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
    *("adaptive_max_pool2d", "adaptive_max_pool3d"),
}


def _scaled_by_hand(call: Call) -> bool:
    """Whether an operand is a Python number, which may have another sign in another forward."""
    numbers = [each for each in (*call.args, *call.kwargs.values()) if isinstance(each, float | int)]
    return call.name in ("add", "mul", "constant_pad_nd") and any(
        each != (0 if call.name != "mul" else 1) for each in numbers
    )


def note_sign(call: Call) -> None:
    """Mark what the operation wrote, if nothing in its storage can be below zero."""
    memory = call.record.memory
    positive = call.name in NEVER_BELOW_ZERO or (
        call.name in KEEPS_SIGN
        and all(memory.shadow(tensor).nonnegative for tensor in call.inputs)
        and not _scaled_by_hand(call)
    )
    for output in call.outputs:
        shadow = memory.shadow(output)
        in_part = call.in_place and output.numel() < shadow.length
        shadow.nonnegative = positive and (shadow.nonnegative or not in_part)
