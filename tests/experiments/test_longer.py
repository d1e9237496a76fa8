"""Runs made longer are those that were asked for as long."""

import pytest

from pliant.lab.run.runner import make_longer
from pliant.lab.stored.records import read
from pliant.lab.study.study import Study, open_study
from tests.experiments.cut import CUT, command_of
from tests.kill_and_resume import differing, finish, rows_in

pytestmark = pytest.mark.faults


def study(name, out, **changes):
    return finish(["run", *command_of(name, **changes), "--out", str(out)], out)


@pytest.mark.parametrize(
    ("name", "field", "half"),
    [("rewired-cart-pole", "tasks", 2), pytest.param("slippery-ant", "steps", 640, marks=pytest.mark.slow)],
)
def test_runs_made_longer_are_those_that_were_asked_for_as_long(name, field, half, tmp_path):
    whole = study(name, tmp_path / "whole")
    part = study(name, tmp_path / "part", **{field: half})  # of the ant: two rows and a half
    assert 0 < rows_in(part) < rows_in(whole)
    longer = finish(["resume", str(tmp_path / "part"), "--to", str(CUT[name][field])], tmp_path / "part")
    assert differing(whole, longer) == 0


def test_a_study_whose_longer_plan_was_not_written_down_ends_as_it_was(tmp_path, monkeypatch):
    def dies(self):
        raise KeyboardInterrupt

    before = study("rewired-cart-pole", tmp_path, tasks=2)
    monkeypatch.setattr(Study, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        make_longer(open_study(tmp_path), 5)
    (job,) = open_study(tmp_path).jobs
    assert not read(open_study(tmp_path).database(job)).is_done
    assert differing(before, finish(["resume", str(tmp_path)], tmp_path)) == 0
    assert read(open_study(tmp_path).database(job)).is_done
