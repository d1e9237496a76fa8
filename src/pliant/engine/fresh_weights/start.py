"""At which scale a network's incoming weights started, where that is not the scale of their modules' resets.

    found   standard deviation of a slice as it is, at construction
    reset   that of what the module's own reset draws
    differ  |log(found / reset)| > log 1.25 + 3 / sqrt(2 n)       n entries; the second term is the sampling error

Fresh units are drawn by the reset, unless the network is fresh (`untrained`) and a slice differs: then by the model's own
initializer, if what it draws is of the scale found, else by the reset's own kind of law at the scale found. The scale of weights
that have trained is never taken: they grow, and fresh units would be too large.

A start is a string or number that `state_dict` can hold: `RESET`, `INITIALIZER` or `INITIALIZER_BY_UNIT`, or the standard
deviation found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log, sqrt

from torch.optim import Optimizer

from pliant.engine.fresh_weights.initializer import Initializers
from pliant.engine.fresh_weights.laws import Initializer, Law
from pliant.engine.fresh_weights.untrained import sign_of_training
from pliant.units.bound import BoundGroup, NamedModel
from pliant.units.entries import BoundSlice

Start = float | str

RESET = "reset"
INITIALIZER, INITIALIZER_BY_UNIT = "initializer", "initializer by unit"
FEW = 8  # entries of which a standard deviation says nothing


@dataclass(frozen=True)
class Started:
    """How slices started, those by their reset left out; what shows that the network has trained, and which would differ."""

    starts: Mapping[BoundSlice, Start]
    trained: str | None
    differing: Sequence[tuple[BoundSlice, float, float]]  # slice, found, reset


def differ(found: float, reset: float, n: int) -> bool:
    """Whether `n` entries of standard deviation `found` were hardly drawn with `reset`; never of zeros, or of few entries.

    >>> differ(0.02, 0.0722, n=768 * 3072), differ(0.0720, 0.0722, n=768 * 3072), differ(0.0, 0.0722, n=768)
    (True, False, False)
    """
    if n < FEW or not (found > 0.0 and reset > 0.0 and isfinite(found) and isfinite(reset)):
        return False
    return abs(log(found / reset)) > log(1.25) + 3.0 / sqrt(2.0 * n)


def started(
    names: NamedModel,
    groups: Sequence[BoundGroup],
    optimizers: Sequence[Optimizer],
    resets: Mapping[BoundSlice, Law],
    initializers: Initializers,
) -> Started:
    """How the slices of `resets`, which maps each to the law of its reset, started."""
    differing: list[tuple[BoundSlice, float, float]] = []
    for part, law in resets.items():
        found, reset = (0.0 if part.parameter.is_meta else part.std()), law.std()
        if reset is not None and differ(found, reset, part.numel()):
            differing.append((part, found, reset))
    if not differing:
        return Started({}, None, [])
    trained = sign_of_training(names, groups, optimizers)
    if trained is not None:
        return Started({}, trained, differing)
    starts = {part: _start(part, found, initializers) for part, found, _ in differing}
    return Started(starts, None, differing)


def _start(part: BoundSlice, found: float, initializers: Initializers) -> Start:
    """The model's own initializer if it draws what was found; the number found, else."""
    if initializers.of(part.part.parameter) is None:
        return found
    plain = part.part.shape is None and not part.stacked and len(part.part.axes) == 1
    for start in (INITIALIZER_BY_UNIT, INITIALIZER) if plain else (INITIALIZER,):
        law = Initializer(part, initializers, by_unit=start == INITIALIZER_BY_UNIT)
        try:
            drawn, n = law.measured
        except Exception:  # someone else's code, called where its author did not; the plan says what is drawn instead
            continue
        if drawn > 0.0 and not differ(found, drawn, min(n, part.numel())):  # the smaller sample says how sure
            return start
    return found
