"""`pliant run --log`: what is sent, once, and what does not end a study. Real trackers: `tests/integrations/test_trackers.py`."""

import sys
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import pytest

from pliant.commands.trackers import TRACKERS, Run
from pliant.lab.report.table import rows_of
from pliant.lab.study.study import open_study
from tests.kill_and_resume import command
from tests.test_cli import TOY


class Kept:
    """A tracker in memory: `rows` of each run, by its id; it fails at its `failing`-th row."""

    def __init__(self, failing=None):
        self.rows, self.open, self.settings, self.failing = {}, set(), {}, failing

    def __call__(self, study):
        return self

    def run(self, name, settings, known):
        key = known or name
        self.rows.setdefault(key, [])
        self.settings[key] = settings
        self.open.add(key)

        def log(values, step):
            if self.failing is not None and sum(map(len, self.rows.values())) >= self.failing:
                raise ConnectionError("the server is gone")
            self.rows[key].append((step, dict(values)))

        return Run(log, key, lambda: self.open.discard(key), lambda: None)


@pytest.fixture
def kept(monkeypatch):
    def of(**options):
        tracker = Kept(**options)
        monkeypatch.setitem(TRACKERS, "kept", tracker)
        monkeypatch.setitem(sys.modules, "kept", ModuleType("kept"))
        return tracker

    return of


def rows_sent(tracker):
    return sorted((step, *sorted(values.items())) for rows in tracker.rows.values() for step, values in rows)


def rows_in(study):
    names = ("pliant/squared_error", "pliant/weight_magnitude")
    each = rows_of(open_study(study))[["step", "squared_error", "weight_magnitude"]].to_numpy()
    found = [(int(row[0]), *((n, v) for n, v in zip(names, row[1:], strict=True) if not np.isnan(v))) for row in each]
    return sorted(found)


def test_every_row_is_sent_at_its_step_and_runs_are_ended(tmp_path, kept):
    tracker = kept()
    status, _ = command(["run", TOY, "--out", str(tmp_path / "s"), "--log", "kept"])
    assert status == 0
    assert rows_sent(tracker) == rows_in(tmp_path / "s")
    assert not tracker.open
    assert len(tracker.rows) == open_study(tmp_path / "s").run_count
    assert {settings["seed"] for settings in tracker.settings.values()} == {0, 1, 2}


def test_what_was_learnt_without_it_is_sent_when_the_study_goes_on_and_nothing_twice(tmp_path, kept):
    tracker, run = kept(), ["run", TOY, "--out", str(tmp_path / "s"), "--methods", "nlms"]
    assert command(run)[0] == 0
    for _ in range(2):
        assert command([*run[:-1], "lms,nlms", "--log", "kept"])[0] == 0
    assert rows_sent(tracker) == rows_in(tmp_path / "s")


def test_a_tracker_that_fails_ends_no_study_and_gets_the_rest_later(tmp_path, kept):
    run = ["run", TOY, "--out", str(tmp_path / "s"), "--log", "kept"]
    broken = kept(failing=70)
    status, said = command(run)
    assert status == 0
    assert said.count("--log kept: ConnectionError: the server is gone; the study goes on") == 1
    assert open_study(tmp_path / "s").has_ended()
    assert len(rows_sent(broken)) == 70
    broken.failing = None
    assert command(run)[0] == 0
    assert {*rows_sent(broken)} == {*rows_in(tmp_path / "s")}
    assert (
        len(rows_sent(broken)) - len(rows_in(tmp_path / "s")) < 60
    )  # rows of the job at which it failed are sent again


def test_a_tracker_that_cannot_be_reached_is_an_error_before_anything_runs(tmp_path, monkeypatch, kept):
    kept()

    def unreachable(study):
        raise ConnectionError("no route")

    monkeypatch.setitem(TRACKERS, "kept", unreachable)
    status, said = command(["run", TOY, "--out", str(tmp_path / "s"), "--log", "kept"])
    assert (status, said.splitlines()[-1]) == (2, "pliant: --log kept: ConnectionError: no route")
    assert not list((tmp_path / "s" / "jobs").iterdir())


@pytest.mark.parametrize("command_line", [["run", TOY, "--out"], ["resume"]])
def test_an_unknown_tracker_and_one_that_is_not_installed_are_refused(command_line, tmp_path):
    study = tmp_path / "s"
    if command_line[0] == "resume":
        assert command(["run", TOY, "--out", str(study), "--methods", "nlms"])[0] == 0
    before = sorted(tmp_path.rglob("*"))
    assert command([*command_line, str(study), "--log", "tensorbord"]) == (
        2,
        "pliant: unknown tracker 'tensorbord': did you mean 'tensorboard'? Known: tensorboard, wandb, mlflow\n",
    )
    if find_spec("wandb") is None:
        line = 'pliant: this needs wandb: pip install -e ".[wandb]" in a clone of Pliant\n'
        assert command([*command_line, str(study), "--log", "wandb"]) == (2, line)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_count_is_named(tmp_path, kept):
    kept()
    run = ["run", TOY, "--out", str(tmp_path / "s"), "--log", "kept"]
    assert command(run)[0] == 0
    file = tmp_path / "s" / "trackers" / "kept" / "000.json"
    file.write_text("[")
    status, said = command(run)
    assert status == 2
    assert f"{file} is damaged" in said
