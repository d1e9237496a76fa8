"""A figure as a vector graphic of a page: for paper, and where scripts do not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import EngFormatter, MaxNLocator

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 320, 64, 28

Line = Sequence[float | None]


def still(x: Sequence[float], y: Sequence[Line], legend: Sequence[Mapping[str, Any]]) -> str:
    """SVG of curves: `y` holds for each its mean and the ends of its interval, None where it has no value."""
    values = [value for line in y for value in line if value is not None]
    if not values or not x:
        return '<p class="soft still">no values</p>'
    across = _Scale(min(x), max(x), LEFT, WIDTH - 24)
    up = _Scale(min(values), max(values), HEIGHT - BOTTOM, 8)
    parts = [*_axes(across, up)]
    for n, curve in enumerate(legend):
        mean, low, high = y[3 * n : 3 * n + 3]
        color = f"var(--curve-{n})"
        for a, b in _stretches(low):
            there = [f"{across(x[i]):.1f},{up(high[i] or 0.0):.1f}" for i in range(a, b) if high[i] is not None]
            back = [f"{across(x[i]):.1f},{up(low[i] or 0.0):.1f}" for i in reversed(range(a, b))]
            parts.append(f'<polygon style="fill: {color}" fill-opacity=".18" points="{" ".join([*there, *back])}"/>')
        dash = f' stroke-dasharray="{" ".join(map(str, curve["dash"]))}"' if curve["dash"] else ""
        for a, b in _stretches(mean):
            points = " ".join(f"{across(x[i]):.1f},{up(mean[i] or 0.0):.1f}" for i in range(a, b))
            parts.append(f'<polyline fill="none" style="stroke: {color}" stroke-width="2"{dash} points="{points}"/>')
    return f'<svg class="still" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


class _Scale:
    """From values to places in the graphic."""

    def __init__(self, low: float, high: float, begin: float, end: float) -> None:
        self.low, self.high = (low, high) if high > low else (low - 0.5, high + 0.5)
        self.begin, self.end = begin, end

    def __call__(self, value: float) -> float:
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        found = np.asarray(MaxNLocator(5).tick_values(self.low, self.high), np.float64)
        return found[(found >= self.low) & (found <= self.high)].tolist()


def _axes(across: _Scale, up: _Scale) -> list[str]:
    thousands = EngFormatter(sep="")
    lines: list[str] = []
    for tick in up.ticks():
        y = up(tick)
        lines.append(
            f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" stroke-opacity=".15"/>'
        )
        lines.append(_label(LEFT - 6, y + 4, "end", f"{tick:g}"))
    lines += [
        _label(across(t), HEIGHT - 8, "middle", thousands(t) if abs(t) >= 1e4 else f"{t:g}") for t in across.ticks()
    ]
    return lines


def _label(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" fill="currentColor">{text}</text>'


def _stretches(line: Line) -> list[tuple[int, int]]:
    """Where a line has values without a gap: begin, end."""
    present = np.array([False, *(value is not None for value in line), False])
    changes = np.flatnonzero(present[1:] != present[:-1])
    return list(zip(changes[::2].tolist(), changes[1::2].tolist(), strict=True))
