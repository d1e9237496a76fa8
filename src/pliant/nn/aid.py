"""AID, activation by interval-wise dropout: dropout of the positive and of the negative numbers, at different rates.

    training      φ(x) = M relu(x) - (1 - M) relu(-x),    M ~ Bernoulli(p), for each number anew
    evaluation    φ(x) = p relu(x) - (1 - p) relu(-x)     its mean

So a number passes through a ReLU with probability p, and else through the ReLU of the other side; on average it is a leaky ReLU,
of slopes p and 1 - p.

Source: Park, Han, Oh and Kim, 2025 (arXiv 2502.01342), in its form of two intervals, cut at 0.
Settings there: p 0.9 to 0.999, and 0.99 on permuted MNIST. No departures; the gradient at 0 is that of torch's ReLU, 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pliant.base.arguments import number


class AID(nn.Module):
    """A random choice of ReLU for each number in training; its mean, a leaky ReLU, in evaluation. The shape stays.

    Draws come from torch's global generator of the device, as those of `torch.nn.Dropout`.

    Args:
        p: probability of the ReLU that passes positive numbers, in [0, 1].

    Raises `ValueError` for `p` out of range.

    >>> AID(p=0.75).eval()(torch.tensor([4.0, -4.0]))
    tensor([ 3., -1.])
    """

    def __init__(self, p: float = 0.99) -> None:
        super().__init__()
        self.p = number("p", p, 0.0, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        positive, negative = x.relu(), -((-x).relu())
        if self.training:
            return torch.where(torch.empty_like(x).bernoulli_(self.p) > 0, positive, negative)
        return self.p * positive + (1.0 - self.p) * negative

    def extra_repr(self) -> str:
        return f"p={self.p}"
