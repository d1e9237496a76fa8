"""Weight decay of matrices alone, in an optimizer's own terms.

    matrices, filters, embeddings      `weight_decay`
    biases; scales and shifts of norms; every other vector or number      0

Layer norm before each activation with L2 on the matrices: a norm divides the scale of the weights before it out again, so that
growing weights only make the effective step size smaller, which the decay prevents; scales and shifts stay free.

Source: layer norm and weight decay as in Lyle et al., 2024 (arXiv 2402.18762); that vectors are left out is common practice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import nn

from pliant.base.arguments import number
from pliant.units.models import checked, is_norm


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups for any optimizer: what is decayed, and what is not; every parameter of the model is in one.

    A parameter is decayed if it has two axes or more, is not called a bias (stacked layers have one of two axes), and is no
    norm's (a layer norm over images has scales of three axes).

    Args:
        weight_decay: of the first group, 0 or more; what it means is up to the optimizer (coupled in Adam, decoupled in AdamW).

    Raises `ValueError` where the model has no parameter that is decayed.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2))
    >>> [(len(group["params"]), group["weight_decay"]) for group in decay_groups(model, 0.01)]
    [(2, 0.01), (4, 0.0)]
    """
    weight_decay = number("weight_decay", weight_decay)
    decayed, others = list[nn.Parameter](), list[nn.Parameter]()
    homes = dict(cast(Iterator[tuple[str, nn.Module]], checked(model).named_modules(remove_duplicate=False)))
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        matrix = parameter.dim() > 1 and "bias" not in leaf and not is_norm(homes[path])
        (decayed if matrix else others).append(parameter)
    if not decayed:
        raise ValueError(f"decay_groups: model ({type(model).__name__}) has no parameter of two axes or more to decay")
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
