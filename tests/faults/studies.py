"""What the tests of faults share: studies of every experiment, cut short, and what each holds that nothing happened to."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.experiments.cut import CUT, command_of
from tests.kill_and_resume import Content, content, differing, differing_so_far, end, pliant, rows_in, started
from tests.patience import PATIENCE, until

ROOT = Path(__file__).parents[2]
TOY = [
    str(ROOT / "tests" / "toy_experiment.py") + ":Toy",
    "--profile",
    "tiny",
]  # twelve runs, in twelve jobs of five rows
COMMANDS = {"toy": [*TOY, "--jobs", "2"], **{name: [*command_of(name), "--jobs", "1"] for name in CUT}}

ON_SEVERAL = pytest.mark.parametrize(  # one with tensors of torch, one with a simulator, one of compiled learners
    "name",
    [
        "toy",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("permuted-mnist", "slippery-ant", "slowly-changing-regression", "warm-starting")
        ),
    ],
)


@dataclass(frozen=True)
class Subject:
    """A study that something is to happen to."""

    name: str
    folder: Path  # not yet there
    expected: Content  # of the study that nothing happened to
    tell: Callable[[str, str], None]  # (fault, what came of it), for the table at the end

    @property
    def run(self) -> list[str]:
        return ["run", *COMMANDS[self.name], "--out", str(self.folder)]

    @property
    def resume(self) -> list[str]:
        return ["resume", str(self.folder), "--jobs", "1"]

    @property
    def rows(self) -> int:
        """That are committed, about: read without locks, so that a worker that has none either is not disturbed."""
        count = 0
        for file in (self.folder / "jobs").glob("*.sqlite"):
            address = f"{file.as_uri()}?mode=ro&immutable=1"
            with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(address, uri=True)) as database:
                count += int(database.execute("SELECT total(rows) FROM advance").fetchone()[0])
        return count

    @contextmanager
    def running(self, command: list[str] | None = None, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """The study in mid-learning, in a process group of its own that ends with the block: its runner."""
        before = self.rows
        runner = started(
            *(command or self.run),
            env={**os.environ, "TOY_PAUSE": "0.2", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # a shell starts its background jobs with Ctrl-C ignored, and these tests may run in one
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            until(lambda: self.rows > before or runner.poll() is not None)
            assert runner.poll() is None, runner.communicate()
            yield runner
        finally:
            try:
                os.killpg(runner.pid, signal.SIGKILL)
            except ProcessLookupError:
                end(runner.pid)
            runner.communicate()

    def resumes(self, fault: str, *command: str, **environment: str) -> None:
        """What is there is as it should be, and resumed it becomes all that it should be."""
        left = content(self.folder)
        assert differing_so_far(self.expected, left) == 0
        assert 0 < rows_in(left) < rows_in(self.expected), "it did not come in the midst of the rows"
        done = ran(*(command or self.resume), **environment)
        assert done.returncode == 0, done.stderr
        assert differing(self.expected, content(self.folder)) == 0
        self.tell(fault, f"with {rows_in(left)}/{rows_in(self.expected)} rows; resumed: identical")


def ran(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command, to its end."""
    variables = {**os.environ, **environment}
    return subprocess.run(pliant(*command), capture_output=True, text=True, timeout=PATIENCE, env=variables)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that was refused says, which is a line."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    (line,) = [each for each in done.stderr.splitlines() if not each.startswith("pliant: note: ")]
    return line
