"""A study in one table: how every curve begins, the highest (or lowest) it reaches, and how it ends.

A curve is all runs that differ in the seed alone (`pliant.lab.curves`). Its places (steps, tasks) are cut into equal parts,
and a run's values within a part averaged; by the number of what they are means of, where the experiment tells (its `weights`).
Then, over seeds, as mean ± half the 95% interval (or ± the standard error):

    first, highest, last       of the parts; highest is the one whose mean over seeds is
    last - first, - highest    paired: the difference of each seed first
    last - reference           paired with another curve, over the seeds that both have; "-" where they end at different places

Or, with all parts, the mean of each, in columns named by their last places (by their numbers where curves end at different
places). The lowest takes the highest's place where a column's name says error, loss or excess. Runs that diverged, have not
come as far as the curve's longest, or lack a part are counted and left out; a value that is not a number makes its part nan.
The highest of many parts is chosen with hindsight, which by itself sets it apart from the last: read `last - highest` beside
`last - first`.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas is typed in part)

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pliant.base.choices import shortened
from pliant.lab.curves import check_one_run, config_fields, mean_by, settings
from pliant.lab.errors import LabError, unknown
from pliant.lab.figures import bin_centres
from pliant.lab.report.table import Renamed, as_they_are, rows_at
from pliant.lab.run.progress import duration
from pliant.lab.statistics import Array, Estimate, estimate, paired_difference
from pliant.lab.study.labels import labels

if TYPE_CHECKING:
    import pandas

PARTS = 10
STUDY = "study"  # a column where several are reported together
_RANGE = re.compile(r"(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)")  # and so not 1e-5
Spread: TypeAlias = Literal["interval", "error"]


def summary_lines(
    paths: Sequence[Path],
    metric: str | None,
    over: str | None,
    parts: int,
    where: Sequence[str],
    against: str | None,
    spread: str,
    all_parts: bool = False,
    renamed: Renamed = as_they_are,
) -> Iterator[str]:
    """The summary of studies' folders or exported files, as `pliant report` prints it. Raises `LabError`."""
    if spread not in ("interval", "error"):
        raise unknown("spread", spread, ["interval", "error"])
    rows: Any = side_by_side({name: rows_at(path, renamed) for name, path in _named(paths).items()})
    old = renamed(rows.attrs)
    measured: list[str] = rows.attrs["measured"]
    if metric is None and len(measured) < 2:
        raise LabError(f"{', '.join(map(str, paths))} measured nothing but {measured[0]}: give --metric {measured[0]}")
    place, metric = over or measured[0], metric or measured[1]
    asked = [_condition("--where", text, old, list(rows)) for text in where]
    compared = [_condition("--against", text, old, list(rows)) for text in against.split(",")] if against else []
    shown = _rows_shown(rows, asked, compared)
    if not shown.any():
        raise LabError(f"no run has {' and '.join(where)}")
    wanted: Any = rows[shown]
    weight = rows.attrs.get("weights", {}).get(metric)
    found = curves(wanted, measured, place, metric, parts, weight)
    common = {name: wanted[name].iloc[0] for name in wanted if wanted[name].nunique(dropna=False) == 1}
    other = reference(found, ["=".join(each) for each in compared], common) if compared else None
    seeds = sorted({seed for curve in found for seed in curve.seeds})
    seconds = rows.attrs["seconds"]
    cost = f"   {duration(seconds)} of learning" if seconds else ""
    weighed = f", weighed by {weight}" if weight else ""
    yield f"{rows.attrs['name']} / {rows.attrs['profile']}   {metric} by {place}, {parts} parts{weighed}{cost}"
    yield f"seeds {_ranges(seeds)}; ± {'half the 95% interval' if spread == 'interval' else 'standard error'}"
    layout = Format(least_is_best(metric), spread)
    yield from lines(found, layout, other, all_parts)


Condition: TypeAlias = tuple[str, str]  # field, and the value or range that it has


