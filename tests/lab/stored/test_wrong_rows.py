"""Rows are told of the run that measured them, as they were written, or not at all."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from pliant.lab.run.runner import taken_over
from pliant.lab.stored import index
from pliant.lab.stored.records import read
from pliant.lab.stored.store import JobStore, adopt
from pliant.lab.study.study import open_study
from tests.kill_and_resume import content

TOY = str(Path(__file__).parents[2] / "toy_experiment.py") + ":Toy"
OLDER = Path(__file__).parents[2] / "fixtures" / "a96e282" / "studies" / "slowly-changing-regression.tar.xz"
READERS = ("status", "export", "report", "plot")


def run(out, *arguments, **environment):
    """A study of two methods and two seeds, a job each of one run; ended with the status."""
    cut = ["--profile", "tiny", "--seeds", "0-1", "--set", "step_size=0.01", "--jobs", "2", *arguments]
    command = [sys.executable, "-P", "-m", "pliant.cli", "run", TOY, *cut, "--out", str(out)]
    return subprocess.run(command, capture_output=True, env={**os.environ, **environment}).returncode


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A study with two finished jobs and two that died in their third commit, and one of the same runs begun at another time."""
    folder = tmp_path_factory.mktemp("originals")
    assert run(folder / "study", TOY_FAILS="nlms") == 1
    assert run(folder / "twin") == 0
    return folder


@pytest.fixture
def study(originals, tmp_path):
    shutil.copytree(originals / "study", tmp_path / "study")
    shutil.copytree(originals / "twin", tmp_path / "twin")
    return tmp_path / "study"


def job(study, number=0):
    return study / "jobs" / f"{number:03d}.sqlite"


def edit(study, change):
    """Rewrite study.json as an editor would."""
    plan = json.loads((study / "study.json").read_text())
    change(plan)
    (study / "study.json").write_text(json.dumps(plan))


def sql(study, *statements, number=0):
    with closing(sqlite3.connect(job(study, number))) as database, database:
        for statement in statements:
            assert database.execute(statement).rowcount != 0, "it changes something"


def set_run(**settings):
    return lambda plan: plan["jobs"][0]["runs"][0].update(settings)


def exchange_runs(plan):
    runs = [each["runs"] for each in plan["jobs"]]
    runs[0][0], runs[1][0] = runs[1][0], runs[0][0]


def merge_two_jobs(plan):
    plan["jobs"][0]["runs"] += plan["jobs"].pop(1)["runs"]


def exchange_names(plan):
    first, second = plan["jobs"][:2]
    first["name"], second["name"] = second["name"], first["name"]


def altered(study, column="squared_error"):
    """One number of the second advance, by one bit."""
    with closing(sqlite3.connect(job(study))) as database, database:
        (data,) = database.execute("SELECT data FROM chunk WHERE advance = 2 AND name = ?", (column,)).fetchone()
        data = bytes([data[0] ^ 1, *data[1:]])
        database.execute("UPDATE chunk SET data = ? WHERE advance = 2 AND name = ?", (data, column))


def chunk_of_another_job(study):
    with closing(sqlite3.connect(job(study, 1))) as other:
        (theirs,) = other.execute(
            "SELECT data, sha256 FROM chunk WHERE advance = 1 AND name = 'squared_error'"
        ).fetchall()
    with closing(sqlite3.connect(job(study))) as database, database:
        database.execute("UPDATE chunk SET data = ?, sha256 = ? WHERE advance = 1 AND name = 'squared_error'", theirs)


EXCHANGE = (
    "UPDATE chunk SET advance = CASE advance WHEN 1 THEN -2 ELSE -1 END WHERE advance IN (1, 2)",
    "UPDATE chunk SET advance = -advance WHERE advance < 0",
)
DOUBLE = (
    "INSERT INTO chunk SELECT advance + 4, name, dtype, data, sha256 FROM chunk WHERE advance = 2",
    "INSERT INTO advance SELECT advance + 4, session, ended, seconds, rows, seal FROM advance WHERE advance = 2",
    "UPDATE job SET advances = advances + 1",
)
LOSE_LAST = ("DELETE FROM chunk WHERE advance = 5", "DELETE FROM advance WHERE advance = 5")
OTHER_RUNS = r"000\.sqlite holds other runs than study\.json says: "
NOT_AS_WRITTEN = r"000\.sqlite is not as it was written: "

