"""One study out of folders that ran apart: the rows of one machine, and nothing that does not belong together."""

import json
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pandas
import pytest

from pliant.lab.report.table import rows_of
from pliant.lab.stored.files import Lock
from pliant.lab.study.study import open_study
from tests.kill_and_resume import command, content

pytestmark = pytest.mark.faults

TOY = str(Path(__file__).parents[2] / "toy_experiment.py") + ":Toy"
TINY = ["run", TOY, "--profile", "tiny", "--jobs", "2"]  # six jobs of two runs: two methods, three seeds


def run(out, *arguments, status=0):
    ended, said = command([*TINY, *arguments, "--out", str(out)])
    assert ended == status, said


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A study in one place; its halves from two machines without a shared folder, in the first half a job that died."""
    folder = tmp_path_factory.mktemp("originals")
    run(folder / "whole")
    run(folder / "second", "--shard", "2/2")
    run(folder / "first", "--shard", "1/2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_FAILS", "nlms")
        run(folder / "half", "--shard", "1/2", status=1)
    return folder


@pytest.fixture
def folder(originals, tmp_path):
    shutil.copytree(originals, tmp_path / "f")
    return tmp_path / "f"


def files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def merge(folder, *names, out="merged"):
    return command(["merge", *(str(folder / name) for name in names), "--out", str(folder / out)])


def check_whole(folder, out="merged"):
    """The rows of one machine, in its order, to the bit; as every reader tells them."""
    expected, found = (rows_of(open_study(folder / name)).drop(columns="commit") for name in ("whole", out))
    pandas.testing.assert_frame_equal(found, expected, check_exact=True)
    assert content(folder / out) == content(folder / "whole")


def test_the_parts_of_a_study_make_the_rows_of_one_machine_and_stay_as_they_were(folder):
    before = files(folder)
    status, said = merge(folder, "first", "second")
    assert status == 0, said
    assert "9 of 12 finished, 3 diverged" in said
    assert said.endswith(f"plot    pliant plot {folder / 'merged'}\n")
    assert {path: data for path, data in files(folder).items() if "merged" not in path.parts} == before
    check_whole(folder)
    assert command([*TINY, "--out", str(folder / "merged")])[0] == 0, "a run of it finds nothing missing"
    check_whole(folder)


def test_an_unfinished_job_comes_with_its_state_and_goes_on_to_the_bit(folder):
    status, said = merge(folder, "half", "second")
    assert status == 0, said
    assert said.endswith(f"resume  pliant resume {folder / 'merged'}\n")
    assert len(list((folder / "merged" / "jobs").glob("*.safetensors"))) == 1
    assert command(["resume", str(folder / "merged")])[0] == 0
    check_whole(folder)


@pytest.mark.parametrize("order", [("half", "whole"), ("whole", "half"), ("whole", "first", "second"), ("whole",)])
def test_what_several_folders_hold_is_taken_once_from_where_it_is_further(order, folder):
    status, said = merge(folder, *order)
    assert status == 0, said
    check_whole(folder)
    assert not list((folder / "merged" / "jobs").glob("*.safetensors"))


def test_a_merged_study_is_merged_again(folder):
    assert merge(folder, "half", "second", out="once")[0] == 0
    assert merge(folder, "once", "first", out="merged")[0] == 0
    check_whole(folder)


def test_studies_of_other_runs_keep_their_rows_under_names_of_their_own(folder):
    for name, seeds in (("a", "0"), ("b", "1-2")):
        run(folder / name, "--seeds", seeds)
    assert merge(folder, "a", "b")[0] == 0
    study = open_study(folder / "merged")
    assert [job.name for job in study.jobs] == ["000", "001", "004", "005", "002", "003"]
    measured = ["squared_error", "weight_magnitude"]
    keys = ["method", "step_size", "seed", "step"]
    found, expected = (
        rows_of(open_study(folder / name)).set_index(keys)[measured].sort_index() for name in ("merged", "whole")
    )
    pandas.testing.assert_frame_equal(found, expected, check_exact=True)
    assert command(["report", str(folder / "merged")])[0] == 0


def test_what_a_dead_worker_left_half_written_is_undone_in_the_copy_alone(folder, monkeypatch):
    monkeypatch.setenv("PLIANT_DIE", "inside the transaction:3")
    run(folder / "died", "--shard", "1/2", status=1)
    assert list((folder / "died" / "jobs").glob("*-journal"))
    before = files(folder / "died")
    monkeypatch.delenv("PLIANT_DIE")
    assert merge(folder, "died", "second")[0] == 0
    assert files(folder / "died") == before
    assert command(["resume", str(folder / "merged")])[0] == 0
    check_whole(folder)


def edit(study, change):
    plan = json.loads((study / "study.json").read_text())
    change(plan)
    (study / "study.json").write_text(json.dumps(plan))


def sql(study, job, *statements):
    with closing(sqlite3.connect(study / "jobs" / f"{job}.sqlite")) as database, database:
        for statement in statements:
            assert database.execute(statement).rowcount, "it changes something"


def measured_otherwise(folder):
    """The first half, whose first job measured one bit otherwise: an experiment that is not what it was, say."""
    from pliant.lab.stored import store

    study = open_study(folder / "first")
    path = study.database(study.jobs[0])
    with closing(store.connect(path, create=True)) as database:
        (data,) = database.execute("SELECT data FROM chunk WHERE name = 'squared_error' AND advance = 2").fetchone()
        changed = bytes([data[0] ^ 1]) + data[1:]
        database.execute("UPDATE chunk SET data = ? WHERE name = 'squared_error' AND advance = 2", (changed,))
        store.seal_all(database)


def ended_otherwise(folder):
    from pliant.lab.stored import store

    study = open_study(folder / "first")
    with closing(store.connect(study.database(study.jobs[0]), create=True)) as database:
        database.execute("UPDATE run SET step = 7 WHERE run = 1")
        store.seal_all(database)


def other_method(plan):
    plan["experiment"]["methods"] = [{"name": "own", "address": "/own.py:Own", "sha256": plan["id"]}]


REFUSED = {
    "another experiment": (lambda f: edit(f / "first", lambda p: p.update(name="ant")), "experiment toy and ant"),
    "another profile": (lambda f: edit(f / "first", lambda p: p.update(profile="quick")), "profile tiny and quick"),
    "another device": (lambda f: edit(f / "first", lambda p: p.update(device="cuda")), "device cpu and cuda"),
    "other code": (
        lambda f: edit(f / "first", lambda p: p["experiment"].update(address="/elsewhere/own.py:Toy")),
        "code toy_experiment.py:Toy and own.py:Toy",
    ),
    "other data": (
        lambda f: [edit(f / name, lambda p, n=name: p.update(data={"mnist": n})) for name in ("first", "whole")],
        r"data set 'mnist' \(SHA-256\) whole and first",
    ),
    "another method of one's own": (
        lambda f: [edit(f / name, other_method) for name in ("first", "whole")],
        r"method 'own' \(SHA-256\) [0-9a-f]+ and ",
    ),
    "other fields": (
        lambda f: edit(f / "first", lambda p: [r.pop("note") for job in p["jobs"] for r in job["runs"]]),
        r"fields of 'lms' \[.*\"note\".*\] and \[",
    ),
    "other names of fields": (
        lambda f: edit(f / "first", lambda p: p["reading"].update(renamed={"rate": "step_size"})),
        "names of fields {} and ",
    ),
    "a format of later": (lambda f: edit(f / "first", lambda p: p.update(format=9)), "first/study.json has format 9"),
    "rows that differ": (
        measured_otherwise,
        r"job 000 of .*whole and job 000 of .*first are of the same runs \(the run of lms, seed 0\), and measured "
        r"otherwise: column squared_error, row 2: [\d.]+ and [\d.]+\. Leave out",
    ),
    "ends that differ": (ended_otherwise, "measured otherwise: run 1 is diverged and diverged"),
    "runs beside others": (
        lambda f: (shutil.rmtree(f / "first"), run(f / "first", "--set", "step_size=0.01", "--seeds", "0")),
        "the run of lms, seed 0 is in job 000 of .*whole and in job 000 of .*first, beside other runs",
    ),
    "a damaged job": (
        lambda f: sql(f / "first", "000", "UPDATE job SET steps_done = 3"),
        r"first/jobs/000\.sqlite is not as it was written",
    ),
    "a file of another study": (
        lambda f: shutil.copy(f / "second" / "jobs" / "001.sqlite", f / "first" / "jobs" / "000.sqlite"),
        r"first/jobs/000\.sqlite is of another study",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_does_not_belong_together_is_named_and_nothing_is_made(fault, folder):
    change, message = REFUSED[fault]
    change(folder)
    before = files(folder)
    status, said = merge(folder, "whole", "first")
    assert status == 2
    assert re.search(message, said), said
    assert said.count("\n") == 1
    assert files(folder) == before
    assert not (folder / "merged").exists()


def test_a_lost_state_is_named_where_a_job_is_to_go_on(folder):
    (state,) = (folder / "half" / "jobs").glob("*.safetensors")
    state.unlink()
    status, said = merge(folder, "half", "second")
    assert status == 2
    assert f"the checkpoint {state} is missing" in said


def test_a_folder_at_work_is_not_merged(folder):
    with Lock(folder / "first" / "shard-1-of-2.lock", "it"):
        status, said = merge(folder, "first", "second")
    assert status == 2
    assert re.search(r"first is being run by process \d+ on .*: wait for it, or stop it", said)


def test_nothing_is_written_over(folder):
    for out in ("whole", "first"):
        status, said = merge(folder, "first", "second", out=out)
        assert (status, said) == (2, f"pliant: {folder / out} is there, and holds something: give another --out\n")
    (folder / "empty").mkdir()
    assert merge(folder, "first", "second", out="empty")[0] == 0
    check_whole(folder, "empty")


def test_the_same_folder_twice_is_a_slip(folder):
    status, said = merge(folder, "first", "first")
    assert status == 2
    assert "the same folder twice" in said


def test_versions_that_differ_are_noted(folder):
    edit(folder / "first", lambda plan: plan["versions"].update(numpy="1.0"))
    assert "pliant: note: numpy was 1.0 in " in merge(folder, "first", "second")[1]
