"""Sharpness: the largest eigenvalue, by size, of the Hessian of the loss, by power iteration on Hessian-vector products.

    v <- H v / ‖H v‖        until  vᵀ H v  changes by less than 1%, or for `MOST` products

It is of the loss on the given examples, in the parameters that have gradients. Gradient descent with a step size α is stable
along that direction while the eigenvalue is below 2 / α; Adam scales it by other numbers. Losses of other scales are not
comparable.

Source: power iteration as in Yao et al., PyHessian (2020); as a correlate of plasticity, Lyle et al., ICML 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pliant.diagnostics.watch import one_number
from pliant.units.models import arguments, unwrapped
from pliant.units.undisturbed import undisturbed

MOST = 50
SETTLED = 0.01


def sharpness_of(model: nn.Module, example: Any, loss: Callable[[Any], Tensor]) -> float:
    """The eigenvalue; NaN where the loss is not finite. Raises what PyTorch does for an operation without a second derivative."""
    network = unwrapped(model)
    with (
        undisturbed(model),
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
    ):  # the fused ones have no second derivative
        parameters = [each for each in network.parameters() if each.requires_grad]
        args, kwargs = arguments(example)
        value = one_number(loss(network(*args, **kwargs)))
        gradients = _grad(value, parameters, create_graph=True)
        used = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None and g.requires_grad]
        if not used or not bool(torch.isfinite(value)):
            return nan if used else 0.0
        weights, slopes = [p for p, _ in used], [g for _, g in used]
        generator = torch.Generator().manual_seed(0)
        vector = _unit([torch.randn(p.shape, generator=generator).to(p) for p in weights])
        found = 0.0
        for _ in range(MOST):
            along = cast(Tensor, sum((g * v).sum() for g, v in zip(slopes, vector, strict=True)))
            product = [
                torch.zeros_like(p) if each is None else each.detach()
                for p, each in zip(weights, _grad(along, weights, retain_graph=True), strict=True)
            ]
            before, found = found, _dot(vector, product)
            size = _dot(product, product) ** 0.5
            if size == 0.0 or abs(found - before) <= SETTLED * abs(found):
                break
            vector = [each / size for each in product]
    return found


def _grad(value: Tensor, parameters: Sequence[Tensor], **how: bool) -> Sequence[Tensor | None]:
    return cast(Any, torch.autograd.grad)(value, parameters, allow_unused=True, **how)


def _dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    return float(sum((a.double() * b.double()).sum() for a, b in zip(first, second, strict=True)))


def _unit(vector: Sequence[Tensor]) -> list[Tensor]:
    size = _dot(vector, vector) ** 0.5
    return [each / size for each in vector]
