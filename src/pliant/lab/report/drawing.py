"""A figure of columns of one's choice, for a paper: a panel per column, curves of one or several studies, at a column's width.

It is drawn from the rows alone, as the tables are: no experiment is asked.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from pliant.lab.errors import LabError
from pliant.lab.figures import panels
from pliant.lab.report.parts import curves
from pliant.lab.report.summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLACES = 100  # of a curve, at most
SIZES = {"column": 85.0, "page": 175.0}  # width, mm, as most journals have them
_ASPECT = 0.72  # height of a panel over its width
_MM = 25.4  # per inch
_POINTS = 7


def figure_of_columns(found: Summary, metrics: Sequence[str], per_line: int, size: str) -> Figure:
    """A panel for each of `metrics`, `per_line` side by side, in a figure as wide as `size`: one of `SIZES`, or millimetres."""
    if per_line < 1:
        raise LabError(f"--panels {per_line}: a figure has at least one panel side by side")
    across = min(per_line, len(metrics))
    width = width_of(size) / _MM / across
    figure, axes = panels(-(-len(metrics) // across), across, size=(width, width * _ASPECT))
    look = found.looks
    all_panels = list(chain.from_iterable(axes))
    for panel, metric in zip(all_panels, metrics, strict=False):
        drawn = curves(found.rows, found.measured, found.place, metric, PLACES, found.weights.get(metric))
        shown = [curve for curve in drawn if not curve.is_empty]
        if not shown:
            raise LabError(f"column {metric} has no value in any run: leave it out")
        for curve in shown:
            mean, low, high = found.band(metric, curve)
            panel.plot(curve.ends, mean, label=curve.name, linewidth=1.2, **look[curve.name])
            panel.fill_between(curve.ends, low, high, color=look[curve.name]["color"], alpha=0.18, linewidth=0)
        panel.set_xlabel(found.place.replace("_", " "), fontsize=_POINTS)
        panel.set_ylabel(metric.replace("_", " "), fontsize=_POINTS)
        panel.tick_params(labelsize=_POINTS)
    lines = {str(line.get_label()): line for panel in all_panels[: len(metrics)] for line in panel.get_lines()}
    longest = max(map(len, lines)) * _POINTS * 0.5 / 72 + 0.5  # inches that a name takes
    columns = max(1, int(width_of(size) / _MM / longest))
    figure.legend(
        list(lines.values()), list(lines), loc="outside lower center", ncols=columns, fontsize=_POINTS, frameon=False
    )
    figure.set_figheight(figure.get_figheight() + -(-len(lines) // columns) * _POINTS * 1.5 / 72)
    for panel in all_panels[len(metrics) :]:
        panel.set_axis_off()
    return figure


def width_of(size: str) -> float:
    """In millimetres.

    >>> width_of("column"), width_of("120")
    (85.0, 120.0)
    """
    if size in SIZES:
        return SIZES[size]
    if not re.fullmatch(r"\d+(\.\d+)?", size) or not 20 <= float(size) <= 2000:
        raise LabError(
            f"--size '{size}': write column ({SIZES['column']:g} mm), page ({SIZES['page']:g} mm) or millimetres"
        )
    return float(size)
