"""Curves cut into parts, and the one number by which their runs are compared.

A curve is all runs that differ in the seed alone (`pliant.lab.curves`). Its places (steps, tasks) are cut into equal parts,
and a run's values within a part averaged; by the number of what they are means of, where the experiment tells (its `weights`).
Runs that diverged, have not come as far as the curve's longest, or lack a part are counted and left out; a value that is not a
number makes its part nan.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas is typed in part)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pliant.base.choices import shortened
from pliant.lab.curves import check_one_run, mean_by, settings
from pliant.lab.errors import LabError, unknown
from pliant.lab.figures import bin_centres
from pliant.lab.intervals import Array
from pliant.lab.report.selection import STUDY, is_value
from pliant.lab.study.labels import labels

if TYPE_CHECKING:
    import pandas

PARTS = 10


@dataclass(frozen=True)
class Curve:
    """The runs of one setting."""

    settings: Mapping[str, Any]  # those in which the study's curves differ
    name: str
    seeds: list[int]
    values: Array  # (seeds, parts)
    ends: Array  # (parts,) last place of each part
    left_out: Mapping[str, int]  # why -> runs
    rows: Any = None  # of these runs, a pandas table

    @property
    def is_empty(self) -> bool:
        """Whether it has no number: no run that counts, or a column that its method does not have."""
        return bool(np.isnan(self.values).all())


def curves(
    rows: pandas.DataFrame,
    measured: Sequence[str],
    place: str,
    metric: str,
    parts: int = PARTS,
    weight: str | None = None,
) -> list[Curve]:
    """The curves of a study's rows, of which the columns `measured` are the experiment's, in the order of the study.

    `weight`: the column that counts what a row's `metric` is the mean of; rows where it is 0 do not count.
    """
    table: Any = rows
    numbers = [name for name in measured if name in table and table[name].dtype.kind in "biuf"]
    for name in (place, metric, *([weight] if weight else [])):
        if name not in measured:
            raise unknown("column", name, measured)
        if name not in numbers:
            raise LabError(f"column {name} holds text: a report is of numbers, here {', '.join(numbers) or 'none'}")
    if not np.isfinite(table[place].to_numpy(np.float64)).all():
        raise LabError(f"column {place} is nan in some rows: give another column --over which curves go")
    found: Any = settings(table, measured)
    each: list[dict[str, Any]] = [_present(setting) for setting in found.to_dict("records")]
    names = _names(each)
    groups = table.groupby(list(found.columns), sort=False, dropna=False)
    for name, (_, runs) in zip(names, groups, strict=True):
        check_one_run(runs, name)
    return [
        _curve(setting, name, runs, place, metric, parts, weight)
        for setting, name, (_, runs) in zip(each, names, groups, strict=True)
    ]


def _present(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields that a curve's config does not have, as another one's in the table does."""
    return {name: value for name, value in setting.items() if not (isinstance(value, float) and np.isnan(value))}


def _names(curves: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of curves; those of several studies begin with the study's."""
    own = labels([{name: value for name, value in curve.items() if name != STUDY} for curve in curves])
    return [f"{curve[STUDY]}: {name}" if STUDY in curve else name for curve, name in zip(curves, own, strict=True)]


def _curve(
    setting: Mapping[str, Any], name: str, rows: Any, place: str, metric: str, parts: int, weight: str | None
) -> Curve:
    diverged = rows["status"] == "diverged"
    alive = rows[~diverged]
    left_out = {"diverged": int(rows["seed"][diverged].nunique())}
    if not len(alive):
        return Curve(setting, name, [], np.empty((0, parts)), np.empty(parts), left_out)
    at = alive[place].to_numpy(dtype=np.float64)
    table = alive.assign(part=bin_centres(at, min(parts, len(np.unique(at)))))
    means: Any = mean_by(table, ["seed", "part"], metric, weight)
    means = means.unstack("part")
    whole = table.groupby(["seed", "part"]).size().unstack("part").notna().all(axis=1)
    runs = table.groupby("seed")
    underway = (runs["status"].first() == "running") & (runs[place].max() < at.max())
    left_out |= {"unfinished": int(underway.sum()), "lack a part": int((~whole & ~underway).sum())}
    kept = means[whole & ~underway]
    ends = table.groupby("part")[place].max().to_numpy(dtype=np.float64)
    seeds = [int(seed) for seed in kept.index]
    own = alive[alive["seed"].isin(seeds)]
    return Curve(setting, name, seeds, kept.to_numpy(dtype=np.float64), ends, left_out, own)


def reference(found: Sequence[Curve], wanted: Sequence[str], common: Mapping[str, Any] | None = None) -> Curve:
    """The one curve with the settings `wanted`, each "field=value". Raises `LabError` unless it is one.

    `common`: the values of those fields that are the same for all.
    """
    pairs = [condition.partition("=")[::2] for condition in wanted]
    settings = [{**(common or {}), **curve.settings} for curve in found]
    same = [
        c
        for c, own in zip(found, settings, strict=True)
        if all(is_value(own.get(name), value) for name, value in pairs)
    ]
    if len(same) != 1:
        names, asked = "; ".join(curve.name for curve in found), ",".join(wanted)
        raise LabError(f"--against {shortened(asked)} names {len(same)} curves, not one, of: {shortened(names, 1000)}")
    return same[0]
