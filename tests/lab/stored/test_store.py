"""A job file holds rows and the state that follows them, or neither."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest

from pliant.lab import DONE, RUNNING, LabError, diverged
from pliant.lab.stored import records
from pliant.lab.stored.identity import Identity
from pliant.lab.stored.records import read, read_rows, read_state
from pliant.lab.stored.store import JobStore, stored_state, take_in
from tests.base.test_files import without_locks

pytestmark = pytest.mark.faults

RUNS = 2


def commit(store, value=1.0, statuses=(RUNNING, RUNNING), **options):
    rows = {"run": np.arange(RUNS), "loss": np.array([value, np.nan])}
    store.commit(rows, statuses, (store.advances + 1, 9), {"w": np.full(3, value)}, seconds=0.5, **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "000.sqlite"


@pytest.fixture
def store(path):
    with JobStore(path, RUNS) as store:
        store.begin_session({"host": "here", "commit": "abc"})
        yield store


def test_rows_come_back_with_nan_as_nan(store, path):
    commit(store, 1.0)
    commit(store, 2.0)
    np.testing.assert_array_equal(read_rows(path).rows["loss"], [1.0, np.nan, 2.0, np.nan])
    np.testing.assert_array_equal(read_rows(path).rows["run"], [0, 1, 0, 1])


def test_the_state_is_the_one_after_the_last_commit_and_the_only_one_kept(store, path):
    commit(store, 1.0)
    commit(store, 2.0)
    store.__exit__(None, None, None)
    with JobStore(path, RUNS) as again:
        np.testing.assert_array_equal(again.state()["w"], [2.0, 2.0, 2.0])
    assert [file.name for file in path.parent.glob("*.safetensors*")] == ["000-2.safetensors"]


def test_a_finished_job_keeps_no_state(store, path):
    commit(store)
    commit(store, statuses=(DONE, diverged(123)))
    record = read(path)
    assert record.is_done
    assert record.statuses == [DONE, diverged(123)]
    assert not list(path.parent.glob("*.safetensors*"))


def test_a_finished_job_keeps_its_state_where_that_is_asked_for(store, path):
    commit(store, 3.0, statuses=(DONE, DONE), keep_last=True)
    store.__exit__(None, None, None)
    with JobStore(path, RUNS) as again:
        assert again.state()["w"].tolist() == [3.0, 3.0, 3.0]


def test_a_job_without_its_last_state_cannot_go_on(store):
    commit(store, statuses=(DONE, DONE))
    with pytest.raises(LabError, match=r"ended without keeping its state, and cannot go on"):
        store.check_kept()


def test_each_row_knows_the_session_that_made_it(store, path):
    commit(store)
    store.begin_session({"host": "there", "commit": "def"})
    commit(store)
    measured = read_rows(path)
    assert [measured.sessions[i]["host"] for i in measured.session_of_row] == ["here", "here", "there", "there"]
    assert (read(path).seconds, read(path).rows) == (1.0, 4)


def test_rows_know_their_session_by_its_number_not_by_how_many_there_are(store, path):
    for host in ("idle", "there"):  # after "here", which makes no row either
        store.begin_session({"host": host})
    commit(store)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM session WHERE session = 2")
    measured = read_rows(path)
    assert [measured.sessions[i]["host"] for i in measured.session_of_row] == ["there", "there"]


def test_a_tampered_state_is_refused(store, path):
    commit(store)
    file = path.with_name("000-1.safetensors")
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(LabError, match=r"000-1\.safetensors is not the one that was written .* remove .*000\.sqlite"):
        JobStore(path, RUNS).state()


def test_a_missing_state_is_refused(store, path):
    commit(store)
    path.with_name("000-1.safetensors").unlink()
    with pytest.raises(LabError, match=r"000-1\.safetensors is missing: put it back, or remove .*000\.sqlite"):
        JobStore(path, RUNS).state()
    with pytest.raises(LabError, match=r"000-1\.safetensors is missing: put it back"):
        read_state(path)


def test_a_reader_meets_the_last_state_while_the_worker_goes_on(store, path, monkeypatch):
    assert read_state(path) is None
    commit(store, 1.0)

    def overtaken(*where):  # between the look at the state's name and at the state, a commit replaces it
        monkeypatch.setattr(records, "stored_state", stored_state)
        commit(store, 2.0)
        return stored_state(*where)

    monkeypatch.setattr(records, "stored_state", overtaken)
    np.testing.assert_array_equal(read_state(path)["w"], [2.0, 2.0, 2.0])


def test_an_advance_without_rows_does_not_decide_a_columns_type(store, path):
    store.commit({"run": np.zeros(0, int), "loss": np.zeros(0)}, (RUNNING, RUNNING), (1, 9), {}, seconds=0.5)
    store.commit({"run": np.arange(2), "loss": np.array([3, 4])}, (RUNNING, RUNNING), (2, 9), {}, seconds=0.5)
    assert read_rows(path).rows["loss"].dtype.kind == "i"


def test_stray_states_of_a_killed_commit_are_cleared_away(store, path):
    commit(store)
    strays = [path.with_name("000-2.safetensors"), path.with_name("000-2.safetensors.tmp")]
    others = path.with_name("001-2.safetensors")
    for file in [*strays, others]:
        file.write_bytes(b"half")
    JobStore(path, RUNS)
    assert not any(file.exists() for file in strays)
    assert others.exists()


def test_a_file_of_another_format_is_refused(store, path):
    store.__exit__(None, None, None)
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    for reading in (read, lambda path: JobStore(path, RUNS)):
        with pytest.raises(LabError, match="has format 99, this version of pliant reads 1"):
            reading(path)


def test_a_failed_commit_leaves_no_rows(store, path):
    commit(store)
    with pytest.raises(TypeError, match=r"state\.w is a set"):
        store.commit({"run": np.arange(RUNS)}, (RUNNING,) * RUNS, (2, 9), {"w": {1}}, 0.1)
    assert read(path).rows == len(read_rows(path).rows["run"]) == RUNS


DIE = """
import sys; from pathlib import Path; import numpy as np
from pliant.lab import RUNNING; from pliant.lab.stored.store import JobStore
store = JobStore(Path(sys.argv[1]), 1)
store.begin_session({})
for _ in range(2):
    store.commit({"run": np.zeros(10**6, int), "x": np.ones(10**6)}, [RUNNING], (1, 9), {}, 0.1)