def _condition(option: str, text: str, old: Mapping[str, str], known: Sequence[str]) -> Condition:
    """Such as `step_size=0.1`, with the field under its name of today."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise LabError(f"{option} '{shortened(text)}': write field=value")
    name = old.get(name, name)
    if name not in known:
        raise unknown("field", name, known)
    return name, value


def _rows_shown(rows: Any, asked: Sequence[Condition], compared: Sequence[Condition]) -> NDArray[np.bool_]:
    """The rows that are `asked` for; and those to be compared with, whatever settings were asked for beside theirs."""
    meets = [_meets(rows, condition) for condition in asked]
    everything = np.ones(len(rows), np.bool_)
    shown = np.logical_and.reduce([everything, *meets])
    reference = np.logical_and.reduce([everything, *(_meets(rows, condition) for condition in compared)])
    if compared and not (shown & reference).any():
        of_curves = {"method", STUDY, *config_fields(rows)} - {"seed"}
        others = [each for each, (name, _) in zip(meets, asked, strict=True) if name not in of_curves]
        shown |= np.logical_and.reduce([reference, *others])
    return shown


def _meets(rows: Any, condition: Condition) -> NDArray[np.bool_]:
    name, value = condition
    return np.array([_is(own, value) or _is_within(own, value) for own in rows[name]], np.bool_)


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Studies by the names of their folders or files; by their paths, where two have one name. Refuses one twice."""
    short = {path.stem if path.is_file() else path.resolve().name: path for path in paths}
    named = short if len(short) == len(paths) else {str(path): path for path in paths}
    if len({path.resolve() for path in paths}) < len(paths):
        raise LabError(f"{', '.join(map(str, paths))}: the same study twice")
    return named


def side_by_side(studies: Mapping[str, pandas.DataFrame]) -> pandas.DataFrame:
    """The rows of studies of one problem in one table, with a column `study` where there are several.

    A field that one of them does not have is NaN in its rows. Raises `LabError` where they are not of one problem, or do not
    measure the same.
    """
    import pandas

    (first, table), *others = studies.items()
    for name, other in others:
        of_what, measured = ([each.attrs[word] for each in (table, other)] for word in ("name", "measured"))
        if of_what[0] != of_what[1]:
            raise LabError(f"{first} is of {of_what[0]}, and {name} of {of_what[1]}: report studies of one problem")
        lacking = [
            f"{one} does not measure {', '.join(missing)}"
            for one, here, there in ((first, *measured), (name, *reversed(measured)))
            if (missing := [column for column in there if column not in here])
        ]
        if lacking:
            raise LabError(f"{'; '.join(lacking)}: {first} and {name} are of different versions, report each by itself")
    if not others:
        return table
    numbered: list[Any] = []
    count = 0
    for name, each in studies.items():
        rows: Any = each
        numbered.append(rows.assign(**{STUDY: name}, run=rows["run"] + count))
        count += int(rows["run"].max()) + 1
    seconds: list[float | None] = [each.attrs["seconds"] for each in studies.values()]
    joined: Any = pandas.concat(numbered, ignore_index=True)
    joined.attrs = {
        **table.attrs,
        "profile": ", ".join(dict.fromkeys(str(each.attrs["profile"]) for each in studies.values())),
        "seconds": sum(filter(None, seconds)) if all(seconds) else None,  # which not every export knows
    }
    return joined


