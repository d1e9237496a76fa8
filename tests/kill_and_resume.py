"""Is a study that was killed and resumed the study that never was? Kills one, again and again, to find out.

    python -m tests.kill_and_resume tests/toy_experiment.py:Toy --kills 20 --seed 7

A study runs once in peace. Then studies are killed by SIGKILL, each several times: while it is first run, then while it is
resumed. A kill comes to the runner, to a worker, or to the whole process group, once so many more rows are committed and a
moment later, both drawn: a command that begins with r rows of n is killed after r to n - 1, and within what a fifth of the study
took. So no kill comes after the end because this machine is busy. After each kill, all that is committed must be as it is in
the first study, and at the end nothing may lack, to the bit.
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
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from pliant.cli import main as pliant_here
from tests.patience import until

VICTIMS = ("runner", "worker", "group")
IN_A_ROW = 4  # kills of one study

Content = dict[tuple[str, int, str], tuple[str, bytes]]  # (job, advance, column) -> (dtype, the numbers' bytes)


@dataclass(frozen=True)
class Kill:
    """One kill, and what it left."""

    victim: str
    during: str  # run, or resume
    committed: int  # rows there were when it came
    total: int  # rows there should be in the end
    differing: int  # columns of an advance, and statuses of runs, that are not as they should be

    def __str__(self) -> str:
        verdict = "identical" if self.differing == 0 else f"{self.differing} DIFFER"
        return f"  {self.victim:6} killed in {self.during:6} with {self.committed:4}/{self.total} rows: {verdict}"


def kill_and_resume(run: Sequence[str], kills: int, seed: int, folder: Path) -> list[Kill]:
    """Kill studies of the command `pliant run *run`, `kills` times in all. The first three kills take each victim in turn."""
    draw = random.Random(seed)
    began = time.monotonic()
    expected = finish(["run", *run, "--out", str(folder / "peace")], folder / "peace")
    fifth = (time.monotonic() - began) / 5
    print(f"\npliant run {' '.join(run)}: {rows_in(expected)} rows; {kills} kills from seed {seed}")
    done: list[Kill] = []
    for number in range(10 * kills):
        if len(done) == kills:
            return done
        more = min(IN_A_ROW, kills - len(done))
        victims = [VICTIMS[n] if n < len(VICTIMS) else draw.choice(VICTIMS) for n in range(len(done), len(done) + more)]
        for kill in killed_in_a_row(run, folder / f"study-{number}", victims, draw, fifth, expected):
            print(kill, flush=True)
            done.append(kill)
    raise AssertionError("most studies ended before their kill")


def killed_in_a_row(
    run: Sequence[str], study: Path, victims: Sequence[str], draw: random.Random, fifth: float, expected: Content
) -> Iterator[Kill]:
    """Run the study, kill it, resume it, kill it again, and so on; resume it to its end. Fewer kills where it ends before."""
    total, kill = rows_in(expected), None
    for victim in victims:
        after, later = draw.randrange(rows_in(content(study)), total), draw.uniform(0, fifth)
        during, command = beginning(run, study)
        if not has_killed(command, study, victim, after, later):
            break
        if kill is not None:
            yield kill
        left = content(study)
        kill = Kill(victim, during, rows_in(left), total, differing_so_far(expected, left))
        if rows_in(left) == total:
            break
    found = finish(beginning(run, study)[1], study)
    if kill is not None:  # what the last led to is seen in the end
        yield Kill(kill.victim, kill.during, kill.committed, total, kill.differing + differing(expected, found))
    else:
        assert differing(expected, found) == 0


def beginning(run: Sequence[str], study: Path) -> tuple[str, list[str]]:
    """What a study is begun or gone on with: killed before it wrote its plan, it is begun again rather than resumed."""
    if (study / "study.json").exists():
        return "resume", ["resume", str(study)]
    return "run", ["run", *run, "--out", str(study)]


def has_killed(command: Sequence[str], study: Path, victim: str, after: int, later: float) -> bool:
    """Start a command, and kill it `later` seconds `after` so many rows; whether it had not ended before."""
    runner = started(*command)
    while runner.poll() is None and rows_in(content(study)) < after:
        time.sleep(0.01)
    time.sleep(later)
    workers = workers_of(study, runner.pid)
    while victim == "worker" and not workers and runner.poll() is None:
        time.sleep(0.01)  # drawn before the first worker was at work: take it as it comes
        workers = workers_of(study, runner.pid)
    if runner.poll() is not None:
        return False
    if victim == "group":
        os.killpg(runner.pid, signal.SIGKILL)
    else:
        end({"runner": runner.pid, "worker": workers[0] if workers else runner.pid}[victim])
    runner.wait()  # where only a worker died, the runner goes on with the other jobs
    until(lambda: not any(is_alive(worker) for worker in workers))
    return True


def started(*command: str, **options: object) -> subprocess.Popen[str]:
    """A command in a process group of its own."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(pliant(*command), start_new_session=True, text=True, **{**quiet, **options})  # type: ignore[call-overload]


def die_inside_a_commit(run: Sequence[str], study: Path, place: str, expected: Content) -> Kill:
    """As a kill at random, but every worker kills itself at `place` of its third commit."""
    with patch.dict(os.environ, PLIANT_DIE=f"{place}:3"):
        status, said = command(["run", *run, "--out", str(study)])
    assert status == 1, f"a worker that dies fails its job, but: {said}"
    committed = rows_in(content(study))
    found = finish(["resume", str(study)], study)
    return Kill(place, "run", committed, rows_in(expected), differing(expected, found))


def differing(expected: Content, found: Content) -> int:
    """How many columns of an advance, and statuses of runs, differ."""
    return sum(found.get(key) != expected.get(key) for key in found.keys() | expected.keys())


def differing_so_far(expected: Content, found: Content) -> int:
    """How many of the columns that an unfinished study has differ."""
    return sum(found[key] != expected.get(key) for key in found if key[2] != "status")


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
