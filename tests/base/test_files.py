"""A written file is whole, a link is never written through, and a file system without locks is said to have none."""

import errno
import fcntl
import logging
import os
import re
import stat
import subprocess
import sys

import pytest

from pliant.base.files import NoLocks, is_no_file, open_itself, replacing, take, write_durably
from tests.patience import until

pytestmark = pytest.mark.faults

NO_LOCKS = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO, errno.EBADF]


def without_locks(monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "f"
    write_durably(file, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk is gone")))
    with pytest.raises(OSError, match="disk is gone"):
        write_durably(file, b"new")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_written_file_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").touch()
    write_durably(tmp_path / "f", b"x")
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_link_in_the_place_of_a_file_is_replaced_not_followed(tmp_path):
    (tmp_path / "mine").write_bytes(b"a year of work")
    (tmp_path / "f").symlink_to("mine")
    write_durably(tmp_path / "f", b"x")
    assert (tmp_path / "mine").read_bytes() == b"a year of work"
    assert (tmp_path / "f").read_bytes() == b"x"
    assert not (tmp_path / "f").is_symlink()


def test_the_unfinished_file_has_a_name_that_nobody_can_foresee_and_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda _: "0")
    (tmp_path / "mine").write_bytes(b"a year of work")
    (tmp_path / "f.0.tmp").symlink_to("mine")
    with pytest.raises(FileExistsError):
        write_durably(tmp_path / "f", b"x")
    assert (tmp_path / "mine").read_bytes() == b"a year of work"
    monkeypatch.undo()
    names = set()
    for _ in range(2):
        with replacing(tmp_path / "f") as unfinished:
            names.add(unfinished.name)
    assert len(names) == 2


@pytest.mark.parametrize("mode", ["ab", "r+b", "wb"])
@pytest.mark.parametrize("what", ["link", "dangling link", "folder", "pipe"])
def test_only_a_file_itself_is_opened_for_writing(what, mode, tmp_path):
    (tmp_path / "mine").write_bytes(b"a year of work")
    place = tmp_path / "f"
    make = {
        "link": lambda: place.symlink_to("mine"),
        "dangling link": lambda: place.symlink_to("new"),
        "folder": place.mkdir,
        "pipe": lambda: os.mkfifo(place),
    }
    make[what]()
    with pytest.raises(OSError, match=re.escape(str(place))):
        open_itself(place, mode)
    assert (tmp_path / "mine").read_bytes() == b"a year of work"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("number", NO_LOCKS, ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_named_unless_it_was_said_to_go_on(number, tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("PLIANT_NO_LOCKS", raising=False)
    without_locks(monkeypatch, number)
    with open(tmp_path / "lock", "ab") as file:
        said = re.escape(f"the file system of {tmp_path} gives no locks ({os.strerror(number)})")
        with pytest.raises(NoLocks, match=said + ".* set PLIANT_NO_LOCKS=1$"):
            take(file, tmp_path / "lock")
        monkeypatch.setenv("PLIANT_NO_LOCKS", "1")
        with caplog.at_level(logging.WARNING, "pliant"):
            assert take(file, tmp_path / "lock")
            assert take(file, tmp_path / "lock")
    assert caplog.text.count("going on without") == 1


def test_a_lock_that_another_holds_is_no_lack_of_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("PLIANT_NO_LOCKS", "1")
    with open(tmp_path / "lock", "ab") as first, open(tmp_path / "lock", "ab") as second:
        assert take(first, tmp_path / "lock")
        assert not take(second, tmp_path / "lock")


def test_a_file_that_comes_and_goes_is_never_taken_for_something_else(tmp_path):
    """As SQLite's journal does beside a file that is read. Of two looks, `exists() and not is_file()`, some would."""
    path = tmp_path / "journal"
    loop = "import pathlib, sys; path = pathlib.Path(sys.argv[1])\nwhile True: path.touch(); path.unlink()"
    with subprocess.Popen([sys.executable, "-c", loop, str(path)]) as other:
        until(path.exists)
        seen = [(path.exists(), is_no_file(path)) for _ in range(20_000)]
        other.kill()
    assert {there for there, _ in seen} == {True, False}
    assert not any(other for _, other in seen)


def test_a_pipe_and_a_folder_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert is_no_file(tmp_path / "pipe")
    assert is_no_file(tmp_path)
    assert not is_no_file(tmp_path / "none")
