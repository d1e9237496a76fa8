# pyright: basic, reportIndexIssue=false, reportArgumentType=false
"""Running mean and variance of numbers that arrive one example at a time, and the examples standardized by them, compiled.

For each number x of an example, the t-th of its column:

    a = max(1 - η, 1 / t)          d = x - μ
    μ <- μ + a d                   v <- (1 - a) (v + a d²)                   η  decay rate
    z = (x - μ) / sqrt(v)          0 where v is 0

The statistics of x include x, so that |z| is at most sqrt(η / (1 - η)), about 10 for η = .99, whatever the stream does. A plain
mean and variance come first, until 1 / (1 - η) examples were seen. A prediction uses the statistics that its example would give,
and keeps none of it.

A number that is missing (NaN) leaves its statistics alone, and is the mean; or it is 0, like any other 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.online.compiling import cached

Array = NDArray[Any]


STATISTICS = ("mean", "variance", "count")
LARGEST = 1e100  # number of an example: its square is finite


@cached
def standardize(x, decay, scaled, zero, kept, mean, variance, count, z, before):
    """Fill z (n, columns) with x (n, columns) standardized, or, if not `scaled`, as it is; statistics (columns,) are `kept`.

    What is missing becomes 0 first if `zero`, else the mean. `before` (n or 0, 2, columns) gets mean and deviation before each x.
    """
    for t in range(x.shape[0]):
        if before.shape[0]:
            for j in range(x.shape[1]):
                before[t, 0, j], before[t, 1, j] = mean[j], math.sqrt(variance[j])
        for j in range(x.shape[1]):
            given = x[t, j]
            missing = given != given
            value = (0.0 if zero else mean[j]) if missing else given
            seen = 0.0 if missing and not zero else 1.0
            a = seen * max(1.0 - decay, 1.0 / (count[j] + 1.0))
            d = value - mean[j]
            level, spread = mean[j] + a * d, (1.0 - a) * (variance[j] + a * d * d)
            z[t, j] = ((value - level) / math.sqrt(spread) if spread > 0.0 else 0.0) if scaled else value
            if kept:
                count[j] += seen
                mean[j], variance[j] = level, spread


@cached
def first_unusable(x, nan_too):
    """Where in x, counted in C order, the first number above `LARGEST` (or NaN) is; -1 where none is."""
    for t in range(x.shape[0]):
        bad = 0
        for j in range(x.shape[1]):
            bad += not abs(x[t, j]) <= LARGEST if nan_too else abs(x[t, j]) > LARGEST
        if bad > 0:
            for j in range(x.shape[1]):
                if abs(x[t, j]) > LARGEST or (nan_too and x[t, j] != x[t, j]):
                    return t * x.shape[1] + j
    return -1


_NOT_ASKED = np.zeros((0, 2, 0))


class Standardizer:
    """The statistics of the columns of a stream."""

    def __init__(self, columns: int, *, decay: float, scaled: bool = True, zero: bool = False) -> None:
        self.decay, self.scaled, self.zero = decay, scaled, zero
        self.mean, self.variance, self.count = np.zeros(columns), np.zeros(columns), np.zeros(columns)

    def __call__(self, x: NDArray[np.float64], z: Array, *, keep: bool, before: Array = _NOT_ASKED) -> Array:
        """Fill `z` with `x`, both (n, columns), standardized; returns it. With `keep` the statistics learn from x.

        `before` (n, 2, columns), where given, gets the mean and the deviation before each example.
        """
        standardize(x, self.decay, self.scaled, self.zero, keep, self.mean, self.variance, self.count, z, before)
        return z

    def grow(self, columns: int) -> None:
        """Add columns that were never seen, to so many in all."""
        more = np.zeros(columns - len(self.mean))
        for name in STATISTICS:
            setattr(self, name, np.concatenate([getattr(self, name), more]))

    def state_dict(self) -> dict[str, Array]:
        return {name: getattr(self, name).copy() for name in STATISTICS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {name: np.array(state[name]) for name in STATISTICS})  # a memory map is read-only

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Load what a standardizer of as many columns gave. Raises `ValueError`, with nothing changed, for anything else."""
        held = {name: np.array(state.get(name, ())) for name in STATISTICS}
        for name, values in held.items():
            if (
                (values.shape, values.dtype) != (self.mean.shape, self.mean.dtype)
                or not np.isfinite(values).all()
                or (name != "mean" and (values < 0).any())
            ):
                raise ValueError(
                    f"'{name}' of the state is not that of {len(self.mean)} columns: load what state_dict() gave"
                )
        for name, values in held.items():
            setattr(self, name, values)
