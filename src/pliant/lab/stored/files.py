"""Locks of a study and its jobs, which name their holder and end with it."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from pliant.base.files import NoLocks, free_to_take, open_itself, take
from pliant.lab.errors import LabError

_PARQUET = b"PAR1"


def is_parquet(path: Path) -> bool:
    """Whether it is a file that begins like one in the Parquet format."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(_PARQUET)) == _PARQUET


class Held(LabError):
    """Somebody else is at work on what was asked for."""


class Lock:
    """A lock on `path`, held inside a `with` block; the file names the holder and stays behind.

    Raises `Held`, naming the holder, where it is not free within `patience` seconds; `LabError` where it cannot be locked. The
    file is never removed: a second one of the same name could be locked beside the first.
    """

    def __init__(self, path: Path, what: str, patience: float = 1.0) -> None:
        self.path = path
        self.what = what
        self.patience = patience

    def __enter__(self) -> Lock:
        try:
            self._file = open_itself(self.path, "ab")
        except OSError as error:
            raise LabError(f"cannot lock {self.what}: {self.path}: {error.strerror or error}") from None
        try:
            self._wait()
            self._name_holder()
        except BaseException:
            self._file.close()
            raise
        return self

    def _wait(self) -> None:
        deadline = time.monotonic() + self.patience
        try:
            while not take(self._file, self.path):
                if time.monotonic() > deadline:
                    raise Held(f"{self.what} is held by {last_holder(self.path)}: wait for it, or stop it")
                time.sleep(0.02)
        except NoLocks as error:
            raise LabError(str(error)) from None

    def _name_holder(self) -> None:
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        try:
            os.ftruncate(self._file.fileno(), 0)
            os.write(self._file.fileno(), holder.encode())
        except OSError as error:
            raise LabError(f"cannot write {self.path}: {error.strerror or error}") from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()  # which unlocks it


def last_holder(path: Path) -> str:
    """Who locked `path` last, in words."""
    try:
        holder = json.loads(path.read_bytes())
        return f"process {int(holder['pid'])} on {str(holder['host'])[:80]}"
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return "another process"


def is_held(path: Path) -> bool | None:
    """Whether somebody holds the lock at `path` now; None where the file system does not tell."""
    try:
        with open_itself(path, "r+b") as file:
            free = free_to_take(file)
    except OSError:
        return False  # never locked, in an archive that nobody can write to, or no lock
    return None if isinstance(free, str) else not free
