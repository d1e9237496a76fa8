"""A clock that is set back, between two starts or within one: rows are the same, and no time that is told is negative."""

import os
import re
import signal
import sqlite3
from pathlib import Path

import pytest

from tests.faults.studies import ON_SEVERAL, ROOT, ran
from tests.patience import PATIENCE

DAY = "86400"
ELSEWHERE = os.pathsep.join([str(Path(__file__).parent / "elsewhere"), os.environ.get("PYTHONPATH", str(ROOT / "src"))])


def ended(folder):
    """When each advance of each job was noted to have ended."""
    found = {}
    for file in sorted((folder / "jobs").glob("*.sqlite")):
        with sqlite3.connect(file) as database:
            found[file.stem] = [when for (when,) in database.execute("SELECT ended FROM advance ORDER BY advance")]
    return found


@ON_SEVERAL
@pytest.mark.parametrize("when", [pytest.param("between two starts", marks=pytest.mark.slow), "within a start"])
def test_a_clock_that_is_set_back_changes_no_row_and_no_time(subject, when):
    ahead = {"PYTHONPATH": ELSEWHERE, "CLOCK_AHEAD": DAY}
    if when == "within a start":
        ahead["CLOCK_ASKED"] = "2"  # once as a worker begins, and once by its first advance
    with subject.running(**ahead) as runner:
        os.killpg(runner.pid, signal.SIGTERM)
        runner.communicate(timeout=PATIENCE)
    if when == "within a start":
        subject.resumes(f"clock set back by a day {when}", **ahead)
    else:
        subject.resumes(f"clock set back by a day {when}")
    assert any(times != sorted(times) for times in ended(subject.folder).values()), "the clock was not set back"
    for command in ("status", "report", "resume"):
        done = ran(command, str(subject.folder))
        assert done.returncode == 0, done.stderr
        assert re.search(r"-\d+(s|m\d\d|h\d\d)\b", done.stdout) is None, done.stdout
    status = ran("status", str(subject.folder)).stdout
    assert re.search(r"; \d+s of learning|; \d+m\d\d of learning", status), status
