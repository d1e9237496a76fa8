"""How much one step of an optimizer moves the weights.

    Δ  the change of the weights that enter each unit, (..., n, units)      w  these weights before it, of the same shape

    update_ratio   ‖Δ‖ / ‖w‖ of each unit; of a whole layer with all its weights in one column
    stagnant       update_ratio <= 10⁻⁶: the step is lost among the digits of the weights
    volatile       update_ratio >= 0.1: a few steps replace what was learned

A ratio near 10⁻³ is a common rule of thumb for a whole layer. The two thresholds are ours: 10⁻⁶ is about the size at which an
update of float32 weights is rounded away for the most part, and ten steps at 0.1 are as large as the weights themselves.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from pliant.base.arguments import number
from pliant.diagnostics.features import activity, wide

STAGNANT, VOLATILE = 1e-6, 0.1


def update_ratio(update: Tensor, weight: Tensor) -> Tensor:
    """‖update‖ / ‖weight‖ of each unit, (..., n, units) -> (..., units); 0 / 0 is 0.

    Raises `ValueError` if the shapes differ.

    >>> update_ratio(torch.tensor([[0.3], [0.4]]), torch.tensor([[3.0], [4.0]]))
    tensor([0.1000], dtype=torch.float64)
    """
    update, weight = activity("update", update), activity("weight", weight)
    if update.shape != weight.shape:
        raise ValueError(f"update and weight must have one shape, got {tuple(update.shape)} and {tuple(weight.shape)}")
    moved, size = (cast(Tensor, torch.linalg.vector_norm(each, dim=-2, dtype=wide(each))) for each in (update, weight))
    return torch.where(moved == 0, moved, moved / size)


def stagnant(ratio: Tensor, below: float = STAGNANT) -> Tensor:
    """Units that a step moves by at most `below` of their weights' size.

    >>> stagnant(torch.tensor([1e-7, 1e-3, 0.2]))
    tensor([ True, False, False])
    """
    return activity("ratio", ratio, axes=1) <= number("below", below)


def volatile(ratio: Tensor, above: float = VOLATILE) -> Tensor:
    """Units that a step moves by at least `above` of their weights' size.

    >>> volatile(torch.tensor([1e-7, 1e-3, 0.2]))
    tensor([False, False,  True])
    """
    return activity("ratio", ratio, axes=1) >= number("above", above)
