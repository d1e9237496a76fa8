"""A study in one table: how every curve begins, the highest (or lowest) it reaches, and how it ends.

Over seeds, as the mean with its interval (`pliant.lab.report.numbers`):

    first, highest, last       of the parts that a run is cut into; highest is the one whose mean over seeds is
    last - first, - highest    paired: the difference of each seed first
    area, plasticity loss, ... a number of each run that is asked for (`pliant.lab.measures`)
    last - reference           paired with another curve, over the seeds that both have; "-" where they end at different places

Or, with all parts, the mean of each, in columns named by their last places (by their numbers where curves end at different
places); or the comparison of every two curves (`pliant.lab.report.comparison`). The lowest takes the highest's place where a
column's name says error, loss or excess. The highest of many parts is chosen with hindsight, which by itself sets it apart from
the last: read `last - highest` beside `last - first`. Fewer than 5 seeds are called few.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas is typed in part)

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pliant.lab.curves import config_fields
from pliant.lab.errors import LabError, unknown
from pliant.lab.figures import Style, looks
from pliant.lab.intervals import Array
from pliant.lab.report.comparison import MEASURES, Measure, pair_cells, paired, pairs, seeds_in_words
from pliant.lab.report.numbers import FORMS, Format, format_of
from pliant.lab.report.parts import PARTS, Curve, curves, reference
from pliant.lab.report.selection import condition, named, rows_shown, side_by_side
from pliant.lab.report.table import ReadingOf, nothing_more, rows_at
from pliant.lab.run.progress import duration
from pliant.lab.statistics import FEW, differences, estimate

LAST = Measure()


@dataclass(frozen=True)
class Asked:
    """What a report is asked for: the options of `pliant report`, which describes them."""

    metric: str | None = None
    over: str | None = None
    parts: int = PARTS
    where: Sequence[str] = ()
    against: str | None = None
    spread: str | None = None
    aggregate: str = "mean"
    measure: str | None = None
    level: float | None = None
    all_parts: bool = False
    pairs: bool = False
    form: str = "text"


@dataclass(frozen=True)
class Summary:
    """The curves of studies, ready to be told."""

    name: str
    profile: str
    place: str
    metric: str
    weight: str | None
    seconds: float | None
    curves: list[Curve]
    against: Curve | None
    measure: Measure
    layout: Format
    rows: Any  # a pandas table: those that the curves are of
    measured: list[str]  # columns of the experiment
    weights: Mapping[str, str]
    shares: Sequence[str]  # columns that are shares of a whole
    colors: Mapping[str, str]  # method -> its color
    common: Mapping[str, Any]  # settings that all runs have

    @property
    def looks(self) -> dict[str, Style]:
        """How each curve is drawn, the same in all figures."""
        import pandas

        settings = [{**self.common, **curve.settings} for curve in self.curves]
        each = [
            {"method": own["method"], "curve": curve.name} for own, curve in zip(settings, self.curves, strict=True)
        ]
        return looks(pandas.DataFrame(each), self.colors)

    def band(self, metric: str, curve: Curve) -> tuple[Array, Array, Array]:
        """Of a curve of `metric`: its means over seeds and the ends of their 95% intervals, (places,) each."""
        mean = estimate(curve.values)
        with np.errstate(invalid="ignore"):
            low, high = mean.interval()
        if metric in self.shares:
            low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
        return mean.mean, low, high

    @property
    def seeds(self) -> list[int]:
        """Of all curves together."""
        return sorted({seed for curve in self.curves for seed in curve.seeds})


def summary(paths: Sequence[Path], asked: Asked, reading_of: ReadingOf = nothing_more) -> Summary:
    """The summary of studies' folders or exported files. Raises `LabError`."""
    if asked.form not in FORMS:
        raise unknown("format", asked.form, FORMS)
    if asked.measure is not None and asked.measure not in MEASURES:
        raise unknown("measure", asked.measure, MEASURES)
    rows: Any = side_by_side({name: rows_at(path, reading_of) for name, path in named(paths).items()})
    old = reading_of(rows.attrs).renamed
    measured: list[str] = rows.attrs["measured"]
    if asked.metric is None and len(measured) < 2:
        raise LabError(f"{', '.join(map(str, paths))} measured nothing but {measured[0]}: give --metric {measured[0]}")
    place, metric = asked.over or measured[0], asked.metric or measured[1]
    layout = format_of(asked.spread, asked.aggregate, least_is_best(metric))
    measure = _measure(asked, measured, place, metric)
    wanted = [condition("--where", text, old, list(rows)) for text in asked.where]
    compared = [condition("--against", text, old, list(rows)) for text in (asked.against or "").split(",") if text]
    shown = rows_shown(rows, wanted, compared)
    if not shown.any():
        raise LabError(f"no run has {' and '.join(asked.where)}")
    kept: Any = rows[shown]
    weights: Mapping[str, str] = rows.attrs["weights"]
    weight = weights.get(metric)
    found = curves(kept, measured, place, metric, asked.parts, weight)
    common = {name: kept[name].iloc[0] for name in kept if kept[name].nunique(dropna=False) == 1}
    fields = [name for name in config_fields(kept) if name in common and name != "seed"]
    other = reference(found, ["=".join(each) for each in compared], common) if compared else None
    name, profile, seconds = (rows.attrs[each] for each in ("name", "profile", "seconds"))
    return Summary(
        name, profile, place, metric, weight, seconds, found, other, measure, layout, kept, measured, weights,
        rows.attrs["shares"], rows.attrs["colors"], {field: common[field] for field in fields},
    )  # fmt: skip


