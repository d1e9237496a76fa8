"""What shows that a network is no longer as it was initialized.

A network is taken as fresh if nothing shows that it has trained:

    optimizers  hold no state of its parameters
    norms       scale every unit by exactly 1, or by exactly 0 (the last one of a residual block), and shift none
    biases      are 0, or within the bounds of what their module's reset draws
    weights     into and out of units have no direction that stands out: with W, (units, k), less its mean, and
                κ = mean w⁴ / (mean w²)²,

        R = Σ (WᵀW)² / (units k (units + k + κ - 2) (mean w²)²)  <=  1 + 8 / sqrt(units k)

R is 1 on average for independent entries of any distribution, with a spread of about 1 / sqrt(units k), and less for
orthogonal rows or columns. Training adds directions: 1.3 to 10 in layers of 64 units whose weights had doubled. It speaks where
there are no norms and no biases, or where these have stayed small.

Frozen parameters count as all others: they show where the weights that train come from.

Source: R is the ratio of the fourth moment of the singular values to what it is for independent entries; that training
shows in a few large ones: Martin and Mahoney, JMLR 22 (2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.engine.fresh_weights.laws import has_reset, like_linear, reset_copy
from pliant.units.bound import BoundGroup, NamedModel
from pliant.units.models import is_norm

MOST = 512  # units, and weights of each, that are looked at
_SHIFTS = ("bias", "beta", "shift", "offset")


def sign_of_training(names: NamedModel, groups: Sequence[BoundGroup], optimizers: Sequence[Optimizer]) -> str | None:
    """The first thing that shows that the network has trained, in words; None if nothing does."""
    return (
        _of_optimizers(names, optimizers)
        or _of_norms(names)
        or _of_biases(names, groups)
        or _of_weights(groups)
        or None
    )


def directedness(weights: Tensor) -> Tensor:
    """R of the module's docstring: (..., units, k) -> (...).

    >>> directedness(torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, -1.0, 1.0, -1.0]]))  # rank 1: 16 x 4, of 2 x 4 x 5
    tensor(1.6000)
    """
    w = weights - weights.mean((-2, -1), keepdim=True)
    units, k = w.shape[-2:]
    square = w.square().mean((-2, -1))
    kurtosis = w.pow(4).mean((-2, -1)) / square.square()
    products = w.mT @ w if k < units else w @ w.mT
    return products.square().sum((-2, -1)) / (units * k * (units + k + kurtosis - 2.0) * square.square())


def _of_optimizers(names: NamedModel, optimizers: Sequence[Optimizer]) -> str:
    ours = set(names.parameters.values())
    for optimizer in optimizers:
        if any(_has_stepped(state) for parameter, state in optimizer.state.items() if parameter in ours):
            return f"{type(optimizer).__name__} has stepped already"
    return ""


def _has_stepped(state: dict[str, Any]) -> bool:
    """Adagrad has a state before its first step, and counts 0 in it."""
    steps = state.get("step")
    return any(each is not None for each in state.values()) if steps is None else float(steps) > 0


def _of_norms(names: NamedModel) -> str:
    for path, module in _modules(names):
        for leaf, held in _parameters(module) if is_norm(module) else ():
            start = (0.0,) if any(word in leaf for word in _SHIFTS) else (1.0, 0.0)
            if not any(bool((held == value).all()) for value in start):
                return f"the norm '{path}' has a {leaf} that is not {start[0]:g}"
    return ""


def _of_biases(names: NamedModel, groups: Sequence[BoundGroup]) -> str:
    for name, bias, bound in [*_biases(names), *_raw_biases(groups)]:
        rounding = 1.0 + torch.finfo(bias.dtype).eps
        if not bool((bias.detach().abs() <= bound * rounding).all()):
            return f"the bias '{name}' is beyond {bound:.3g}, the bound of its reset"
    return ""


def _biases(names: NamedModel) -> Iterator[tuple[str, Tensor, float]]:
    """Names of biases of modules, the biases, and the bounds that their resets keep."""
    for path, module in _modules(names):
        for leaf, held in _parameters(module) if not is_norm(module) else ():
            bound = _bound(module, leaf, held) if "bias" in leaf else None
            if bound is not None:
                yield f"{path}.{leaf}".lstrip("."), held, bound


def _bound(module: nn.Module, leaf: str, bias: Tensor) -> float | None:
    """None where what it starts from is not known: no weight stands beside it."""
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return 1.0 / sqrt(module.hidden_size)
    fan_in = like_linear(module)
    if fan_in is not None:
        return 1.0 / sqrt(max(fan_in, 1))
    weight = dict(_parameters(module)).get(leaf.replace("bias", "weight"))
    if weight is None or weight.numel() <= bias.numel():
        return None
    as_linear = sqrt(bias.numel() / weight.numel())
    if not has_reset(module):
        return as_linear
    drawn = reset_copy(module, 0).get_parameter(leaf).detach()  # a bell curve has no bound: twice what one draw reached
    return max(as_linear, 2.0 * float(drawn.abs().max()))


def _raw_biases(groups: Sequence[BoundGroup]) -> Iterator[tuple[str, Tensor, float]]:
    """Those of the groups that no module calls a bias: they start like a Linear's."""
    for group in groups:
        fan_in = prod(group.incoming_weights()[0].row)
        for part in group.incoming_biases():
            if "bias" not in part.part.parameter.rpartition(".")[2]:
                yield part.part.parameter, part.entries(), 1.0 / sqrt(fan_in)


def _of_weights(groups: Sequence[BoundGroup]) -> str:
    for part in (part for group in groups for part in (*group.incoming_weights(), *group.outgoing)):
        entries = part.entries()
        units, k = (-(-size // MOST) for size in entries.shape[1:])
        some = entries[:, ::units, ::k].double()
        if bool(
            (directedness(some) > 1.0 + 8.0 / sqrt(some[0].numel())).any()
        ):  # NaN, of weights that are 0, is no sign
            return f"directions stand out in '{part.part.parameter}', which no draw of independent weights has"
    return ""


def _modules(names: NamedModel) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, by its first name."""
    seen: set[nn.Module] = set()
    for path, module in names.modules.items():
        if module not in seen:
            seen.add(module)
            yield path, module


def _parameters(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Of the module itself."""
    return [(leaf, each.detach()) for leaf, each in module.named_parameters(recurse=False, remove_duplicate=False)]
