"""A file system without locks: a study is refused there; where it was said to go on, it is killed and resumed as elsewhere."""

import os
import re
import signal

from tests.faults.studies import ON_SEVERAL, one_line, ran
from tests.faults.test_clock import ELSEWHERE

NO_LOCKS = {"PYTHONPATH": ELSEWHERE, "NO_LOCKS": "1"}


@ON_SEVERAL
def test_without_locks_a_study_is_begun_only_if_that_was_said(subject):
    line = one_line(ran(*subject.run, **NO_LOCKS))
    assert f"the file system of {subject.folder} gives no locks" in line
    assert line.endswith("set PLIANT_NO_LOCKS=1")
    assert not (subject.folder / "study.json").exists()
    said = {**NO_LOCKS, "PLIANT_NO_LOCKS": "1"}
    with subject.running(begun=lambda: has_states(subject.folder / "jobs", 2), **said, TOY_PAUSE="2") as runner:
        for _ in range(3):  # whoever reads meanwhile undoes nothing that a worker writes
            done = ran("status", str(subject.folder), **said)
            assert done.returncode == 0 or "without locks nobody can tell" in one_line(done)
        os.killpg(runner.pid, signal.SIGKILL)
        runner.wait()
    assert "gives no locks" in one_line(ran(*subject.resume, **NO_LOCKS))
    subject.resumes("no locks, SIGKILL of the group", **said)


def has_states(jobs, least):
    """Whether a job has committed so often: told by the names of files, as SQLite itself would lock them."""
    names = [re.fullmatch(r"\d+-(\d+)\.safetensors", file.name) for file in jobs.glob("*")]
    return any(int(name[1]) >= least for name in names if name)
