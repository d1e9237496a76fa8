"""What the figures of all experiments share: panels, mean curves with bands over seeds, labels at line ends.

Drawn with matplotlib's objects, without pyplot: no window, no global state, safe in any process.
Colors are those of Okabe and Ito (2008), told apart by the color-blind.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas and matplotlib are typed in part)

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from pliant.base.choices import shortened
from pliant.lab.curves import check_columns, check_not_pooled, mean_by
from pliant.lab.errors import LabError, unknown
from pliant.lab.intervals import bootstrap_interval
from pliant.lab.statistics import estimate

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# blue, vermilion, bluish green, orange, reddish purple, sky blue, black; yellow is too light for a line
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
_LINES = ("-", "--", ":", "-.")  # a second round of colors is dashed, and so on
_LARGE = 10_000  # from which ticks count in thousands
_LABEL_ROOM = 0.05  # of the height of a panel, between two labels

FIGURES = (".png", ".pdf", ".svg")

Style = Mapping[str, Any]


def check_figure_file(file: Path) -> None:
    """Raise `LabError` unless the file's name says a format of figures."""
    if file.suffix.lower() not in FIGURES:
        raise LabError(f"{file} does not say a format of figures: end it in {', '.join(FIGURES[:-1])} or {FIGURES[-1]}")


def panels(
    rows: int, columns: int, title: str = "", size: tuple[float, float] = (4.6, 3.6)
) -> tuple[Figure, list[list[Axes]]]:
    """A figure and its panels, `axes[row][column]`, each `size` inches."""
    for name, number in (("rows", rows), ("columns", columns)):
        if not isinstance(number, Integral) or number < 1:
            raise LabError(f"{name} is {shortened(repr(number))}: a figure has a whole number of panels, from 1 on")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = cast("list[list[Axes]]", figure.subplots(rows, columns, squeeze=False).tolist())
    for one in chain.from_iterable(axes):
        one.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title)
    return figure, axes


def styles(names: Sequence[str]) -> dict[str, Style]:
    """A color and dash for each name, the same in every panel that is drawn with them."""
    rounds, places = np.divmod(np.arange(len(names)), len(PALETTE))
    return {
        name: {"color": PALETTE[place], "linestyle": _LINES[turn % len(_LINES)]}
        for name, place, turn in zip(names, places.tolist(), rounds.tolist(), strict=True)
    }


def looks(
    rows: pandas.DataFrame, colors: Mapping[Any, str | Sequence[str]], by: Sequence[str] = ("method",)
) -> dict[str, Style]:
    """A look for each `curve` of the rows: a color for each value of `by`; its curves differ in dash, and then in shade.

    Keys of `colors` are values of the column `by`, or tuples of several; what is not among them has the next of `PALETTE`. Of
    several colors each is given out before the first dash.
    """
    others = cycle(PALETTE)
    table: Any = rows
    look: dict[str, Style] = {}
    for kind, own in table[[*by, "curve"]].drop_duplicates().groupby(list(by), sort=False)["curve"]:
        key = kind if len(by) > 1 else kind[0]
        given = colors[key] if key in colors else next(others)
        own_colors = (given,) if isinstance(given, str) else given
        for number, name in enumerate(own):
            turn, place = divmod(number, len(own_colors))
            shade, dash = divmod(turn, len(_LINES))
            look[name] = {"color": shaded(own_colors[place], shade), "linestyle": _LINES[dash]}
    return look