FAULTS = {
    # a file in the place of another
    "file of another job": (lambda s: shutil.copy(job(s, 1), job(s)), r"000\.sqlite is the file of job 001"),
    "link to that of another job": (
        lambda s: (job(s).unlink(), job(s).symlink_to("001.sqlite")),
        r"000\.sqlite is the file of job 001",
    ),
    "file of another study of the same runs": (
        lambda s: shutil.copy(job(s.parent / "twin"), job(s)),
        r"000\.sqlite is of another study: job 000 of toy / tiny",
    ),
    "study.json of another study of the same runs": (
        lambda s: shutil.copy(s.parent / "twin" / "study.json", s),
        r"000\.sqlite is of another study",
    ),
    # study.json edited
    "setting": (
        lambda s: edit(s, set_run(drift=0.5)),
        OTHER_RUNS + r"of run 0 \(lms, seed 0\) drift was 0\.01, is 0\.5",
    ),
    "setting of another type": (lambda s: edit(s, set_run(note=False)), OTHER_RUNS + ".* note was None, is False"),
    "seed": (lambda s: edit(s, set_run(seed=77)), OTHER_RUNS + ".* seed was 0, is 77"),
    "method": (lambda s: edit(s, set_run(method="nlms", step_size=9)), OTHER_RUNS + ".* method was lms, is nlms"),
    "runs exchanged between jobs": (lambda s: edit(s, exchange_runs), OTHER_RUNS + ".* seed was 0, is 1"),
    "jobs made one": (
        lambda s: (job(s, 1).unlink(), edit(s, merge_two_jobs)),
        OTHER_RUNS + "1 runs were learned, 2 are listed",
    ),
    "names of jobs exchanged": (lambda s: edit(s, exchange_names), r"001\.sqlite holds other runs .* seed was 1, is 0"),
    "experiment": (
        lambda s: edit(s, lambda plan: plan["experiment"].update(address="toy_experiment:Other")),
        OTHER_RUNS + "experiment was toy_experiment.py:Toy, is toy_experiment:Other",
    ),
    "device": (lambda s: edit(s, lambda plan: plan.update(device="cuda")), OTHER_RUNS + "device was cpu, is cuda"),
    "profile": (
        lambda s: edit(s, lambda plan: plan.update(profile="quick")),
        OTHER_RUNS + "profile was tiny, is quick",
    ),
    "name": (lambda s: edit(s, lambda plan: plan.update(name="ant")), OTHER_RUNS + "name was toy, is ant"),
    "a job lost": (
        lambda s: edit(s, lambda plan: plan["jobs"].pop()),
        r"003\.sqlite holds rows of this study, and study\.json lists no job 003",
    ),
    "two jobs of one name": (
        lambda s: edit(s, lambda plan: plan["jobs"][1].update(name="000")),
        r"study\.json is damaged: .*two jobs have the name 000",
    ),
    "a run listed twice": (
        lambda s: (job(s, 1).unlink(), edit(s, lambda p: p["jobs"][1].update(runs=p["jobs"][0]["runs"]))),
        r"study\.json is damaged: .*a run is listed twice: lms, seed 0, in job 001",
    ),
    **{
        f"job called {name!r}": (
            lambda s, name=name: edit(s, lambda plan: plan["jobs"][0].update(name=name)),
            r"study\.json is damaged: jobs\.0\.name: ",
        )
        for name in ("../../stray", "a/b", "", "000-1", ".", "a\\b", "000\n", "con:")
    },
    "job without runs": (
        lambda s: edit(s, lambda plan: plan["jobs"][0].update(runs=[])),
        r"study\.json is damaged: jobs\.0\.runs: ",
    ),
    "run without a method": (
        lambda s: edit(s, lambda plan: plan["jobs"][0]["runs"][0].pop("method")),
        r"study\.json is damaged: .*a run has no method",
    ),
    # rows edited
    "a number altered": (altered, NOT_AS_WRITTEN + "'squared_error' of advance 2 was altered"),
    "the run of a row altered": (
        lambda s: altered(s, "run"),
        NOT_AS_WRITTEN + "advance 2 has rows of a run that is not",
    ),
    "type of a column": (
        lambda s: sql(s, "UPDATE chunk SET dtype = '<i8' WHERE name = 'squared_error' AND advance = 1"),
        NOT_AS_WRITTEN + "'squared_error' of advance 1 was altered",
    ),
    "no type at all": (
        lambda s: sql(s, "UPDATE chunk SET dtype = 'numbers' WHERE name = 'squared_error' AND advance = 1"),
        NOT_AS_WRITTEN,
    ),
    "columns exchanged": (
        lambda s: sql(
            s,
            "UPDATE chunk SET name = 'x' WHERE name = 'squared_error' AND advance = 1",
            "UPDATE chunk SET name = 'squared_error' WHERE name = 'weight_magnitude' AND advance = 1",
            "UPDATE chunk SET name = 'weight_magnitude' WHERE name = 'x'",
        ),
        NOT_AS_WRITTEN + "'.*' of advance 1 was altered",
    ),
    "column of another job, with its checksum": (chunk_of_another_job, NOT_AS_WRITTEN + ".*advance 1.*or job"),
    "advances exchanged": (lambda s: sql(s, *EXCHANGE), NOT_AS_WRITTEN + ".*advance 1.*of another advance"),
    "an advance twice": (lambda s: sql(s, *DOUBLE), NOT_AS_WRITTEN),
    "a column lost": (
        lambda s: sql(s, "DELETE FROM chunk WHERE advance = 3 AND name = 'squared_error'"),
        NOT_AS_WRITTEN + "advance 3 has other columns than the first",
    ),
    "last advance lost": (lambda s: sql(s, *LOSE_LAST), NOT_AS_WRITTEN + "of its 5 advances 4 are there"),
    "last advance lost, and its count": (
        lambda s: sql(s, *LOSE_LAST, "UPDATE job SET advances = 4"),
        NOT_AS_WRITTEN + "how far it is",
    ),
    "advance in the middle lost": (
        lambda s: sql(s, "DELETE FROM chunk WHERE advance = 2", "DELETE FROM advance WHERE advance = 2"),
        NOT_AS_WRITTEN + "of its 5 advances 4 are there",
    ),
    "all rows lost": (lambda s: sql(s, "DELETE FROM chunk", "DELETE FROM advance"), NOT_AS_WRITTEN),
    "rows of an advance that is not there": (
        lambda s: sql(s, "INSERT INTO chunk SELECT 9, name, dtype, data, sha256 FROM chunk WHERE advance = 1"),
        NOT_AS_WRITTEN + "4 of its columns are of no advance",
    ),
    "seconds of an advance": (
        lambda s: sql(s, "UPDATE advance SET seconds = 1e6 WHERE advance = 2"),
        NOT_AS_WRITTEN + "what is noted of advance 2",
    ),
    "commit of a session": (
        lambda s: sql(s, """UPDATE session SET facts = '{"commit": "other"}'"""),
        NOT_AS_WRITTEN + "what is noted of advance 1",
    ),
    "session lost": (lambda s: sql(s, "DELETE FROM session"), NOT_AS_WRITTEN + "who made advance 1 is not there"),
    "status": (
        lambda s: sql(s, "UPDATE run SET status = 'diverged', step = 3"),
        NOT_AS_WRITTEN + ".*what became of its runs, was altered",
    ),
    "statuses lost": (lambda s: sql(s, "DELETE FROM run"), NOT_AS_WRITTEN + r"it has the runs \[\]"),
    "a run too many": (
        lambda s: sql(s, "INSERT INTO run VALUES (1, 'done', NULL)"),
        NOT_AS_WRITTEN + r"it has the runs \[0, 1\], not 1 from 0 on",
    ),
    "steps": (lambda s: sql(s, "UPDATE job SET steps_done = 7"), NOT_AS_WRITTEN + "how far it is"),
    "state": (lambda s: sql(s, "UPDATE job SET state_file = '001-3.safetensors'"), NOT_AS_WRITTEN + "how far it is"),
    "no word on how far it is": (lambda s: sql(s, "DELETE FROM job"), r"000\.sqlite does not say whose it is"),
    "no word on whose it is": (
        lambda s: sql(s, "UPDATE job SET identity = NULL"),
        r"000\.sqlite does not say whose it is",
    ),
    "other words on whose it is": (
        lambda s: sql(s, "UPDATE job SET identity = 'mine'"),
        r"000\.sqlite does not say whose it is",
    ),
    "a whole table lost": (lambda s: sql(s, "DROP TABLE chunk"), NOT_AS_WRITTEN + "no such table: chunk"),
}


