"""Online normalization: statistics of single examples, one after the other, forward and backward.

Forward, for each unit and each example t in turn, with a = `decay_forward`:

    y_t = (x_t - μ_{t-1}) / σ_{t-1},       σ = sqrt(var + eps)
    var_t = a var_{t-1} + a (1 - a) (x_t - μ_{t-1})²
    μ_t = a μ_{t-1} + (1 - a) x_t

Backward, with g = dL/dy, b = `decay_backward` and the same order of examples; on average, it keeps gradients orthogonal to y and
to 1, as gradients through an exact normalization are:

    g'_t = g_t - (1 - b) ε^y_{t-1} y_t              ε^y_t = ε^y_{t-1} + g'_t y_t
    dL/dx_t = g'_t / σ_{t-1} - (1 - b) ε^1_{t-1}    ε^1_t = ε^1_{t-1} + dL/dx_t

The output is γ y + β, with `layer_scaling` divided by sqrt(its mean square over units + eps). At the start μ = 0, var = 1, ε = 0.

Source: Chiley et al., NeurIPS 2019 (arXiv 1905.05894), and their released code for the order of γ, β and layer scaling.
No departures; the released code by default clamps at +-5 in place of layer scaling, which is left to the user.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pliant.base.arguments import flag, number, whole


class OnlineNorm1d(nn.Module):
    """Normalizes each unit over the stream of examples; the examples of a batch are processed one after the other.

    Evaluation uses the statistics as they are. Statistics and control are buffers, in the dtype of the layer, and `state_dict`
    holds them. The backward pass updates the control: it must run once per forward, without checkpointing.

    Args:
        units: of each example.
        decay_forward: a, of mean and variance, in [0, 1).
        decay_backward: b, of the control, in [0, 1).
        eps: added to the variance.
        affine: learn γ (1 at the start) and β (0).
        layer_scaling: divide by the root mean square over units, which bounds the output where statistics lag behind.

    Raises `ValueError` for decays out of range, and for an input that is not (batch, `units`).

    >>> norm = OnlineNorm1d(3, decay_forward=0.9)
    >>> x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * 4 + 7
    >>> y = norm(x)[100:]
    >>> bool((y.mean(0).abs() < 0.1).all() and (y.std(0) - 1).abs().max() < 0.15)
    True
    """

    mean: Tensor
    var: Tensor
    control_y: Tensor
    control_1: Tensor

    def __init__(
        self,
        units: int,
        decay_forward: float = 0.999,
        decay_backward: float = 0.99,
        eps: float = 1e-5,
        affine: bool = True,
        layer_scaling: bool = False,
    ) -> None:
        super().__init__()
        self.decay_forward = number("decay_forward", decay_forward, 0.0, 1.0, below=True)
        self.decay_backward = number("decay_backward", decay_backward, 0.0, 1.0, below=True)
        self.units, self.eps = whole("units", units, 1, of="units"), number("eps", eps)
        self.layer_scaling, affine = flag("layer_scaling", layer_scaling), flag("affine", affine)
        units = self.units
        self.weight = nn.Parameter(torch.empty(units)) if affine else None
        self.bias = nn.Parameter(torch.empty(units)) if affine else None
        for name in ("mean", "var", "control_y", "control_1"):
            self.register_buffer(name, torch.empty(units))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset parameters, statistics and control to their initial values."""
        nn.init.ones_(self.var)
        for buffer in (self.mean, self.control_y, self.control_1):
            nn.init.zeros_(buffer)
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, units) -> (batch, units)."""
        if x.dim() != 2 or x.shape[1] != self.units:
            raise ValueError(f"OnlineNorm1d({self.units}) takes (batch, {self.units}), got {tuple(x.shape)}")
        y = cast(Tensor, _OneByOne.apply(x, self)) if self.training else self._as_it_is(x)
        if self.weight is not None and self.bias is not None:
            y = y * self.weight + self.bias
        return y / (y.square().mean(dim=1, keepdim=True) + self.eps).sqrt() if self.layer_scaling else y

    def _as_it_is(self, x: Tensor) -> Tensor:
        return (x - self.mean) / (self.var + self.eps).sqrt()

    def extra_repr(self) -> str:
        return f"{self.units}, decay_forward={self.decay_forward}, decay_backward={self.decay_backward}, eps={self.eps}"


class _OneByOne(torch.autograd.Function):
    """Forward and backward over the examples of a batch. Each updates the module's buffers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: OnlineNorm1d) -> Tensor:
        a = norm.decay_forward
        y, scale = torch.empty_like(x), torch.empty_like(x)
        for t, example in enumerate(x):
            away = example - norm.mean
            scale[t] = (norm.var + norm.eps).rsqrt()
            y[t] = away * scale[t]
            norm.var.add_(a * away.square() - norm.var, alpha=1.0 - a)
            norm.mean.add_(away, alpha=1.0 - a)
        ctx.norm = norm
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        norm: OnlineNorm1d = ctx.norm
        b = norm.decay_backward
        into = torch.empty_like(gradient)
        for t, (g, y, scale) in enumerate(zip(gradient, *ctx.saved_tensors, strict=True)):
            controlled = g - (1.0 - b) * norm.control_y * y
            norm.control_y.add_(controlled * y)
            into[t] = controlled * scale - (1.0 - b) * norm.control_1
            norm.control_1.add_(into[t])
        return into, None