def _ranges(numbers: Sequence[int]) -> str:
    """Such as "0-4, 7"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


@dataclass(frozen=True)
class Curve:
    """The runs of one setting."""

    settings: Mapping[str, Any]  # those in which the study's curves differ
    name: str
    seeds: list[int]
    values: Array  # (seeds, parts)
    ends: Array  # (parts,) last place of each part
    left_out: Mapping[str, int]  # why -> runs

    @property
    def is_empty(self) -> bool:
        """Whether it has no number: no run that counts, or a column that its method does not have."""
        return bool(np.isnan(self.values).all())

    @property
    def count(self) -> str:
        """Such as "28 (2 diverged)": the seeds in it, and those that are not."""
        lost = ", ".join(f"{runs} {why}" for why, runs in self.left_out.items() if runs)
        return f"{len(self.seeds)} ({lost})" if lost else str(len(self.seeds))


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
    return Curve(setting, name, [int(seed) for seed in kept.index], kept.to_numpy(dtype=np.float64), ends, left_out)


def reference(found: Sequence[Curve], wanted: Sequence[str], common: Mapping[str, Any] | None = None) -> Curve:
    """The one curve with the settings `wanted`, each "field=value". Raises `LabError` unless it is one.

    `common`: the values of those fields that are the same for all.
    """
    pairs = [condition.partition("=")[::2] for condition in wanted]
    settings = [{**(common or {}), **curve.settings} for curve in found]
    same = [
        c for c, own in zip(found, settings, strict=True) if all(_is(own.get(name), value) for name, value in pairs)
    ]
    if len(same) != 1:
        names, asked = "; ".join(curve.name for curve in found), ",".join(wanted)
        raise LabError(f"--against {shortened(asked)} names {len(same)} curves, not one, of: {shortened(names, 1000)}")
    return same[0]


def _is(setting: Any, value: str) -> bool:
    try:
        return float(setting) == float(value)
    except (TypeError, ValueError):
        text = str(setting)
        return text == value or (text in ("True", "False") and text.lower() == value.lower())


def _is_within(setting: Any, value: str) -> bool:
    """Whether a number is in a range such as 31-50, ends included."""
    ends = _RANGE.fullmatch(value)
    try:
        return ends is not None and float(ends[1]) <= float(setting) <= float(ends[2])
    except (TypeError, ValueError):
        return False


@dataclass(frozen=True)
class Format:
    """How numbers are written."""

    least_is_best: bool = False
    spread: Spread = "interval"

    def text(self, value: Estimate, signed: bool = False) -> str:
        if np.isnan(value.mean):
            return "nan"
        half = None
        if value.count > 1:
            half = float(value.standard_error if self.spread == "error" else value.interval()[1] - value.mean)
        largest = max((abs(each) for each in (float(value.mean), half or 0.0) if isfinite(each)), default=0.0)
        decimals = max(0, 4 - floor(log10(max(1.0, largest))))
        mean = f"{float(value.mean):{'+' if signed else ''}.{decimals}f}"
        return mean if half is None else f"{mean} ± {half:.{decimals}f}"


def least_is_best(metric: str) -> bool:
    """Whether a column's name says that less is better."""
    return any(word in metric for word in ("error", "loss", "excess"))


def lines(
    found: Sequence[Curve], layout: Format, against: Curve | None = None, all_parts: bool = False
) -> Iterator[str]:
    """The table, a line for each curve."""
    cells = _part_cells(found, layout) if all_parts else _cells(found, layout)
    table = [["curve", "seeds", *next(cells)]]
    table += [[curve.name, curve.count, *own] for curve, own in zip(found, cells, strict=True)]
    if against is not None:
        for row, text in zip(table, ["last - reference", *(_against(c, layout, against) for c in found)], strict=True):
            row.append(text)
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def _cells(found: Sequence[Curve], layout: Format) -> Iterator[list[str]]:
    """The heads, then for each curve how it begins, what it reaches, how it ends."""
    extreme = "lowest" if layout.least_is_best else "highest"
    yield ["first", f"{extreme} (at)", "last", "last - first", f"last - {extreme}"]
    for curve in found:
        if curve.is_empty:
            yield ["-"] * 5
            continue
        parts, mean = curve.values, estimate(curve.values).mean
        best = int(mean.argmin() if layout.least_is_best else mean.argmax())
        yield [
            layout.text(estimate(parts[:, 0])),
            f"{layout.text(estimate(parts[:, best]))} ({curve.ends[best]:g})",
            layout.text(estimate(parts[:, -1])),
            layout.text(paired_difference(parts[:, -1], parts[:, 0]), signed=True),
            layout.text(paired_difference(parts[:, -1], parts[:, best]), signed=True),
        ]


def _part_cells(found: Sequence[Curve], layout: Format) -> Iterator[list[str]]:
    """The heads, then for each curve all its parts."""
    ends = {tuple(curve.ends) for curve in found if not curve.is_empty}
    most = max((len(own) for own in ends), default=0)
    yield [f"to {end:g}" for end in ends.pop()] if len(ends) == 1 else [f"part {n + 1}" for n in range(most)]
    for curve in found:
        texts = [] if curve.is_empty else [layout.text(estimate(part)) for part in curve.values.T]
        yield texts + ["-"] * (most - len(texts))


def _against(curve: Curve, layout: Format, other: Curve) -> str:
    shared = [seed for seed in curve.seeds if seed in other.seeds]
    if curve.is_empty or curve is other or not shared or curve.ends[-1] != other.ends[-1]:
        return "-"
    mine = [curve.values[curve.seeds.index(seed), -1] for seed in shared]
    theirs = [other.values[other.seeds.index(seed), -1] for seed in shared]
    return layout.text(paired_difference(mine, theirs), signed=True)
