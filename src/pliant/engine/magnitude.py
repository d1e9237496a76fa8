"""How large the weights are that leave each column of a group, computed at every step, so in few operations."""

from __future__ import annotations

import torch
from torch import Tensor

from pliant.units.bound import Consumer
from pliant.units.entries import BoundSlice

SCRATCH = 2**20  # entries: larger matrices take memory of their own while |w| is summed


class Magnitude:
    """A slice's part of the mean |w| of its consumer: written to `target` (runs, units, repeat), or added behind the first."""

    def __init__(self, consumer: Consumer, part: BoundSlice, target: Tensor) -> None:
        self.part, self.target, self.rows = part, target, consumer.rows
        self.first = part is consumer.slices[0]
        weights, spec = part.parameter, part.part
        regular = spec.index is None and spec.shape is None and not part.stacked and part.repeat == 1
        self.is_matrix = regular and self.first and weights.dim() == 2 and weights.dtype == target.dtype
        self.line = target[0, :, 0]
        self.share_of_row = target.new_full((part.row[0] if part.row else 1,), 1.0 / self.rows)

    def share(self, scratch: Tensor) -> None:
        """Where |w| of a small matrix may be written: the same memory for all, which stays in the cache."""
        weights = self.part.parameter
        fits = self.is_matrix and weights.numel() <= len(scratch)
        self.sizes = sizes = scratch[: weights.numel()].view(weights.shape) if fits else None
        self.by_unit = sizes if sizes is None or self.part.part.axis == 0 else sizes.t()

    def write(self) -> None:
        if self.sizes is not None and self.by_unit is not None and self.part.parameter.dtype == self.sizes.dtype:
            torch.abs(self.part.parameter, out=self.sizes)
            torch.mv(self.by_unit, self.share_of_row, out=self.line)  # the mean over its rows, at half the cost
        elif self.first:
            self.target.copy_(self.part.magnitude(self.target.dtype)).div_(self.rows)
        else:
            self.target.add_(self.part.magnitude(self.target.dtype), alpha=1.0 / self.rows)
