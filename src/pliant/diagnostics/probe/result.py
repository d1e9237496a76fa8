"""What a probe found: curves, areas, ratios and the answer, as one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pliant.base.tables import Cells, Table, curves
from pliant.diagnostics.probe.comparison import (
    LEARNS,
    Array,
    Comparison,
    best,
    compared,
    end,
    errors,
    steps_to,
    unknown,
)
from pliant.diagnostics.probe.tasks import KINDS

MODEL, FRESH = "model", "fresh"
MODEL_STATE, FRESH_STATE = "model, optimizer state of now", "fresh, optimizer state of now"


@dataclass(frozen=True)
class Side:
    """The curves of one start: which weights, and which optimizer state."""

    name: str
    losses: Array  # (step sizes, seeds, steps): training loss before each step; inf from where it diverged
    errors: Array  # the same as shares of the way from the start of fresh networks to the floor, see `comparison`
    held_out: Array  # (step sizes, seeds): the error on examples that were held out, afterwards; nan without any

    @property
    def areas(self) -> Array:
        """(step sizes, seeds)."""
        return self.errors.mean(axis=-1)

    @property
    def best(self) -> int:
        """Which of the step sizes learned best."""
        return best(self.areas)

    @property
    def area(self) -> Array:
        """(seeds,), with the best step size."""
        return self.areas[self.best]

    @property
    def curve(self) -> Array:
        """(steps,): the mean error with the best step size."""
        return self.errors[self.best].mean(axis=0)


@dataclass(frozen=True)
class TaskProbe:
    """All sides on one kind of task."""

    kind: str
    start: float  # loss of fresh networks before their first step
    floor: float
    sides: Mapping[str, Side]
    comparisons: Mapping[str, Comparison]  # side -> against "fresh"
    state: Comparison | None  # the model with its optimizer state of now, against the model without
    treatments: Mapping[str, Comparison]  # name -> the model after it, against the model without
    fresh_learns: bool

    @property
    def answer(self) -> Comparison:
        """Does the model learn this worse than a fresh copy?"""
        return self.comparisons[MODEL]

    @property
    def threshold(self) -> float:
        """The error half-way between 1 and where the fresh copy ends."""
        return (1.0 + float(end(self.sides[FRESH].curve))) / 2.0

    @property
    def by_heart(self) -> bool:
        """Whether a fresh copy learns the examples, but nothing that holds for those held out."""
        fresh = self.sides[FRESH]
        left = float(fresh.held_out[fresh.best].mean())
        return self.fresh_learns and left > 1.0 - LEARNS and float(end(fresh.curve)) < 1.0 - 2.0 * LEARNS

    def steps_to_threshold(self) -> dict[str, int | None]:
        """Side -> steps until its mean error is at the threshold; None if it never is."""
        return {name: steps_to(side.curve, self.threshold) for name, side in self.sides.items()}


@dataclass(frozen=True)
class Probe(Table):
    """Whether a network learns worse than a fresh copy of it. Prints as a table; `plot()` draws the curves.

    `verdict` is "yes", "no" or "cannot tell", by the next task where it is given, else by random targets, and `reason` says why,
    and where random targets say otherwise.
    `tasks` holds the curves and comparisons of each kind of task.
    """

    tasks: Mapping[str, TaskProbe]
    factors: Sequence[float]
    step_size_now: float
    step_size_first: float
    optimizer: str
    seeds: int
    steps: int
    batch_size: int
    examples: int
    margin: float
    cut: str  # what was planned, where the time did not allow it; else empty
    seconds: float = field(compare=False)

    @property
    def primary(self) -> TaskProbe:
        return self.tasks["own"] if "own" in self.tasks else next(iter(self.tasks.values()))

    @property
    def verdict(self) -> str:
        return self.primary.answer.answer

    @property
    def reason(self) -> str:
        """One sentence. Where both are known, and differ, it names the next task and random targets."""
        answer, random = self.primary.answer, self.tasks.get("random")
        if random is None or random.answer.answer in ("cannot tell", answer.answer):
            return answer.reason
        if answer.answer == "cannot tell":
            return (
                f"{answer.reason}; but random targets the network learns {random.answer.manner} a fresh copy: "
                f"{random.answer.interval} times its area"
            )
        return (
            f"the network learns its next task {answer.manner} a fresh copy, but random targets {random.answer.manner} one: "
            f"{answer.interval} and {random.answer.interval} times its area"
        )

    def records(self) -> list[dict[str, Any]]:
        """One per kind of task and side."""
        found: list[dict[str, Any]] = []
        for task in self.tasks.values():
            reached = task.steps_to_threshold()
            for name, side in task.sides.items():
                comparison = task.comparisons.get(name)
                found.append(
                    {
                        "task": task.kind,
                        "side": name,
                        "area": float(side.area.mean()),
                        "ratio": None if comparison is None else comparison.ratio,
                        "low": None if comparison is None else comparison.low,
                        "high": None if comparison is None else comparison.high,
                        "answer": None if comparison is None else comparison.answer,
                        "steps_to_threshold": reached[name],
                        "end": float(end(side.curve)),
                        "held_out": _or_none(float(side.held_out[side.best].mean())),
                        "step_size": self.step_size_first * self.factors[side.best],
                    }
                )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries, with the mean curves."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "rows": self.records(),
            "curves": {
                task.kind: {name: [float(each) for each in side.curve] for name, side in task.sides.items()}
                for task in self.tasks.values()
            },
            "state": {task.kind: str(task.state) for task in self.tasks.values() if task.state is not None},
            "step_size_now": self.step_size_now,
            "step_size_first": self.step_size_first,
            "factors": [float(each) for each in self.factors],
            "optimizer": self.optimizer,
            "seeds": self.seeds,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "examples": self.examples,
            "margin": self.margin,
            "cut": self.cut,
            "seconds": self.seconds,
        }

    def plot(self) -> Any:
        """A figure of the mean error by step of every side, a panel per kind of task."""
        steps = range(self.steps)
        panels = {
            f"{task.kind}: error": {name: (steps, side.curve.tolist()) for name, side in task.sides.items()}
            for task in self.tasks.values()
        }
        return curves("optimizer steps", panels, f"plasticity lost? {self.verdict}")

    def table(self) -> tuple[Cells, Sequence[str]]:
        head = ("task", "start from", "area", "against fresh", "answer", "steps to half", "step size")
        rows: list[tuple[str, ...]] = []
        for row in self.records():
            against = "-" if row["ratio"] is None else f"{row['ratio']:.3g} ({row['low']:.3g} to {row['high']:.3g})"
            half = "never" if row["steps_to_threshold"] is None else str(row["steps_to_threshold"])
            cells = (row["task"], row["side"], f"{row['area']:.3g}", against, row["answer"] or "-", half)
            rows.append((*cells, f"{row['step_size']:.3g}"))
        return [head, *rows], self._notes()

    def _notes(self) -> list[str]:
        notes = [f"plasticity lost? {self.verdict}: {self.reason}", ""]
        notes += [f"{task.kind}: {KINDS[task.kind]}" for task in self.tasks.values()]
        notes += [f"{task.kind}: {task.answer.reason}" for task in self.tasks.values() if task is not self.primary]
        notes += [f"{task.kind}: {task.state.reason}" for task in self.tasks.values() if task.state is not None]
        notes += [f"{task.kind}: {each.reason}" for task in self.tasks.values() for each in task.treatments.values()]
        notes += [
            f"{task.kind}: a fresh copy learns these examples by heart only: those held out get no better"
            for task in self.tasks.values()
            if task.by_heart
        ]
        sizes = ", ".join(f"{self.step_size_first * each:.3g}" for each in self.factors)
        decayed = f", now {self.step_size_now:.3g}" if self.step_size_now != self.step_size_first else ""
        return [
            *notes,
            "area: mean of error by step, 0 (known at once) to 1 (no better than untrained); half: the error half-way to where "
            "fresh ends",
            f"{self.seeds} seeds, {self.steps} steps of {self.batch_size} of {self.examples} examples each, {self.optimizer}, "
            f"step size at first {self.step_size_first:.3g}{decayed}; the best of {sizes} on each side; {self.seconds:.0f} s",
            *([f"budget: {self.cut}"] if self.cut else []),
        ]


def task_probe(
    kind: str,
    losses: Mapping[str, Array],
    held_out: Mapping[str, Array],
    treatments: Sequence[str],
    start: float,
    margin: float,
) -> TaskProbe:
    """From the losses of each side, (step sizes, seeds, steps), those held out, and that of fresh networks before a step."""
    finite = np.concatenate([each[np.isfinite(each)] for each in losses.values()])
    floor = min(0.0, float(finite.min())) if len(finite) else 0.0
    sides = {
        name: Side(name, each, errors(each, start, floor), _held_out(held_out[name], start, floor))
        for name, each in losses.items()
    }
    fresh, model = sides[FRESH], sides[MODEL]
    learned = 1.0 - float(end(fresh.curve))
    comparisons = {
        name: compared(side.area, fresh.area, margin, what=_WHAT.get(name, f"'{name}'"), than="a fresh copy")
        for name, side in sides.items()
        if name != FRESH
    }
    if learned < LEARNS:
        reason = (
            f"a fresh copy itself learns only {learned:.0%} of this task in {losses[FRESH].shape[-1]} steps: give a task that it "
            f"can learn, more steps, or another step size"
        )
        comparisons = {name: unknown(each, reason) for name, each in comparisons.items()}
    state = None
    if MODEL_STATE in sides:
        what, than = "the network with its optimizer state of now", "with a fresh state"
        state = compared(sides[MODEL_STATE].area, model.area, margin, what=what, than=than)
    treated = {
        name: compared(sides[name].area, model.area, margin, what=f"the network after '{name}'", than="without")
        for name in treatments
    }
    return TaskProbe(kind, start, floor, sides, comparisons, state, treated, learned >= LEARNS)


def _held_out(losses: Array, start: float, floor: float) -> Array:
    return np.where(np.isnan(losses), np.nan, errors(losses, start, floor))


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


_WHAT = {
    MODEL: "the network",
    MODEL_STATE: "the network with its optimizer state of now",
    FRESH_STATE: "a fresh copy with the optimizer state of now",
}
