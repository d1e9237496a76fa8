"""Several commands that go on with one study at once: one does, the others name it and change nothing."""

import os
import signal
import subprocess

from tests.faults.studies import ON_SEVERAL
from tests.kill_and_resume import content, differing, started
from tests.patience import PATIENCE


@ON_SEVERAL
def test_of_several_resumes_one_goes_on(subject):
    with subject.running() as runner:
        os.killpg(runner.pid, signal.SIGKILL)
        runner.wait()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    several = [started(*subject.resume, **pipes) for _ in range(4)]
    said = [each.communicate(timeout=PATIENCE)[1] for each in several]
    codes = [each.returncode for each in several]
    # one that was late found the study finished, with nothing to do
    assert codes.count(0) >= 1
    assert {*codes} <= {0, 2}, said
    for code, errors in zip(codes, said, strict=True):
        assert (code == 0) == (f"the study in {subject.folder} is held by process" not in errors), errors
    assert differing(subject.expected, content(subject.folder)) == 0
    subject.tell("four resumes at once after a kill", f"{codes.count(2)} refused; identical")
