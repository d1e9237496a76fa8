"""What the `paper` profiles cost on CPUs, from rates measured here: the table of docs/scaling.md.

    PYTHONPATH=src python benchmarks/scaling.py [NAME ...] [--seconds 2]

One job for each method, optimizer and width of a profile starts and advances once, to compile; then it advances for some
seconds, in one thread. The fewest seconds of CPU that an advance took per step, times the steps of a run, times the runs like it,
is the cost. Data sets that are not here are replaced by one image in every place: a step costs the same whatever is in it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from pliant.data import DataError
from pliant.data import load as load_images
from pliant.data.images import Images, ImageSet
from pliant.experiments import TABLE
from pliant.lab.experiment import Context
from pliant.lab.study.study import grouped
from pliant.lab.study.target import load, target

APART = ("method", "optimizer", "width", "start")  # fields by whose values a step costs more or less
LENGTH = ("steps", "tasks", "period", "epochs")  # fields that a run is as long as
SIZES = {
    "cifar-10": (10, 5000, 1000),
    "cifar-100": (100, 500, 100),
    "imagenet": (1000, 700, 50),
}  # classes, images of each
READERS = ("pliant.experiments.continual_imagenet.load", "pliant.experiments.images.residual_run.load")
CORES = 100


def costs(name: str, seconds: float) -> tuple[int, float, float]:
    """Jobs of the profile, their hours on one core, and those of the longest."""
    experiment: Any = load(target(TABLE[name].target))
    runs = experiment.runs("paper")
    alike: dict[Any, list[Any]] = defaultdict(list)
    for job in grouped(runs, [experiment.stack_key(config, "cpu") for config in runs]):
        alike[tuple(getattr(job[0], field, None) for field in APART)].append(job)
    found: list[float] = []
    for jobs in alike.values():
        measured = max(jobs, key=len)
        unit = cost(experiment, measured, seconds) / (len(measured) * length(measured[0]))
        found += [unit * len(job) * length(job[0]) / 3600 for job in jobs]
    return len(found), sum(found), max(found)


def length(config: Any) -> int:
    return prod(getattr(config, field) for field in LENGTH if hasattr(config, field))


def cost(experiment: Any, configs: Sequence[Any], seconds: float) -> float:
    """Seconds of CPU that a job of these runs takes."""
    data = os.environ.get("PLIANT_DATA")
    state = experiment.start(configs, Context(device="cpu", data=Path(data) if data else None))
    experiment.advance(state)
    least, began = float("inf"), time.process_time()
    while least == float("inf") or time.process_time() - began < seconds:
        before, start = state.steps_done, time.process_time()
        while state.steps_done == before:
            experiment.advance(state)
        least = min(least, (time.process_time() - start) / (state.steps_done - before))
    return least * state.steps_total


@contextmanager
def any_images() -> Iterator[None]:
    """Experiments find each data set, be it that of one image."""
    with patch(READERS[0], image_set), patch(READERS[1], image_set):
        yield


def image_set(name: str, folder: Path | None = None) -> ImageSet:
    try:
        return load_images(name, folder)
    except DataError:
        classes, train, test = SIZES[name]
        return ImageSet(name, _images(classes, train), _images(classes, test), "none")


def _images(classes: int, each: int) -> Images:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    labels = np.repeat(np.arange(classes, dtype=np.int64), each)
    return Images(np.broadcast_to(pixels, (len(labels), 32, 32, 3)), labels, tuple(map(str, range(classes))))


def words(hours: float) -> str:
    """Two digits of a time."""
    for unit, size in (("years", 24 * 365), ("days", 24), ("hours", 1), ("minutes", 1 / 60)):
        if hours >= 1.5 * size or unit == "minutes":
            return f"{float(f'{hours / size:.2g}'):,.10g} {unit}"
    raise AssertionError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", default=[name for name, entry in TABLE.items() if "paper" in entry.profiles]
    )
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| `paper` of | jobs | core-hours | two cores | {CORES} cores | longest job |\n|---|---|---|---|---|---|")
    with any_images():
        for name in options.names:
            jobs, hours, longest = costs(name, options.seconds)
            many = max(hours / CORES, longest)
            told = [f"{float(f'{hours:.2g}'):,.10g}", words(hours / 2), words(many), words(longest)]
            print(f"| {name} | {jobs:,} | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
