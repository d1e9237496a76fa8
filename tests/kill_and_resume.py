"""Is a study that was killed and resumed the study that never was? Kills one, again and again, to find out.

    python -m tests.kill_and_resume tests/toy_experiment.py:Toy --kills 20 --seed 7

A study runs once in peace, and its duration is measured. Then it is run anew for each kill, which
comes at a moment drawn uniformly over that duration, by SIGKILL, to the runner, to a worker, or to
both. After `pliant resume`, all rows must equal those of the first to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

VICTIMS = ("runner", "worker", "both")

Content = dict[tuple[str, int, str], tuple[str, bytes]]  # (job, advance, column) -> (dtype, the numbers' bytes)


@dataclass(frozen=True)
class Kill:
    """One kill, and what it left."""

    victim: str
    at: float | None  # seconds after the start; None where the worker killed itself
    committed: int  # rows there were when it came
    total: int  # rows there should be in the end
    differing: int  # columns of an advance, and statuses of runs, that differ after resuming

    def __str__(self) -> str:
        verdict = "identical" if self.differing == 0 else f"{self.differing} DIFFER"
        moment = "" if self.at is None else f" at {self.at:5.2f} s"
        return f"  {self.victim:6} killed{moment} with {self.committed:4}/{self.total} rows   resumed: {verdict}"


def kill_and_resume(run: Sequence[str], kills: int, seed: int, folder: Path) -> list[Kill]:
    """Kill the study of the command `pliant run *run` `kills` times. The first three kills take each victim in turn."""
    draw = random.Random(seed)
    began = time.monotonic()
    expected = finish(["run", *run, "--out", str(folder / "peace")], folder / "peace")
    duration = time.monotonic() - began
    print(f"\npliant run {' '.join(run)}: {duration:.2f} s, {rows_in(expected)} rows; {kills} kills from seed {seed}")
    done: list[Kill] = []
    for number in range(10 * kills):
        if len(done) == kills:
            return done
        victim = VICTIMS[len(done)] if len(done) < len(VICTIMS) else draw.choice(VICTIMS)
        kill = one_kill(run, folder / f"kill-{number}", victim, draw.uniform(0, duration), expected)
        print(kill or "  the study had ended before its kill: another is drawn", flush=True)
        done += [kill] if kill else []
    raise AssertionError("most kills came too late: the first, measured run was slower than those that followed")


def one_kill(run: Sequence[str], study: Path, victim: str, at: float, expected: Content) -> Kill | None:
    """Start the study, kill it, resume it, compare. None where it had ended before."""
    runner = subprocess.Popen(
        pliant("run", *run, "--out", str(study)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(at)
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
    return Kill(victim, at, committed, rows_in(expected), differing(expected, found))


def die_inside_a_commit(run: Sequence[str], study: Path, place: str, expected: Content) -> Kill:
    """As `one_kill`, but every worker kills itself at `place` of its third commit."""
    ended = subprocess.run(
        pliant("run", *run, "--out", str(study)), env={**os.environ, "PLIANT_DIE": f"{place}:3"}, capture_output=True
    )
    assert ended.returncode == 1, "a worker that dies fails its job"
    committed = rows_in(content(study))
    found = finish(["resume", str(study)], study)
    return Kill(place, None, committed, rows_in(expected), differing(expected, found))


def differing(expected: Content, found: Content) -> int:
    """How many columns of an advance, and statuses of runs, differ."""
    return sum(found.get(key) != expected.get(key) for key in found.keys() | expected.keys())


def pliant(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "pliant.cli", *arguments]


def finish(arguments: Sequence[str], study: Path, environment: Mapping[str, str] | None = None) -> Content:
    """Run a command to its successful end; what the study then holds."""
    ended = subprocess.run(pliant(*arguments), capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, f"{arguments} ended with {ended.returncode}: {ended.stdout}{ended.stderr}"
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
