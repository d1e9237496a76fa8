"""Every experiment, cut short, killed with signal 9 in the midst of a commit, and resumed: the rows of one that was not.

More kills, at any moment: `python -m tests.kill_and_resume NAME ... --kills 20`.
"""

import numpy as np
import pytest

from pliant.experiments import TABLE
from pliant.lab.run.runner import make_longer
from pliant.lab.stored.records import read
from pliant.lab.study.study import Study, open_study
from pliant.lab.study.target import load, target
from tests.experiments.small_pictures import make_pictures
from tests.kill_and_resume import die_inside_a_commit, differing, finish, kill_and_resume, rows_in

pytestmark = pytest.mark.faults

PICTURES = {"dataset": "small", "train_images": 15, "test_images": 6}
CUT = {  # continual backpropagation on small images: at least four commits, and replacements going on
    "slowly-changing-regression": {"steps": 480_000, "bin": 120_000, "replacement_rate": 1e-3},
    "permuted-mnist": {
        "dataset": "small",
        "tasks": 5,
        "period": 300,
        "width": 20,
        "probe": 50,
        "replacement_rate": 0.05,
    },
    "continual-imagenet": {
        **PICTURES,
        "tasks": 5,
        "epochs": 20,
        "batch_size": 10,
        "channels": "[4,4,8]",
        "hidden": "[8,8]",
        "maturity_threshold": 10,
        "replacement_rate": 0.1,
    },
    "class-incremental-cifar-100": {
        **PICTURES,
        "validation_images": 5,
        "increment": 2,
        "tasks": 2,
        "epochs": 18,
        "batch": 10,
        "width": 4,
        "maturity_threshold": 5,
        "replacement_rate": 0.1,
    },
    "warm-starting": {
        **PICTURES,
        "start": "warm",
        "classes": 6,
        "epochs": 80,
        "batch": 5,
        "width": 4,
        "maturity_threshold": 5,
        "replacement_rate": 0.1,
    },
    "rewired-cart-pole": {
        "time_limit": 100,
        "tasks": 5,
        "updates": 4,
        "rollout_steps": 32,
        "copies": 4,
        "minibatch_size": 32,
        "hidden": "[8,8]",
        "maturity_threshold": 5,
        "replacement_rate": 0.1,
    },
    "slippery-ant": {
        "steps": 1280,
        "rollout_steps": 128,
        "rollouts_per_row": 2,
        "epochs": 4,
        "minibatch_size": 32,
        "hidden": "[8,8]",
        "maturity_threshold": 5,
        "replacement_rate": 0.1,
        "friction_period": 300,
    },
    "switching-markov-chain": {"period": 50, "steps": 250, "replacement_rate": 0.02},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_pictures(folder / "small")
    return folder


def test_no_experiment_is_left_out():
    """Those that another stands for differ from it in what their profiles run, and in nothing else."""
    learning = {name: load(target(entry.target)).start.__func__ for name, entry in TABLE.items()}
    assert {learning[name] for name in CUT} == set(learning.values())


def command_of(name, **changes):
    """What follows `pliant run`: the name, and the settings above with these changes."""
    settings = {**CUT[name], **changes}
    said = [word for field, value in settings.items() for word in ("--set", f"{field}={value}")]
    return [name, "--methods", "cbp", "--seeds", "0", *said]


@pytest.mark.parametrize("name", CUT)
def test_a_study_killed_inside_a_commit_resumes_to_the_same_rows(name, data, tmp_path, monkeypatch):
    monkeypatch.setenv("PLIANT_DATA", str(data))
    monkeypatch.setenv("PLIANT_CACHE", str(data / "cache"))
    study = [*command_of(name), "--jobs", "1"]
    expected = finish(["run", *study, "--out", str(tmp_path / "peace")], tmp_path / "peace")
    kill = die_inside_a_commit(study, tmp_path / "killed", "inside the transaction", expected)
    replaced = max(
        np.frombuffer(data, dtype).max(initial=0) for (_, _, n), (dtype, data) in expected.items() if n == "replaced"
    )
    assert replaced >= 20
    assert rows_in(expected) > kill.committed
    assert kill.differing == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", CUT)
def test_a_study_killed_at_any_moment_resumes_to_the_same_rows(name, data, tmp_path, monkeypatch):
    monkeypatch.setenv("PLIANT_DATA", str(data))
    monkeypatch.setenv("PLIANT_CACHE", str(data / "cache"))
    kills = kill_and_resume([*command_of(name), "--jobs", "1"], kills=3, seed=0, folder=tmp_path)
    assert [kill.differing for kill in kills] == [0] * 3


def study(name, out, **changes):
    return finish(["run", *command_of(name, **changes), "--out", str(out)], out)


@pytest.mark.parametrize(("name", "field", "half"), [("rewired-cart-pole", "tasks", 2), ("slippery-ant", "steps", 640)])
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
