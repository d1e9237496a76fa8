"""A row of a diagnosis: what was measured of one group of hidden units, and how it is called in tables."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pliant.base.deprecation import renamed_attributes


@renamed_attributes({"linearised": "linearized"})
@dataclass(frozen=True)
class GroupDiagnosis:
    """One group of hidden units. Counts are of units; None where a measure does not apply, or no activity was recorded."""

    group: str
    run: int | None  # of a stack
    activation: str | None  # function that computed the recorded activity; None if it was no single one
    units: int
    n: int  # recorded examples times positions
    columns: int  # recorded features: units times columns per unit
    dead: int | None
    dormant_by_firing: int | None
    dormant_by_activity: int | None
    dormant_by_gradient: int | None
    saturated: int | None
    linearized: int | None
    not_finite: int | None
    effective_rank: float | None
    srank: float | None
    stable_rank: float | None
    feature_norm: float | None
    weight_magnitude: float
    gradient_norm: float | None
    saturation: float | None = None  # share of the activity at a flat end
    preactivation_std: float | None = None
    weight_growth: float | None = None  # mean |w| over that of the reference
    update_ratio: float | None = None
    stagnant: int | None = None
    volatile: int | None = None

    @property
    def capped(self) -> bool:
        """Whether there were too few examples for the features to have their full rank."""
        return self.n < self.columns


GRADIENT_TAU = 0.01  # of GraMa, as published

TITLES = {  # field -> title, in the order of the table
    "activation": "activation",
    "units": "units",
    "n": "n",
    "dead": "dead",
    "dormant_by_firing": "dormant",
    "dormant_by_activity": "ReDo",
    "dormant_by_gradient": "GraMa",
    "saturated": "saturated",
    "saturation": "at ends",
    "preactivation_std": "std of z",
    "linearized": "linearized",
    "effective_rank": "effective rank",
    "srank": "srank",
    "stable_rank": "stable rank",
    "weight_magnitude": "mean |w|",
    "weight_growth": "growth",
    "feature_norm": "|features|",
    "gradient_norm": "|gradient|",
    "update_ratio": "update",
    "stagnant": "stagnant",
    "volatile": "volatile",
}
SHARED = ("activation", "units", "n", "weight_growth")  # of a group, not of a network: not repeated for the reference
RANKS = ("effective_rank", "srank", "stable_rank")

assert TITLES.keys() <= {each.name for each in fields(GroupDiagnosis)}
