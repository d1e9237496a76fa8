"""A study while it runs: how far its jobs are, how fast, how long still, and each curve so far as a line of blocks.

bp step_size=0.01    ▁▃▄▅▇█▇    squared_error 1.0823
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from pliant.lab.errors import LabError
from pliant.lab.report.parts import Curve
from pliant.lab.report.status import status_lines
from pliant.lab.report.summary import Asked, summary
from pliant.lab.run.progress import duration
from pliant.lab.stored.records import Record
from pliant.lab.study.study import Study, open_study

PLACES = 24  # of a curve
SHOWN = 30  # curves and jobs, at most
_BLOCKS = "▁▂▃▄▅▆▇█"


def watch(folder: Path, every: float, console: Console | None = None) -> None:
    """Show a study anew every so many seconds, until all of its runs have ended; on a terminal in place."""
    screen = console or Console()
    with Live(console=screen, auto_refresh=False, transient=False) as live:
        for turn in count():
            study = open_study(folder)
            lines = [*live_lines(study)]
            live.update(Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines)), refresh=True)
            if not screen.is_terminal and turn:
                screen.print(*lines, sep="\n")
            if study.has_ended():
                return
            time.sleep(every)


def live_lines(study: Study) -> Iterator[str]:
    """`pliant status`, then rate and time left, then the curves."""
    lines = [*status_lines(study)]
    yield from lines[: SHOWN + 1]
    if len(lines) > SHOWN + 1:
        yield f"  ... {len(lines) - SHOWN - 1} lines more: pliant status {study.folder}"
    yield from _rate(study)
    yield from _curves(study)


def _rate(study: Study) -> Iterator[str]:
    records = [record for job in study.jobs if (record := study.record(job)) is not None]
    found = rate_and_rest(records, len(study.jobs))
    if found is not None:
        yield f"  {found[0]:,.1f} steps per second of a job; {duration(found[1])} of learning left"


def rate_and_rest(records: Sequence[Record], jobs: int) -> tuple[float, float] | None:
    """Steps per second of learning so far, and seconds that the remaining steps take at this rate, one job at a time.

    A job that has not begun is taken to be as long as the mean of the others. None before any step.
    """
    begun = [record for record in records if record.steps_done and record.seconds]
    if not begun:
        return None
    rate = sum(record.steps_done for record in begun) / sum(record.seconds for record in begun)
    left = sum(record.steps_total - record.steps_done for record in begun if not record.is_done)
    return rate, (left + (jobs - len(begun)) * float(np.mean([record.steps_total for record in begun]))) / rate


def _curves(study: Study) -> Iterator[str]:
    try:
        found = summary([study.folder], Asked(parts=PLACES))
    except LabError:  # no rows yet, or no number to show
        return
    alive = [curve for curve in found.curves if not curve.is_empty]
    width = max((len(curve.name) for curve in alive), default=0)
    for curve in alive[:SHOWN]:
        middle = mean_of(curve)
        yield f"  {curve.name:{width}}  {blocks(middle):{PLACES}}  {found.metric} {middle[-1]:.4g}"


def mean_of(curve: Curve) -> list[float]:
    """Over seeds, part by part; a run that has not come so far is not in a part's mean."""
    return [
        float(part[~np.isnan(part)].mean()) if not np.isnan(part).all() else float("nan") for part in curve.values.T
    ]


def blocks(values: Sequence[float]) -> str:
    """A line of blocks from the lowest to the highest value; a blank where there is none.

    >>> blocks([0.0, 1.0, 7.0, float("nan"), 3.5])
    '▁▂█ ▄'
    """
    finite = [value for value in values if np.isfinite(value)]
    low, span = (min(finite), max(finite) - min(finite)) if finite else (0.0, 0.0)
    heights = [int((value - low) / span * (len(_BLOCKS) - 1)) if span and np.isfinite(value) else 0 for value in values]
    return "".join(
        _BLOCKS[height] if np.isfinite(value) else " " for value, height in zip(values, heights, strict=True)
    )
