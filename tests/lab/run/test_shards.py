"""Shards: machines that share out one study by its plan alone."""

import os
import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pliant.lab import LabError
from pliant.lab.run.shards import Shard, at_work, shard
from pliant.lab.run.worker import run_job
from pliant.lab.stored.files import Held
from pliant.lab.study.study import Study, new_plan, open_study
from pliant.lab.study.target import target
from tests.kill_and_resume import command, content, finish, pliant
from tests.patience import PATIENCE

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[3]
TOY = str(ROOT / "tests" / "toy_experiment.py") + ":Toy"
TINY = ["run", TOY, "--profile", "tiny", "--jobs", "1"]  # of six jobs: two methods, three seeds


@pytest.fixture(scope="module")
def in_peace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peace") / "s"
    return finish([*TINY, "--out", str(folder)], folder)


def begun(folder):
    return {file.stem for file in (folder / "jobs").glob("*.sqlite")}


def test_each_job_is_one_shards_and_stays_its_own_where_jobs_are_added(tmp_path):
    for seeds in ("0", "0-2"):
        command([*TINY, "--seeds", seeds, "--out", str(tmp_path / "s"), "--shard", "2/4"])
    study = open_study(tmp_path / "s")
    shares = [[job.name for job in Shard(k, 4).jobs(study)] for k in (1, 2, 3, 4)]
    assert shares == [["000", "004"], ["001", "005"], ["002"], ["003"]]
    assert begun(tmp_path / "s") == {"001", "005"}


def test_shards_one_after_another_give_the_rows_of_one_machine(in_peace, tmp_path):
    folder = tmp_path / "s"
    for k in (3, 1, 2):
        status, said = command([*TINY, "--out", str(folder), "--shard", f"{k}/3"])
        assert status == 0
        assert f"of which shard {k}/3 runs 2" in said
        assert "finished" in said.splitlines()[-2]
        assert said.endswith(f"status  pliant status {folder}\n")
    assert content(folder) == in_peace


def test_shards_that_begin_a_study_at_one_time_make_one_plan(in_peace, tmp_path):
    folder = tmp_path / "s"
    with ThreadPoolExecutor(6) as threads:  # each waits for a process of its own
        ended = list(
            threads.map(
                lambda k: subprocess.run(
                    pliant(*TINY, "--out", str(folder), "--shard", f"{k}/6"), capture_output=True, timeout=PATIENCE
                ),
                range(1, 7),
            )
        )
    assert [each.returncode for each in ended] == [0] * 6, [each.stderr for each in ended]
    assert content(folder) == in_peace
    assert len(list(folder.glob("study*.json"))) == 1


def test_where_locks_are_not_to_be_had_the_plan_is_written_once_all_the_same(tmp_path):

    plans = [Study(tmp_path / "s", new_plan("toy", target(TOY), "tiny", "cpu", {})) for _ in range(2)]
    (tmp_path / "s").mkdir()
    assert [study.save_first() for study in plans] == [True, False]
    assert open_study(tmp_path / "s").id == plans[0].id != plans[1].id


def test_a_killed_shard_goes_on_and_any_other_machine_may_end_the_study(in_peace, tmp_path, monkeypatch):
    folder = tmp_path / "s"
    monkeypatch.setenv("PLIANT_DIE", "inside the transaction:3")
    status, said = command([*TINY, "--out", str(folder), "--shard", "1/2"])
    assert status == 1
    assert said.endswith(f"resume  pliant resume {folder} --shard 1/2\n")
    monkeypatch.delenv("PLIANT_DIE")
    assert command(["resume", str(folder), "--shard", "1/2"])[0] == 0
    assert begun(folder) == {"000", "002", "004"}
    assert finish(["resume", str(folder)], folder) == in_peace


def test_a_part_is_not_begun_twice_nor_beside_the_whole(tmp_path):
    (part, all_of_it), folder = (Shard(1, 2), Shard()), tmp_path
    with at_work(folder, part):
        with at_work(folder, Shard(2, 2)):
            pass
        for other in (part, all_of_it):
            with pytest.raises(Held, match=rf"shard 1/2 of .* is held by process {os.getpid()} on "):
                at_work(folder, other).__enter__()
    with at_work(folder, all_of_it), pytest.raises(Held, match=f"the study in .* is held by process {os.getpid()} on "):
        at_work(folder, part).__enter__()
    with at_work(folder, all_of_it):
        pass


def test_status_says_which_shards_are_at_work(tmp_path):
    folder = tmp_path / "s"
    command([*TINY, "--out", str(folder), "--shard", "1/2"])
    with at_work(folder, Shard(2, 2)):
        said = command(["status", str(folder)])[1]
    assert f"running now: shard 2/2, process {os.getpid()} on " in said
    assert said.count("running now") == 1
    assert "resume  pliant resume" in command(["status", str(folder)])[1]


def test_a_job_that_another_shard_has_ended_meanwhile_is_left_as_it_is(in_peace, tmp_path):
    """As where one was begun as 1/2 and another as 2/3: both have job 001, and the second was handed it before it ended."""
    folder = tmp_path / "s"
    finish([*TINY, "--out", str(folder)], folder)
    study, events = open_study(folder), []
    run_job(study, study.jobs[1], events.append)
    assert events == []
    assert content(folder) == in_peace


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "-1/2", "a/b", "1/2/3", "1.0/2"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(LabError, match=r"--shard .*: write K/N with K from 1 to N, such as 3/10"):
        shard(text)


def test_longer_runs_and_shards_do_not_go_together(tmp_path):
    status, said = command(["resume", str(tmp_path), "--to", "9", "--shard", "1/2"])
    assert (status, said) == (2, "pliant: --to goes without --shard: all runs of a study are made longer at once\n")


def test_a_shard_without_jobs_has_nothing_to_do(tmp_path):
    status, said = command([*TINY, "--seeds", "0", "--out", str(tmp_path / "s"), "--shard", "7/9"])
    assert status == 0
    assert "of which shard 7/9 runs 0" in said
    assert "0 of 0 finished" in said


def test_the_slurm_script_of_the_page_runs_a_study_in_any_order_of_its_tasks(in_peace, tmp_path):
    """By bash, with the variables that Slurm sets; the toy in the place of the experiment, three tasks in that of a hundred."""
    (script,) = re.findall(r"```sh\n(#!/bin/bash\n.*?)```", (ROOT / "docs" / "scaling.md").read_text(), flags=re.S)
    for old, new in {
        "slowly-changing-regression --profile paper": f"{TOY} --profile tiny",
        "SHARDS=100": "SHARDS=3",
    }.items():
        assert script.count(old) == 1
        script = script.replace(old, new)
    (tmp_path / "task.sh").write_text(script)
    (tmp_path / "pliant").write_text(f'#!/bin/sh\nexec {shlex.join(pliant())} "$@"\n')
    (tmp_path / "pliant").chmod(0o755)
    here = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "1"}
    for task in (2, 3, 1):
        environment = os.environ | here | {"SLURM_ARRAY_TASK_ID": str(task)}
        done = subprocess.run(["bash", "-eu", tmp_path / "task.sh"], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"of which shard {task}/3 runs 2" in done.stdout
    assert content(tmp_path / "studies" / "regression") == in_peace
