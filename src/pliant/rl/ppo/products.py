"""x W^T + b for each agent of a stack, and its gradients, fast on CPUs.

    y[s] = x[s] W[s]^T + b[s]        dx[s] = dy[s] W[s]        dW[s] = dy[s]^T x[s]        db[s] = Σ dy[s]
    rectified: y = max(y, 0), dy = 0 where y is 0

Two implementations. Small products are *batched*. For large ones in float32, each agent's product is computed by oneDNN, which
PyTorch ships and uses for convolutions, while it computes products with MKL. Measured on an AMD EPYC with AVX-512, one thread,
128 x 256 x 256: 130 to 180 GFLOP/s with oneDNN, 70 to 90 with MKL. The operator, `_linear_pointwise`, is the one that
`torch.compile` emits; where a PyTorch has none, or oneDNN is switched off (`torch.backends.mkldnn.enabled`), products are
batched. A test compares the two.

Gradients of weights have the weights' own memory order: autograd's, of W^T, has its last axes swapped and would be copied at
every step, which takes a quarter of an update's time.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

LARGE = 1 << 21  # multiplications of one product, from which on a separate call is faster
NARROW = 64  # rows and columns, likewise


def affine(x: Tensor, weight: Tensor, bias: Tensor, *, rectified: bool = False) -> Tensor:
    """(agents, n, inputs), (agents, outputs, inputs), (agents, outputs) -> (agents, n, outputs).

    >>> affine(torch.ones(1, 1, 2), torch.tensor([[[1.0, 2.0], [-1.0, -2.0]]]), torch.ones(1, 2), rectified=True)
    tensor([[[4., 0.]]])
    """
    return cast(Tensor, _Affine.apply(x, weight, bias, rectified))


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, rectified: bool) -> Tensor:
        one = _one_product(x, weight)
        if one is None:
            y = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
            y = y.relu_() if rectified else y
        else:
            after = "relu" if rectified else "none"
            each = zip(x.unbind(), weight.unbind(), bias.unbind(), strict=True)
            y = torch.stack([one(of_x, of_w, of_b, after, [], "") for of_x, of_w, of_b in each])
        ctx.save_for_backward(x, weight, *((y,) if rectified else ()))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight, *rectified = ctx.saved_tensors
        dy = gradients[0]
        for y in rectified:
            dy = torch.ops.aten.threshold_backward(dy, y, 0.0)
        one, sums = _one_product(x, weight), dy.sum(1)
        wanted = bool(ctx.needs_input_grad[0])
        if one is None:
            return torch.bmm(dy, weight) if wanted else None, torch.bmm(dy.transpose(1, 2), x), sums, None
        of_dy, of_x, of_w = (each.unbind() for each in (dy.contiguous(), x, weight))
        dw = torch.stack([one(g.t(), h.t(), None, "none", [], "") for g, h in zip(of_dy, of_x, strict=True)])
        if not wanted:
            return None, dw, sums, None
        dx = torch.stack([one(g, w.t(), None, "none", [], "") for g, w in zip(of_dy, of_w, strict=True)])
        return dx, dw, sums, None


def _one_product(x: Tensor, weight: Tensor) -> Callable[..., Tensor] | None:
    """oneDNN's operator, which multiplies one agent's matrices; None where batched products are faster."""
    large = x.shape[1] * weight.shape[1] * weight.shape[2] >= LARGE and min(*x.shape[1:], *weight.shape[1:]) >= NARROW
    whole = x[0].is_contiguous() and weight.is_contiguous()  # some others it computes a hundred times slower
    if not large or not whole or x.dtype != torch.float32 or not torch.backends.mkldnn.enabled:
        return None
    return _ONE_DNN


def _one_dnn() -> Callable[..., Tensor] | None:
    if not torch.backends.mkldnn.is_available() or platform.machine() not in ("x86_64", "AMD64"):
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_ONE_DNN = _one_dnn()
