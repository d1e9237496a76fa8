"""What prints as a table, in the other forms that people want: plain values, a pandas DataFrame, a notebook's HTML, bars.

`Table` asks for the plain values, one record per row, and for the cells of the printed table; every result of this library that
prints as a table is one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import import_module
from typing import Any

Cells = Sequence[Sequence[str]]  # the first row is the head

_STYLE = "text-align:left;white-space:nowrap;vertical-align:top"


class Table(ABC):
    """A result that prints as a table."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All of it as numbers, texts, None, lists and dictionaries, as `json.dumps` takes them (nan and inf stay numbers)."""

    @abstractmethod
    def records(self) -> list[dict[str, Any]]:
        """One dictionary of plain values per row, all with the same keys: the columns of a data frame."""

    @abstractmethod
    def table(self) -> tuple[Cells, Sequence[str]]:
        """The cells as printed, the head first, and the lines below them."""

    def to_pandas(self) -> Any:
        """The records as a `pandas.DataFrame`. Raises `ImportError` with the line that installs pandas where it is missing."""
        pandas: Any = needed("pandas", "to_pandas()")
        return pandas.DataFrame.from_records(self.records())

    def __str__(self) -> str:
        cells, notes = self.table()
        lines = [*aligned(cells), *(["", *notes] if notes else [])]
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html(*self.table())


def aligned(table: Cells) -> list[str]:
    """Rows of cells as lines, with aligned columns.

    >>> aligned([("layer", "dead"), ("0", "12")])
    ['layer  dead', '0      12']
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table]


def html(cells: Cells, notes: Sequence[str] = ()) -> str:
    """A table in HTML that needs nothing from outside; the notes below, as they are.

    >>> "<td" in html([("layer",), ("a<b",)]), "a&lt;b" in html([("layer",), ("a<b",)])
    (True, True)
    """
    head, *rows = cells
    top = "".join(f'<th style="{_STYLE}">{escape(cell)}</th>' for cell in head)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_STYLE}">{escape(cell)}</td>' for cell in row) + "</tr>" for row in rows
    )
    below = f"<pre>{escape(chr(10).join(notes))}</pre>" if notes else ""
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>{below}"


def needed(package: str, by: str) -> Any:
    """The package, imported. Raises `ImportError` with the line that installs it.

    >>> needed("no_such_package", "to_pandas()")
    Traceback (most recent call last):
    ImportError: to_pandas() needs no_such_package: pip install no_such_package
    """
    try:
        return import_module(package)
    except ImportError as error:
        if error.name not in (package, package.partition(".")[0]):
            raise  # it is there, and lacks something itself
        raise ImportError(f"{by} needs {package}: pip install {package.partition('.')[0]}", name=package) from None


def bars(labels: Sequence[str], panels: Mapping[str, Mapping[str, Iterable[float | None]]], *, title: str = "") -> Any:
    """A matplotlib figure of horizontal bars: a panel per measure, a row per label, a bar per series; None leaves a gap.

    Args:
        labels: of the rows, from the top.
        panels: title of the panel -> name of the series -> one value per row.
        title: of the figure.

    Raises `ImportError` with the line that installs matplotlib where it is missing. The figure belongs to no window: save it with
    `figure.savefig(...)`, or return it in a notebook's cell.
    """
    columns = min(max(len(panels), 1), 4)
    series = list(dict.fromkeys(name for each in panels.values() for name in each))
    thickness = 0.8 / max(len(series), 1)
    size = 2.9, 0.9 + 0.22 * len(labels) * max(len(series), 1)
    figure, axes = _panels(-(-max(len(panels), 1) // columns), columns, size, sharey=True)
    for axis, (name, values) in zip(axes, panels.items(), strict=False):
        axis.set_title(name, fontsize="medium")
        for number, one in enumerate(series):
            of_one = values.get(one, [None] * len(labels))
            places = [row + (number - (len(series) - 1) / 2) * thickness for row in range(len(labels))]
            widths = [float("nan") if value is None else value for value in of_one]
            axis.barh(places, widths, height=thickness, color=f"C{number}", label=one)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].set_ylim(len(labels) - 0.5, -0.5)
    if len(series) > 1:
        axes[0].legend(fontsize="small", frameon=False)
    if title:
        figure.suptitle(title)
    return figure


Curves = Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]


def curves(x: str, panels: Curves, title: str = "") -> Any:
    """A matplotlib figure of lines: a panel per measure, in each a line per series, given as its x and its y values.

    Raises `ImportError` with the line that installs matplotlib where it is missing.
    """
    columns = min(max(len(panels), 1), 4)
    figure, axes = _panels(-(-max(len(panels), 1) // columns), columns, (2.9, 2.3))
    for axis, (name, lines) in zip(axes, panels.items(), strict=False):
        axis.set_title(name, fontsize="medium")
        axis.set_xlabel(x, fontsize="small")
        for label, (xs, ys) in lines.items():
            axis.plot(xs, ys, marker="." if len(xs) < 50 else "", label=label)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    if panels:
        axes[0].legend(fontsize="small", frameon=False)
    if title:
        figure.suptitle(title)
    return figure


def _panels(rows: int, columns: int, size: tuple[float, float], **how: bool) -> tuple[Any, list[Any]]:
    """A figure that belongs to no window, and its panels, row by row, each `size` inches."""
    needed("matplotlib", "plot()")
    figures, agg = import_module("matplotlib.figure"), import_module("matplotlib.backends.backend_agg")
    figure = figures.Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    agg.FigureCanvasAgg(figure)
    axes: list[Any] = figure.subplots(rows, columns, squeeze=False, **how).flatten().tolist()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes
