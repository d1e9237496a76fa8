"""A file system without locks: a study is refused there; where it was said to go on, it is killed and resumed as elsewhere."""

import os
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
    with subject.running(**said, TOY_PAUSE="1") as runner:
        if subject.name == "toy":  # which pauses: the others would have ended before
            status = ran("status", str(subject.folder), **said)
            assert status.returncode == 0, status.stderr
        os.killpg(runner.pid, signal.SIGKILL)
        runner.wait()
    assert "gives no locks" in one_line(ran(*subject.resume, **NO_LOCKS))
    subject.resumes("no locks, SIGKILL of the group", **said)
