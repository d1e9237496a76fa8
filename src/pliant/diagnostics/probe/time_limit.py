"""A limit of time, kept while a probe runs: what the latest runs took tells what is possible yet.

A seed counts once all of its runs are done, so that every side has the same seeds, step sizes and steps. Where the runs would end
later than `LATE` times the limit,

    seeds beyond the third   are given up
    the first three          have fewer steps, but `FEWEST_STEPS`; the curves of runs that had more are cut to as many, which
                             are those of a run with fewer steps
    not even these           `ValueError`, where they would end later than `TOO_LATE` times the limit
"""

from __future__ import annotations

import time

from pliant.diagnostics.probe.settings import FEWEST_SEEDS, FEWEST_STEPS, in_words

LATE, TOO_LATE = 1.1, 1.5  # times the limit


class TimeLimit:
    """Of so many seconds since `started`, for runs of at most `steps` steps."""

    def __init__(self, seconds: float, started: float, runs_per_seed: int, steps: int) -> None:
        self.seconds, self._started, self._runs_per_seed, self._steps = seconds, started, runs_per_seed, steps
        self._begun: list[tuple[float, int]] = []  # of each run: when it began, and its steps

    def steps_of_next(self) -> int | None:
        """How many the next run has; None where its seed is given up."""
        now, done = time.perf_counter(), len(self._begun)
        if done:
            latest = self._begun[-self._runs_per_seed :]  # as many as make a seed: each side once
            pace = (now - latest[0][0]) / sum(steps for _, steps in latest)  # seconds per step
            seed = done // self._runs_per_seed
            to_come = max(FEWEST_SEEDS, seed + 1) * self._runs_per_seed - done
            taken = now - self._started
            if taken + to_come * self._steps * pace > LATE * self.seconds:
                if seed >= FEWEST_SEEDS:
                    return None
                self._steps = max(FEWEST_STEPS, min(self._steps, int((self.seconds - taken) / (to_come * pace))))
                self._refuse(done, taken + to_come * self._steps * pace)
        self._begun.append((now, self._steps))
        return self._steps

    def _refuse(self, done: int, ends: float) -> None:
        if ends > TOO_LATE * self.seconds:
            raise ValueError(
                f"budget is too small to tell: after {done} runs, {FEWEST_SEEDS} seeds of {self._steps} steps would take about "
                f"{in_words(ends)}, and it allows {in_words(self.seconds)}. Give more, or fewer tasks= or factors="
            )
