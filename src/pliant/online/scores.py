"""Coefficient of determination.

    R^2 = 1 - sum (ŷ - y)^2 / sum (y - mean y)^2        of one output, sums over examples

For constant y, R^2 is 1 if all are predicted exactly, else 0; for a single example it is undefined, and NaN.

Source: `sklearn.metrics.r2_score` with `force_finite`. One departure: y is constant where all values are equal, not where
they equal their mean, which may differ from them in its last bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
from numpy.typing import NDArray


def determination(
    truth: NDArray[Any], answer: NDArray[Any], weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """R^2 of every output, (learners, outputs), of y and ŷ (learners, n, outputs); NaN where a prediction is.

    `weights` (n,), where given, multiply the terms of both sums and of the mean.

    >>> determination(np.array([[[1.0], [3.0]]]), np.array([[[1.0], [2.0]]]))
    array([[0.5]])
    """
    y = truth.astype(np.float64)
    if weights is None:
        missed, around = ((answer - y) ** 2).sum(axis=1), ((y - y.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    else:
        w = (weights / weights.sum())[:, None]
        missed, around = (
            (w * (answer - y) ** 2).sum(axis=1),
            (w * (y - (w * y).sum(axis=1, keepdims=True)) ** 2).sum(axis=1),
        )
    constant = (y == y[:, :1]).all(axis=1) | (around == 0.0)
    of_constant = np.where(np.isnan(missed), np.nan, missed == 0.0)
    found = np.where(constant, of_constant, 1.0 - missed / np.where(constant, 1.0, around))
    return found if y.shape[1] > 1 else np.full_like(found, np.nan)


class RunningScore:
    """What running scores share: their numbers as state."""

    def state_dict(self) -> dict[str, Any]:
        return deepcopy(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `ValueError`, with nothing changed, for numbers that no such score has."""
        held = {name: np.array(state.get(name, ()), np.float64) for name in vars(self)}
        for name, mine in vars(self).items():
            if (
                held[name].shape != np.shape(mine)
                or not np.isfinite(held[name]).all()
                or (held[name] < 0).any() > (name == "mean")
            ):
                raise ValueError(f"'{name}' of the score in the state is not what state_dict() gave")
        for name, mine in vars(self).items():
            setattr(self, name, held[name] if isinstance(mine, np.ndarray) else float(held[name]))


class RunningAccuracy(RunningScore):
    """Share of the examples so far that were predicted rightly, weighted."""

    def __init__(self) -> None:
        self.hits = self.weight = 0.0

    def add_one(self, hit: bool, weight: float) -> None:
        self.hits += weight * hit
        self.weight += weight

    def add(self, hits: NDArray[np.bool_], weights: NDArray[np.float64] | None, where: NDArray[np.bool_]) -> None:
        """Add examples (n,), only those that `where` says."""
        w = np.ones(len(hits)) if weights is None else weights
        self.hits += float(w[where & hits].sum())
        self.weight += float(w[where].sum())

    def value(self) -> float:
        """NaN without an example."""
        return self.hits / self.weight if self.weight > 0 else float("nan")


class RunningDetermination(RunningScore):
    """R^2 of the examples so far, weighted; sums of squares around the mean are kept up to date as in Chan et al., 1983."""

    def __init__(self, outputs: int) -> None:
        self.weight = 0.0
        self.mean, self.around, self.missed = np.zeros(outputs), np.zeros(outputs), np.zeros(outputs)

    def add_one(self, y: float, answer: float, weight: float) -> None:
        """`add` of one example of one output."""
        if not math.isfinite(answer):
            return
        total, away = self.weight + weight, y - self.mean[0]
        self.around[0] += away * away * self.weight * weight / total
        self.missed[0] += weight * (answer - y) ** 2
        self.mean[0] += away * weight / total
        self.weight = total

    def add(self, y: NDArray[np.float64], answer: NDArray[np.float64], weights: NDArray[np.float64] | None) -> None:
        """Add examples (n, outputs), only those whose answer is finite."""
        where = np.isfinite(answer).all(axis=1)
        w = (np.ones(len(y)) if weights is None else weights)[where, None]
        more = float(w.sum())
        if more == 0.0:
            return
        mean, total = (w * y[where]).sum(axis=0) / more, self.weight + more
        self.around += (w * (y[where] - mean) ** 2).sum(axis=0) + (mean - self.mean) ** 2 * self.weight * more / total
        self.missed += (w * (answer[where] - y[where]) ** 2).sum(axis=0)
        self.mean += (mean - self.mean) * more / total
        self.weight = total

    def value(self) -> float:
        """Mean over outputs; NaN until targets differ."""
        return float((1.0 - self.missed / self.around).mean()) if (self.around > 0).all() else float("nan")
