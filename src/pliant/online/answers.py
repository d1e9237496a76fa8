"""Labels and weights of examples, as people give them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pliant.base.choices import shown
from pliant.online import settings
from pliant.online.bases import ColumnVectorWarning
from pliant.online.features import Rows, is_missing
from pliant.online.standardize import LARGEST


def as_labels(y: Any, name: str = "y") -> list[Any]:
    """Labels as Python holds them."""
    listed = cast("list[Any]", y) if isinstance(y, list | tuple) else None
    nested = listed is None or any(isinstance(each, list | tuple | np.ndarray) for each in listed)
    # NumPy would turn [1, "a"] into texts.
    given: NDArray[Any] = (
        np.asarray(cast("Any", y)) if listed is None or nested else as_objects([as_python(each) for each in listed])
    )
    if given.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: {name} is {given.dtype}")
    if given.ndim == 2 and given.shape[1] == 1:
        warnings.warn(
            "A column-vector y was passed when a 1d array was expected. Please change its shape to (n_samples,), with ravel()",
            ColumnVectorWarning,
            stacklevel=5,
        )
        given = given[:, 0]
    if given.ndim != 1:
        raise ValueError(f"{name} has shape {given.shape}; expected one label for each example")
    return given.tolist()


def as_python(label: Any) -> Any:
    """A label without NumPy's type."""
    return cast("Any", label.item()) if isinstance(label, np.generic) else label


def as_objects(labels: list[Any]) -> NDArray[Any]:
    """An array of labels as they are, (n,)."""
    found = np.empty(len(labels), object)
    for i, label in enumerate(labels):
        found[i] = label
    return found


def hashable(labels: Iterable[Any]) -> list[Any]:
    """Labels as a list. Raises `TypeError` for one that no dictionary can hold."""
    labels = list(labels)
    for label in labels:
        try:
            hash(label)
        except TypeError:
            raise TypeError(f"a label must be hashable, and {shown(label)} is not") from None
    return labels


def refuse_label(label: Any) -> None:
    """Raise `ValueError` for what is no label: nothing, NaN, a number between whole ones."""
    if is_missing(label) or label != label:
        raise ValueError(f"a label is {label}: leave examples without a label out (NaN is none)")
    number = as_python(label)
    if isinstance(number, float) and not number.is_integer():
        raise ValueError(f"Unknown label type: {number:g} is continuous, not a class; OnlineRegressor learns numbers")


def in_order(names: Iterable[Any]) -> list[Any]:
    """Each once, sorted; by what they look like, where they have no order."""
    once = list(dict.fromkeys(hashable(names)))
    try:
        return sorted(once)
    except TypeError:
        return sorted(once, key=repr)


def as_classes(labels: list[Any]) -> NDArray[Any]:
    """Labels as an array of their own type, of objects where they have several."""
    kinds: set[type] = {type(label) for label in labels}
    return np.array(labels) if len(kinds) == 1 and kinds <= {str, bool, int, float} else as_objects(labels)


def as_weight(w: Any) -> float:
    if w == 1.0:
        return 1.0
    weight = settings.number("w", w)
    if not 0.0 <= weight <= LARGEST:
        raise ValueError(f"w is {weight:g}: a weight must be finite and at least 0")
    return weight


def as_weights(given: ArrayLike | None, n: int, name: str = "sample_weight") -> NDArray[np.float64] | None:
    """One weight for each of `n` examples, or None."""
    if given is None:
        return None
    weights = np.asarray(given, np.float64)
    if weights.shape not in ((), (n,)):
        raise ValueError(f"{name} has shape {weights.shape}; expected one number for each of {n} examples, ({n},)")
    if not ((weights >= 0) & (weights <= LARGEST)).all():
        raise ValueError(f"{name} must be finite and at least 0")
    return np.broadcast_to(weights, (n,)).copy()


def of_weight(
    rows: Rows, answers: NDArray[Any], weights: NDArray[np.float64] | None
) -> tuple[Rows, NDArray[Any], NDArray[np.float64] | None]:
    """The examples whose weight is not 0."""
    if weights is None or weights.all():
        return rows, answers, weights
    kept = np.flatnonzero(weights)
    return rows[kept], answers[kept], weights[kept]
