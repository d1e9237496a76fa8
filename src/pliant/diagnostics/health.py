"""Unit health: hidden units that are dead, dormant, saturated or linearized.

    h  activity of units, (..., n, units); see `features`
    g  gradients of units, (..., n, units): by their activity, or by n incoming weights each

    dead                 h = 0 on all n inputs                                        Dohare et al., Nature 632 (2024)
    dormant_by_firing    h > 0 on less than 1% of the inputs                          the same
    dormant_by_activity  mean |h| <= τ x mean of that over the layer's units          Sokar et al., ICML 2023 (ReDo)
    dormant_by_gradient  mean |g| <= τ x mean of that over the layer's units          Liu et al., NeurIPS 2025 (GraMa)
    saturated            h at a flat end of its activation on at least 99% of inputs  thresholds are conventional
    saturation           the share of all activity of a layer that is at a flat end   of a layer, between 0 and 1
    linearized           h > 0 on all n inputs, of a ReLU                             Lyle et al., 2024 ("zombie" units)

Every function returns one bool per unit, (..., units). A unit with a NaN is in none of these classes.

Departures. Three published measures are called "dormant"; here each has its own name. Dohare et al. count h != 0 for CIFAR, which
is the same behind a ReLU, and take "less than 1%" there, as we do, but "at most 1%" for RL. In a layer without any activity,
ReDo's score is 0 / 0: all of its units count as dormant. In a layer with NaN or inf, whose mean is undefined, none does.
`pliant.ReDo` replaces units by the same rule, `pliant.engine.utility.dormancy`.
"""

from __future__ import annotations

from math import inf

from torch import Tensor

from pliant.base.arguments import is_a, number, shown
from pliant.diagnostics.features import activity, wide
from pliant.engine.utility import dormancy as share_of_layer  # the rule by which ReDo replaces

FLAT_ENDS = {  # activation -> saturated below, saturated above
    "tanh": (-0.99, 0.99),
    "hardtanh": (-0.99, 0.99),
    "sigmoid": (0.01, 0.99),
    "hardsigmoid": (0.01, 0.99),
    "relu6": (-inf, 5.94),  # its lower end is what the dormant measures count
}


def dead(h: Tensor) -> Tensor:
    """Units that are 0 on every input.

    >>> import torch
    >>> dead(torch.tensor([[0.0, 1.0, -1.0], [0.0, 0.0, 0.0]]))
    tensor([ True, False, False])
    """
    return (activity("h", h) == 0).all(-2)


def dormant_by_firing(h: Tensor, share: float = 0.01) -> Tensor:
    """Units above 0 on less than `share` of the inputs. Meaningful for ReLU and its variants alone: half a tanh is below 0.

    >>> import torch
    >>> dormant_by_firing(torch.tensor([[-1.0, 1.0], [-1.0, -1.0]]))
    tensor([ True, False])
    """
    h, share = activity("h", h), number("share", share, 0.0, 1.0)
    return ((h > 0).mean(-2, dtype=wide(h)) < share) & ~h.isnan().any(-2)


def dormant_by_activity(h: Tensor, tau: float = 0.025) -> Tensor:
    """Units whose mean |h| is at most `tau` of the layer's mean: τ-dormant.

    >>> import torch
    >>> dormant_by_activity(torch.tensor([[0.01, 1.0], [-0.01, 3.0]]))  # 0.01 and 2, of a mean of 1.005
    tensor([ True, False])
    """
    h, tau = activity("h", h), number("tau", tau)
    return share_of_layer(h.abs().mean(-2, dtype=wide(h))) <= tau


def dormant_by_gradient(g: Tensor, tau: float = 0.01) -> Tensor:
    """Units whose mean |g| is at most `tau` of the layer's mean.

    Two gradients are in use: of the loss by each unit's activity, (..., n, units), as published, and by the weights that enter
    each unit, (..., incoming, units), as in several codes. `diagnose` takes the second, which the `.grad` of any step holds.

    >>> import torch
    >>> dormant_by_gradient(torch.tensor([[0.0, 1.0], [0.0, -3.0]]))
    tensor([ True, False])
    """
    g, tau = activity("g", g), number("tau", tau)
    return share_of_layer(g.abs().mean(-2, dtype=wide(g))) <= tau


def saturated(h: Tensor, activation: str = "tanh", share: float = 0.99) -> Tensor:
    """Units beyond an end of `FLAT_ENDS[activation]` on at least `share` of the inputs: no gradient comes through them.

    Raises `ValueError` for an activation without flat ends.

    >>> import torch
    >>> saturated(torch.tensor([[1.0, 0.999], [-1.0, 0.5]]))
    tensor([ True, False])
    """
    h, share = activity("h", h), number("share", share, 0.0, 1.0)
    return (_at_an_end(h, activation, "saturated").mean(-2, dtype=wide(h)) >= share) & ~h.isnan().any(-2)


def saturation(h: Tensor, activation: str = "tanh") -> Tensor:
    """The share of activity beyond an end of `FLAT_ENDS[activation]`: (..., n, units) -> (...), NaN if any of it is.

    Raises `ValueError` for an activation without flat ends.

    >>> import torch
    >>> saturation(torch.tensor([[1.0, 0.999], [-1.0, 0.5]]))
    tensor(0.7500, dtype=torch.float64)
    """
    h = activity("h", h)
    share = _at_an_end(h, activation, "saturation").mean((-2, -1), dtype=wide(h))
    return share.masked_fill(h.isnan().any(-1).any(-1), float("nan"))


def _at_an_end(h: Tensor, activation: str, what: str) -> Tensor:
    if not is_a(activation, str) or activation not in FLAT_ENDS:
        raise ValueError(
            f"{what}: activation={shown(activation)} has no flat ends that are known; those with: {', '.join(FLAT_ENDS)}"
        )
    low, high = FLAT_ENDS[activation]
    exact = h if h.dtype.itemsize >= 4 else h.float()  # in float16, 0.99 would be another number
    return (exact < low) | (exact > high)


def linearized(h: Tensor) -> Tensor:
    """ReLU units above 0 on every input: they are linear. `h` may be taken before the ReLU or behind it, which is the same.

    >>> import torch
    >>> linearized(torch.tensor([[1.0, 0.0], [2.0, 3.0]]))
    tensor([ True, False])
    """
    return (activity("h", h) > 0).all(-2)