def everything(folder):
    return {
        file.relative_to(folder): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix != ".lock"
    }


@pytest.mark.parametrize("fault", FAULTS)
def test_every_command_refuses_in_one_line_and_changes_nothing(fault, study, pliant):
    change, message = FAULTS[fault]
    change(study)
    before = everything(study)
    for command in (*READERS, "resume"):
        code, said, refused = pliant(command, study)
        assert (code, said) == (2, "")
        assert refused.startswith(f"pliant: {study}/")
        assert refused.count("\n") == 1
        assert len(refused) < 600
        assert re.search(message, refused), refused
    assert everything(study) == before


@pytest.mark.parametrize("fault", FAULTS)
def test_readers_refuse_where_all_was_read_and_noted_before(fault, study, pliant, monkeypatch):
    """By the index of finished jobs, which tells what was there."""
    monkeypatch.setattr(index, "WORTH", 1)
    assert pliant("status", study)[0] == 0
    assert (study / "jobs.index").exists()
    change, message = FAULTS[fault]
    change(study)
    before = everything(study)
    for command in ("status", "export"):
        code, said, refused = pliant(command, study)
        assert (code, said) == (2, "")
        assert re.search(message, refused), refused
    assert everything(study) == before


def test_a_study_as_it_was_written_is_read_and_ended(study, pliant):
    for command in READERS:
        code, said, noted = pliant(command, study)
        runs_code = f"pliant: note: {study} runs code: {TOY.rpartition(':')[0]}\n"
        assert (code, noted) == (0, runs_code if command == "plot" else "")
        assert said
    assert pliant("resume", study)[0] == 0
    assert "4 of 4 finished" in pliant("status", study)[1]


