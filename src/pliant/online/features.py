"""Examples as dictionaries of named numbers, as rows of float64; what is missing is NaN."""

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
NO_NUMBERS: tuple[type, ...] = (str, bytes, bytearray, memoryview)  # of which `float` makes numbers


class Features:
    """The names of the inputs of a network, in its order."""

    def __init__(self, names: Sequence[Any]) -> None:
        self.names: list[Any] = []
        self.add(names)

    def add(self, names: Sequence[Any]) -> None:
        """Append features."""
        self.names = [*self.names, *names]
        refuse_twice(self.names)
        self.places = {name: j for j, name in enumerate(self.names)}
        self.row = np.full((1, len(self.names)), np.nan)
        # An item getter of a single name returns no tuple.
        self._values: Callable[[Any], Any] | None = itemgetter(*self.names) if len(self.names) > 1 else None

    def read(self, x: Mapping[Any, Any]) -> tuple[Rows, dict[Any, float]]:
        """The numbers of a dictionary: a row (1, features) that the next call overwrites, and those whose names are new."""
        kind: type = type(x)
        if kind is not dict and not issubclass(kind, Mapping):
            hint = (
                "give row.to_dict()"
                if kind.__name__ == "Series"
                else "tables go to partial_fit or learn_many, and predict"
            )
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
            number, place = as_number(name, value), self.places.get(name)
            if place is None:
                new[name] = number
            else:
                self.row[0, place] = number
        return self.row, new

    def read_columns(self, rows: Rows, columns: Sequence[Any]) -> tuple[Rows, dict[Any, Rows]]:
        """The same for a table: rows (n, features), and the columns whose names are new."""
        found = np.full((len(rows), len(self.names)), np.nan)
        new: dict[Any, Rows] = {}
        for name, column in zip(columns, rows.T, strict=True):
            place = self.places.get(name)
            if place is None:
                new[name] = column
            else:
                found[:, place] = column
        return found, new

    def in_order(self, rows: Rows, columns: list[Any] | None, learner: str) -> Rows:
        """The rows of a table that must have all features and no other, with its columns in the order of the features.

        Columns without names, and any columns after features without names, are taken as they lie, as scikit-learn does.
        """
        known = self.names
        if columns is None or (known == list(range(len(known))) and all(isinstance(name, str) for name in columns)):
            if rows.shape[1] != len(known):
                raise ValueError(
                    f"X has {rows.shape[1]} features, but {learner} is expecting {len(known)} features as input: give the "
                    f"columns that were learned, or named features to learn_many or learn_one, where they may come and go"
                )
            return rows
        if columns == known:
            return rows
        there = set(columns)
        lacking, new = (
            [name for name in known if name not in there],
            [name for name in columns if name not in self.places],
        )
        if lacking or new:
            told = " and ".join(
                f"{what} {len(names)} ({listed(names)})" for what, names in (("lacks", lacking), ("adds", new)) if names
            )
            raise ValueError(
                f"The columns of X should be the {len(known)} features that {learner} learned, but X {told}: give it those, or "
                f"use learn_many and predict_many, whose features come and go"
            )
        return self.read_columns(rows, columns)[0]

    def __getstate__(self) -> dict[str, Any]:
        return {"names": self.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["names"])


def refuse_twice(names: Sequence[Any]) -> None:
    """Raise `ValueError` where two features have one name."""
    if len(set(names)) < len(names):
        twice = next(name for j, name in enumerate(names) if name in names[:j])
        raise ValueError(f"two columns are called {twice!r}: give each its own name")


def listed(names: Sequence[Any]) -> str:
    """Names in an error, in one line."""
    return shortened(", ".join(map(repr, names)))


def is_missing(value: Any) -> bool:
    """Whether it is None, or pandas' NA or NaT; NaN is a number."""
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def as_number(name: Any, value: Any) -> float:
    """The value of a feature; NaN where it is missing. Raises `TypeError` for one that is no number."""
    if is_missing(value):
        return np.nan
    if isinstance(value, str | bytes):
        text: Any = getattr(value, "item", lambda: value)()  # without NumPy's type
        raise TypeError(
            f"feature {name!r} is {shortened(repr(text), 40)}, a text: make it numbers, with float or an encoder: in River "
            f"(SelectType(str) | OneHotEncoder()) + Discard({name!r}), in scikit-learn OneHotEncoder"
        )
    try:
        return as_float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            f"feature {name!r} is {shown(value)}: give a number, or None where it is missing ({error})"
        ) from None


def as_float(value: Any) -> float:
    """A number as a float. Raises `TypeError`, `ValueError` or `OverflowError` for what is none.

    So it does for some that `float` takes: texts, bytes, NumPy's dates in nanoseconds, its complex numbers and arrays of texts.
    """
    if isinstance(value, NO_NUMBERS) or getattr(getattr(value, "dtype", None), "kind", "f") not in NUMBERS:
        raise TypeError(f"a {type(value).__name__} is no number")
    return float(value)


def refuse_unusable(rows: Rows, names: Sequence[Any], *, nan_too: bool) -> None:
    """Raise `ValueError` for an infinity, a number above `LARGEST`, or NaN if `nan_too`, saying where it is."""
    at = first_unusable(rows, nan_too)
    if at < 0:
        return
    t, j = divmod(at, rows.shape[1])
    where = f"feature {names[j]!r}" + (f" of X[{t}]" if len(rows) > 1 else "")
    if np.isnan(rows[t, j]):
        raise ValueError(f"{where} is missing (absent, None or NaN): missing='mean' or 'zero' takes that")
    raise ValueError(f"{where} is {rows[t, j]:g}: numbers must be finite (inf is none), and no larger than {LARGEST:g}")


def refuse_new(new: Mapping[Any, Any], *, nan_too: bool) -> None:
    """The same for new features with a number per row."""
    if new:
        refuse_unusable(
            np.ascontiguousarray(np.atleast_2d(np.array(list(new.values()), np.float64).T)), list(new), nan_too=nan_too
        )
