"""Areas under learning curves, and whether one network learns worse than another.

    e[t]    error of a step, min(1, (loss[t] - floor) / (start - floor))
    start   mean loss of the fresh networks before their first step
    floor   0; the least loss that any curve reaches where losses go below 0
    area    mean over t of e[t], in [0, 1]: 1 is no better than an untrained network
    ratio   exp(mean over seeds of log(area / area of fresh)), with Student's interval

Errors are cut at 1, as a network that is confidently wrong at first knows no less than an untrained one. Each side has the step
size with the least mean area, over all seeds. The answer:

    yes           the interval lies above 1 + margin
    no            it lies below 1 + margin
    cannot tell   otherwise; or a fresh network ends with less than `LEARNS` of the way from start to floor behind it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, pi, sqrt

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEARNS = 0.2  # of the way from its start to 0, which a fresh network has to have gone at the end
TAIL = 0.1  # of the steps: the end of a curve
LEAST = 1e-6  # of an area, so that a task that is known at once has a logarithm


@dataclass(frozen=True)
class Comparison:
    """How much larger an area is than another, over paired seeds: a ratio with its 95% interval, and the answer."""

    ratio: float
    low: float
    high: float
    margin: float
    answer: str  # "yes", "no", "cannot tell"
    reason: str

    def __str__(self) -> str:
        return f"{self.answer}: {self.reason}"

    @property
    def manner(self) -> str:
        """How it learns, where the answer is known: "worse than", "better than", or "like", within the margin."""
        return "worse than" if self.answer == "yes" else "better than" if self.high < 1.0 else "like"

    @property
    def interval(self) -> str:
        return f"{self.ratio:.3g} (95% interval {self.low:.3g} to {self.high:.3g})"


def errors(losses: Array, start: float, floor: float) -> Array:
    """Errors of losses of any shape; what is not finite counts as 1.

    >>> errors(np.array([4.0, 1.0, 0.0, np.nan]), start=2.0, floor=0.0).tolist()
    [1.0, 0.5, 0.0, 1.0]
    """
    scaled = (losses - floor) / max(start - floor, 1e-30)
    return np.clip(np.where(np.isfinite(losses), scaled, 1.0), 0.0, 1.0)


def best(areas: Array) -> int:
    """Which step size, (step sizes, seeds) -> the one of the least mean area."""
    return int(areas.mean(axis=1).argmin())


def log_ratio(areas: Sequence[float] | Array, fresh: Sequence[float] | Array) -> tuple[float, float, float]:
    """Mean log of the ratio of areas over paired seeds, and the ends of its 95% interval.

    >>> [round(exp(each), 3) for each in log_ratio([0.2, 0.4, 0.8], [0.1, 0.2, 0.4])]
    [2.0, 2.0, 2.0]
    """
    ratios = np.log(np.maximum(areas, LEAST)) - np.log(np.maximum(fresh, LEAST))
    n = len(ratios)
    reach = student(n - 1) * float(ratios.std(ddof=1)) / sqrt(n)
    mean = float(ratios.mean())
    return mean, mean - reach, mean + reach


def compared(areas: Array, fresh: Array, margin: float, *, what: str, than: str) -> Comparison:
    """The answer from the areas of both sides by seed, (seeds,) each."""
    mean, low, high = log_ratio(areas, fresh)
    ratio, low, high = exp(mean), exp(low), exp(high)
    limit = 1.0 + margin
    answer = "yes" if low > limit else "no" if high < limit else "cannot tell"
    said = f"{ratio:.3g} times the area (95% interval {low:.3g} to {high:.3g}, margin {limit:.3g}, {len(areas)} seeds)"
    found = Comparison(ratio, low, high, margin, answer, "")
    within = ", within the margin" if found.manner == "like" else ""
    how = f"{what} learns {found.manner} {than}{within}"
    if answer == "cannot tell":
        how = f"the interval of {what} against {than} crosses the margin"
    return replace(found, reason=f"{how}, {said}")


def unknown(comparison: Comparison, reason: str) -> Comparison:
    """The same numbers, from which nothing follows."""
    return replace(comparison, answer="cannot tell", reason=reason)


def steps_to(curve: Array, level: float) -> int | None:
    """The first step from which on the mean of the next tenth of the curve is at most `level`; None if there is none.

    >>> steps_to(np.linspace(1.0, 0.0, 11), 0.5)
    5
    """
    width = max(1, int(len(curve) * TAIL))
    means = np.convolve(curve, np.ones(width) / width, mode="valid")
    reached = np.flatnonzero(means <= level + 1e-12)
    return int(reached[0]) if len(reached) else None


def end(curve: Array) -> Array:
    """The mean of a curve's last tenth, along its last axis."""
    width = max(1, int(curve.shape[-1] * TAIL))
    return curve[..., -width:].mean(axis=-1)


def student(degrees: int) -> float:
    """The 97.5% quantile of Student's t distribution.

    With t = √ν tan θ its density is proportional to cos^(ν-1) θ, which is summed over θ.

    >>> [round(student(n), 2) for n in (1, 2, 4, 29)]
    [12.71, 4.3, 2.78, 2.05]
    """
    angles = np.linspace(0.0, pi / 2, 200_001)
    below = np.cumsum(np.cos(angles) ** (degrees - 1))
    return sqrt(degrees) * float(np.tan(np.interp(0.95, below / below[-1], angles)))
