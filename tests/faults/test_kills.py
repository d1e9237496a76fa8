"""A study killed with signal 9, at any moment or in the midst of a commit, and resumed, has the rows of one that was not.

`make faults` kills a hundred times, over all experiments. PLIANT_KILL_SEED chooses the moments, `pytest -s` prints them.
"""

import os

import numpy as np
import pytest

from pliant.experiments import TABLE
from pliant.lab.study.target import load, target
from tests.experiments.cut import CUT
from tests.faults.studies import COMMANDS
from tests.kill_and_resume import die_inside_a_commit, kill_and_resume, rows_in

SEED = int(os.environ.get("PLIANT_KILL_SEED", "20241122"))
MANY = 11  # of each of ten experiments: 110
OTHERS = (  # costly, and like those beside them: a network of torch, agents and bodies, compiled learners
    "class-incremental-cifar-100",
    "warm-starting",
    "rewired-cart-pole",
    "continual-imagenet",
    "slippery-ant",
    "permuted-mnist",
    "label-permutation",
    "random-labels",
)


def test_no_experiment_is_left_out():
    """Those that another stands for differ from it in what their profiles run, and in nothing else."""
    learning = {name: load(target(entry.target)).start.__func__ for name, entry in TABLE.items()}
    assert {learning[name] for name in CUT} == set(learning.values())


@pytest.mark.parametrize(
    ("name", "count"), [("toy", 2), *(pytest.param(name, MANY, marks=pytest.mark.slow) for name in CUT)]
)
def test_a_study_killed_at_any_moment_resumes_to_the_same_rows(name, count, pictures, tmp_path, tell, monkeypatch):
    monkeypatch.setenv("TOY_PAUSE", "0.05")
    kills = kill_and_resume(COMMANDS[name], kills=count, seed=SEED, folder=tmp_path)
    assert [kill.differing for kill in kills] == [0] * count
    assert any(0 < kill.committed < kill.total for kill in kills), "no kill came in the midst of the rows"
    for kill in kills:
        tell(name, f"SIGKILL of the {kill.victim} in {kill.during}", f"identical (seed {SEED})")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in OTHERS else []) for name in CUT]
)
def test_a_study_killed_inside_a_commit_resumes_to_the_same_rows(name, in_peace, tmp_path, tell):
    expected = in_peace(name)
    kill = die_inside_a_commit(COMMANDS[name], tmp_path / "killed", "inside the transaction", expected)
    replaced = max(
        np.frombuffer(data, dtype).max(initial=0) for (_, _, n), (dtype, data) in expected.items() if n == "replaced"
    )
    assert replaced >= 20
    assert rows_in(expected) > kill.committed
    assert kill.differing == 0
    tell(name, "SIGKILL inside a transaction", "identical")


@pytest.mark.parametrize("place", ["before the transaction", "inside the transaction", "after the transaction"])
def test_a_worker_that_dies_inside_a_commit_loses_and_doubles_nothing(place, in_peace, tmp_path):
    expected = in_peace("toy")
    kill = die_inside_a_commit(COMMANDS["toy"], tmp_path / "killed", place, expected)
    committed_advances = 3 if place == "after the transaction" else 2
    assert kill.committed == rows_in(expected) * committed_advances // 5
    assert kill.differing == 0
