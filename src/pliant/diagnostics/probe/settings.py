"""How many runs of how many steps a probe makes, within a budget of steps or of time."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from torch.utils.data import DataLoader

from pliant.base.arguments import called_with, is_a, listed, number, whole
from pliant.base.choices import shown

FACTORS = (1 / 3, 1.0, 3.0)  # of the step size
SEEDS, EXAMPLES, MARGIN = 5, 512, 0.25
STEPS = 300  # of a run, where the budget allows
FEWEST_STEPS, FEWEST_SEEDS = 40, 3  # below which nothing can be told
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}

Tell = Callable[[int, int, str], object]  # runs done, of, what


@dataclass(frozen=True)
class Settings:
    seeds: int
    factors: tuple[float, ...]
    examples: int
    batch_size: int
    margin: float
    steps: int = STEPS

    @staticmethod
    def checked(
        seeds: Any = SEEDS,
        factors: Any = FACTORS,
        examples: Any = EXAMPLES,
        batch_size: Any = None,
        margin: Any = MARGIN,
        data: Any = None,
    ) -> Settings:
        """`data` is what was given as x: a loader has a batch size of its own."""
        several = listed(factors)
        if not several:
            raise TypeError(f"factors are numbers that the step size is multiplied with, got {shown(factors)}")
        given = [number("factors", each) for each in several]
        if 0.0 in given:
            raise ValueError("factors must be above 0, got 0")
        if batch_size is None:
            loaded = data.batch_size if is_a(data, DataLoader) else None
            batch_size = 32 if loaded is None else loaded
        return Settings(
            whole("seeds", seeds, FEWEST_SEEDS),
            tuple(given),
            whole("examples_used", examples, 2),
            whole("batch_size", batch_size, 1),
            number("margin", margin),
        )

    def within(self, budget: int | float | None, runs_per_seed: int, seconds_per_step: float) -> Settings:
        """With fewer steps, then fewer seeds, as the budget wants: an integer is steps, a float seconds. Raises `ValueError` if
        nothing could be told from so few."""
        if budget is None:
            return self
        most = budget if isinstance(budget, int) else int(max(0.0, budget) / max(seconds_per_step, 1e-9))
        for seeds in range(self.seeds, FEWEST_SEEDS - 1, -1):
            steps = min(STEPS, most // (runs_per_seed * seeds))
            if steps >= FEWEST_STEPS:
                return replace(self, seeds=seeds, steps=steps)
        least = runs_per_seed * FEWEST_SEEDS * FEWEST_STEPS
        raise ValueError(
            f"budget is too small to tell: {runs_per_seed} runs per seed, at least {FEWEST_SEEDS} seeds of {FEWEST_STEPS} steps, "
            f"are {least} steps, about {in_words(least * seconds_per_step)}, and it allows {most}. Give more, or fewer tasks= or "
            f"factors="
        )


def budget_of(value: Any) -> int | float | None:
    """Steps (an integer) or seconds (a float), from a number or a text such as "90s".

    >>> budget_of("1.5min"), budget_of(20_000)
    (90.0, 20000)
    """
    if value is None:
        return None
    if isinstance(value, str):
        found = re.fullmatch(r"\s*([0-9.]+)\s*(s|min|h)\s*", value)
        if found is None or found[1].count(".") > 1 or found[1] == ".":
            raise ValueError(
                f'budget is a number of steps, or a time such as "90s", "10min" or "1h", got {shown(value)}'
            )
        return float(found[1]) * _UNITS[found[2]]
    return whole("budget", value, 1, of="optimizer steps", otherwise=', or a time such as "10min"')


def teller(progress: Any) -> Tell:
    """What shows progress."""
    in_terminal = sys.stderr is not None and sys.stderr.isatty()  # pyright: ignore[reportUnnecessaryComparison]
    if progress is None:
        progress = in_terminal
    if isinstance(progress, bool):
        return (_shown if in_terminal else _written) if progress else lambda done, runs, what: None
    return called_with("progress", progress, "runs done", "of", "what")


def _shown(done: int, runs: int, what: str) -> None:
    """One line that is written over."""
    sys.stderr.write(f"\rprobe {done}/{runs}  {what[:60]:<60}{chr(10) if done == runs else ''}")
    sys.stderr.flush()


def _written(done: int, runs: int, what: str) -> None:
    """For a file: the cost, and a line at every tenth."""
    if done == 0 or done * 10 // runs > (done - 1) * 10 // runs:
        sys.stderr.write(f"probe {done}/{runs}  {what}\n")
        sys.stderr.flush()


def in_words(seconds: float) -> str:
    """
    >>> in_words(0.2), in_words(75.0), in_words(9000.0)
    ('1 s', '75 s', '2.5 h')
    """
    if not isfinite(seconds):
        return "an unknown time"
    if seconds < 120.0:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200.0 else f"{seconds / 3600:.1f} h"


def sequence_of(name: str, value: Any) -> Sequence[str] | None:
    """A word or several."""
    return [value] if isinstance(value, str) else listed(value)
