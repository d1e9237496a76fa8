"""Signals that ask a study to end, or to pause: it ends at once, says how to go on, leaves no process, and loses nothing."""

import json
import os
import signal
import time

import pytest

from tests.faults.studies import ON_SEVERAL, one_line, ran
from tests.kill_and_resume import is_alive, workers_of
from tests.patience import PATIENCE, until

HOW = {"the runner": os.kill, "the whole group": os.killpg}  # `kill` and `scancel --batch`; a terminal and `scancel`


@ON_SEVERAL
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=lambda number: number.name
)
@pytest.mark.parametrize("whom", [pytest.param("the runner", marks=pytest.mark.slow), "the whole group"])
def test_a_study_that_is_asked_to_end_says_how_to_go_on(subject, number, whom):
    with subject.running() as runner:
        workers = workers_of(subject.folder, runner.pid)
        HOW[whom](runner.pid, number)
        said, errors = runner.communicate(timeout=PATIENCE)
    assert runner.returncode == 128 + number
    assert said.endswith(f"stopped; what is finished is stored\n  resume  pliant resume {subject.folder}\n")
    assert errors == ""
    until(lambda: not any(is_alive(worker) for worker in workers))
    assert all("KeyboardInterrupt" not in log.read_text() for log in (subject.folder / "logs").iterdir())
    subject.resumes(f"{number.name} to {whom}")


@ON_SEVERAL
def test_somebody_who_is_impatient_loses_nothing(subject):
    """Ctrl-C again while the first is being answered: the program ends, the sooner the better, and without a traceback."""
    with subject.running() as runner:
        workers = workers_of(subject.folder, runner.pid)
        for _ in range(3):
            os.killpg(runner.pid, signal.SIGINT)
            time.sleep(0.01)
        said, errors = runner.communicate(timeout=PATIENCE)
    assert runner.returncode in (130, -signal.SIGINT)  # the latter while Python itself ends
    assert "Traceback" not in said + errors
    until(lambda: not any(is_alive(worker) for worker in workers))
    subject.resumes("SIGINT three times")


@ON_SEVERAL
def test_a_study_that_is_paused_is_still_held_and_goes_on(subject):
    with subject.running() as runner:
        os.killpg(runner.pid, signal.SIGSTOP)
        before = subject.rows
        line = one_line(ran(*subject.resume))
        assert f"the study in {subject.folder} is held by process {runner.pid} on " in line
        assert subject.rows == before
        os.killpg(runner.pid, signal.SIGCONT)
        until(lambda: subject.rows > before)
        os.killpg(runner.pid, signal.SIGTERM)
        runner.wait(timeout=PATIENCE)
    subject.resumes("SIGSTOP, a second resume, SIGCONT")


@pytest.mark.parametrize("name", ["toy"])
def test_a_worker_that_is_paused_keeps_its_job(subject):
    """Its runner is killed meanwhile: the kernel ends the worker all the same, and its job is free."""
    with subject.running() as runner:
        lock = next((subject.folder / "jobs").glob("*.lock"))
        os.kill(json.loads(lock.read_text())["pid"], signal.SIGSTOP)
        os.kill(runner.pid, signal.SIGKILL)
        runner.wait()
        subject.resumes("SIGSTOP of a worker, SIGKILL of its runner")
