"""Smooth leaky ReLU: a leaky ReLU without a corner, whose slope falls smoothly from 1 to a.

    φ(x) = a x + (1 - a) x sigmoid(c x / p)

Written with k = c / p and torch's silu(y) = y sigmoid(y): a x + (1 - a) silu(k x) / k.

Source: Lillo and Cheney, 2025 (arXiv 2509.22562), "Smooth-Leaky", with a = 0.1, p = 3, c = 5; no departures.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pliant.base.arguments import number


class SmoothLeakyReLU(nn.Module):
    """a x + (1 - a) x sigmoid(c x / p), number by number. The shape stays.

    Args:
        a: slope far below 0, in [0, 1].
        c, p: steepness of the change, c / p: both above 0.

    Raises `ValueError` for settings out of range.

    >>> import torch
    >>> SmoothLeakyReLU()(torch.tensor([-100.0, 0.0, 100.0]))
    tensor([-10.,   0., 100.])
    """

    def __init__(self, a: float = 0.1, c: float = 5.0, p: float = 3.0) -> None:
        super().__init__()
        self.a, self.c, self.p = number("a", a, 0.0, 1.0), number("c", c), number("p", p)
        for name, value in (("c", self.c), ("p", self.p)):
            if value == 0.0:
                raise ValueError(f"{name} must be above 0, got {value}")

    def forward(self, x: Tensor) -> Tensor:
        k = self.c / self.p
        return self.a * x + (1.0 - self.a) / k * F.silu(k * x)

    def extra_repr(self) -> str:
        return f"a={self.a}, c={self.c}, p={self.p}"
