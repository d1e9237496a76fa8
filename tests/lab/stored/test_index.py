"""The index of a study's finished jobs spares time, and tells nothing that a job file does not."""

import hashlib
import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pandas
import pytest

from pliant.lab import LabError
from pliant.lab.report.status import status_lines
from pliant.lab.report.table import rows_of
from pliant.lab.stored import index as module
from pliant.lab.study import study as studies
from pliant.lab.study.study import open_study
from tests.kill_and_resume import command

pytestmark = pytest.mark.faults

TOY = str(Path(__file__).parents[2] / "toy_experiment.py") + ":Toy"
TINY = ["run", TOY, "--profile", "tiny", "--jobs", "2"]  # six jobs of two runs


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A finished study without an index, and another of the same runs."""
    folder = tmp_path_factory.mktemp("originals")
    for name in ("study", "twin"):
        assert command([*TINY, "--out", str(folder / name)])[0] == 0
    return folder


@pytest.fixture
def folder(originals, tmp_path, monkeypatch):
    """With an index."""
    monkeypatch.setattr(module, "WORTH", 1)
    for name in ("study", "twin"):
        shutil.copytree(originals / name, tmp_path / name)
        told(tmp_path / name)
        assert (tmp_path / name / "jobs.index").is_file()
    return tmp_path / "study"


def told(folder):
    """All that readers tell of a study."""
    return rows_of(open_study(folder)), list(status_lines(open_study(folder)))


def from_job_files(folder):
    (folder / "jobs.index").unlink()
    return told(folder)


def check_same(found, expected):
    pandas.testing.assert_frame_equal(found[0], expected[0], check_exact=True)
    assert found[1] == expected[1]


def no_job_file(*where):
    raise AssertionError("a job file was read")


def test_readers_tell_the_same_with_it_and_open_no_job_file(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(studies, "read_all", no_job_file)
        found = told(folder)
        with pytest.raises(AssertionError, match="a job file was read"):
            from_job_files(folder)
    assert len(found[0]) == 60
    assert found[0]["squared_error"].isna().any(), "NaN too"
    check_same(found, told(folder))


def test_a_job_file_that_was_changed_is_read_anew_and_refused(folder):
    with closing(sqlite3.connect(folder / "jobs" / "002.sqlite")) as database, database:
        database.execute("UPDATE chunk SET data = zeroblob(length(data)) WHERE name = 'squared_error' AND advance = 2")
    for reader in (rows_of, lambda study: list(status_lines(study))):
        with pytest.raises(LabError, match=r"002\.sqlite is not as it was written"):
            reader(open_study(folder))


def test_a_link_in_the_place_of_a_file_of_the_same_size_and_time_has_another_stamp(tmp_path):
    mine, other = tmp_path / "000.sqlite", tmp_path / "001.sqlite"
    for file in (mine, other):
        file.write_bytes(b"rows")
        os.utime(file, ns=(1_000, 1_000))
    before = module.Stamp.of(mine)
    assert before == module.Stamp.of(other)
    mine.unlink()
    mine.symlink_to(other.name)
    assert module.Stamp.of(mine) != before


def test_a_job_that_was_removed_and_begun_anew_is_told_as_it_is_now(folder):
    (folder / "jobs" / "002.sqlite").unlink()
    assert "not begun" in "\n".join(told(folder)[1])
    assert len(told(folder)[0]) == 50
    assert command(["resume", str(folder)])[0] == 0
    check_same(told(folder), from_job_files(folder))


def test_runs_made_longer_are_not_told_as_they_were(folder):
    plan = json.loads((folder / "study.json").read_text())
    plan["jobs"][0]["runs"][0]["steps"] = 2000
    (folder / "study.json").write_text(json.dumps(plan))
    with pytest.raises(LabError, match=r"holds other runs than study\.json says"):
        told(folder)


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def rehashed(text, rows):
    return b"\n".join([hashlib.sha256(text).hexdigest().encode(), text, rows])


def edited(data, change):
    """The index with another line 2, and its checksum."""
    _, text, rows = data.split(b"\n", 2)
    content = json.loads(text)
    return rehashed(json.dumps(change(content) or content).encode(), rows)


DAMAGES = {
    "a bit of its checksum": lambda data: flipped(data, 3),
    "a bit of what it says of a job": lambda data: flipped(data, data.index(b'"done"') + 2),
    "a bit of the last number": lambda data: flipped(data, len(data) - 1),
    "every number": lambda data: data[:-200] + bytes(200),
    "cut off": lambda data: data[:-300],
    "cut off within line 2": lambda data: data[:100],
    "empty": lambda data: b"",
    "not ours": lambda data: b"PAR1" + bytes(1000),
    "of another format": lambda data: edited(data, lambda content: content.update(format=99)),
    "no jobs": lambda data: edited(data, lambda content: content.pop("jobs") and None),
    "jobs of another kind": lambda data: edited(data, lambda content: content.update(jobs={"000": [1, 2]})),
    "a list": lambda data: edited(data, lambda content: [1]),
    "names of jobs exchanged": lambda data: edited(
        data, lambda content: content["jobs"].update({"000": content["jobs"]["001"], "001": content["jobs"]["000"]})
    ),
    "rows of jobs exchanged": lambda data: edited(
        data, lambda content: content["jobs"]["000"].__setitem__(-1, [*content["jobs"]["001"][-1][:2], "0" * 64])
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_only_costs_time(damage, folder):
    file = folder / "jobs.index"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    found = told(folder)
    check_same(found, from_job_files(folder))


def test_that_of_another_study_of_the_same_runs_is_not_believed(folder, monkeypatch):
    shutil.copy(folder.parent / "twin" / "jobs.index", folder)
    monkeypatch.setattr(module, "WORTH", 7)  # more than there are jobs
    monkeypatch.setattr(
        module.Stamp, "of", staticmethod(lambda path: module.Stamp(1, 1))
    )  # even where files look alike
    check_same(told(folder), from_job_files(folder))


def test_nothing_is_written_through_a_link_in_its_place_and_a_folder_there_is_no_index(folder):
    expected = from_job_files(folder)
    index, other = folder / "jobs.index", folder / "precious"
    index.unlink()
    other.write_text("a year of work")
    index.symlink_to("precious")
    check_same(told(folder), expected)
    assert other.read_text() == "a year of work"
    assert not index.is_symlink(), "it was written anew"
    index.unlink()
    index.mkdir()
    check_same(told(folder), expected)


def test_a_job_that_goes_on_is_always_read_from_its_own_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WORTH", 1)
    monkeypatch.setenv("TOY_FAILS", "nlms")
    assert command([*TINY, "--out", str(tmp_path / "s")])[0] == 1
    told(tmp_path / "s")
    content = json.loads((tmp_path / "s" / "jobs.index").read_bytes().split(b"\n")[1])
    assert [*content["jobs"]] == ["000", "001", "002"]


def test_where_it_cannot_be_written_readers_do_without(folder, monkeypatch):
    expected = from_job_files(folder)
    (folder / "jobs.index").unlink()

    def full(*where):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(module, "write_durably", full)
    check_same(told(folder), expected)
    assert not (folder / "jobs.index").exists()


def test_a_study_of_few_jobs_gets_none(originals, tmp_path):
    shutil.copytree(originals / "study", tmp_path / "study")
    told(tmp_path / "study")
    assert not (tmp_path / "study" / "jobs.index").exists()


def test_rows_of_a_large_job_stay_in_its_file(folder, monkeypatch):
    monkeypatch.setattr(module, "_LARGEST", 1)
    expected = from_job_files(folder)
    assert (folder / "jobs.index").stat().st_size < 3000
    with monkeypatch.context() as patch:
        patch.setattr(studies, "read_all", no_job_file)
        assert list(status_lines(open_study(folder))) == expected[1]
    check_same(told(folder), expected)


def test_one_that_is_full_is_not_written_again_and_again(folder, monkeypatch):
    expected = from_job_files(folder)
    (folder / "jobs.index").unlink()
    monkeypatch.setattr(module, "_MOST", 1500)  # rows of a job or two of the six
    check_same(told(folder), expected)
    stamp, size = (folder / "jobs.index").stat().st_mtime_ns, (folder / "jobs.index").stat().st_size
    check_same(told(folder), expected)
    assert (folder / "jobs.index").stat().st_mtime_ns == stamp
    monkeypatch.setattr(module, "_MOST", 10**6)
    check_same(told(folder), expected)
    assert (folder / "jobs.index").stat().st_size > 2 * size


def test_it_takes_in_what_is_finished_since_and_keeps_what_it_had(folder, monkeypatch):
    assert command([*TINY, "--seeds", "0-3", "--out", str(folder)])[0] == 0  # two jobs more, saved at the end
    monkeypatch.setattr(studies, "read_all", no_job_file)
    assert len(told(folder)[0]) == 80