def _measure(asked: Asked, measured: Sequence[str], place: str, metric: str) -> Measure:
    if (asked.measure == "time-to-relearn") != (asked.level is not None):
        raise LabError("--measure time-to-relearn and --level, the value to be reached again, go together")
    if asked.level is not None and "task" not in measured:
        raise LabError(
            f"--measure time-to-relearn needs a column task, which says where a change is: {', '.join(measured)}"
        )
    if asked.level is not None and place == "task":
        raise LabError(
            "--measure time-to-relearn needs places within a task: give --over a column of steps or examples"
        )
    return Measure(asked.measure or "last", least_is_best(metric), place, metric, asked.level or 0.0)


def summary_lines(paths: Sequence[Path], asked: Asked, reading_of: ReadingOf = nothing_more) -> Iterator[str]:
    """As `pliant report` prints it. Raises `LabError`."""
    found = summary(paths, asked, reading_of)
    comment = "% " if asked.form == "latex" else ""
    for line in title_lines(found, asked.parts):
        yield comment + line
        if asked.form == "markdown":
            yield ""
    cells = [*pair_cells(pairs(found.curves, found.measure, found.against), found.layout)] if asked.pairs else (
        table(found.curves, found.layout, found.against, asked.all_parts, found.measure, asked.measure is not None)
    )  # fmt: skip
    if len(cells) < 2:
        raise LabError("no two curves have a seed in common and end at the same place: there is no pair")
    yield from FORMS[asked.form](cells)


def title_lines(found: Summary, parts: int) -> Iterator[str]:
    """What the table is of, and what its numbers are."""
    cost = f"   {duration(found.seconds)} of learning" if found.seconds else ""
    weighed = f", weighed by {found.weight}" if found.weight else ""
    yield f"{found.name} / {found.profile}   {found.metric} by {found.place}, {parts} parts{weighed}{cost}"
    few = f"; fewer than {FEW} seeds are few: their intervals rest on the normal distribution" if any(
        0 < len(curve.seeds) < FEW for curve in found.curves
    ) else ""  # fmt: skip
    yield f"seeds {ranges(found.seeds)}; {found.layout.words}{few}"


def ranges(numbers: Sequence[int]) -> str:
    """Such as "0-4, 7"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def least_is_best(metric: str) -> bool:
    """Whether a column's name says that less is better."""
    return any(word in metric for word in ("error", "loss", "excess"))


def table(
    found: Sequence[Curve],
    layout: Format,
    against: Curve | None = None,
    all_parts: bool = False,
    measure: Measure = LAST,
    with_measure: bool = False,
) -> list[list[str]]:
    """The cells, the head first, then a line for each curve."""
    cells = _part_cells(found, layout) if all_parts else _cells(found, layout)
    rows = [["curve", "seeds", *next(cells)]]
    rows += [[curve.name, count_of(curve), *own] for curve, own in zip(found, cells, strict=True)]
    more: list[tuple[str, list[str]]] = []
    name = measure.name.replace("-", " ")
    if with_measure:
        more.append((name, ["-" if curve.is_empty else layout.text(measure.of(curve)) for curve in found]))
    if against is not None:
        more.append((f"{name} - reference", [_against(curve, layout, against, measure) for curve in found]))
    for head, column in more:
        for row, text in zip(rows, [head, *column], strict=True):
            row.append(text)
    return rows


def count_of(curve: Curve) -> str:
    """Such as "28 (2 diverged)": the seeds in it, whether they are few, and those that are not in it."""
    lost = ", ".join(f"{runs} {why}" for why, runs in curve.left_out.items() if runs)
    count = seeds_in_words(len(curve.seeds)) if curve.seeds else "0"
    return f"{count} ({lost})" if lost else count


def _cells(found: Sequence[Curve], layout: Format) -> Iterator[list[str]]:
    """The heads, then for each curve how it begins, what it reaches, how it ends."""
    extreme = "lowest" if layout.least_is_best else "highest"
    yield ["first", f"{extreme} (at)", "last", "last - first", f"last - {extreme}"]
    for curve in found:
        if curve.is_empty:
            yield ["-"] * 5
            continue
        parts = curve.values
        mean = [layout.of(part)[0] for part in parts.T]
        best = int(np.argmin(mean) if layout.least_is_best else np.argmax(mean))
        yield [
            layout.text(parts[:, 0]),
            f"{layout.text(parts[:, best])} ({curve.ends[best]:g})",
            layout.text(parts[:, -1]),
            layout.text(differences(parts[:, -1], parts[:, 0]), signed=True),
            layout.text(differences(parts[:, -1], parts[:, best]), signed=True),
        ]


def _part_cells(found: Sequence[Curve], layout: Format) -> Iterator[list[str]]:
    """The heads, then for each curve all its parts."""
    ends = {tuple(curve.ends) for curve in found if not curve.is_empty}
    most = max((len(own) for own in ends), default=0)
    yield [f"to {end:g}" for end in ends.pop()] if len(ends) == 1 else [f"part {n + 1}" for n in range(most)]
    for curve in found:
        texts = [] if curve.is_empty else [layout.text(part) for part in curve.values.T]
        yield texts + ["-"] * (most - len(texts))


def _against(curve: Curve, layout: Format, other: Curve, measure: Measure) -> str:
    pair = None if curve is other else paired(curve, other, measure)
    return "-" if pair is None else layout.text(pair.differences, signed=True)
