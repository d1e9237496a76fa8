"""A film of a run as it stands: what its agent does next, from the last checkpoint on, as an animated GIF.

An experiment that can be watched has `watch(state, run)`, which yields scenes for as long as there is something to see. The
state is loaded for the film and thrown away: watching changes nothing in the study.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pliant.lab.errors import LabError
from pliant.lab.run.worker import resumed_state
from pliant.lab.study.study import Job, Study

MARGIN = 6  # pixels around the words
SHORTEST = 0.02  # seconds of a picture: shorter ones are shown for longer by most programs


class Scene(NamedTuple):
    """One picture, and what is written on it."""

    picture: NDArray[np.uint8]  # (height, width, 3)
    words: str
    seconds: float  # that it lasts


def chosen(study: Study, method: str | None, seed: int | None) -> tuple[Job, int]:
    """The first run of that method and seed: its job, and its place there. Raises LabError where there is none."""
    for job in study.jobs:
        for place, run in enumerate(job.runs):
            if method in (None, run["method"]) and seed in (None, run["seed"]):
                return job, place
    asked = ", ".join(f"{name} {value}" for name, value in (("method", method), ("seed", seed)) if value is not None)
    there = dict.fromkeys(f"{run['method']}  seed {run['seed']}" for job in study.jobs for run in job.runs)
    raise LabError(f"{study.folder} has no run of {asked}; it has {'; '.join(there)}")


def scenes(study: Study, job: Job, run: int) -> Iterator[Scene]:
    """What the run does from its last checkpoint on. Raises LabError where it cannot be watched, or has not begun."""
    watch = getattr(study.experiment, "watch", None)
    if watch is None:
        raise LabError(f"{study.plan.name} cannot be watched: its experiment has no watch(state, run)")
    if not study.database(job).exists():
        raise LabError(f"job {job.name} of {study.folder} has not begun: pliant resume {study.folder}")
    stored = study.state(job)
    if stored is None:
        raise LabError(f"job {job.name} of {study.folder} has no checkpoint yet: pliant resume {study.folder}")
    yield from watch(resumed_state(study, job, stored), run)


def write_gif(found: Iterable[Scene], file: Path, most: int, skipped: int = 0) -> tuple[list[Scene], bool]:
    """At most so many pictures, after those skipped, as an endless GIF; those that were written, and whether there were more."""
    import imageio.v3 as imageio

    film = paced(found)
    passed = sum(1 for _ in islice(film, skipped))
    shown = list(islice(film, most))
    if not shown and passed:
        raise LabError(f"there is nothing to see: the episode ends after {passed} pictures")
    if not shown:
        raise LabError("there is nothing to see: the run's agent has diverged")
    pictures = np.stack([with_words(scene.picture, scene.words) for scene in shown])
    imageio.imwrite(file, pictures, duration=[1000 * scene.seconds for scene in shown], loop=0)
    return shown, next(film, None) is not None


def paced(found: Iterable[Scene]) -> Iterator[Scene]:
    """At the same speed, pictures that last 20 ms or more each, in hundredths of a second: what a GIF can tell.

    >>> [scene.seconds for scene in paced(Scene(np.zeros((1, 1, 3), np.uint8), "", 0.008) for _ in range(8))]
    [0.02, 0.02, 0.02]
    """
    gone = told = 0.0  # seconds
    late = None
    for late in found:
        gone += late.seconds
        if round(gone - told, 6) >= SHORTEST:
            yield late._replace(seconds=round(gone - told, 2))
            told, late = told + round(gone - told, 2), None
    if late is not None:
        yield late._replace(seconds=SHORTEST)


def with_words(picture: NDArray[np.uint8], words: str) -> NDArray[np.uint8]:
    """The picture with a line of words at its upper edge, dark on a light ground."""
    from PIL import Image, ImageDraw

    drawn = Image.fromarray(picture)
    pen: Any = ImageDraw.Draw(drawn)
    left, top, right, bottom = pen.textbbox((MARGIN, MARGIN), words)
    pen.rectangle((left - MARGIN, top - MARGIN, right + MARGIN, bottom + MARGIN), fill=(255, 255, 255))
    pen.text((MARGIN, MARGIN), words, fill=(20, 20, 20))
    return np.asarray(drawn)
