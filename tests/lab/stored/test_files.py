"""Locks are free once their holder is gone, however it went."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from pliant.lab.errors import LabError
from pliant.lab.stored.files import Held, Lock, is_held, last_holder
from tests.base.test_files import NO_LOCKS, without_locks
from tests.patience import PATIENCE

pytestmark = pytest.mark.faults

HOLD = "import sys; from pathlib import Path; from pliant.lab.stored.files import Lock; "
HOLD += "lock = Lock(Path(sys.argv[1]), 'x').__enter__(); print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_held_lock_names_its_holder(holder, tmp_path):
    assert is_held(tmp_path / "lock")
    said = rf"the study is held by process {holder.pid} on {socket.gethostname()}"
    with pytest.raises(Held, match=said), Lock(tmp_path / "lock", "the study", patience=0.05):
        pass


def test_a_killed_holder_holds_nothing(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    with Lock(tmp_path / "lock", "the study", patience=PATIENCE):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()
        assert is_held(tmp_path / "lock")
    assert not is_held(tmp_path / "lock")


@pytest.mark.parametrize("number", NO_LOCKS, ids=errno.errorcode.get)
def test_without_locks_a_study_is_not_said_to_be_held(number, tmp_path, monkeypatch):
    monkeypatch.delenv("PLIANT_NO_LOCKS", raising=False)
    place = tmp_path / "lock"
    place.write_text('{"pid": 7, "host": "of-long-ago"}')
    without_locks(monkeypatch, number)
    assert is_held(place) is None
    with pytest.raises(LabError, match=re.escape(str(tmp_path))) as refused, Lock(place, "the study"):
        pass
    assert "held" not in str(refused.value)
    monkeypatch.setenv("PLIANT_NO_LOCKS", "1")
    with Lock(place, "the study"):
        assert str(os.getpid()) in place.read_text()
    assert is_held(place) is None


@pytest.mark.parametrize("holder", ["", "[]", "{", '{"pid": 7}', '{"pid": [], "host": 1}', "[" * 9999, "\0\xff"])
def test_a_lock_whose_holder_cannot_be_read_is_held_by_another_process(holder, tmp_path):
    (tmp_path / "lock").write_text(holder)
    assert last_holder(tmp_path / "lock") == "another process"


@pytest.mark.parametrize("what", ["folder", "link"])
def test_what_is_no_file_is_no_lock(what, tmp_path):
    (tmp_path / "mine").write_text("a year of work")
    place = tmp_path / "lock"
    place.mkdir() if what == "folder" else place.symlink_to("mine")
    assert is_held(place) is False
    with pytest.raises(LabError, match=f"cannot lock the study: {place}: "), Lock(place, "the study"):
        pass
    assert (tmp_path / "mine").read_text() == "a year of work"
