"""How large weights and gradients are.

    weight_magnitude   Σ |w| / number of weights, over all tensors given    Nature 632 (2024): the weight matrices, no biases
    gradient_norm      sqrt(Σ g²), over all tensors given

Nature's figures of MNIST count the weight matrices; those of CIFAR every parameter; those of RL one matrix: say which.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from pliant.base.arguments import integer, is_a, shown
from pliant.diagnostics.features import wide


def weight_magnitude(*weights: Tensor, leading: int = 0) -> Tensor:
    """Mean |w| over all entries of all tensors; (...) for `leading` axes that stay apart (1 for a stack of runs).

    Raises `ValueError` if no tensor is given.

    >>> weight_magnitude(torch.tensor([[1.0, -3.0]]), torch.tensor([2.0, 2.0]))
    tensor(2., dtype=torch.float64)
    """
    rows = _rows(weights, leading, "weight_magnitude")
    total = torch.stack([each.abs().sum(-1, dtype=wide(each)) for each in rows]).sum(0)
    return total / sum(each.shape[-1] for each in rows)


def gradient_norm(*gradients: Tensor, leading: int = 0) -> Tensor:
    """Euclidean norm over all entries of all tensors; (...) for `leading` axes that stay apart (1 for a stack of runs).

    Raises `ValueError` if no tensor is given.

    >>> gradient_norm(torch.tensor([[3.0]]), torch.tensor([4.0]))
    tensor(5., dtype=torch.float64)
    """
    rows = _rows(gradients, leading, "gradient_norm")
    norms = torch.stack([_norm(each) for each in rows], dim=-1)
    return _norm(norms)


def _norm(entries: Tensor) -> Tensor:
    entries = entries.abs() if entries.is_complex() else entries
    return cast(Tensor, torch.linalg.vector_norm(entries, dim=-1, dtype=wide(entries)))


def _rows(tensors: tuple[Tensor, ...], leading: int, what: str) -> list[Tensor]:
    """Each as (*leading axes, entries)."""
    if not tensors:
        raise ValueError(f"{what}: give at least one tensor")
    for number, each in enumerate(tensors):
        if not is_a(each, Tensor):
            raise TypeError(f"{what}: argument {number} must be a tensor, got {shown(each)}")
        if not 0 <= integer("leading", leading) <= each.dim():
            raise ValueError(
                f"leading must be from 0 to the axes of each tensor, got {leading} for {tuple(each.shape)}"
            )
    return [each.detach().reshape(*each.shape[:leading], -1) for each in tensors]
