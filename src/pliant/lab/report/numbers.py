"""How a report writes numbers and tables: a mean with what it is worth; text, Markdown or LaTeX.

interval     0.9531 ± 0.0102             half of Student's 95% interval
error        0.9531 ± 0.0040             the standard error
bootstrap    0.9531 [0.9411, 0.9622]     the 95% BCa interval; the only one of an interquartile mean
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10
from typing import Literal, TypeAlias, cast, get_args

import numpy as np

from pliant.base.tables import aligned
from pliant.lab.errors import LabError, unknown
from pliant.lab.intervals import Array, bca_interval
from pliant.lab.statistics import estimate, interquartile_mean

Spread: TypeAlias = Literal["interval", "error", "bootstrap"]
Aggregate: TypeAlias = Literal["mean", "iqm"]

_WORDS = {
    "interval": "± half the 95% interval",
    "error": "± standard error",
    "bootstrap": "[95% interval, BCa bootstrap]",
}


@dataclass(frozen=True)
class Format:
    """How numbers of runs are aggregated and written."""

    least_is_best: bool = False
    spread: Spread = "interval"
    aggregate: Aggregate = "mean"

    @property
    def words(self) -> str:
        """What the numbers are."""
        return ("interquartile mean " if self.aggregate == "iqm" else "") + _WORDS[self.spread]

    def text(self, runs: Array, signed: bool = False) -> str:
        """Of runs (runs,), their mean and what it is worth."""
        middle, low, high = self.of(runs)
        if np.isnan(middle):
            return "nan"
        sizes = [abs(each) for each in (middle, low - middle, high - middle) if isfinite(each)]
        decimals = max(0, 4 - floor(log10(max(1.0, *sizes)))) if sizes else 4
        mean = f"{middle:{'+' if signed else ''}.{decimals}f}"
        if len(runs) < 2:
            return mean
        if self.spread == "bootstrap":
            return f"{mean} [{low:.{decimals}f}, {high:.{decimals}f}]"
        return f"{mean} ± {high - middle:.{decimals}f}"

    def of(self, runs: Array) -> tuple[float, float, float]:
        """Mean, lower and upper end; the ends are nan for a single run."""
        if self.spread == "bootstrap":
            statistic = interquartile_mean if self.aggregate == "iqm" else np.mean
            return float(statistic(runs)), *bca_interval(runs, statistic=statistic)
        found = estimate(runs)
        middle, error = float(found.mean), float(found.standard_error)
        low, high = (middle - error, middle + error) if self.spread == "error" else found.interval()
        return middle, float(low), float(high)


def format_of(spread: str | None, aggregate: str, least_is_best: bool) -> Format:
    """The format that is asked for. Raises `LabError` for one that there is not."""
    if aggregate not in get_args(Aggregate):
        raise unknown("aggregate", aggregate, get_args(Aggregate))
    if spread is not None and spread not in get_args(Spread):
        raise unknown("spread", spread, get_args(Spread))
    if aggregate == "iqm" and spread in ("interval", "error"):
        raise LabError(f"--spread {spread} is of a mean: leave it out, an interquartile mean has the bootstrap's")
    usual = "bootstrap" if aggregate == "iqm" else "interval"
    return Format(least_is_best, cast(Spread, spread or usual), cast(Aggregate, aggregate))


# -- tables -------------------------------------------------------------------------------------------------------------

Cells: TypeAlias = Sequence[Sequence[str]]  # the head first


def as_markdown(cells: Cells) -> list[str]:
    """
    >>> as_markdown([("curve", "last"), ("cbp", "0.9")])
    ['| curve | last |', '|---|---|', '| cbp | 0.9 |']
    """
    head, *rows = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in cells]
    return [head, "|" + "---|" * len(cells[0]), *rows]


def as_latex(cells: Cells) -> list[str]:
    r"""For the package booktabs.

    >>> as_latex([("curve", "last"), ("a_b", "0.9 ± 0.1")])[3:6]
    ['\\midrule', 'a\\_b & 0.9 $\\pm$ 0.1 \\\\', '\\bottomrule']
    """
    head, *rows = [" & ".join(map(_in_latex, row)) + r" \\" for row in cells]
    begin = r"\begin{tabular}{l" + "r" * (len(cells[0]) - 1) + "}"
    return [begin, r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]


_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": "$<$", ">": "$>$",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}  # fmt: skip


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


FORMS: Mapping[str, Callable[[Cells], list[str]]] = {
    "text": lambda cells: aligned([[*row] for row in cells]),
    "markdown": as_markdown,
    "latex": as_latex,
}
