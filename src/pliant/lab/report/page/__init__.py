"""A report as one page of HTML that needs nothing from outside: figures to zoom into, tables to sort, where it all comes from.

The figures are drawn by uPlot 1.6.32 (MIT, 51 kB, beside this file), chosen for its size and because bands and zoom are its own;
without scripts, and on paper, they are vector graphics. The page forbids itself every request.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas and matplotlib are typed in part)

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from pliant.lab.figures import seen_on
from pliant.lab.intervals import Array
from pliant.lab.report.comparison import pair_cells, pairs
from pliant.lab.report.numbers import Cells
from pliant.lab.report.page.still import still
from pliant.lab.report.page.verdict import verdict
from pliant.lab.report.parts import Curve, curves
from pliant.lab.report.summary import Summary, table, title_lines

PLACES = 200  # of a figure's curve, at most: a pixel in five
DASHES = {"-": [], "--": [9, 5], ":": [2, 4], "-.": [9, 4, 2, 4]}
LIGHT, DARK = "#ffffff", "#161616"  # --paper of page.css
PAIRS = 45  # compared, at most: of ten curves
_ONLY_ITSELF = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True)
class Origin:
    """Where the rows of a page come from, as far as it is known, and what is said about them.

    Args:
        question: what the experiment asks.
        facts: name -> text: versions, machines, commit, cost, failures.
        command: the line that runs it again.
        note: how the settings were chosen.
        refresh: seconds after which the page reads itself again; 0 for a page that is final.
    """

    question: str = ""
    facts: Mapping[str, str] | None = None
    command: str = ""
    note: str = ""
    refresh: int = 0


def page(found: Summary, origin: Origin, parts: int) -> str:
    """The page, as HTML."""
    each = [figure for metric in _metrics(found) if (figure := _figure(found, metric)).has_values]
    legend = [
        {"name": name, "color": look["color"], "dash": DASHES[look["linestyle"]]} for name, look in found.looks.items()
    ]
    data = {"place": found.place, "curves": legend, "figures": [{"x": one.x, "y": one.y} for one in each]}
    return "\n".join(_lines(found, origin, parts, each, legend, data)) + "\n"


@dataclass(frozen=True)
class Figure:
    """The curves of one column: `x` (places,), and in `y` for each curve its mean and the ends of its interval, or None."""

    metric: str
    x: list[float]
    y: list[list[float | None]]

    @property
    def has_values(self) -> bool:
        """Whether any curve has a number: a column may be of other methods or units than those of the study."""
        return any(value is not None for line in self.y for value in line)


def _metrics(found: Summary) -> list[str]:
    """The columns that the page draws, the report's own first."""
    table: Any = found.rows
    numbers = [name for name in found.measured if name in table and table[name].dtype.kind in "biuf"]
    return [found.metric, *(name for name in numbers if name not in (found.place, found.metric))]


def _figure(found: Summary, metric: str) -> Figure:
    weight = found.weights.get(metric)
    drawn = curves(found.rows, found.measured, found.place, metric, PLACES, weight)
    x = np.unique(np.concatenate([curve.ends for curve in drawn if len(curve.seeds)] or [np.empty(0)]))
    y: list[list[float | None]] = []
    for curve in drawn:
        y += [_aligned(line, curve, x) for line in (found.band(metric, curve) if curve.seeds else [np.empty(0)] * 3)]
    return Figure(metric, x.tolist(), y)


def _aligned(line: Array, curve: Curve, x: Array) -> list[float | None]:
    """At the places of a figure: JSON knows neither NaN nor infinity."""
    own = dict(zip(curve.ends.tolist(), line.tolist(), strict=False))
    return [value if np.isfinite(value := own.get(place, np.nan)) else None for place in x.tolist()]