def test_where_a_study_lies_and_what_else_was_added_to_it_do_not_matter(study, tmp_path, pliant):
    (tmp_path / "elsewhere").mkdir()
    moved = study.rename(tmp_path / "elsewhere" / "renamed")
    assert run(moved, "--seeds", "0-2") == 0
    code, said, _ = pliant("status", moved)
    assert code == 0
    assert "6 of 6 finished" in said


def test_other_files_beside_the_jobs_are_not_looked_at(study, pliant):
    for name in ("000 copy", "backup", "004"):
        shutil.copy(job(study), job(study).with_name(f"{name}.sqlite"))
    job(study).with_name("notes.sqlite").write_bytes(b"no database")
    assert pliant("status", study)[0] == 0


def test_adding_runs_refuses_what_resuming_does_and_writes_nothing(study, pliant):
    shutil.copy(job(study, 1), job(study))
    before = everything(study)
    code, _, refused = pliant(
        "run", TOY, "--profile", "tiny", "--seeds", "0-2", "--set", "step_size=0.01", "--out", study
    )
    assert code == 2
    assert "is the file of job 001" in refused
    assert everything(study) == before


def test_a_worker_looks_at_its_own_file_too(study):
    shutil.copy(job(study, 1), job(study))
    opened = open_study(study)
    with pytest.raises(ValueError, match="is the file of job 001"):
        opened.store(opened.jobs[0])


# -- states -----------------------------------------------------------------------------------------------------------


def state_of(study, number):
    (file,) = study.glob(f"jobs/{number:03d}-*.safetensors")
    return file


def test_the_state_of_another_job_is_refused_by_resume_and_watch(study, pliant):
    shutil.copy(state_of(study, 3), state_of(study, 2))
    code, said, refused = pliant("resume", study)
    assert code == 1
    assert "002-2.safetensors is not the one that was written" in refused
    assert "3 of 4 finished" in said


def test_an_older_copy_of_a_job_tells_what_it_holds_and_costs_no_newer_state(study, tmp_path, pliant):
    """A backup of two commits, where three were made: its rows are true, but only the newer state is there."""
    shutil.copy(job(study, 2), tmp_path / "newer.sqlite")
    store = open_study(study).store(open_study(study).jobs[2])
    with store:
        newer = state_of(study, 2).read_bytes()
        store.begin_session({"commit": ""})
        rows = {"run": np.array([0]), "step": np.array([600])}
        rows |= {name: np.array([0.5]) for name in ("squared_error", "weight_magnitude")}
        store.commit(rows, read(job(study, 2), None).statuses, (600, 1000), {"any": 1}, 0.1)
    shutil.copy(tmp_path / "newer.sqlite", job(study, 2))  # which is the older one
    assert newer != state_of(study, 2).read_bytes()
    assert pliant("status", study)[0] == 0
    code, _, refused = pliant("resume", study)
    assert code == 1
    assert "002-2.safetensors is missing: put it back" in refused
    assert state_of(study, 2).name == "002-3.safetensors"


# -- longer runs ------------------------------------------------------------------------------------------------------


