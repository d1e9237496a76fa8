"""Examples as people hold them, tables and dictionaries of named numbers, as rows of float64; what is missing is NaN.

A table without column names names its features 0, 1, ..., as River's `stream.iter_array` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.base.choices import shortened, shown
from pliant.online.standardize import LARGEST, first_unusable

Rows = NDArray[np.float64]
NUMBERS = "biuf"  # kinds of dtypes


class Features:
    """The names of the inputs of a network, in its order."""

    def __init__(self, names: Sequence[Any]) -> None:
        self.names: list[Any] = []
        self.add(names)

    def add(self, names: Sequence[Any]) -> None:
        """Append features."""
        self.names = [*self.names, *names]
        self.places = {name: j for j, name in enumerate(self.names)}
        if len(self.places) < len(self.names):
            twice = next(name for j, name in enumerate(self.names) if self.places[name] != j)
            raise ValueError(f"two columns are called {twice!r}: give each its own name")
        self.row = np.full((1, len(self.names)), np.nan)
        # An item getter of a single name returns no tuple.
        self._values: Callable[[Any], Any] | None = itemgetter(*self.names) if len(self.names) > 1 else None

    def read(self, x: Mapping[Any, Any]) -> tuple[Rows, dict[Any, float]]:
        """The numbers of a dictionary: a row (1, features) that the next call overwrites, and those whose names are new."""
        kind: type = type(x)
        if kind is not dict and not issubclass(kind, Mapping):
            hint = "give row.to_dict()" if kind.__name__ == "Series" else "tables go to partial_fit and predict"
            raise TypeError(f"an example is a dictionary of features, not {shown(x)}; {hint}")
        if self._values is not None and len(x) == len(self.names):
            try:
                values = np.array(self._values(x))
            except (KeyError, ValueError, TypeError):
                pass
            else:
                if values.dtype.kind in NUMBERS and values.shape == (len(self.names),):
                    self.row[0] = values
                    return self.row, {}
        self.row.fill(np.nan)
        new: dict[Any, float] = {}
        for name, value in x.items():
            number, place = _number(name, value), self.places.get(name)
            if place is None:
                new[name] = number
            else:
                self.row[0, place] = number
        return self.row, new

    def __getstate__(self) -> dict[str, Any]:
        return {"names": self.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["names"])


def _number(name: Any, value: Any) -> float:
    """The value of a feature; NaN where it is missing. Raises `TypeError` for one that is no number."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # pandas
        return np.nan
    if isinstance(value, str | bytes):
        raise TypeError(
            f"feature {name!r} is {shortened(repr(value), 40)}, a text: make it numbers, with River's compose and preprocessing "
            f"(SelectType(str) | OneHotEncoder()) + Discard({name!r})"
        )
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"feature {name!r} is {shown(value)}: give a number, or None where it is missing") from None


def table(X: Any) -> tuple[Rows, list[Any] | None]:
    """X (examples, features) as float64, C-contiguous, and its column names, if it has any.

    Raises `ValueError` or `TypeError` for what is no table of numbers, or empty.
    """
    if hasattr(X, "toarray"):
        raise TypeError(
            "X is sparse, and online learners read dense rows: pass X.toarray(), or dictionaries to learn_one"
        )
    columns = list(X.columns) if hasattr(X, "columns") and hasattr(X, "to_numpy") else None
    pandas = columns is not None and type(X).__module__.startswith("pandas")
    try:
        given = X.to_numpy(dtype=np.float64, na_value=np.nan) if pandas else np.asarray(X)
        if given.dtype.kind == "c":
            raise ValueError(f"Complex data not supported: X is {given.dtype}")
        rows = np.ascontiguousarray(given, np.float64) if given.dtype.kind not in "US" else None
    except (TypeError, ValueError) as error:
        if str(error).startswith("Complex"):
            raise
        raise type(error)(f"X holds {_odd_columns(X, columns)} that is no number: {shortened(error)}") from None
    if rows is None:
        raise ValueError(f"X holds text, {given.dtype}: give numbers")
    if rows.ndim != 2:
        raise ValueError(
            f"Expected 2D array, got an array of shape {rows.shape} instead. Reshape your data: X.reshape(1, -1) is one "
            "example, X.reshape(-1, 1) one feature"
        )
    for axis, what in enumerate(("sample", "feature")):
        if rows.shape[axis] == 0:
            raise ValueError(f"Found array with 0 {what}(s) (shape={rows.shape}) while a minimum of 1 is required.")
    return rows, columns


def _odd_columns(X: Any, columns: list[Any] | None) -> str:
    if columns is None:
        return "something"
    kinds = dict(zip(columns, (str(each) for each in X.dtypes), strict=True))
    odd = [
        name
        for name, kind in kinds.items()
        if "int" not in kind.lower() and "float" not in kind.lower() and "bool" not in kind
    ]
    return f"something (columns {shortened(odd)})"


def refuse_unusable(rows: Rows, *, nan_too: bool, names: Sequence[Any] | None = None) -> None:
    """Raise `ValueError` for an infinity, a number above `LARGEST`, or NaN if `nan_too`, saying where it is."""
    at = first_unusable(rows, nan_too)
    if at < 0:
        return
    t, j = divmod(at, rows.shape[1])
    where = f"X[{t}, {j}]" if names is None else f"feature {names[j]!r}"
    if np.isnan(rows[t, j]):
        raise ValueError(f"{where} is missing (absent, None or NaN): missing='mean' or 'zero' takes that")
    raise ValueError(f"{where} is {rows[t, j]:g}: numbers must be finite (inf is none), and no larger than {LARGEST:g}")
