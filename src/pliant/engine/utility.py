"""How useful each hidden unit is, from what it did and what its weights are.

    r[i]   instantaneous utility, one of the functions below, averaged over the unit's columns
    U[i] <- η U[i] + (1 - η) r[i]            running utility; η is `decay_rate`
    Û[i]  = U[i] / (1 - η^age[i])            corrected for its start at 0, each unit by its own age

Source: Dohare et al., Nature 632 (2024), eq. 1 and the released code, whose names are kept. Two differences
from Dohare et al. (2024): |h| is averaged over the batch (equal at batch size 1), and outgoing weights are averaged,
not summed (a constant factor within a group; ranks agree). After a flatten a unit has several columns;
the product is taken per column and then averaged, as the released code does, but each column is centred on
its own mean, where the released code centres all of them on one.

Formulas take and give one number per column, (..., columns); `pliant.engine.score` adds them up by unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import nan
from typing import Literal

import torch
from torch import Tensor

from pliant.base.arguments import called_with, listed
from pliant.base.choices import one_of, shown
from pliant.base.deprecation import renamed
from pliant.engine.activity import Reading

READS: tuple[Reading, ...] = ("mean", "magnitude", "centred")  # of activity, what a utility is given
WEIGHTS = ("outgoing", "incoming")


@dataclass(frozen=True)
class Seen:
    """What is known after one step, each (..., columns); only what a utility `reads` and the `weights` it names are there."""

    magnitude: Tensor  # mean |h| over the batch
    centred: Tensor  # mean |h - running mean of h| over the batch
    outgoing: Tensor  # mean |w| over the weights that leave the column
    incoming: Tensor  # mean |w| over the weights that enter the unit, bias not counted


@dataclass(frozen=True)
class Utility:
    """A named utility: its formula, the activity it reads, and the weights it looks at."""

    name: str
    formula: Callable[[Seen], Tensor]
    reads: tuple[Reading, ...]
    weights: tuple[Literal["outgoing", "incoming"], ...]

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for what no step could compute."""
        called_with("formula", self.formula, "what was seen")
        for name, given, known in (("reads", self.reads, READS), ("weights", self.weights, WEIGHTS)):
            several = listed(given)
            if several is None:
                raise TypeError(f"{name} of a Utility is a tuple of names ({', '.join(known)}), got {shown(given)}")
            for each in several:
                one_of(name, each, known)

    def __call__(self, seen: Seen) -> Tensor:
        """Instantaneous utility at each column, (..., columns)."""
        return self.formula(seen)


def weight(seen: Seen) -> Tensor:
    """mean |w_out|"""
    return seen.outgoing


def contribution(seen: Seen) -> Tensor:
    """mean |w_out| x mean |h|, that of Dohare et al. (2024)"""
    return seen.outgoing * seen.magnitude


def adaptation(seen: Seen) -> Tensor:
    """1 / mean |w_in|"""
    return 1.0 / seen.incoming


def zero_contribution(seen: Seen) -> Tensor:
    """mean |w_out| x mean |h - mean h|"""
    return seen.outgoing * seen.centred


def adaptable_contribution(seen: Seen) -> Tensor:
    """mean |w_out| x mean |h - mean h| / mean |w_in|"""
    return seen.outgoing * seen.centred / seen.incoming


def feature_by_input(seen: Seen) -> Tensor:
    """mean |h - mean h| / mean |w_in|"""
    return seen.centred / seen.incoming


def random(seen: Seen) -> Tensor:
    """Nothing is measured: the rank of units is drawn anew whenever some are due (a control)."""
    return torch.zeros_like(seen.magnitude)


UTILITIES = {
    utility.name: utility
    for utility in (
        Utility("contribution", contribution, ("magnitude",), ("outgoing",)),
        Utility("adaptable_contribution", adaptable_contribution, ("centred",), ("outgoing", "incoming")),
        Utility("zero_contribution", zero_contribution, ("centred",), ("outgoing",)),
        Utility("weight", weight, (), ("outgoing",)),
        Utility("adaptation", adaptation, (), ("incoming",)),
        Utility("feature_by_input", feature_by_input, ("centred",), ("incoming",)),
        Utility("random", random, (), ()),
    )
}


def named_utility(utility: str | Utility) -> Utility:
    """The utility of that name; raises `ValueError` listing the known ones."""
    if isinstance(utility, Utility):
        return utility
    return UTILITIES[one_of("utility", utility, UTILITIES)]


def dormancy(size: Tensor) -> Tensor:
    """Each unit's size, such as its mean |h|, over the mean size of its layer, (..., units).

    Where a layer is silent throughout, that is 0 / 0. All of its units are 0 here, so dormant at any threshold, as in
    the released code, which adds 1e-9 to the mean. Where a layer holds NaN or inf, its mean tells nothing: all are NaN,
    which is below no threshold. ReDo replaces, and `pliant.diagnose` counts, by this one function.

    Source: Sokar et al., ICML 2023 (ReDo), eq. 1.

    >>> dormancy(torch.tensor([[0.0, 1.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    tensor([[0., 1., 3., 0.],
            [0., 0., 0., 0.]])
    """
    mean = size.mean(dim=-1, keepdim=True)
    return torch.where(mean == 0, 0.0, torch.where(mean.isfinite(), size / mean, nan))


_AVERAGING = ("corrected", "running_average", "weight_seen")
__getattr__ = renamed(__name__, {name: f"pliant.engine.averaging.{name}" for name in _AVERAGING})
