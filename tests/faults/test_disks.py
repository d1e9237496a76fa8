"""Disks that are full or may not be written to, under a study at work: a line says so, and with room again nothing is lost.

As root on Linux, with a small file system in memory and files that may not be changed. `tests/faults/test_damage.py` has a limit
on the size of files in the place of a full disk, which needs no root.
"""

import os
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest

from tests.faults.studies import ON_SEVERAL, one_line, ran
from tests.kill_and_resume import content, differing
from tests.patience import PATIENCE


def can(*command):
    return shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def small_disk(subject, tmp_path):
    """A file system of its own for the study, of 16 MiB."""
    subject.folder.mkdir()
    if (
        sys.platform != "linux"
        or os.geteuid() != 0
        or not can("mount", "-t", "tmpfs", "-o", "size=16m", "x", subject.folder)
    ):
        pytest.skip("a file system can be mounted by root on Linux only")
    yield subject.folder
    subprocess.run(["umount", "-l", subject.folder], check=True)


def fill(folder, room):
    """Leave so many bytes, while others write too."""
    with suppress(OSError), open(folder / "others", "wb", buffering=0) as others:
        while True:
            others.write(bytes(1 << 14))
    os.truncate(folder / "others", max(0, (folder / "others").stat().st_size - room))


@ON_SEVERAL
@pytest.mark.parametrize(
    "room", [0, pytest.param(10_000, marks=pytest.mark.slow), pytest.param(100_000, marks=pytest.mark.slow)]
)
def test_a_study_whose_disk_fills_up_says_so_and_goes_on_when_there_is_room(subject, small_disk, room):
    with subject.running() as runner:
        fill(small_disk, room)
        said, errors = runner.communicate(timeout=PATIENCE)
    left = content(small_disk)
    assert runner.returncode == 1, (said, errors)
    assert "Traceback" not in said + errors
    told = [line for line in errors.splitlines() if "failed: " in line]
    assert told
    assert all("full" in line or "No space left" in line for line in told), errors
    assert not list(small_disk.rglob("*.tmp*"))
    status = ran("status", str(small_disk))
    assert status.returncode == 0, status.stderr
    again = ran(*subject.resume)
    assert again.returncode in (1, 2), again.stdout
    assert "Traceback" not in again.stderr
    kept = content(small_disk)
    assert all(kept[key] == left[key] for key in left if key[2] != "status")
    (small_disk / "others").unlink()
    subject.resumes(f"disk full but for {room:,} bytes")


@ON_SEVERAL
def test_a_study_whose_folder_may_no_longer_be_written_to(subject, small_disk):
    """`chattr +i` on the folder of jobs: no file comes or goes there, for root either."""
    jobs = small_disk / "jobs"
    with subject.running() as runner:
        if not can("chattr", "+i", str(jobs)):
            pytest.skip("this file system knows no files that may not be changed")
        said, errors = runner.communicate(timeout=PATIENCE)
    assert runner.returncode == 1, (said, errors)
    assert "Traceback" not in said + errors
    assert any("not permitted" in line or "cannot" in line for line in errors.splitlines()), errors
    subprocess.run(["chattr", "-i", str(jobs)], check=True)
    subject.resumes("folder of jobs made immutable")


@ON_SEVERAL
def test_a_study_on_a_read_only_file_system_is_read_and_not_resumed(subject, small_disk, tmp_path):
    with subject.running() as runner:
        runner.terminate()
        runner.wait()
    before = content(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    try:
        line = one_line(ran(*subject.resume))
        assert str(small_disk) in line
        assert "Read-only file system" in line
        for command in (["status"], ["report"], ["export", "--out", str(tmp_path / "rows.csv")]):
            done = ran(command[0], str(small_disk), *command[1:])
            assert done.returncode == 0, done.stderr
        assert "Read-only file system" in one_line(ran("export", str(small_disk)))
        assert differing(before, content(small_disk)) == 0
    finally:
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    subject.resumes("file system read-only")
