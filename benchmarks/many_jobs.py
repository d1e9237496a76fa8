"""What commands cost on a study of many small jobs: 10,000 finished ones of the toy experiment of the tests.

    PYTHONPATH=.:src python benchmarks/many_jobs.py --jobs 10000 --keep /tmp/many

The rows are made up (five advances of each job), and written as workers write them, but for waiting for the disk. A command is a
process of its own; memory is the most that it had resident.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np

from pliant.lab import DONE, RUNNING
from pliant.lab.study.settings import selected
from pliant.lab.study.study import Study, new_plan, with_reading, with_runs
from pliant.lab.study.target import load, target

TOY = str(Path(__file__).parent.parent / "tests" / "toy_experiment.py") + ":Toy"
SEEDS_PER_JOB = 2  # the toy's two methods have a job for each seed, of two runs
ADVANCES = 5


def make(folder: Path, jobs: int) -> None:
    """A finished study of so many jobs."""
    where = target(TOY)
    configs = selected(load(where), "tiny", seeds=f"0-{jobs // SEEDS_PER_JOB - 1}")
    study = with_reading(with_runs(Study(folder, new_plan("toy", where, "tiny", "cpu", {})), configs))
    study.save()
    draw = np.random.default_rng(0)
    with patch("os.fsync"):
        for job in study.jobs:
            write(study, job, draw)


def write(study: Study, job, draw: np.random.Generator) -> None:
    runs = len(job.runs)
    with study.store(job) as store:
        store.database.execute("PRAGMA synchronous = OFF")
        store.begin_session({"commit": ""})
        for advance in range(1, ADVANCES + 1):
            rows = {
                "run": np.arange(runs),
                "step": np.full(runs, 200 * advance),
                "squared_error": draw.random(runs),
                "weight_magnitude": draw.random(runs),
            }
            ends = [DONE if advance == ADVANCES else RUNNING] * runs
            store.commit(rows, ends, (200 * advance, 200 * ADVANCES), {"state": 0}, 0.01)


def cost(*arguments: str) -> tuple[float, float, float, int]:
    """Seconds by the clock and of the CPU, MB, and exit status of a command."""
    began = time.perf_counter()
    with open(os.devnull, "wb") as nothing:
        process = os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-m", "pliant.cli", *arguments],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, nothing.fileno(), 1)],
        )
    _, status, used = os.wait4(process, 0)
    seconds = time.perf_counter() - began, used.ru_utime + used.ru_stime
    return *seconds, used.ru_maxrss / 1024, os.waitstatus_to_exitcode(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--keep", type=Path, help="where to make the study, or where one was made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary) / "study"
        if not (folder / "study.json").exists():
            began = time.perf_counter()
            make(folder, options.jobs)
            print(f"made in {time.perf_counter() - began:.0f} s")
        study = str(folder)
        seeds = f"0-{options.jobs // SEEDS_PER_JOB - 1}"
        again = ["run", TOY, "--profile", "tiny", "--seeds", seeds, "--out"]
        commands = {
            "status, the first": ["status", study],
            "status": ["status", study],
            "report": ["report", study],
            "plot": ["plot", study, "--out", str(Path(temporary) / "figure.png")],
            "export": ["export", study, "--out", str(Path(temporary) / "rows.parquet")],
            "run --dry-run of a new one": [*again, str(Path(temporary) / "new"), "--dry-run"],
            "run --dry-run of this one": [*again, study, "--dry-run"],
            "resume": ["resume", study, "--jobs", "1"],
        }
        for name, words in commands.items():
            seconds, of_cpu, megabytes, status = cost(*words)
            print(
                f"{name:28} {seconds:6.1f} s {of_cpu:6.1f} s of CPU {megabytes:6.0f} MB   exit status {status}",
                flush=True,
            )


if __name__ == "__main__":
    main()
