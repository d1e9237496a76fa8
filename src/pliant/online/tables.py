"""Tables of NumPy, pandas and polars as rows of float64, and answers as the table they belong to.

What is a number is the same as in dictionaries (`pliant.online.features.as_number`); what is missing is NaN. A table without
column names names its features 0, 1, ..., as River's `stream.iter_array` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.base.choices import shortened, shown
from pliant.online.features import NUMBERS, Rows, as_number, listed, refuse_twice


def table(X: Any) -> tuple[Rows, list[Any] | None]:
    """X (examples, features) as float64, C-contiguous, and its column names, if it has any.

    Raises `ValueError` or `TypeError` for what is no table of numbers, or empty.
    """
    if hasattr(X, "toarray"):
        raise TypeError(
            "X is sparse, and online learners read dense rows: pass X.toarray(), or dictionaries to learn_one"
        )
    if isinstance(X, Mapping) or _holds_mappings(X):
        raise TypeError(
            "X is no table but dictionaries: give them one by one to learn_one and predict_one, or pandas.DataFrame(X) to "
            "learn_many and predict_many"
        )
    columns = list(X.columns) if has_columns(X) else None
    rows = np.ascontiguousarray(_of_array(X) if columns is None else _of_frame(X, columns))
    for axis, what in enumerate(("sample", "feature")):
        if rows.shape[axis] == 0:
            raise ValueError(f"Found array with 0 {what}(s) (shape={rows.shape}) while a minimum of 1 is required.")
    return rows, columns


def named_table(X: Any, method: str) -> tuple[Rows, list[Any]]:
    """`table` of X, which must have names of columns."""
    rows, columns = table(X)
    if columns is None:
        raise TypeError(
            f"{method} takes a table with named columns, of pandas or polars, not {shown(X)}: arrays go to "
            f"partial_fit and predict"
        )
    return rows, columns


def _holds_mappings(X: Any) -> bool:
    return isinstance(X, list | tuple) and isinstance(next(iter(X), None), Mapping)  # pyright: ignore[reportUnknownArgumentType]


def has_columns(X: Any) -> bool:
    """Whether X is a table of pandas, polars or the like."""
    return hasattr(X, "columns") and hasattr(X, "to_numpy")


def _of_array(X: Any) -> Rows:
    try:
        given = np.asarray(X)
        if given.dtype.kind not in NUMBERS and not hasattr(X, "dtype"):
            given = np.asarray(X, object)  # [1, "a"] were two texts
    except (TypeError, ValueError) as error:
        raise type(error)(f"X is no table of numbers: {shortened(error)}") from None
    if given.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: X is {given.dtype}")
    if given.ndim != 2:
        raise ValueError(
            f"Expected 2D array, got an array of shape {given.shape} instead. Reshape your data: X.reshape(1, -1) is one "
            "example, X.reshape(-1, 1) one feature"
        )
    if given.dtype.kind in NUMBERS:
        return given.astype(np.float64, copy=False)
    return _of_cells(dict(enumerate(given.T)), len(given))


def _of_frame(X: Any, columns: list[Any]) -> Rows:
    refuse_twice(columns)
    numeric = [_is_numeric(dtype) for dtype in X.dtypes]
    if all(numeric):
        return _floats(X)
    return _of_cells(
        {name: _floats(X[name]) if plain else X[name] for name, plain in zip(columns, numeric, strict=True)}, len(X)
    )


def _is_numeric(dtype: Any) -> bool:
    kind = getattr(dtype, "kind", None)  # polars has none
    return dtype.is_numeric() if kind is None else kind in NUMBERS


def _floats(numbers: Any) -> Rows:
    """Numbers of a frame, or of a column of one; NaN where they are missing."""
    if hasattr(numbers, "iloc"):  # pandas
        return numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    return np.asarray(numbers.to_numpy(), np.float64)


def _of_cells(columns: Mapping[Any, Any], n: int) -> Rows:
    """Columns of cells that may be anything, (n, columns). Raises `TypeError` that names all columns that hold no numbers."""
    rows, wrong = np.empty((n, len(columns))), dict[Any, TypeError]()
    for j, (name, column) in enumerate(columns.items()):
        try:
            rows[:, j] = column if _is_read(column) else [as_number(name, value) for value in column]
        except TypeError as error:
            wrong[name] = error
    if wrong:
        name, *others = wrong
        more = f"; nor are features {listed(others)} numbers" if others else ""
        raise TypeError(f"{wrong[name]}{more}")
    return rows


def _is_read(column: Any) -> bool:
    return type(column) is np.ndarray and column.dtype == np.float64


def frame_like(X: Any, values: NDArray[Any], columns: Sequence[Any]) -> Any:
    """A table (examples, columns) of the library and with the index of X."""
    library = _library(X)
    if hasattr(X, "index"):
        return library.DataFrame(values, index=X.index, columns=list(columns))
    return library.DataFrame(values, schema=[str(name) for name in columns], orient="row")


def series_like(X: Any, values: NDArray[Any], name: Any) -> Any:
    """A series (examples,) of the library and with the index of X."""
    library = _library(X)
    if hasattr(X, "index"):
        return library.Series(values, index=X.index, name=name)
    return library.Series(name, values)


def _library(X: Any) -> Any:
    return import_module(type(X).__module__.partition(".")[0])
