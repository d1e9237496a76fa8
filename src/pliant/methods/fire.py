"""FIRE: each weight matrix becomes the nearest one whose singular values are all equal.

    W <- c U Vᵀ      of W = U S Vᵀ, c = √(n_out / n_in);  a filter: at each position of its kernel, c = √(C_out / C_in) /
    positions

U Vᵀ = W (Wᵀ W)^(-1/2) is the orthogonal matrix nearest to W: what the layer tells apart stays, as far as it can, and every
direction is as easy to learn again. For use when data change: `apply()`.

Source: Han et al., ICLR 2026 (arXiv 2602.08040), and the released code: every Linear and Conv2d, the head too; in its vision
transformers queries and keys alone, in its GPT queries, keys and values apart, as here where they share a parameter. Departure:
the singular value decomposition in place of 5 to 10 Newton-Schulz steps, which is exact; these steps leave directions of singular
value 0 at 0 (a unit that was cut off), where we give them one. The optimizer's state is left alone, of which the source says
nothing: `pliant.reset_optimizer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import Unpack, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd  # pyright: ignore[reportPrivateUsage]

from pliant.engine.after_step import AfterStep, Period
from pliant.engine.attached import Optimizers
from pliant.engine.whole_parameters import Place, in_weight_layers
from pliant.units.models import checked


class FIRE(AfterStep):
    """Make weight matrices orthogonal up to a factor, when `apply()` says so, or after every `period` optimizer steps.

    Args:
        model, optimizer: the network and what steps it, or several; may be None if `period` is.
        period: None, or optimizer steps; also `parameters` (None takes the weights of linear, convolution and attention layers),
            and the rest of `pliant.engine.after_step.AfterStep`; `runs` is not for it, and it draws nothing. Raises `ValueError`
            for what does not fit.

    >>> model = nn.Linear(2, 2)
    >>> _ = model.weight.data.copy_(torch.diag(torch.tensor([3.0, -0.1])))
    >>> FIRE(model).apply()
    >>> model.weight.data
    tensor([[ 1.,  0.],
            [ 0., -1.]])
    """

    draws = "fire"

    def __init__(self, model: nn.Module, optimizer: Optimizers | None = None, **period: Unpack[Period]) -> None:
        if period.get("parameters") is None:
            layers = in_weight_layers(checked(model))
            period["parameters"] = lambda name, parameter: parameter.dim() > 1 and layers(name, parameter)
        period.setdefault("period", None)
        super().__init__(model, optimizer, **period)

    def act(self, places: Sequence[Place], keys: Sequence[int]) -> None:
        for place in places:
            if place.parameter.requires_grad:
                for block in _blocks(place):
                    block.copy_(equal_singular_values(block, transposed=isinstance(place.home, _ConvTransposeNd)))

    def check_fit(self) -> None:
        if self.runs is not None:
            raise ValueError("FIRE knows no runs: leave runs out, and give it one network at a time")
        vector = next((place for place in self.places if place.parameter.dim() < 2), None)
        if vector is not None:
            raise ValueError(f"'{vector.name}' is no matrix, and has no singular values: leave it out of parameters")


def _blocks(place: Place) -> Sequence[Tensor]:
    """The matrices of a parameter: three where queries, keys and values share it."""
    weight = place.parameter.detach()
    return cast(Sequence[Tensor], weight.chunk(3)) if place.leaf == "in_proj_weight" else [weight]


def equal_singular_values(weight: Tensor, *, transposed: bool = False) -> Tensor:
    """c U Vᵀ of a matrix (outputs, inputs), or of a filter (outputs, inputs, *kernel), whose first axes may be transposed.

    >>> equal_singular_values(torch.tensor([[0.0, 5.0, 0.0, 0.0]]))  # √(1 / 4)
    tensor([[0.0000, 0.5000, 0.0000, 0.0000]])
    """
    rows, columns, *kernel = weight.shape
    matrices = weight.movedim((0, 1), (-2, -1))
    wide = matrices if weight.dtype.itemsize >= 4 else matrices.float()
    left, _, right = cast(tuple[Tensor, Tensor, Tensor], torch.linalg.svd(wide, full_matrices=False))
    ratio = columns / rows if transposed else rows / columns
    return (left @ right).movedim((-2, -1), (0, 1)).to(weight.dtype) * (sqrt(ratio) / prod(kernel))
