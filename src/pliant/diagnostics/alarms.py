"""What is worth a word: thresholds on the measures of a group of units, some on its own, some beside an earlier measurement.

An alarm is no verdict: none of these measures is plasticity itself (`pliant.probe_plasticity` measures that). The thresholds were
set so that healthy runs stay silent; how often they do not was measured, see docs/diagnostics.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pliant.diagnostics.rows import TITLES, GroupDiagnosis

Test = Callable[[GroupDiagnosis, GroupDiagnosis], bool]

MOST_UNITS = (
    (64, 0.5),
    (20, 0.8),
)  # from so many examples on, this share of units; of fewer, none is known to be silent
SATURATION = 0.5  # share of activity
GROWTH = 10.0  # times the first mean |w|
RANK = 0.1  # times the first effective rank
VOLATILE = 0.5  # share of units


@dataclass(frozen=True)
class Alarm:
    """A threshold on one measure."""

    measure: str  # field of a row
    says: str  # {} stands for the measure, {first} for the same of the first or fresh row, {beside} for what that is called
    test: Test  # (row, the first or fresh one) -> whether it is worth a word


def _share(row: GroupDiagnosis, name: str) -> float:
    count = getattr(row, name)
    return 0.0 if count is None else count / row.units


def _value(row: GroupDiagnosis, name: str) -> float:
    value = getattr(row, name)
    return 0.0 if value is None else float(value)


def _most(row: GroupDiagnosis, name: str) -> bool:
    """Whether so many units are silent that it is not for want of examples: on 20 of them, a third of those that are active on
    one in 20 are not seen to be."""
    needed = next((share for examples, share in MOST_UNITS if row.n >= examples), None)
    return needed is not None and _share(row, name) >= needed


def _lost_rank(row: GroupDiagnosis, first: GroupDiagnosis) -> bool:
    """Of as many examples at least. NaN is no rank, and less than none."""
    if row.effective_rank is None or row.n < first.n:
        return False
    return row.effective_rank <= RANK * _value(first, "effective_rank")


ALARMS = (
    Alarm("not_finite", "{} units are NaN or inf", lambda row, first: bool(row.not_finite)),
    Alarm("dead", "{} of the units are 0 on every input", lambda row, first: _most(row, "dead")),
    Alarm(
        "dormant_by_firing",
        "{} of the units are above 0 on less than 1% of inputs",
        lambda row, first: _most(row, "dormant_by_firing") and not _most(row, "dead"),
    ),
    Alarm(
        "saturation",
        "{} of the activity is at a flat end of the activation function, where no gradient comes through",
        lambda row, first: _value(row, "saturation") >= SATURATION,
    ),
    Alarm(
        "weight_growth",
        "the incoming weights are {} times as large as {beside}",
        lambda row, first: _value(row, "weight_growth") >= GROWTH,
    ),
    Alarm("effective_rank", "the effective rank is {}, and {first} {beside}", _lost_rank),
    Alarm("stagnant", "a step hardly moves {} of the units", lambda row, first: _most(row, "stagnant")),
    Alarm(
        "volatile",
        "a step moves {} of the units by a tenth of their weights or more",
        lambda row, first: _share(row, "volatile") >= VOLATILE,
    ),
)
_SHARES = ("dead", "dormant_by_firing", "stagnant", "volatile")


def alarms_of(row: GroupDiagnosis, first: GroupDiagnosis, beside: str = "at the start") -> list[tuple[str, str]]:
    """The measures of a row that are worth a word beside an earlier or a fresh one, and that word.

    >>> from dataclasses import fields
    >>> empty = {field.name: None for field in fields(GroupDiagnosis)}
    >>> row = GroupDiagnosis(**{**empty, "group": "0", "units": 100, "n": 512, "dead": 60})
    >>> alarms_of(row, row)
    [('dead', '60% of the units are 0 on every input (dead)')]
    """
    found: list[tuple[str, str]] = []
    for each in ALARMS:
        if each.test(row, first):
            said = each.says.format(_said(row, each.measure), first=_said(first, each.measure), beside=beside)
            title = TITLES.get(each.measure)
            found.append((each.measure, said if title is None else f"{said} ({title})"))
    return found


def _said(row: GroupDiagnosis, measure: str) -> str:
    if measure in _SHARES:
        return f"{_share(row, measure):.0%}"
    value = _value(row, measure)
    return f"{value:.0%}" if measure == "saturation" else f"{value:.3g}"
