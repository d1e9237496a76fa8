"""Online input normalization: each input feature less its running mean, over its running deviation.

For each number x of a feature, the t-th in training:

    a = max(1 - η, 1 / t)          d = x - μ
    μ <- μ + a d                   v <- (1 - a) (v + a d²)                   η  `decay`
    y = (x - μ) / sqrt(v + eps)

The statistics of x include x, so that in a stream |y| is at most sqrt(η / (1 - η)), about 10 for η = 0.99, whatever x is. A plain
mean and variance come first, until 1 / (1 - η) examples were seen. The examples of a batch count in their order, and all are
normalized by the statistics after the last: with w[i] = a[i] Π_{j>i} (1 - a[j]), and A their sum,

    μ' = (1 - A) μ + Σ w[i] x[i]       v' = (1 - A) (v + (μ - μ')²) + Σ w[i] (x[i] - μ')²

which is the recursion, written out. Evaluation leaves μ and v as they are. The gradient of x takes both as constants.

Source: the recursion of `normalize=True` in `pliant.online`, here with `eps`; running statistics of inputs with η = 0.99 are a
common baseline on streams of permuted images. It is not `pliant.nn.OnlineNorm1d`, which normalizes hidden units, by statistics
before x, and has a backward pass of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pliant.base.arguments import integer, listed, number, shown, whole


class InputNorm(nn.Module):
    """Normalizes each feature of the input over the stream of examples: (..., *shape) -> the same.

    All axes before those of `shape` count as examples, in C order: none of them is a stream of single examples, the batch and
    the steps of sequences are two. `mean`, `var` and `count` (of examples) are buffers, in `state_dict`; they start at 0, 1 and
    0, with which evaluation leaves the input as it is. Each forward in training mode counts, also one that checkpointing repeats.

    Args:
        shape: of one example; a number for a vector of so many features. Each pixel of an image is a feature.
        decay: η per example, in [0, 1]; 1 keeps the plain mean and variance of all that was seen.
        eps: added to the variance; above 0, since a feature that never changes has variance 0.

    Raises `TypeError` or `ValueError` for settings out of range, and in `forward` for an input of another shape.

    >>> norm = InputNorm(1, decay=0.5)
    >>> [round(norm(torch.tensor([x])).item(), 3) for x in (3.0, 5.0, 5.0)]
    [0.0, 1.0, 0.577]
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: int | Sequence[int], decay: float = 0.99, eps: float = 1e-8) -> None:
        super().__init__()
        self.shape = _shape(shape)
        self.decay, self.eps = number("decay", decay, 0.0, 1.0), number("eps", eps)
        if self.eps == 0.0:
            raise ValueError("eps must be above 0, got 0: the variance of a feature that never changes is 0")
        self.register_buffer("mean", torch.empty(self.shape))
        self.register_buffer("var", torch.empty(self.shape))
        self.register_buffer("count", torch.empty((), dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Forget all examples."""
        nn.init.zeros_(self.mean)
        nn.init.ones_(self.var)
        nn.init.zeros_(self.count)

    def forward(self, x: Tensor) -> Tensor:
        """(..., *shape) -> (..., *shape)."""
        if tuple(x.shape[x.dim() - len(self.shape) :]) != self.shape:
            raise ValueError(
                f"InputNorm({self.shape}) takes inputs whose last axes are {self.shape}, got {tuple(x.shape)}"
            )
        if self.training and x.numel():
            self._take_in(x.detach().reshape(-1, *self.shape))
        return (x - self.mean) / (self.var + self.eps).sqrt()

    @torch.no_grad()
    def _take_in(self, examples: Tensor) -> None:
        """The statistics after these examples, (n, *shape)."""
        real = torch.promote_types(self.mean.dtype, torch.float32)
        numbers = self.count + torch.arange(1, len(examples) + 1, device=self.count.device)
        a = (1.0 / numbers.to(real)).clamp(min=1.0 - self.decay)
        kept = (1.0 - a).flip(0).cumprod(0).flip(0)  # by example i and all later ones, of what came before
        w = (a * torch.cat([kept[1:], kept.new_ones(1)])).view(-1, *[1] * len(self.shape))
        start = torch.where(self.count > 0, self.mean, examples[0])  # of which nothing is kept where there was none
        away = examples - start  # so that a feature that never changes has variance 0 in spite of rounding
        step = (w * away).sum(0)
        self.var.copy_(kept[0] * (self.var + step.square()) + (w * (away - step).square()).sum(0))
        self.mean.copy_(start + step)
        self.count.add_(len(examples))

    def extra_repr(self) -> str:
        return f"{self.shape}, decay={self.decay}, eps={self.eps}"


def _shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    several = listed(shape)
    if several is None:
        return (whole("shape", shape, 1, of="features"),)
    if not several:
        raise ValueError(f"shape must have at least one axis, got {shown(shape)}")
    return tuple(whole("shape", integer("shape", size), 1, of="features of each axis") for size in several)
