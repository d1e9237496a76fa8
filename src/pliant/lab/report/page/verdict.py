"""What a table of curves says, in sentences that give their interval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from pliant.lab.intervals import Array
from pliant.lab.report.comparison import Pair, p_in_words, paired, pairs
from pliant.lab.report.parts import Curve
from pliant.lab.report.summary import Summary
from pliant.lab.statistics import FEW, differences, holm

LEVEL = 0.05  # of p for all comparisons together


def verdict(found: Summary) -> Iterator[str]:
    """Which curve is best, whether the others can be told from it, and which became worse during the run."""
    alive = [curve for curve in found.curves if not curve.is_empty and curve.seeds]
    if not alive:
        yield "No curve has a value yet."
        return
    yield from _best(found, alive)
    yield from _worse(found, alive)
    lost = sum(curve.left_out.get("diverged", 0) for curve in found.curves)
    if lost:
        yield f"{lost} run{'s' if lost > 1 else ''} diverged and {'are' if lost > 1 else 'is'} left out of every number."


def _best(found: Summary, alive: Sequence[Curve]) -> Iterator[str]:
    name = found.measure.name.replace("-", " ")
    what = f"{found.metric} ({name})"
    if len(alive) == 1:
        yield f"{alive[0].name}: {what} {found.layout.text(found.measure.of(alive[0]))}, {_seeds(len(alive[0].seeds))}."
        return
    middles = [found.layout.of(found.measure.of(curve))[0] for curve in alive]
    fewer = found.measure.fewer_is_better
    order = np.argsort(np.where(np.isnan(middles), np.inf, middles if fewer else np.negative(middles)), kind="stable")
    best = alive[int(order[0])]
    others = [curve for curve in alive if curve is not best]
    against = others if found.against is None or found.against is best else [found.against]
    compared = [pair for other in against if (pair := paired(best, other, found.measure))]
    total = len(pairs(found.curves, found.measure, found.against))
    yield (
        f"Best {what}: {best.name}, {found.layout.text(found.measure.of(best))}, {'lower' if fewer else 'higher'} is better; "
        f"{_seeds(len(best.seeds))}."
    )
    told = [pair for pair, p in zip(compared, _together(compared, total), strict=True) if p < LEVEL]
    same = [pair for pair in compared if pair not in told]
    if told:
        nearest = min(told, key=lambda pair: abs(float(np.mean(pair.differences))))
        yield (
            f"It is ahead of {_names(told)}; of the nearest, {nearest.second.name}, by "
            f"{found.layout.text(_toward(nearest.differences, fewer))} (p {p_in_words(nearest.p)})."
        )
    if same:
        few = min(len(pair.seeds) for pair in same)
        why = (
            f" With {few} seed{'s' if few > 1 else ''} no p falls below {2 / 2**few:.2g}."
            if 2 / 2**few * max(total, 1) > LEVEL
            else ""
        )
        yield f"It cannot be told from {_names(same)}.{why}"


def _worse(found: Summary, alive: Sequence[Curve]) -> Iterator[str]:
    """Curves whose end is worse than their beginning, by a 95% interval that excludes zero, whatever the tables show."""
    sign = 1.0 if found.layout.least_is_best else -1.0
    judge = replace(found.layout, spread="interval") if found.layout.spread == "error" else found.layout
    words: list[str] = []
    for curve in alive:
        if len(curve.seeds) < 2 or curve.values.shape[1] < 2:
            continue
        change = differences(curve.values[:, -1], curve.values[:, 0])
        _, low, high = judge.of(sign * change)
        if low > 0 and np.isfinite(high):
            words.append(f"{curve.name} ({found.layout.text(change, signed=True)})")
    if words:
        yield f"Worse at the end than at the beginning: {'; '.join(words)}."


def _toward(gaps: Array, fewer: bool) -> Array:
    """By how much the first is better."""
    return -gaps if fewer else gaps


def _together(compared: Sequence[Pair], total: int) -> Array:
    """p for all comparisons of the table together; the best was chosen among them with hindsight."""
    if not compared:
        return np.empty(0)
    more = [1.0] * max(0, total - len(compared))
    return holm([*(pair.p for pair in compared), *more])[: len(compared)]


def _names(compared: Sequence[Pair]) -> str:
    return "; ".join(pair.second.name for pair in compared)


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}{', few' if count < FEW else ''}"
