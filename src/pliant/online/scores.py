"""Coefficient of determination.

    R^2 = 1 - sum (ŷ - y)^2 / sum (y - mean y)^2        of one output, sums over examples

For constant y, R^2 is 1 if all are predicted exactly, else 0; for a single example it is undefined, and NaN.

Source: `sklearn.metrics.r2_score` with `force_finite`. One departure: y is constant where all values are equal, not where
they equal their mean, which may differ from them in its last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def determination(truth: NDArray[Any], answer: NDArray[Any]) -> NDArray[np.float64]:
    """R^2 of every output, (learners, outputs), of y and ŷ (learners, n, outputs); NaN where a prediction is.

    >>> determination(np.array([[[1.0], [3.0]]]), np.array([[[1.0], [2.0]]]))
    array([[0.5]])
    """
    y = truth.astype(np.float64)
    missed = ((answer - y) ** 2).sum(axis=1)
    around = ((y - y.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    constant = (y == y[:, :1]).all(axis=1) | (around == 0.0)
    of_constant = np.where(np.isnan(missed), np.nan, missed == 0.0)
    found = np.where(constant, of_constant, 1.0 - missed / np.where(constant, 1.0, around))
    return found if y.shape[1] > 1 else np.full_like(found, np.nan)