def _lines(
    found: Summary,
    origin: Origin,
    parts: int,
    each: Sequence[Figure],
    legend: Sequence[Mapping[str, Any]],
    data: Mapping[str, Any],
) -> Iterator[str]:
    title = f"{found.name} / {found.profile}"
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_ONLY_ITSELF}">'
    if origin.refresh:
        yield f'<meta http-equiv="refresh" content="{origin.refresh}">'
    style = _text("uPlot.min.css") + _text("page.css") + _colors(legend)
    yield f"<title>{escape(title)}</title><style>{style}</style></head><body><main>"
    yield f"<h1>{escape(found.name)} <small>{escape(found.profile)}</small></h1>"
    if origin.question:
        yield f"<p>{escape(origin.question)}</p>"
    yield from (f'<p class="verdict">{escape(sentence)}</p>' for sentence in verdict(found))
    yield from _figures(found, each, legend)
    yield "<h2>Curves</h2>"
    yield "".join(f'<p class="soft">{escape(line)}</p>' for line in list(title_lines(found, parts))[1:])
    yield _table(table(found.curves, found.layout, found.against, False, found.measure, found.measure.name != "last"))
    compared = pairs(found.curves, found.measure, found.against)
    if compared:
        yield "<h2>Differences</h2>"
        more = f" The first {PAIRS} of {len(compared)}." if len(compared) > PAIRS else ""
        yield (
            f'<p class="soft">Of "{found.measure.name.replace("-", " ")}", paired by seed. p: permutation test; Holm: for all '
            f"rows together; effect: in units of the spread among seeds.{more}</p>"
        )
        yield _table(list(pair_cells(compared[:PAIRS], found.layout)))
    yield from _settings(found, origin)
    yield from _origin(origin)
    yield f'</main><script type="application/json" id="data">{_json(data)}</script>'
    yield f"<script>{_text('uPlot.iife.min.js')}</script><script>{_text('page.js')}</script></body></html>"


def _colors(legend: Sequence[Mapping[str, Any]]) -> str:
    """Those of the curves; lighter where the page is dark and they would not be seen."""
    of = {paper: [seen_on(paper, curve["color"]) for curve in legend] for paper in (LIGHT, DARK)}
    light, dark = ("".join(f"--curve-{n}:{color};" for n, color in enumerate(of[paper])) for paper in (LIGHT, DARK))
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def _figures(found: Summary, each: Sequence[Figure], legend: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "<h2>Figures</h2>"
    yield (
        '<p class="soft">Mean over seeds and its 95% interval. <span class="usage">Point to read values, drag to zoom, '
        "double-click to return; with the keyboard, arrows and Escape.</span></p>"
    )
    yield '<fieldset class="curves"><legend class="soft">Curves shown</legend>'
    for n, curve in enumerate(legend):
        dash = " ".join(map(str, curve["dash"]))
        line = f'<line x1="0" y1="4" x2="28" y2="4" style="stroke: var(--curve-{n})" stroke-width="3" stroke-dasharray="{dash}"/>'
        swatch = f'<svg width="28" height="8" aria-hidden="true">{line}</svg>'
        yield f'<label><input type="checkbox" checked> {swatch}{escape(curve["name"])}</label>'
    yield '</fieldset><div class="figures">'
    for number, one in enumerate(each):
        label = f"{one.metric} by {found.place}"
        yield f'<figure id="figure-{number}"><figcaption>{escape(label)}</figcaption>'
        yield f'<div class="plot" tabindex="0" role="img" aria-label="{escape(label)}"></div>'
        yield f'{still(one.x, one.y, legend)}<output aria-live="polite"></output></figure>'
    yield "</div>"


def _table(cells: Cells) -> str:
    """A table whose columns sort by the number that a cell begins with."""
    head, *rows = cells
    top = "".join(f'<th scope="col"><button type="button">{escape(cell)}</button></th>' for cell in head)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    first = text.split(" ")[0].rstrip(",").removeprefix("<")
    try:
        return f'<td data-value="{float(first)}">{escape(text)}</td>' if first else "<td></td>"
    except ValueError:
        return f"<td>{escape(text)}</td>"


def _settings(found: Summary, origin: Origin) -> Iterator[str]:
    names = list(dict.fromkeys(name for curve in found.curves for name in curve.settings))
    rows = [[curve.name, *(str(curve.settings.get(name, "-")) for name in names)] for curve in found.curves]
    yield "<h2>Settings</h2>"
    yield f"<p>{escape(origin.note or 'How they were chosen was not said: --note TEXT writes it here.')}</p>"
    yield _table([["curve", *names], *rows])
    yield '<p class="soft">The same for all:</p>'
    yield _list({name: str(value) for name, value in found.common.items()})


def _origin(origin: Origin) -> Iterator[str]:
    yield "<h2>Where it comes from</h2>"
    again = {"run it again": f"<code>{escape(origin.command)}</code>"} if origin.command else {}
    yield _list(origin.facts or {}, again)


def _list(facts: Mapping[str, str], marked: Mapping[str, str] | None = None) -> str:
    texts = {name: escape(text) for name, text in facts.items()} | dict(marked or {})
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{text}</dd>" for name, text in texts.items()) + "</dl>"


def _json(data: Mapping[str, Any]) -> str:
    """In a script element: no text of it can end the element."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _text(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
