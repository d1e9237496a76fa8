"""A study while it runs."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pliant.lab.experiment import DONE, RUNNING, RunStatus
from pliant.lab.report import live
from pliant.lab.report.parts import Curve
from pliant.lab.stored.records import Record
from pliant.lab.study.study import open_study

TOY = f"{Path(__file__).parents[2] / 'toy_experiment.py'}:Toy"


@pytest.fixture
def study(pliant, tmp_path):
    assert pliant("run", TOY, "--profile", "tiny", "--out", tmp_path / "study", "--jobs", "1")[0] == 0
    return tmp_path / "study"


def test_a_line_of_blocks_goes_from_the_lowest_to_the_highest():
    assert live.blocks([1.0, 1.0]) == "▁▁"
    assert live.blocks([]) == ""
    assert live.blocks([float("nan"), 2.0, 1.0]) == " █▁"


def test_a_curves_mean_leaves_out_runs_that_have_not_come_so_far():
    values = np.array([[1.0, 2.0, np.nan], [3.0, np.nan, np.nan]])
    mean = live.mean_of(Curve({}, "bp", [0, 1], values, np.arange(3.0), {}))
    assert mean[:2] == [2.0, 2.0]
    assert np.isnan(mean[2])


def test_rates_and_curves_follow_the_status(study):
    lines = list(live.live_lines(open_study(study)))
    assert any("steps per second of a job; 0s of learning left" in line for line in lines)
    assert any(set(line) & set("▂▃▄▅▆▇█") for line in lines)


def test_time_left_is_the_remaining_steps_at_the_rate_so_far():
    """150 steps in 3 s; 50 and a job of 100 steps to come, of the one that has ended none."""
    ended = Record(100, 100, 1, 1, 2.0, [DONE])
    under_way = Record(50, 100, 1, 1, 1.0, [RUNNING])
    assert live.rate_and_rest([ended, under_way], 3) == (50.0, 3.0)
    early = Record(40, 100, 1, 1, 1.0, [RunStatus("diverged", 40)])  # its steps are not to come
    assert live.rate_and_rest([early], 1) == (40.0, 0.0)
    assert live.rate_and_rest([], 3) is None


def test_a_study_has_ended_when_all_of_its_jobs_have(pliant, tmp_path):
    folder = tmp_path / "two"
    for seeds in ("0", "0-40"):  # the second adds jobs
        words = ("--profile", "tiny", "--seeds", seeds, "--out", folder, "--jobs", "1")
        assert pliant("run", TOY, *words)[0] == 0
    assert len(open_study(folder).jobs) > 1
    assert open_study(folder).has_ended()
    for file in (folder / "jobs").glob(f"{open_study(folder).jobs[-1].name}*"):
        file.unlink()
    assert not open_study(folder).has_ended()


def test_watching_ends_with_the_study(study, pliant):
    out = io.StringIO()
    live.watch(study, 0.1, Console(file=out, width=200))
    assert "finished" in out.getvalue()
    status, said, _ = pliant("status", study, "--watch", "--every", "0.1")
    assert (status, "finished" in said) == (0, True)
