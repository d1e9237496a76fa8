"""Examples, checked and in the layout of the kernels.

A kernel reads (streams, n, inputs) in the ensemble's own floating type, or uint8, which holds bits and pixels in a
quarter of the memory; a uint8 is taken as the number it is, 0 to 255.

Examples may also be gathered from X in memory, in another order and with permuted inputs, as for tasks that permute
the pixels of one data set. A `Selection` says how; `pliant.online.gather` compiles

    x[s, t, j] = scale X[s, rows[s, t], columns[s, j]]        answer[s, t] = y[s, rows[s, t]]

where an array with a single row is used for every stream s.

To Numba an array that is read-only, unaligned or not contiguous has a type of its own, for which it would compile a kernel
anew. So all examples reach a kernel in one form, `as_read`: a view, or a copy where there is no such view.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pliant.online.settings import number

Array = NDArray[Any]


class Selection(NamedTuple):
    """Indices of examples, in order, indices of inputs, and a factor."""

    rows: NDArray[np.uint32]  # (streams or 1, n)
    columns: NDArray[np.uint32]  # (streams or 1, inputs)
    scale: float
    streams: int


def as_read(values: Array, dtype: Any) -> Array:
    """The numbers as the kernels read them: of `dtype` in the machine's byte order, contiguous, aligned, read-only."""
    read: Array = np.require(values, dtype, ["C", "ALIGNED"]).view()
    read.setflags(write=False)
    return read


def as_array(name: str, values: Any) -> Array:
    """`values` as an array. Raises `ValueError` where its rows differ in length."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} is no array: its rows differ in length ({error})") from None


def as_inputs(X: Array, inputs: int, dtype: np.dtype[Any]) -> Array:
    """X, (streams, n, inputs), contiguous, uint8 or `dtype`. Raises `TypeError` or `ValueError` saying what is wrong."""
    if X.ndim != 3 or X.shape[2] != inputs:
        raise ValueError(f"X has shape {X.shape}; expected (streams, n, {inputs}) for learners of {inputs} inputs")
    if X.shape[0] == 0 or X.shape[1] == 0:
        raise ValueError(f"X has shape {X.shape}: there is no example in it")
    if X.dtype == np.bool_ or X.dtype == np.uint8:
        return as_read(X, np.uint8)
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
    return as_read(y, np.int64)


def as_streams(stream: Any, streams: int, learners: int) -> NDArray[np.int64]:
    """The row of X that each learner reads, (learners,); None is row r for learner r, or the only row."""
    if stream is None and streams not in (1, learners):
        raise ValueError(f"X has {streams} streams for {learners} learners; give `stream`, the row that each one reads")
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


def _in_order(size: int) -> NDArray[np.uint32]:
    return as_read(np.arange(size, dtype=np.uint32).reshape(1, size), np.uint32)


def as_they_lie(X: Array) -> Selection:
    """The selection of every example and input of X, (streams, n, inputs), in order."""
    streams, n, inputs = X.shape
    return Selection(_in_order(n), _in_order(inputs), 1.0, streams)


def as_selection(rows: Any, columns: Any, scale: float | None, X: Array) -> Selection | None:
    """The selection of examples from X, (streams, examples, inputs); None for all in order."""
    if rows is None and columns is None and scale is None:
        return None
    every, (streams, examples, inputs) = as_they_lie(X), X.shape
    picked = every.rows if rows is None else _as_places("rows", rows, examples, "examples of X")
    placed = every.columns if columns is None else _as_places("columns", columns, inputs, "inputs")
    if placed.shape[1] != inputs:
        raise ValueError(f"columns has shape {placed.shape}; expected (streams, {inputs}), a place for every input")
    if scale is not None and not np.isfinite(number("scale", scale)):
        raise ValueError(f"scale must be finite, not {scale}")
    counts = {"X": streams, "rows": len(picked), "columns": len(placed)}
    most = max(counts.values())
    for name, count in counts.items():
        if count not in (1, most):
            raise ValueError(f"{name} has {count} streams; expected 1 or {most}, as many as the others have: {counts}")
    return Selection(picked, placed, 1.0 if scale is None else float(scale), most)


def pick_answers(y: Array, selection: Selection) -> Array:
    """The targets (streams, n, ...) of the selected examples; y is (1 or streams, examples, ...)."""
    rows = np.broadcast_to(selection.rows, (selection.streams, selection.rows.shape[1]))
    picked = [y[s % len(y)][chosen] for s, chosen in enumerate(rows)]
    return as_read(np.stack(picked), y.dtype)


def _as_places(name: str, places: Any, size: int, what: str) -> NDArray[np.uint32]:
    """Indices (streams, n) below `size`."""
    given = np.asarray(places)
    if given.ndim != 2 or given.size == 0 or not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"{name} has shape {given.shape} and type {given.dtype}; expected indices, (streams, n)")
    outside = (given < 0) | (given >= size)
    if outside.any():
        s, t = np.argwhere(outside)[0]
        raise ValueError(f"{name}[{s}, {t}] is {given[s, t]}, but the {what} are 0 to {size - 1}")
    return as_read(given, np.uint32)


def _as_floats(name: str, values: Array, dtype: np.dtype[Any]) -> Array:
    """Contiguous numbers of `dtype`; a wider or another kind of number is an error, never rounded silently."""
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{name} is an array of {values.dtype}: give numbers")
    if not np.can_cast(values.dtype, dtype, "safe"):
        wider = np.promote_types(values.dtype, dtype)
        also = f", or build them with dtype=np.{wider}" if wider == np.float64 else ""
        raise TypeError(
            f"{name} is {values.dtype}, and these learners compute in {dtype}: pass {name}.astype(np.{dtype}){also}"
        )
    if not np.isfinite(values).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise ValueError(f"{name}{list(where)} is {values[where]}; examples must be finite")
    return as_read(values, dtype)
