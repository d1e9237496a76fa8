"""Hashes of files, a lock that is waited for, and a rename that survives a power cut: `pliant.base.files`, for data sets."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pliant.base.files import NoLocks, open_itself, sync_folder, take
from pliant.data.images import DataError

log = logging.getLogger(__name__)


def has_hash(path: Path, expected: str) -> bool:
    """Whether a file has the hash `algorithm:hexadecimal`.

    >>> has_hash(Path(os.devnull), "md5:d41d8cd98f00b204e9800998ecf8427e")
    True
    """
    algorithm, _, value = expected.partition(":")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest() == value


@contextmanager
def locked(path: Path) -> Generator[None]:
    """One process at a time in this block, however long it takes; the lock is released when its process dies.

    The lock file stays: were it deleted, a second file of the same name could be locked beside the first. Raises DataError where
    it cannot be made.
    """
    with _opened(path) as file:
        waiting = False
        try:
            while not take(file, path):
                if not waiting:
                    log.info("another process is at work on %s: waiting for it", path.stem)
                waiting = True
                time.sleep(0.05)
        except NoLocks as error:
            raise DataError(str(error)) from None
        yield


def _opened(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open_itself(path, "ab")
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"cannot write {path.parent}: {reason}. Let $PLIANT_CACHE name a folder that can be written"
        ) from None


def flush(file: IO[bytes]) -> None:
    """Flush `file` to disk."""
    file.flush()
    os.fsync(file.fileno())


def put_in_place(unfinished: Path, path: Path) -> None:
    """Rename a finished file, or a folder of them, to where it is looked for."""
    os.replace(unfinished, path)
    sync_folder(path.parent)
