"""What a person sees while a study runs: which jobs, how far, what they measure, how long still.

    job 003  cbp replacement_rate=1e-5  10 runs, seeds 0-9   steps 1,200,000/3,000,000   squared_error 0.561   1m20 left

On a terminal the lines are redrawn in place; elsewhere one is printed as a job moves, at most every
ten seconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pliant.lab.study.study import Job

_SHOWN = 2  # measures in a line
_EVERY = 10.0  # seconds between printed lines of a job


@dataclass
class JobProgress:
    """How far one job is."""

    job: Job
    label: str
    fraction: float = 0.0
    steps: tuple[int, int] = (0, 0)
    means: Mapping[str, float] = field(default_factory=dict[str, float])
    diverged: int = 0

    def line(self) -> str:
        steps = f"steps {self.steps[0]:,}/{self.steps[1]:,}" if self.steps[1] else "starting"
        means = [f"{name} {value:.4g}" for name, value in list(self.means.items())[:_SHOWN]]
        diverged = [f"{self.diverged} diverged"] if self.diverged else []
        return "   ".join([f"  job {self.job.name}  {self.label}", steps, *means, *diverged])


class Board:
    """All that is known about a study in progress.

    The first advance of a process compiles, and says nothing of how long the others take. So the rate is measured from when
    every job at work has advanced once, and told from when each of them has advanced again.
    """

    def __init__(self, jobs: Mapping[str, JobProgress], clock: Any = time.monotonic) -> None:
        self.jobs = dict(jobs)
        self._clock = clock
        self._start: tuple[float, float] | None = None  # time and fraction from which the rate is measured
        self._awaited: set[str] = set()  # jobs at work that have still to advance: once, and from the start on again
        self._at_work: set[str] = set()

    @property
    def fraction(self) -> float:
        """Share of the study that is done, each run counting alike."""
        weights = {name: len(one.job.runs) for name, one in self.jobs.items()}
        return sum(weights[name] * one.fraction for name, one in self.jobs.items()) / max(1, sum(weights.values()))

    def seconds_left(self) -> float | None:
        """At the rate so far; None until it is known."""
        if self._start is None or self._awaited:
            return None
        began, fraction = self._start
        gained = self.fraction - fraction
        return (1.0 - self.fraction) * (self._clock() - began) / gained if gained > 0 else None

    def moved(self, event: Mapping[str, Any]) -> JobProgress:
        """Take note of a worker's "advanced"; a job's first only says that it is at work."""
        one = self.jobs[event["job"]]
        done, total = event["steps"]
        one.steps, one.fraction = (done, total), done / max(1, total)
        one.means = event["means"] or one.means
        one.diverged = len(event["diverged"])
        if one.job.name in self._at_work:
            self._no_longer_awaited(one.job.name)
        else:
            self._at_work.add(one.job.name)
            if self._start is None:
                self._awaited.add(one.job.name)
        return one

    def ended(self, name: str, finished: bool) -> JobProgress:
        """Take note of a job that nobody is at work on any more."""
        one = self.jobs[name]
        if finished:
            one.fraction = 1.0
        self._at_work.discard(name)
        self._no_longer_awaited(name)
        return one

    def _no_longer_awaited(self, name: str) -> None:
        if name not in self._awaited:
            return
        self._awaited.remove(name)
        if self._start is None and not self._awaited:
            self._start, self._awaited = (self._clock(), self.fraction), set(self._at_work)

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