"""


def test_what_a_killed_worker_left_half_written_is_undone_by_whoever_reads_first(path):
    environment = {**os.environ, "PLIANT_DIE": "inside the transaction:2"}
    ended = subprocess.run([sys.executable, "-c", DIE, str(path)], env=environment)
    assert ended.returncode == -signal.SIGKILL
    assert path.with_name("000.sqlite-journal").stat().st_size > 0
    assert path.stat().st_size > 20e6, "half of the second commit's pages had reached the file"
    assert read(path).rows == len(read_rows(path).rows["x"]) == 10**6


def identity(study):
    run = {"method": "lms", "seed": 0}
    return Identity(study, "000", name="toy", profile="tiny", experiment="toy:Toy", device="cpu", data={}, runs=(run,))


HALF_WRITTEN = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in ("PRAGMA cache_size = 1", "BEGIN", "UPDATE chunk SET data = zeroblob(length(data))"):
    database.execute(statement)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_worker_left_half_written_is_undone_in_a_copy_alone(path, tmp_path):
    with JobStore(path, 1, identity("before")) as store:
        store.begin_session({})
        store.commit({"run": np.zeros(10**5, int), "x": np.ones(10**5)}, [DONE], (1, 1), {}, 0.1)
    whole = path.read_bytes()
    subprocess.run([sys.executable, "-c", HALF_WRITTEN, str(path)])
    files = {file: file.read_bytes() for file in path.parent.glob("000.*")}
    assert files[path] != whole
    copy = tmp_path / "copy" / "001.sqlite"
    copy.parent.mkdir()
    assert take_in(path, copy, identity("before"), identity("after"))
    assert {file: file.read_bytes() for file in path.parent.glob("000.*")} == files
    assert read_rows(copy, identity("after")).rows["x"].tolist() == [1.0] * 10**5
    with pytest.raises(LabError, match="is of another study"):
        read(copy, identity("before"))


def test_commits_are_durable_and_use_a_rollback_journal(store):
    assert store.database.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store.database.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_a_job_that_has_not_begun_has_no_record(path):
    assert read(path) is None
    path.touch()  # made, and its maker killed
    assert read(path) is read_rows(path) is None


def test_a_job_that_has_measured_nothing_yet_has_no_rows(store, path):
    assert (read(path).rows, read_rows(path).rows) == (0, {})


def test_without_locks_a_reader_undoes_nothing_that_a_worker_is_writing(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PLIANT_NO_LOCKS", "1")
    without_locks(monkeypatch, errno.ENOLCK)
    with JobStore(path, RUNS) as store:
        store.begin_session({"host": "here", "commit": "abc"})
        commit(store, 1.0)
        store.database.execute("PRAGMA cache_size = 1")
        store.database.execute("BEGIN IMMEDIATE")  # what does not fit into memory is written at once
        store.database.execute("INSERT INTO chunk VALUES (2, 'large', '|u1', zeroblob(1000000), '')")
        assert path.with_name("000.sqlite-journal").stat().st_size > 512
        np.testing.assert_array_equal(read_rows(path).rows["loss"], [1.0, np.nan])
        store.database.execute("COMMIT")  # fails where a reader has removed the journal
