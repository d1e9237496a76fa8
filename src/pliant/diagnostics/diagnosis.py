"""What `diagnose` found, as one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import isnan

from pliant.base.deprecation import renamed_attributes
from pliant.base.tables import aligned
from pliant.units.map import UnitMap


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
    "linearized": "linearized",
    "effective_rank": "effective rank",
    "srank": "srank",
    "stable_rank": "stable rank",
    "weight_magnitude": "mean |w|",
    "feature_norm": "|features|",
    "gradient_norm": "|gradient|",
}
RANKS = ("effective_rank", "srank", "stable_rank")


@dataclass(frozen=True)
class Diagnosis:
    """One row per group of hidden units. Prints as a table; `rows` is for programs (`dataclasses.asdict(row)`).

    `mode` is that of the model, "training", "evaluation" or "mixed"; `units` is the plan whose units were measured.
    """

    rows: Sequence[GroupDiagnosis]
    units: UnitMap
    mode: str
    tau: float

    def __str__(self) -> str:
        shown = [name for name in TITLES if any(getattr(row, name) is not None for row in self.rows)]
        head = ("group", *(TITLES[name] for name in shown))
        table = [head, *((_name(row), *(_cell(row, name) for name in shown)) for row in self.rows)]
        return "\n".join([*aligned(table), "", *self._notes(shown)])

    def _notes(self, shown: Sequence[str]) -> list[str]:
        notes = [f"{self.mode} mode; n: examples x positions; counts of units; '-': does not apply"]
        if "dormant_by_firing" in shown:
            notes.append("dormant: above 0 on less than 1% of n (Dohare et al. 2024)")
        if "dormant_by_activity" in shown:
            notes.append(f"ReDo: mean |activity| at most {self.tau:g} of the layer's")
        if "dormant_by_gradient" in shown:
            notes.append(f"GraMa: mean |gradient| of incoming weights at most {GRADIENT_TAU:g} of the layer's")
        capped = [f"{_name(row)} {row.columns}" for row in self.rows if row.capped]
        if capped:
            notes.append(
                f"*: n, smaller than the number of features ({', '.join(capped)}), caps the ranks: give more examples"
            )
        notes += [f"{_name(row)}: {row.not_finite} units are NaN or inf" for row in self.rows if row.not_finite]
        left = len({name for each in self.units.skipped for name in each.parameters})
        return [*notes, *([f"{left} parameters are in no group: print(diagnosis.units)"] if left else [])]


def _name(row: GroupDiagnosis) -> str:
    return row.group if row.run is None else f"{row.group} run {row.run}"


def _cell(row: GroupDiagnosis, name: str) -> str:
    value = getattr(row, name)
    if value is None or value == "":
        return "-"
    star = "*" if name in RANKS and row.capped and not isnan(value) else ""
    return f"{value:.3g}{star}" if isinstance(value, float) else str(value)


assert TITLES.keys() <= {each.name for each in fields(GroupDiagnosis)}
