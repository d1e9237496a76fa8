"""Deep Fourier features: each pre-activation is passed on by its sine and its cosine.

    φ(z) = [sin z, cos z]

The output is twice as wide as z along `dim`. Where one of the two is flat the other is nearly linear, so that a deep network of
them contains a nearly linear one, and a linear one does not lose plasticity. Pre-activation z[i] and its two outputs, i and n + i
of 2 n, are one unit to `pliant.trace`: methods replace both.

Source: Lewandowski, Schuurmans and Machado, ICLR 2025 (arXiv 2410.20634). No departures; there it is the activation of every
layer, with half as many pre-activations, so that the width stays: `pliant.nn.convert` does that. Pre-activations should be of
order 1: much larger ones make the features of neighboring inputs unrelated.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pliant.base.arguments import integer


class DeepFourier(nn.Module):
    """[sin z, cos z] along an axis: (..., n, ...) -> (..., 2 n, ...).

    Args:
        dim: the axis of units: -1 after a linear layer, 1 (or -3) after a 2d convolution.

    Raises `TypeError` where `dim` is no integer.

    >>> DeepFourier()(torch.tensor([[0.0, torch.pi / 2]])).round(decimals=4).abs()
    tensor([[0., 1., 1., 0.]])
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = integer("dim", dim)

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z.sin(), z.cos()], self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
