"""One number of a curve: what a run is compared by.

area               mean height: the area under the curve per unit of its length (the average online accuracy or error)
plasticity loss    mean of the early part less mean of the late one; more is worse, also of a curve whose least is best
time to relearn    after each change, places until the curve is at `level` again; a change after which it never is counts
                   for its whole stretch, and is counted
gap to fresh       a fresh network's value less the curve's, seed by seed; more is worse
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pliant.lab.intervals import Array, as_runs


def area(values: ArrayLike) -> Array:
    """Mean height of curves (..., places), whose places are equally far apart.

    >>> float(area([0.0, 1.0, 2.0]))
    1.0
    """
    return as_runs(values).mean(axis=-1)


def plasticity_loss(values: ArrayLike, share: float = 0.1, least_is_best: bool = False) -> Array:
    """Early less late mean of curves (..., places), each over `share` of the places, at least one; positive where it was lost.

    >>> float(plasticity_loss([0.9, 0.8, 0.7, 0.6])), float(plasticity_loss([1.0, 1.5], least_is_best=True))
    (0.30000000000000004, 0.5)
    """
    if not 0 < share <= 0.5:
        raise ValueError(f"share {share} of the places is above 0 and at most a half")
    curve = as_runs(values)
    places = max(1, int(share * curve.shape[-1]))
    lost = curve[..., :places].mean(axis=-1) - curve[..., -places:].mean(axis=-1)
    return -lost if least_is_best else lost


def gap_to_fresh(values: ArrayLike, fresh: ArrayLike, least_is_best: bool = False) -> Array:
    """How much better a fresh network is, (...).

    >>> float(gap_to_fresh(0.8, 0.9).round(3)), float(gap_to_fresh(0.8, 0.9, least_is_best=True).round(3))
    (0.1, -0.1)
    """
    gap = np.asarray(fresh, np.float64) - np.asarray(values, np.float64)
    return -gap if least_is_best else gap


class Relearned(NamedTuple):
    """Mean time after changes, and how many of them were never made good."""

    time: float
    never: int
    changes: int


def time_to_relearn(
    values: ArrayLike, places: ArrayLike, task: ArrayLike, level: float, least_is_best: bool = False
) -> Relearned:
    """Mean over tasks of the way from a task's first place to the first one at `level` or better.

    Args:
        values: of one run, (places,).
        places: where in the run, steps or examples, rising.
        task: number of the task at each place; a task is a stretch of equal numbers.
        level: the value to be reached again.
        least_is_best: whether that is from above.

    >>> time_to_relearn([0, 5, 9, 0, 9, 0, 1], [0, 10, 20, 30, 40, 50, 60], [1, 1, 1, 2, 2, 3, 3], level=5)
    Relearned(time=10.0, never=1, changes=3)
    """
    curve, at, tasks = (as_runs(each) for each in (values, places, task))
    if not curve.shape == at.shape == tasks.shape or curve.ndim != 1 or not len(curve):
        raise ValueError(f"values, places and tasks are of one run, not {curve.shape}, {at.shape}, {tasks.shape}")
    begins = np.flatnonzero(np.r_[True, tasks[1:] != tasks[:-1]])
    good = curve <= level if least_is_best else curve >= level
    times: list[float] = []
    never = 0
    for begin, end in zip(begins, [*begins[1:], len(curve)], strict=True):
        reached = np.flatnonzero(good[begin:end])
        never += not len(reached)
        times.append(float(at[begin + reached[0]] if len(reached) else at[end - 1]) - float(at[begin]))
    return Relearned(float(np.mean(times)), never, len(times))
