"""Files that survive a power cut, and locks that do not survive their holder.

A file is written under another name, synchronised and renamed: a reader finds the old one or the
new one, whole. A lock is the operating system's own, so that however its holder ends, it is free.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import IO

from pliant.lab.errors import LabError

if os.name == "nt":  # pragma: no cover
    import msvcrt

    _FAR = 1 << 30  # Windows forbids reading a locked byte: lock one beyond the text that names the holder

    def _take(file: IO[str]) -> None:
        file.seek(_FAR)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
else:
    import fcntl

    def _take(file: IO[str]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


_PARQUET = b"PAR1"


def write_durably(path: Path, data: bytes) -> None:
    """Write `data` so that, whatever happens meanwhile, `path` is either as it was or complete."""
    unfinished = path.with_name(path.name + ".tmp")
    with open(unfinished, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    sync_folder(path.parent)


def is_parquet(path: Path) -> bool:
    """Whether it is a file that begins like one in the Parquet format."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(_PARQUET)) == _PARQUET


def sync_folder(folder: Path) -> None:
    """Make names created, replaced or removed in `folder` survive a power cut."""
    if os.name == "nt":  # pragma: no cover
        return  # Windows cannot open a folder; NTFS journals its names
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Held(LabError):
    """Somebody else is at work on what was asked for."""


class Lock:
    """A lock on `path`, held inside a `with` block; the file names the holder and stays behind.

    Raises `Held`, naming the holder, where it is not free within `patience` seconds. The file is
    never removed: a second one of the same name could be locked beside the first.
    """

    def __init__(self, path: Path, what: str, patience: float = 1.0) -> None:
        self.path = path
        self.what = what
        self.patience = patience

    def __enter__(self) -> Lock:
        self._file = open(self.path, "a+", encoding="utf-8")
        try:
            self._wait()
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        self._file.flush()
        return self

    def _wait(self) -> None:
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return _take(self._file)
            except OSError:
                if time.monotonic() > deadline:
                    raise Held(f"{self.what} is held by {last_holder(self.path)}: wait for it, or stop it") from None
            time.sleep(0.02)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()  # which unlocks it


def last_holder(path: Path) -> str:
    """Who locked `path` last, in words."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError):
        return "another process"


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock at `path` now."""
    if not os.access(path, os.W_OK):
        return False  # never locked, or in an archive that nobody can write to
    with open(path, "r+", encoding="utf-8") as file:
        try:
            _take(file)
        except OSError:
            return True
    return False
