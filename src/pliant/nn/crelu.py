"""Concatenated ReLU: each pre-activation is passed on by its positive and by its negative part.

    φ(z) = [relu(z), relu(-z)]

The output is twice as wide as z along `dim`. One of the two parts always has gradient 1, so that no unit can fall silent, but
for z = 0. Pre-activation z[i] and its two outputs, i and n + i of 2 n, are one unit to `pliant.trace`: methods replace both.

Source: Shang et al., ICML 2016; Abbas et al., CoLLAs 2023 (arXiv 2303.07507), for continual learning. No departures. To keep the
width of a network, compute half as many pre-activations: `pliant.nn.convert` does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pliant.base.arguments import integer


class CReLU(nn.Module):
    """[relu(z), relu(-z)] along an axis: (..., n, ...) -> (..., 2 n, ...).

    Args:
        dim: the axis of units: -1 after a linear layer, 1 (or -3) after a 2d convolution.

    Raises `TypeError` where `dim` is no integer.

    >>> CReLU()(torch.tensor([[3.0, -2.0]]))
    tensor([[3., 0., 0., 2.]])
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = integer("dim", dim)

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z.relu(), (-z).relu()], self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
