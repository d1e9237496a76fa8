"""Locks are free once their holder is gone, however it went; a written file is whole."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from pliant.lab.stored.files import Held, Lock, is_held, write_durably
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


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "f"
    write_durably(file, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk is gone")))
    with pytest.raises(OSError, match="disk is gone"):
        write_durably(file, b"new")
    assert file.read_bytes() == b"old"
