"""What `diagnose` found, as one table: a row per group of units and, below each, that of the reference.

The measures of the whole network (the loss, a trial step, sharpness) follow in a small table of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

from pliant.base.tables import Cells, Table, aligned, bars
from pliant.diagnostics.alarms import alarms_of
from pliant.diagnostics.rows import GRADIENT_TAU, RANKS, SHARED, TITLES, GroupDiagnosis
from pliant.units.map import UnitMap


@dataclass(frozen=True)
class NetworkDiagnosis:
    """Measures of a whole network; None where they were not asked for."""

    loss: float | None = None
    loss_after: float | None = None  # one trial step
    plasticity: float | None = None
    churn: float | None = None
    update_ratio: float | None = None
    sharpness: float | None = None


NETWORK_TITLES = {
    "loss": "loss",
    "loss_after": "after a step",
    "plasticity": "plasticity",
    "churn": "churn",
    "update_ratio": "update",
    "sharpness": "sharpness",
}


@dataclass(frozen=True)
class Diagnosis(Table):
    """One row per group of hidden units. Prints as a table; `rows` is for programs, as are `to_dict()` and `to_pandas()`.

    `mode` is that of the model, "training", "evaluation" or "mixed"; `units` is the plan whose units were measured; `reference`
    is the same of the network beside it, or None; `network` holds what is of the whole network.
    """

    rows: Sequence[GroupDiagnosis]
    units: UnitMap
    mode: str
    tau: float
    network: NetworkDiagnosis = NetworkDiagnosis()
    reference: Diagnosis | None = None
    name: str = "model"  # in tables
    remarks: Sequence[str] = ()

    def alarms(self) -> list[str]:
        """What passes a threshold of `pliant.diagnostics.alarms`, and does not in the reference."""
        said: list[str] = []
        word = "at the start" if self.reference is None else f"in the {self.reference.name} network"
        for row, other in self._pairs():
            beside = row if other is None else other
            also = [measure for measure, _ in alarms_of(other, other)] if other is not None else []
            found = [each for each in alarms_of(row, beside, word) if each[0] not in also or each[0] == "not_finite"]
            said += [f"{_name(row)}: {text}" for _, text in found]
        return said

    # -- for programs -------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "tau": self.tau,
            "network": asdict(self.network),
            "rows": [asdict(row) for row in self.rows],
            "reference": None if self.reference is None else self.reference.to_dict(),
            "alarms": self.alarms(),
            "notes": list(self.table()[1]),
        }

    def records(self) -> list[dict[str, Any]]:
        """One per group and network: `network` says which of the two."""
        found = [{"network": self.name, **asdict(row)} for row in self.rows]
        return [*found, *([] if self.reference is None else self.reference.records())]

    def plot(self) -> Any:
        """A figure of every measure, model beside reference."""
        pairs, panels = self._pairs(), dict[str, dict[str, list[float | None]]]()
        for name in (name for name in self._shown() if name not in ("activation", "units", "n")):
            panels[TITLES[name]] = {self.name: [_number(row, name) for row, _ in pairs]}
            if self.reference is not None and name not in SHARED:
                panels[TITLES[name]][self.reference.name] = [_number(other, name) for _, other in pairs]
        return bars([_name(row) for row in self.rows], panels)

    # -- for readers --------------------------------------------------------------------------------------------------

    def table(self) -> tuple[Cells, Sequence[str]]:
        shown = self._shown()
        cells = [("group", *(TITLES[name] for name in shown))]
        for row, other in self._pairs():
            cells.append((_name(row), *(_cell(row, name) for name in shown)))
            if other is not None and self.reference is not None:
                below = ("" if name in SHARED else _cell(other, name) for name in shown)
                cells.append((f"  {self.reference.name}", *below))
        whole = self._whole()
        return cells, [*whole, *([""] if whole else []), *self._notes(shown)]

    def _shown(self) -> list[str]:
        return [name for name in TITLES if any(getattr(row, name) is not None for row in self.rows)]

    def _pairs(self) -> list[tuple[GroupDiagnosis, GroupDiagnosis | None]]:
        others = {} if self.reference is None else {(row.group, row.run): row for row in self.reference.rows}
        return [(row, others.get((row.group, row.run))) for row in self.rows]

    def _whole(self) -> list[str]:
        """The measures of the whole network, as a table of their own."""
        names = [name for name in NETWORK_TITLES if getattr(self.network, name) is not None]
        if not names:
            return []
        both = [self, *([] if self.reference is None else [self.reference])]
        rows = [(each.name, *(_shown_number(getattr(each.network, name)) for name in names)) for each in both]
        return aligned([("network", *(NETWORK_TITLES[name] for name in names)), *rows])

    def _notes(self, shown: Sequence[str]) -> list[str]:
        notes = [f"{self.mode} mode; n: examples x positions; counts of units; '-': does not apply"]
        if "dormant_by_firing" in shown:
            notes.append("dormant: above 0 on less than 1% of n (Dohare et al. 2024)")
        if "dormant_by_activity" in shown:
            notes.append(f"ReDo: mean |activity| at most {self.tau:g} of the layer's")
        if "dormant_by_gradient" in shown:
            notes.append(f"GraMa: mean |gradient| of incoming weights at most {GRADIENT_TAU:g} of the layer's")
        if "saturation" in shown or "preactivation_std" in shown:
            notes.append("at ends: share of activity at a flat end; z: what enters the activation function")
        if "update_ratio" in shown:
            notes.append("update: |step| / |w|; stagnant, volatile: at most 1e-6, at least 0.1 of a unit's |w|")
        notes += [each for each in self.remarks if each]
        capped = [f"{_name(row)} {row.columns}" for row in self.rows if row.capped]
        if capped:
            notes.append(
                f"*: n, smaller than the number of features ({', '.join(capped)}), caps the ranks: give more examples"
            )
        notes += self.alarms()
        left = len({name for each in self.units.skipped for name in each.parameters})
        return [*notes, *([f"{left} parameters are in no group: print(diagnosis.units)"] if left else [])]


def _name(row: GroupDiagnosis) -> str:
    return row.group if row.run is None else f"{row.group} run {row.run}"


def _cell(row: GroupDiagnosis, name: str) -> str:
    value = getattr(row, name)
    star = "*" if name in RANKS and row.capped and value is not None and not isnan(value) else ""
    return f"{_shown_number(value)}{star}"


def _shown_number(value: float | str | None) -> str:
    if value is None or value == "":
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _number(row: GroupDiagnosis | None, name: str) -> float | None:
    value = None if row is None else getattr(row, name)
    return None if value is None else float(value)
