"""The examples that learners are given, checked and in the layout that the kernels read.

A kernel reads (streams, n, inputs) in the ensemble's own floating type, or uint8, which holds bits and pixels in a
quarter of the memory; a uint8 is taken as the number it is, 0 to 255.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def as_inputs(X: Array, inputs: int, dtype: np.dtype[Any]) -> Array:
    """X, (streams, n, inputs), contiguous, uint8 or `dtype`. Raises `TypeError` or `ValueError` saying what is wrong."""
    if X.ndim != 3 or X.shape[2] != inputs:
        raise ValueError(f"X has shape {X.shape}; expected (streams, n, {inputs}) for learners of {inputs} inputs")
    if X.shape[0] == 0 or X.shape[1] == 0:
        raise ValueError(f"X has shape {X.shape}: there is no example in it")
    if X.dtype == np.bool_ or X.dtype == np.uint8:
        return np.ascontiguousarray(X, dtype=np.uint8)
    return _as_floats("X", X, dtype)


def as_targets(y: Array, streams: int, n: int, outputs: int, dtype: np.dtype[Any]) -> Array:
    """y, (streams, n) or (streams, n, outputs), as (streams, n, outputs)."""
    shape = (streams, n, outputs)
    if y.shape != shape and not (outputs == 1 and y.shape == shape[:2]):
        also = f" or {shape[:2]}" if outputs == 1 else ""
        raise ValueError(f"y has shape {y.shape}; expected {shape}{also} to go with X")
    return _as_floats("y", y.reshape(shape), dtype)


def as_labels(y: Array, streams: int, n: int, outputs: int) -> NDArray[np.int64]:
    """y, (streams, n), whole numbers from 0 to outputs - 1."""
    if y.shape != (streams, n):
        raise ValueError(f"y has shape {y.shape}; expected one label for each example, {(streams, n)}")
    if not np.issubdtype(y.dtype, np.integer):
        raise TypeError(f"y is {y.dtype}; labels are integers from 0 to {outputs - 1}")
    outside = (y < 0) | (y >= outputs)
    if outside.any():
        s, t = np.argwhere(outside)[0]
        raise ValueError(f"y[{s}, {t}] is {y[s, t]}; labels run from 0 to {outputs - 1}")
    return np.ascontiguousarray(y, dtype=np.int64)


def as_streams(stream: Any, streams: int, learners: int) -> NDArray[np.int64]:
    """Which row of X each learner reads, (learners,); None is row r for learner r, or the only row."""
    if stream is None and streams not in (1, learners):
        raise ValueError(f"X has {streams} streams for {learners} learners; say by `stream` which row each one reads")
    if stream is None:
        return np.arange(learners) % streams
    rows = np.asarray(stream)
    if rows.shape != (learners,) or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(
            f"stream has shape {rows.shape} and type {rows.dtype}; expected {learners} row numbers, one for each learner"
        )
    if ((rows < 0) | (rows >= streams)).any():
        r = int(np.flatnonzero((rows < 0) | (rows >= streams))[0])
        raise ValueError(f"stream[{r}] is {rows[r]}, but X has rows 0 to {streams - 1}")
    return rows.astype(np.int64)


def _as_floats(name: str, values: Array, dtype: np.dtype[Any]) -> Array:
    """Contiguous numbers of `dtype`; a wider or another kind of number is not rounded behind anyone's back."""
    if not np.can_cast(values.dtype, dtype, "safe"):
        raise TypeError(
            f"{name} is {values.dtype}, and these learners compute in {dtype}: pass {name}.astype(np.{dtype}), "
            f"or build them with dtype=np.{np.promote_types(values.dtype, dtype)}"
        )
    if not np.isfinite(values).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise ValueError(f"{name}{list(where)} is {values[where]}; examples must be finite")
    return np.ascontiguousarray(values, dtype=dtype)
