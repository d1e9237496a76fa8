"""What a person sees while a study runs: which jobs, how far, what they measure, how long still.

    job 003  cbp seeds 0-9      steps 1,200,000/3,000,000   squared_error 0.561   1m20 left

On a terminal the lines are redrawn in place; elsewhere one is printed as a job moves, at most every
ten seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pliant.lab.study import Job, Settings

_SHOWN = 2  # measures in a line
_EVERY = 10.0  # seconds between printed lines of a job


@dataclass
class JobProgress:
    """How far one job is."""

    job: Job
    fraction: float = 0.0
    steps: tuple[int, int] = (0, 0)
    means: Mapping[str, float] = field(default_factory=dict[str, float])
    diverged: int = 0

    def line(self) -> str:
        steps = f"steps {self.steps[0]:,}/{self.steps[1]:,}" if self.steps[1] else "starting"
        means = [f"{name} {value:.4g}" for name, value in list(self.means.items())[:_SHOWN]]
        diverged = [f"{self.diverged} diverged"] if self.diverged else []
        return "   ".join([f"  job {self.job.name}  {runs_in_words(self.job.runs)}", steps, *means, *diverged])


class Board:
    """All that is known about a study in progress."""

    def __init__(self, jobs: Mapping[str, JobProgress], clock: Any = time.monotonic) -> None:
        self.jobs = dict(jobs)
        self._clock = clock
        self._began = clock()
        self._fraction_at_start = self.fraction

    @property
    def fraction(self) -> float:
        """Share of the study that is done, each run counting alike."""
        weights = {name: len(one.job.runs) for name, one in self.jobs.items()}
        return sum(weights[name] * one.fraction for name, one in self.jobs.items()) / max(1, sum(weights.values()))

    def seconds_left(self) -> float | None:
        """At the rate since this start; None as long as nothing has moved."""
        gained = self.fraction - self._fraction_at_start
        return (1.0 - self.fraction) * (self._clock() - self._began) / gained if gained > 0 else None

    def moved(self, event: Mapping[str, Any]) -> JobProgress:
        """Take note of a worker's "advanced"."""
        one = self.jobs[event["job"]]
        done, total = event["steps"]
        one.steps, one.fraction = (done, total), done / max(1, total)
        one.means = event["means"] or one.means
        one.diverged = len(event["diverged"])
        return one

    def left_in_words(self) -> str:
        seconds = self.seconds_left()
        return "" if seconds is None else f"   {duration(seconds)} left"


class Display(Protocol):
    """Shows a board. Used as a context manager, so that a terminal is left as it was found."""

    def show(self, board: Board, moved: JobProgress) -> None: ...

    def say(self, text: str) -> None: ...

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


class Lines:
    """For a file or a pipe."""

    def __init__(self) -> None:
        self._printed: dict[str, float] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def show(self, board: Board, moved: JobProgress) -> None:
        now = time.monotonic()
        if now - self._printed.setdefault(moved.job.name, now) >= _EVERY:
            self._printed[moved.job.name] = now
            self.say(moved.line() + board.left_in_words())

    def say(self, text: str) -> None:
        print(text, flush=True)


class Screen:
    """For a terminal."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._console = console
        self._active: dict[str, JobProgress] = {}

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    def show(self, board: Board, moved: JobProgress) -> None:
        self._active[moved.job.name] = moved
        lines = [one.line() for one in self._active.values() if one.fraction < 1]
        lines.append(f"  {board.fraction:4.0%} of the study{board.left_in_words()}")
        self._live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"))

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def display() -> Display:
    """The one that suits where output goes."""
    console = Console()
    return Screen(console) if console.is_terminal else Lines()


def duration(seconds: float) -> str:
    """
    >>> duration(8), duration(125), duration(13_140)
    ('8s', '2m05', '3h39')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02d}" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02d}"


def runs_in_words(runs: Sequence[Settings]) -> str:
    """
    >>> runs_in_words([{"method": "bp", "seed": 0}, {"method": "bp", "seed": 1}, {"method": "cbp", "seed": 0}])
    'bp, cbp  3 runs, seeds 0-1'
    """
    methods = ", ".join(dict.fromkeys(settings["method"] for settings in runs))
    if len(runs) == 1:
        return f"{methods}  seed {runs[0]['seed']}"
    return f"{methods}  {len(runs)} runs, seeds {ranges({settings['seed'] for settings in runs})}"


def run_in_words(settings: Settings, axes: Sequence[str]) -> str:
    """
    >>> run_in_words({"method": "cbp", "seed": 3, "step_size": 0.01, "steps": 100}, axes=["step_size"])
    'cbp  seed 3  step_size 0.01'
    """
    return "  ".join([settings["method"], f"seed {settings['seed']}", *(f"{name} {settings[name]}" for name in axes)])


def ranges(numbers: Iterable[int]) -> str:
    """
    >>> ranges([0, 1, 2, 7])
    '0-2,7'
    """
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