def test_runs_made_longer_are_told_as_what_they_are_to_be_once_that_is_written_down(originals, tmp_path):
    study = open_study(originals / "twin")
    short = study.jobs[0]
    runs = tuple({**settings, "steps": 2000} for settings in short.runs)
    longer = type(study)(
        study.folder, study.plan.model_copy(update={"jobs": (short.model_copy(update={"runs": runs}), *study.jobs[1:])})
    )
    path = tmp_path / "000.sqlite"
    shutil.copy(study.database(short), path)
    before, after = study.identity(short), longer.identity(longer.jobs[0])
    with JobStore(path, 1, before) as store:
        store.lengthen(after, reopen=True)
    assert not read(path, before).is_done
    assert not read(path, after).is_done
    for kept, other in ((after, before), (before, after)):
        again = tmp_path / "again.sqlite"
        shutil.copy(path, again)
        JobStore(again, 1, kept).__exit__(None, None, None)  # the worker begins
        assert read(again, kept) is not None
        with pytest.raises(ValueError, match=r"holds other runs than study\.json says: .* steps was"):
            read(again, other)


def test_two_jobs_never_get_one_name(study):
    edit(study, lambda plan: plan["jobs"].pop(0))  # 001 to 003 are left; a fourth is not called 003
    job(study).unlink()
    assert run(study) == 0
    names = [each["name"] for each in json.loads((study / "study.json").read_text())["jobs"]]
    assert names == ["001", "002", "003", "004"]


# -- studies of a96e282, whose files say nothing of whose they are ----------------------------------------------------


@pytest.fixture
def older(tmp_path):
    """Three jobs: two are half done, the last has not begun."""
    with tarfile.open(OLDER) as archive:
        archive.extractall(tmp_path / "older", filter="data")
    return tmp_path / "older"


def test_an_older_study_is_read_with_a_note_and_left_as_it_is(older, pliant):
    before = everything(older)
    for command in READERS:
        code, said, noted = pliant(
            command, older, *(["--out", older.parent / "rows.csv"] if command == "export" else [])
        )
        assert code == 0
        assert said
        assert noted.startswith(
            f"pliant: note: {older} was begun by an earlier version, whose job files do not say whose"
        )
        assert noted.count("\n") == 1
    (older / "figure.png").unlink()
    assert everything(older) == before


def taken_over_by_us(older):
    """As `pliant resume` begins; rows before and after."""
    before = content(older)
    study = taken_over(open_study(older))
    assert content(older) == before
    return study


def test_an_older_study_that_is_resumed_is_from_then_on_as_safe_as_others(older, pliant):
    taken_over_by_us(older)
    assert pliant("status", older)[2] == ""
    edit(older, set_run(seed=77))
    assert re.search(r"000\.sqlite holds other runs .* seed was 0, is 77", pliant("export", older)[2])
    edit(older, set_run(seed=0))
    altered(older)
    assert re.search(r"000\.sqlite is not as it was written: .*altered", pliant("status", older)[2])


def test_a_study_does_not_take_a_file_that_does_not_say_whose_it_is(older, pliant):
    unsealed = job(older).read_bytes()
    taken_over_by_us(older)
    job(older).write_bytes(unsealed)
    for command in (*READERS, "resume"):
        code, _, refused = pliant(command, older)
        assert code == 2
        assert re.search(r"000\.sqlite is of an earlier version than its study, and does not say whose rows", refused)


def test_a_take_over_that_was_killed_is_gone_on_with(older):
    study = open_study(older)
    adopt(study.database(study.jobs[1]), study.identity(study.jobs[1]))
    assert study.note is not None
    assert all(study.record(each) for each in study.jobs[:2])
    assert taken_over_by_us(older).note is None


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM advance WHERE advance = 1", "of its 2 advances 1 are there"),
        ("DELETE FROM chunk WHERE advance = 2 AND name = 'step'", "advance 2 has other columns than the first"),
        ("UPDATE advance SET rows = rows + 1 WHERE advance = 2", "of advance 2 is not of its 3 rows"),
        (
            "UPDATE chunk SET data = x'09000000000000000000000000000000' WHERE name = 'run'",
            "has rows of a run that is not",
        ),
        ("DELETE FROM run WHERE run = 1", r"it has the runs \[0\], not 2 from 0 on"),
    ],
)
def test_an_older_file_whose_parts_do_not_fit_is_refused_and_not_taken_over(statement, message, older, pliant):
    sql(older, statement)
    before = everything(older)
    for command in (*READERS, "resume"):
        code, _, refused = pliant(command, older)
        assert code == 2
        assert re.search(r"000\.sqlite is not as it was written: .*" + message, refused)
    assert everything(older) == before
