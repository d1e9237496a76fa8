"""An experiment of one's own that does not keep what it promises is noticed, in one sentence, and loses nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pliant.lab import DONE, RUNNING, RunStatus, diverged
from pliant.lab.run.promises import PATIENCE, Promises
from pliant.lab.run.worker import run_job
from pliant.lab.stored.records import read, read_rows
from pliant.lab.study.settings import selected
from pliant.lab.study.study import Study, new_plan, open_study, with_runs
from pliant.lab.study.target import load, target

OWN = """
import os, sys
from pliant.lab import DONE, RUNNING, RunConfig, RunStatus, diverged

class Config(RunConfig):
    method: str = "own"

class State:
    steps_total = 4
    def __init__(self, runs):
        self.runs, self.steps_done = runs, 0
    def statuses(self):
        {statuses}
        return [DONE if self.steps_done == self.steps_total else RUNNING] * self.runs
    def state_dict(self):
        {state_dict}
        return {{"steps_done": self.steps_done}}
    def load_state_dict(self, state):
        {load}
        self.steps_done = state["steps_done"]

class Own:
    Config, columns, profiles = Config, {{"step": "steps", "loss": "nats"}}, {{"quick": "a moment"}}
    def runs(self, profile):
        {runs}
        return [Config(seed=seed) for seed in range(2)]
    def stack_key(self, config, device):
        return 0
    def start(self, configs, context):
        {start}
        return State(len(configs))
    def advance(self, state):
        state.steps_done += 1
        rows = {{"run": [0, 1], "step": [state.steps_done] * 2, "loss": [0.5, 0.25]}}
        {advance}
        return rows
    def figure(self, rows):
        {figure}
{top}
"""
PLACES = ("statuses", "state_dict", "load", "runs", "start", "advance", "figure", "top")


def pliant(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "pliant.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")},
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def own(folder, **lines):
    """A file with an experiment that does something of its own in some places."""
    text = OWN.format(**{place: lines.get(place, "pass") for place in PLACES})
    (folder / "own.py").write_text(text)
    return pliant("run", "own.py:Own", "--out", "study", cwd=folder)


AT_3 = "if state.steps_done == 3: "


def rows(study):
    return read_rows(study.database(study.jobs[0])).rows["step"].tolist()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"advance": AT_3 + "sys.exit()"}, "failed: the experiment ended the program by sys.exit() in advance ("),
        (
            {"advance": AT_3 + "sys.exit('enough')"},
            "failed: the experiment ended the program by sys.exit('enough') in advance (",
        ),
        ({"advance": AT_3 + "raise KeyboardInterrupt"}, "failed: KeyboardInterrupt: "),
        ({"advance": AT_3 + "os._exit(0)"}, "failed: its worker ended with status 0, see"),
        (
            {"advance": AT_3 + "breakpoint()"},
            "failed: RuntimeError: the experiment asks for input, or has a breakpoint",
        ),
        ({"advance": AT_3 + "input()"}, "failed: RuntimeError: the experiment asks for input"),
        ({"state_dict": "if self.steps_done == 3: return None"}, "failed: ValueError: state_dict() gave a NoneType"),
    ],
)
def test_who_ends_or_stops_a_worker_is_told_and_nothing_committed_is_lost(tmp_path, lines, message):
    done = own(tmp_path, **lines)
    assert done.returncode == 1
    assert done.stderr.startswith("job 000 " + message)
    assert done.stderr.count("\n") == 1
    study = open_study(tmp_path / "study")
    assert rows(study) == [1, 1, 2, 2]
    mended = own(tmp_path)
    assert (mended.returncode, mended.stderr) == (0, "")
    assert rows(study) == [1, 1, 2, 2, 3, 3, 4, 4]


def made(folder, **lines):
    """A study of it, and its job, to be run here."""
    (folder / "own.py").write_text(OWN.format(**{place: lines.get(place, "pass") for place in PLACES}))
    where = target(f"{folder}/own.py:Own")
    study = with_runs(
        Study(folder / "study", new_plan("own", where, "quick", "cpu", {})), selected(load(where), "quick")
    )
    study.save()
    return study, study.jobs[0]


@pytest.mark.parametrize(
    ("lines", "message", "kept"),
    [
        ({"advance": AT_3 + "rows = None"}, "advance() gave a NoneType: it gives rows, a mapping", 2),
        ({"advance": AT_3 + "rows['run'] = [0, 2]"}, "column 'run' indexes the 2 configs", 2),
        ({"advance": AT_3 + "rows['los'] = rows.pop('loss')"}, "rows lack the columns ['loss'] and have ['los']", 2),
        ({"advance": AT_3 + "state.steps_done = 1"}, "steps_done fell from 2 to 1 in an advance", 2),
        (
            {"advance": AT_3 + "state.steps_done = None"},
            "steps_done and steps_total are (None, 4): they are whole numbers",
            2,
        ),
        (
            {"statuses": "if self.steps_done == 3: return [RUNNING]"},
            "for 2 runs: it gives one of pliant.lab's RUNNING",
            2,
        ),
        (
            {"statuses": "if self.steps_done == 3: return [RUNNING] * 3"},
            "for 2 runs: it gives one of pliant.lab's RUNNING",
            2,
        ),
        (
            {"statuses": "if self.steps_done == 3: return ['done'] * 2"},
            "statuses() gave ['done', 'done'] for 2 runs",
            2,
        ),
        ({"statuses": "if self.steps_done == 3: return None"}, "statuses() gave None for 2 runs", 2),
        (
            {"statuses": "if self.steps_done == 3: return [RunStatus('over')] * 2"},
            "statuses() gave RunStatus(word='over'",
            2,
        ),
        ({"statuses": "if self.steps_done == 2: return [DONE, RUNNING]"}, "run 0 was done and is running", 2),
        (
            {"statuses": "if self.steps_done >= 2: return [diverged(self.steps_done), RUNNING]"},
            "statuses() of an advance: run 0 was diverged at step 2 and is diverged at step 3",
            2,
        ),
        (
            {"statuses": "return [RUNNING] * self.runs"},
            "steps_done is 5 of 4, and statuses() says that a run goes on",
            4,
        ),
        (
            {"statuses": "return [RUNNING] * self.runs", "advance": "state.steps_done = 1"},
            f"steps_done stayed at 1 of 4 in {PATIENCE} advances, and a run goes on: for ever?",
            1,
        ),
        ({"start": "return None"}, "start() gave a NoneType, which lacks steps_done, steps_total, statuses", None),
    ],
)
def test_what_is_not_as_promised_is_told_and_not_committed(tmp_path, lines, message, kept):
    study, job = made(tmp_path, **lines)
    with pytest.raises(ValueError, match=re.escape(message)):
        run_job(study, job, lambda event: None)
    record = read(study.database(job))
    assert record.steps_done == (kept or 0)
    if kept and "advances" not in message:
        assert rows(study) == [step for step in range(1, kept + 1) for _ in "ab"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"top": "sys.exit(0)"}, "pliant: the experiment ended the program by sys.exit(0) in <module> ("),
        ({"runs": "sys.exit(0)"}, "pliant: the experiment ended the program by sys.exit(0) in runs ("),
        ({"runs": "return []"}, "pliant: runs('quick') of Own gave []: it gives a list of its Config, at least one"),
        ({"runs": "return None"}, "pliant: runs('quick') of Own gave None: it gives a list"),
        (
            {"runs": "return ['own']"},
            "pliant: runs('quick') of Own gave a str among its runs: it gives a list of its Config",
        ),
        ({"runs": "return [Config(sed=1)]"}, "pliant: runs('quick') of Own: unknown field 'sed': did you mean 'seed'"),
        (
            {"top": "class Config(Config, frozen=False): pass\nOwn.Config = Config"},
            "Config must be frozen, as RunConfig is",
        ),
    ],
)
def test_what_is_wrong_before_anything_runs_is_refused(tmp_path, lines, message):
    done = own(tmp_path, **lines)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ("sys.exit(0)", "pliant: the experiment ended the program by sys.exit(0) in figure ("),
        ("pass", "pliant: figure() of Own gave None: it gives a matplotlib Figure"),
    ],
)
def test_a_figure_that_is_none_is_refused(tmp_path, figure, message):
    assert own(tmp_path, figure=figure).returncode == 0
    done = pliant("plot", "study", cwd=tmp_path)
    code, refused = done.stderr.splitlines()
    assert (done.returncode, done.stdout, code) == (2, "", f"pliant: note: study runs code: {tmp_path / 'own.py'}")
    assert message in refused


def test_a_state_that_is_not_brought_back_is_told(tmp_path):
    study, job = made(tmp_path, load="return", advance=AT_3 + "1 / 0")
    with pytest.raises(ZeroDivisionError):
        run_job(study, job, lambda event: None)
    with pytest.raises(
        ValueError, match=r"steps_done is 0 after load_state_dict\(\), and was 2 when state_dict\(\) was stored"
    ):
        run_job(study, job, lambda event: None)
    assert rows(study) == [1, 1, 2, 2]


def test_an_experiment_that_counts_in_whole_tasks_may_take_several_advances_for_each(tmp_path):
    parts = "state.parts = getattr(state, 'parts', 0) + 1; state.steps_done -= state.parts % 3 != 0"
    study, job = made(tmp_path, advance=parts)
    run_job(study, job, lambda event: None)
    assert read(study.database(job)).is_done
    assert len(rows(study)) == 2 * 3 * 4


class Said:
    """A state that says what it is told to."""

    steps_total = 10

    def __init__(self, statuses, steps_done=0):
        self.given, self.steps_done = statuses, steps_done

    def statuses(self):
        return self.given

    def state_dict(self):
        return {}

    load_state_dict = None


def test_numbers_of_numpy_and_any_sequence_will_do():
    promises = Promises(Said((RUNNING, diverged(np.int64(3))), np.int64(4)), 2)
    assert (promises.steps, promises.goes_on) == ((4, 10), True)


@pytest.mark.parametrize("status", [RunStatus("diverged"), RunStatus("done", 3), RunStatus("diverged", 0.5)])
def test_a_status_says_the_step_of_divergence_and_no_other(status):
    with pytest.raises(ValueError, match="a status is RUNNING, DONE or diverged"):
        Promises(Said([status]), 1)


def test_what_is_on_record_stays(tmp_path):
    with pytest.raises(
        ValueError, match=r"statuses\(\) after load_state_dict\(\): run 1 was diverged at step 3 and is running"
    ):
        Promises(Said([DONE, RUNNING]), 2, ([RUNNING, diverged(3)], 0))
