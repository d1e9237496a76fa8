"""What is worth a word: thresholds on the measures of a group of units, some on its own, some beside an earlier measurement.

An alarm is no verdict: none of these measures is plasticity itself (`pliant.probe_plasticity` measures that). The thresholds were
set so that healthy runs stay silent; how often they do not was measured, see docs/diagnostics.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

from pliant.diagnostics.diagnosis import TITLES, GroupDiagnosis

Test = Callable[[GroupDiagnosis, GroupDiagnosis], bool]


@dataclass(frozen=True)
class Alarm:
    """A threshold on one measure."""

    measure: str  # field of a row
    says: str  # what it means, after the numbers
    test: Test  # (row, the first or fresh one) -> whether it is worth a word


def _share(row: GroupDiagnosis, name: str) -> float:
    count = getattr(row, name)
    return 0.0 if count is None else count / row.units


def _value(row: GroupDiagnosis, name: str, otherwise: float = 0.0) -> float:
    value = getattr(row, name)
    return otherwise if value is None else float(value)


DEAD = 0.5  # share of units
SATURATION = 0.5  # share of activity
GROWTH = 10.0  # times the first mean |w|
RANK = 0.2  # times the first effective rank
STAGNANT = 0.5  # share of units
VOLATILE = 0.5

ALARMS = (
    Alarm("not_finite", "units are NaN or inf", lambda row, first: bool(row.not_finite)),
    Alarm("dead", "of the units are 0 on every input", lambda row, first: _share(row, "dead") >= DEAD),
    Alarm(
        "dormant_by_firing",
        "of the units fire on less than 1% of inputs",
        lambda row, first: _share(row, "dormant_by_firing") >= DEAD > _share(row, "dead"),
    ),
    Alarm(
        "saturation",
        "of the activity is at a flat end of the activation function, where no gradient comes through",
        lambda row, first: _value(row, "saturation") >= SATURATION,
    ),
    Alarm(
        "weight_growth",
        "times as large as at the start are the incoming weights",
        lambda row, first: _value(row, "weight_growth") >= GROWTH,
    ),
    Alarm(
        "effective_rank",
        "is the effective rank of the features",
        lambda row, first: (
            isfinite(_value(row, "effective_rank"))
            and row.effective_rank is not None
            and row.effective_rank <= RANK * _value(first, "effective_rank")
        ),
    ),
    Alarm(
        "stagnant",
        "of the units are hardly moved by a step",
        lambda row, first: _share(row, "stagnant") >= STAGNANT,
    ),
    Alarm(
        "volatile",
        "of the units are moved by a tenth of their weights or more in one step",
        lambda row, first: _share(row, "volatile") >= VOLATILE,
    ),
)
_SHARES = ("dead", "dormant_by_firing", "stagnant", "volatile")


def alarms_of(row: GroupDiagnosis, first: GroupDiagnosis) -> list[tuple[str, str]]:
    """The measures of a row that are worth a word beside an earlier or a fresh one, and that word.

    >>> from dataclasses import fields
    >>> empty = {field.name: None for field in fields(GroupDiagnosis)}
    >>> row = GroupDiagnosis(**{**empty, "group": "0", "units": 100, "dead": 60})
    >>> alarms_of(row, row)
    [('dead', '60% of the units are 0 on every input (dead)')]
    """
    return [
        (
            each.measure,
            f"{_said(row, each.measure)} {each.says} ({TITLES.get(each.measure, each.measure)})"
            f"{_beside(first, each.measure)}",
        )
        for each in ALARMS
        if each.test(row, first)
    ]


def _said(row: GroupDiagnosis, measure: str) -> str:
    if measure in _SHARES:
        return f"{_share(row, measure):.0%}"
    value = _value(row, measure)
    return f"{value:.0%}" if measure == "saturation" else f"{value:.3g}"


def _beside(first: GroupDiagnosis, measure: str) -> str:
    known = measure == "effective_rank" and first.effective_rank is not None
    return f", it was {_said(first, measure)}" if known else ""
