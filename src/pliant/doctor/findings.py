"""What differs between a network's layers and those of a fresh one on the same inputs.

    shares of units   by at least `SHARE`: dead, dormant, saturated, linear, hardly moved, moved too far
    at flat ends      the share of activity there, by at least `SHARE`
    ratios            pre-activations `SPREAD` times as wide, weights `GROWTH` times as large, an effective rank of `RANK`, steps
                      of a thirtieth, relative to the weights

A finding is no verdict: all of these differ in healthy networks too, which is why they are named here beside the probe's answer,
and never in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite

from pliant.diagnostics.diagnosis import Diagnosis, GroupDiagnosis

SHARE = 0.15
SPREAD, GROWTH, RANK, STEP = 3.0, 2.5, 0.5, 1.0 / 30.0

_SHARES = {
    "dead": "dead",
    "dormant_by_firing": "dormant: above 0 on less than 1% of inputs",
    "saturated": "saturated",
    "linearized": "linear: above 0 on every input",
    "stagnant": "hardly moved by a step",
    "volatile": "moved by a tenth of their weights in one step",
}


@dataclass(frozen=True)
class Finding:
    """One measure of one group of units that differs from a fresh network's."""

    group: str
    measure: str  # a field of `pliant.diagnostics.GroupDiagnosis`
    says: str


def findings_of(diagnosis: Diagnosis) -> list[Finding]:
    """All of them, layer by layer; without a reference those alone that need none."""
    reference = {} if diagnosis.reference is None else {(row.group, row.run): row for row in diagnosis.reference.rows}
    return [
        Finding(row.group, measure, says)
        for row in diagnosis.rows
        for measure, says in _of_row(row, reference.get((row.group, row.run)))
    ]


def _of_row(row: GroupDiagnosis, fresh: GroupDiagnosis | None) -> Iterator[tuple[str, str]]:
    if row.not_finite:
        yield "not_finite", f"{row.not_finite} of {row.units} units are NaN or inf"
    for measure, word in _SHARES.items():
        count, other = getattr(row, measure), None if fresh is None else getattr(fresh, measure)
        same = measure == "dormant_by_firing" and count == row.dead
        if count is not None and not same and count - (other or 0) >= SHARE * row.units:
            yield measure, f"{count} of {row.units} units {word}{'' if other is None else f' (fresh: {other})'}"
    if fresh is None:
        return
    if row.saturation is not None and row.saturation - (fresh.saturation or 0.0) >= SHARE:
        yield "saturation", f"{row.saturation:.0%} of the activity at a flat end (fresh: {fresh.saturation or 0.0:.0%})"
    yield from _ratio(row, fresh, "preactivation_std", "pre-activations spread by {:.3g} (fresh: {:.3g})", above=SPREAD)
    yield from _ratio(row, fresh, "weight_magnitude", "weights of mean size {:.3g} (fresh: {:.3g})", above=GROWTH)
    yield from _ratio(row, fresh, "effective_rank", "effective rank {:.3g} (fresh: {:.3g})", below=RANK)
    yield from _ratio(
        row, fresh, "update_ratio", "a step moves {:.2g} of the weights' size (fresh: {:.2g})", below=STEP
    )


def _ratio(
    row: GroupDiagnosis, fresh: GroupDiagnosis, measure: str, says: str, *, above: float = 0.0, below: float = 0.0
) -> Iterator[tuple[str, str]]:
    mine, theirs = getattr(row, measure), getattr(fresh, measure)
    if mine is None or theirs is None or not (isfinite(mine) and isfinite(theirs)):
        return
    if (above and mine >= above * theirs > 0.0) or (below and mine <= below * theirs and theirs > 0.0):
        yield measure, says.format(mine, theirs)