def shaded(color: str, number: int) -> str:
    """A color, and for each further number another shade of it: lighter, darker, and again.

    >>> shaded("#0072B2", 0), shaded("#0072B2", 1), shaded("#0072B2", 2)
    ('#0072B2', '#73b1d5', '#003f62')
    """
    if not number:
        return color
    from matplotlib.colors import to_hex, to_rgb

    strength = 0.45 ** (1 / (1 + (number - 1) // 2))
    toward, weight = (1.0, strength) if number % 2 else (0.0, strength)
    red, green, blue = ((1 - weight) * channel + weight * toward for channel in to_rgb(color))
    return to_hex((red, green, blue))


def seen_on(paper: str, color: str) -> str:
    """The color, mixed with white until it stands out from a dark paper: a contrast of 3, as WCAG 2.2 (1.4.11) asks of graphics.

    >>> seen_on("#ffffff", "#444444"), seen_on("#161616", "#0072B2"), seen_on("#161616", "#000000")
    ('#444444', '#0072b2', '#666666')
    """
    from matplotlib.colors import to_hex, to_rgb

    def luminance(rgb: NDArray[np.float64]) -> float:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    own, ground = np.array(to_rgb(color)), luminance(np.array(to_rgb(paper)))
    while ground < 0.5 and (luminance(own) + 0.05) / (ground + 0.05) < 3:
        own = own + 0.05 * (1 - own)
    red, green, blue = own.tolist()
    return to_hex((red, green, blue))


def with_values(rows: pandas.DataFrame, column: str) -> pandas.DataFrame:
    """The rows of the curves that have any value of `column`: some have none, as a network without hidden units."""
    table: Any = rows
    return table[table["curve"].isin(table["curve"][table[column].notna()])]


def band(
    axes: Axes,
    rows: pandas.DataFrame,
    x: str,
    y: str,
    by: str,
    over: str = "seed",
    weight: str | None = None,
    bins: int | None = None,
    look: Mapping[str, Style] | None = None,
    labels: Mapping[str, str] | None = None,
    name_lines: bool = True,
    interval: Literal["student", "bootstrap"] = "student",
    pooled: Sequence[str] = (),
    bounds: tuple[float, float] | None = None,
) -> None:
    """A curve for each value of column `by`: the mean of `y` over `over`, and its 95% interval.

    With `bins`, x is cut into so many equal parts, if there are more places, and a run's values within one are averaged first, by
    column `weight` if that counts what they are means of (`mean_by`). Where runs diverged, the mean is over those left, and the
    label says how many went missing.
    Raises `LabError` where a curve's runs differ in a setting, but for those in `pooled`: what differs more than seeds do is not
    their spread. `pliant.lab.curves.with_curves` names a curve for each setting.
    `bounds`: where a band ends at most, such as 0 and 1 for a share.
    `labels` are axis labels by column; a column without one is labelled with its name. `name_lines=False`
    leaves the lines unnamed, for a panel beside one of the same lines.
    """
    check_columns(rows, [by, over], [x, y, weight])
    if interval not in ("student", "bootstrap"):
        raise unknown("interval", str(interval), ["student", "bootstrap"])
    if bins is not None and (not isinstance(bins, Integral) or bins < 1):
        raise LabError(f"bins is {shortened(repr(bins))}: a whole number from 1 on, or None")
    groups: dict[str, Any] = {str(name): own for name, own in rows.groupby(by, sort=False)}
    look = look or styles(list(groups))
    missing = [name for name in groups if name not in look]
    if missing:
        raise LabError(f"look does not say how the curve '{shortened(missing[0])}' is drawn")
    for name, own in groups.items():
        check_not_pooled(own, name, x, over, pooled, measured=(y, weight))
        place, table = _runs_by_place(own, x, y, over, weight, bins)
        _draw(axes, place, table, name + _lost_in_words(table), look[name], interval, bounds)
    axes.set_xlabel((labels or {}).get(x, x))
    axes.set_ylabel((labels or {}).get(y, y))
    if axes.get_xlim()[1] >= _LARGE:
        axes.xaxis.set_major_formatter(_thousands())
    if name_lines:
        label_ends(axes)


@dataclass(frozen=True)
class Part:
    """What stands side by side in a figure: the curves of one problem, a panel for each measure.

    Args:
        rows: with a column `curve`, see `pliant.lab.curves.with_curves`.
        panels: x and y of each panel, columns of the rows. One whose curves have no value is left empty.
        title: above the first.
        bins: into which x is cut, see `band`.
        pooled: fields that the runs of a curve may differ in, see `band`.
    """

    rows: pandas.DataFrame
    panels: Sequence[tuple[str, str]]
    title: str = ""
    bins: int | None = None
    pooled: Sequence[str] = ()


def figure_of(
    parts: Sequence[Part],
    look: Callable[[pandas.DataFrame], Mapping[str, Style]],
    labels: Mapping[str, str],
    lines: int = 1,
    named: Collection[str] | None = None,
    weights: Mapping[str, str] | None = None,
    interval: Literal["student", "bootstrap"] = "student",
    more: int = 0,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """A figure of parts, one below the other.

    Args:
        parts: as many panels each.
        look: gives how the curves of a part are drawn.
        labels: of axes, by column.
        lines: of panels that a part takes.
        named: the measures whose panel names its lines; all, if none are given.
        weights: column -> the column that counts what it is a mean of.
        interval: of the bands.
        more: panels left free after those of a part, for what is no curve.
        bounds: column -> where its bands end at most, see `band`.
    """
    most = max(len(part.panels) for part in parts) + more
    figure, axes = panels(lines * len(parts), -(-most // lines))
    for number, part in enumerate(parts):
        own = list(chain.from_iterable(axes[lines * number : lines * (number + 1)]))
        own[0].set_title(part.title, loc="left")
        style = look(part.rows)
        for panel, (x, y) in zip(own, part.panels, strict=False):
            shown = with_values(part.rows, y)
            if not len(shown):
                panel.set_axis_off()
                continue
            band(
                *(panel, shown, x, y, "curve"),
                weight=(weights or {}).get(y),
                bins=part.bins,
                look=style,
                labels=labels,
                name_lines=named is None or y in named,
                interval=interval,
                pooled=part.pooled,
                bounds=(bounds or {}).get(y),
            )
    return figure


def _thousands() -> Any:
    """Ticks such as 150k and 3M."""
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")


def _runs_by_place(
    rows: Any, x: str, y: str, over: str, weight: str | None, bins: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x, (places,), and y, (runs, places), NaN where a run has no value."""
    place: NDArray[np.float64] = rows[x].to_numpy(dtype=np.float64)
    if bins is not None and len(np.unique(place)) > bins:
        place = bin_centres(place, bins)
    rows = rows.assign(**{x: place})
    if weight is None:
        table = rows.pivot_table(index=over, columns=x, values=y, aggfunc="mean", dropna=False)
    else:
        means: Any = mean_by(rows[rows[weight] > 0], [over, x], y, weight)
        table = means.unstack(x)
    return table.columns.to_numpy(dtype=np.float64), table.to_numpy(dtype=np.float64)


def bin_centres(x: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """For each x, the centre of its one of `bins` equal parts of the range."""
    low, width = x.min(), (x.max() - x.min()) / bins
    if width == 0:
        return x
    return low + (np.minimum((x - low) // width, bins - 1) + 0.5) * width


def _lost_in_words(table: NDArray[np.float64]) -> str:
    lost = int(np.isnan(table[:, -1]).sum())
    return f" ({lost} of {len(table)} missing)" if lost else ""


def _draw(
    axes: Axes,
    place: NDArray[np.float64],
    table: NDArray[np.float64],
    label: str,
    style: Style,
    interval: str,
    bounds: tuple[float, float] | None,
) -> None:
    columns = [column[~np.isnan(column)] for column in table.T]
    mean = np.array([column.mean() if len(column) else np.nan for column in columns])
    ends = np.array([_interval(column, interval) for column in columns], dtype=np.float64)
    if bounds is not None:
        ends = np.clip(ends, *bounds)
    alone = np.isfinite(mean).sum() == 1  # a line of one point is not seen
    axes.plot(place, mean, label=label, linewidth=1.6, marker="o" if alone else None, **style)
    if len(table) > 1:
        axes.fill_between(place, ends[:, 0], ends[:, 1], color=style["color"], alpha=0.18, linewidth=0)


def _interval(runs: NDArray[np.float64], kind: str) -> tuple[Any, Any]:
    if not len(runs):
        return np.nan, np.nan
    return bootstrap_interval(runs) if kind == "bootstrap" else estimate(runs).interval()


def label_ends(axes: Axes) -> None:
    """Name each line at its end, in its color, none over another. Call it once the axes have their scales."""
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    for text in list(axes.texts):
        text.remove()
    ends = [_last_point(line) for line in lines]
    low_high = axes.get_ylim()
    heights = axes.transAxes.inverted().transform(axes.transData.transform(ends))[:, 1] if ends else np.zeros(0)
    for line, height in zip(lines, spread(heights, _LABEL_ROOM), strict=True):
        axes.text(
            1.02,
            height,
            str(line.get_label()),
            color=line.get_color(),
            transform=axes.transAxes,
            va="center",
            fontsize=8,
        )
    axes.set_ylim(low_high)


def _last_point(line: Any) -> tuple[float, float]:
    points = np.asarray(line.get_xydata(), dtype=np.float64)
    finite = points[np.isfinite(points).all(axis=1)]
    return (float(finite[-1, 0]), float(finite[-1, 1])) if len(finite) else (0.0, 0.0)


def spread(heights: NDArray[np.float64], room: float) -> NDArray[np.float64]:
    """The heights moved as little as it takes, in order, to stand at least `room` apart.

    Labels that touch form a block, which stands at the mean of where its members would: the least
    squares solution (pool adjacent violators on heights less their rank times the room).

    >>> spread(np.array([0.5, 0.5, 0.9]), 0.1)
    array([0.45, 0.55, 0.9 ])
    """
    order = np.argsort(heights, kind="stable")
    blocks: list[list[float]] = []
    for height in heights[order] - room * np.arange(len(heights)):
        blocks.append([float(height)])
        while len(blocks) > 1 and np.mean(blocks[-2]) >= np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    moved = np.empty_like(heights)
    moved[order] = [np.mean(block) for block in blocks for _ in block] + room * np.arange(len(heights))
    return moved
