"""Features: the activity of hidden units, as one matrix.

    h  (..., n, units)    n counts all axes but that of units: examples, tokens, pixels

Every measure of units in this package takes the last two axes to be (n, units) and keeps all axes in front of them, so that a
stack (runs, n, units) gives one result per run. `features` brings tokens and channels into that form.
"""

from __future__ import annotations

from math import prod
from typing import cast

import torch
from torch import Tensor

from pliant.base.arguments import integer, is_a, shown


def features(h: Tensor, axis: int = -1, *, leading: int = 0) -> Tensor:
    """`h` as (*leading axes, n, units).

    Args:
        h: activity of any shape, for example (batch, units), (batch, time, units) or (batch, channels, height, width).
        axis: where the units lie, counted in the whole tensor: -1 for tokens, 1 for channels of images.
        leading: number of axes in front that are kept (the runs of a stack); all others are merged into n.

    Raises `ValueError` if `axis` is no axis of `h`, or one of the leading ones.

    >>> features(torch.zeros(8, 5, 32)).shape, features(torch.zeros(8, 16, 4, 4), axis=1).shape
    (torch.Size([40, 32]), torch.Size([128, 16]))
    """
    h, axis, leading = activity("h", h, axes=1), integer("axis", axis), integer("leading", leading)
    place = axis if axis >= 0 else axis + h.dim()
    if not 0 <= leading <= place < h.dim():
        raise ValueError(
            f"features: axis {axis} of a tensor of shape {tuple(h.shape)} cannot hold its units with leading={leading}; give one "
            f"of the axes behind the first {max(leading, 0)}"
        )
    last = h.movedim(place, -1)
    return last.reshape(*last.shape[:leading], prod(last.shape[leading:-1]), last.shape[-1])


def feature_norm(h: Tensor) -> Tensor:
    """Mean over inputs of the Euclidean length of the feature vector: (..., n, units) -> (...).

    It grows with the square root of the number of units: compare a layer with itself.

    >>> feature_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))  # lengths 5 and 1
    tensor(3., dtype=torch.float64)
    """
    h = activity("h", h)
    lengths = cast(Tensor, torch.linalg.vector_norm(h, dim=-1, dtype=wide(h)))
    return lengths.mean(-1)


def activity(name: str, h: Tensor, axes: int = 2, *, empty: bool = False) -> Tensor:
    """`h`, if it is a tensor of real numbers with so many axes, of one input or more. Raises `TypeError` or `ValueError`."""
    if not is_a(h, Tensor):
        raise TypeError(f"{name} must be a tensor, got {shown(h)}")
    if h.is_complex():
        raise TypeError(f"{name} must be of real numbers, got {h.dtype}")
    if h.dim() < axes or (axes > 1 and h.shape[-2] == 0 and not empty):
        raise ValueError(f"{name} must have shape (..., n, units) with n of 1 or more, got {tuple(h.shape)}")
    return h


def wide(h: Tensor) -> torch.dtype:
    """The dtype of sums: float64, or float32 on a device that has no float64 (MPS)."""
    return torch.float32 if h.device.type == "mps" else torch.float64
