"""A study killed at any moment and resumed has the rows of one that was not.

Five kills, and twenty where slow tests are run; PLIANT_KILL_SEED chooses the moments. `pytest -s` prints them.
"""

import os
from pathlib import Path

import pytest

from tests.kill_and_resume import die_inside_a_commit, finish, kill_and_resume, rows_in

pytestmark = pytest.mark.faults

TOY = [str(Path(__file__).parents[2] / "toy_experiment.py") + ":Toy", "--jobs", "2"]
SEED = int(os.environ.get("PLIANT_KILL_SEED", "20241122"))


@pytest.mark.parametrize("count", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_a_study_killed_at_any_moment_resumes_to_the_same_rows(count, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_PAUSE", "0.01")
    kills = kill_and_resume(TOY, kills=count, seed=SEED, folder=tmp_path)
    assert [kill.differing for kill in kills] == [0] * count
    assert any(0 < kill.committed < kill.total for kill in kills), "no kill came in the midst of the rows"


@pytest.mark.parametrize("place", ["before the transaction", "inside the transaction", "after the transaction"])
def test_a_worker_that_dies_inside_a_commit_loses_and_doubles_nothing(place, tmp_path):
    short = [*TOY, "--profile", "tiny"]
    expected = finish(["run", *short, "--out", str(tmp_path / "peace")], tmp_path / "peace")
    kill = die_inside_a_commit(short, tmp_path / "killed", place, expected)
    print(f"\n{kill}")
    committed_advances = 3 if place == "after the transaction" else 2
    assert kill.committed == rows_in(expected) * committed_advances // 5
    assert kill.differing == 0
