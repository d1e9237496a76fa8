"""Is a study that was killed and resumed the study that never was? Kills one, again and again, to find out.

    python -m tests.kill_and_resume tests/toy_experiment.py:Toy --kills 20 --seed 7

A study runs once in peace. Then it is run anew for each kill, which comes, by SIGKILL, to the runner,
to a worker, or to both, at a moment drawn over its course: once so many rows are committed, drawn
uniformly from none to all but one, and a moment later, drawn within what a fifth of the rows took. So
no kill comes after the end because this machine is busy. After `pliant resume`, all rows must equal
those of the first to the bit.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from pliant.cli import main as pliant_here

VICTIMS = ("runner", "worker", "both")

Content = dict[tuple[str, int, str], tuple[str, bytes]]  # (job, advance, column) -> (dtype, the numbers' bytes)


@dataclass(frozen=True)
class Kill:
    """One kill, and what it left."""

    victim: str
    committed: int  # rows there were when it came
    total: int  # rows there should be in the end
    differing: int  # columns of an advance, and statuses of runs, that differ after resuming

    def __str__(self) -> str:
        verdict = "identical" if self.differing == 0 else f"{self.differing} DIFFER"
        return f"  {self.victim:6} killed with {self.committed:4}/{self.total} rows   resumed: {verdict}"


def kill_and_resume(run: Sequence[str], kills: int, seed: int, folder: Path) -> list[Kill]:
    """Kill the study of the command `pliant run *run` `kills` times. The first three kills take each victim in turn."""
    draw = random.Random(seed)
    began = time.monotonic()
    expected = finish(["run", *run, "--out", str(folder / "peace")], folder / "peace")
    fifth = (time.monotonic() - began) / 5
    print(f"\npliant run {' '.join(run)}: {rows_in(expected)} rows; {kills} kills from seed {seed}")
    done: list[Kill] = []
    for number in range(10 * kills):
        if len(done) == kills:
            return done
        victim = VICTIMS[len(done)] if len(done) < len(VICTIMS) else draw.choice(VICTIMS)
        after, later = draw.randrange(rows_in(expected)), draw.uniform(0, fifth)
        kill = one_kill(run, folder / f"kill-{number}", victim, after, later, expected)
        print(kill or "  the study had ended before its kill: another is drawn", flush=True)
        done += [kill] if kill else []
    raise AssertionError("most studies ended before their kill")


def one_kill(run: Sequence[str], study: Path, victim: str, after: int, later: float, expected: Content) -> Kill | None:
    """Start the study, kill it `later` seconds `after` so many rows, resume it, compare. None where it had ended before."""
    runner = subprocess.Popen(
        pliant("run", *run, "--out", str(study)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while runner.poll() is None and rows_in(content(study)) < after:
        time.sleep(0.01)
    time.sleep(later)
    workers = workers_of(study, runner.pid)
    while victim == "worker" and not workers and runner.poll() is None:
        time.sleep(0.01)  # drawn before the first worker was at work: take it as it comes
        workers = workers_of(study, runner.pid)
    if runner.poll() is not None:
        return None
    for process in {"runner": [runner.pid], "worker": workers[:1], "both": [runner.pid, *workers]}[victim]:
        end(process)
    committed = rows_in(content(study))
    runner.wait()  # where only a worker died, the runner goes on with the other jobs
    # killed before it wrote its plan, a study is begun again rather than resumed
    again = ["resume", str(study)] if (study / "study.json").exists() else ["run", *run, "--out", str(study)]
    found = finish(again, study)
    return Kill(victim, committed, rows_in(expected), differing(expected, found))


def die_inside_a_commit(run: Sequence[str], study: Path, place: str, expected: Content) -> Kill:
    """As `one_kill`, but every worker kills itself at `place` of its third commit."""
    with patch.dict(os.environ, PLIANT_DIE=f"{place}:3"):
        status, said = command(["run", *run, "--out", str(study)])
    assert status == 1, f"a worker that dies fails its job, but: {said}"
    committed = rows_in(content(study))
    found = finish(["resume", str(study)], study)
    return Kill(place, committed, rows_in(expected), differing(expected, found))


def differing(expected: Content, found: Content) -> int:
    """How many columns of an advance, and statuses of runs, differ."""
    return sum(found.get(key) != expected.get(key) for key in found.keys() | expected.keys())


def pliant(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "pliant.cli", *arguments]


def command(arguments: Sequence[str]) -> tuple[int, str]:
    """Run a command; its exit status, and what it said.

    The runner, which computes nothing, is in this process: a start of Python and its libraries is saved. Workers are
    processes of their own, as always.
    """
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            pliant_here(list(arguments))
    except SystemExit as ended:
        return int(ended.code or 0), said.getvalue()


def finish(arguments: Sequence[str], study: Path) -> Content:
    """Run a command to its successful end; what the study then holds."""
    status, said = command(arguments)
    assert status == 0, f"{arguments} ended with {status}: {said}"
    return content(study)


def content(study: Path) -> Content:
    """All that is committed, as stored; and each run's status, in the place of a column."""
    found: Content = {}
    for file in sorted((study / "jobs").glob("*.sqlite")):
        database = sqlite3.connect(file, timeout=60)
        if database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for advance, name, dtype, data in database.execute("SELECT advance, name, dtype, data FROM chunk"):
                found[file.stem, advance, name] = (dtype, data)
            for run, *status in database.execute("SELECT run, status, step FROM run"):
                found[file.stem, -1 - run, "status"] = ("", json.dumps(status).encode())
        database.close()
    return found


def rows_in(found: Content) -> int:
    return sum(len(data) // int(dtype[2:]) for (_, _, name), (dtype, data) in found.items() if name == "run")


def workers_of(study: Path, runner: int) -> list[int]:
    """The processes that hold the study's jobs now: those named in its job locks and still alive."""
    named = [lock.read_text() for lock in sorted((study / "jobs").glob("*.lock"))]
    processes = {json.loads(text)["pid"] for text in named if text.startswith("{") and text.endswith("}")}
    return sorted(process for process in processes - {runner} if is_alive(process))


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def end(process: int) -> None:
    with suppress(ProcessLookupError):  # it may have ended in the meantime
        os.kill(process, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    known, run = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        kills = kill_and_resume(run, known.kills, known.seed, Path(folder))
    sys.exit(any(one.differing for one in kills))


if __name__ == "__main__":
    main()
