"""Files that survive a power cut, locks that do not survive their holder, and no writing through links.

written     under another name of its own, synchronized, renamed: a reader finds the old file or the new one, whole
locked      by the operating system, so that however its holder ends, it is free
links       are not followed by what writes here: a folder that somebody else made may hold one to a file of yours
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

log = logging.getLogger("pliant")

GO_ON = "PLIANT_NO_LOCKS"  # set to 1, it lets work go on where the file system has no locks

if os.name == "nt":  # pragma: no cover
    import msvcrt

    _HELD = (errno.EACCES, errno.EDEADLK)
    _FAR = 1 << 30  # Windows forbids reading a locked byte: lock one beyond the text that names the holder

    def _lock(handle: int) -> None:
        os.lseek(handle, _FAR, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
else:
    import fcntl

    _HELD = (errno.EAGAIN, errno.EWOULDBLOCK)

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


class NoLocks(OSError):
    """The file system gives no lock, and it was not said to go on without. The message is one sentence."""

    def __str__(self) -> str:
        return str(self.args[0])


def take(file: IO[bytes], path: Path) -> bool:
    """Lock the open file at `path` until it is closed; whether it was free.

    Raises `NoLocks` where the file system has no locks, unless it was said to go on without.
    """
    free = free_to_take(file)
    if isinstance(free, bool):
        return free
    if os.environ.get(GO_ON) != "1":
        raise NoLocks(
            f"the file system of {path.parent} gives no locks ({free}), so nothing would keep two processes from working "
            f"there at once: use a folder of another file system or, where no other process works there, set {GO_ON}=1"
        )
    if path.parent not in _GONE_ON:
        _GONE_ON.add(path.parent)
        log.warning(
            "the file system of %s gives no locks (%s): going on without, as %s=1 says", path.parent, free, GO_ON
        )
    return True


_GONE_ON = set[Path]()  # where it was said that there are no locks


def free_to_take(file: IO[bytes]) -> bool | str:
    """Whether an open file could be locked, and now is until it is closed; in words, why that cannot be known."""
    try:
        _lock(file.fileno())
    except OSError as error:
        return False if error.errno in _HELD else error.strerror or str(error)
    return True


def goes_on_without(folder: Path) -> bool:
    """Whether the file system of `folder` gives no locks, and it was said to go on without."""
    if os.environ.get(GO_ON) != "1" or os.name == "nt":
        return False
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle)
    except OSError as error:
        return error.errno not in _HELD
    finally:
        os.close(handle)
    return False


def is_no_file(path: Path) -> bool:
    """Whether something else is there than a file, such as a pipe, which a reader would wait for. It is one look: a file that is
    removed meanwhile is none.
    """
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


def refuse_link(path: Path) -> None:
    """Raise `OSError` where what would be written to is a link."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link, through which nothing is written: put a file in its place", str(path))


def open_itself(path: Path, mode: str) -> IO[bytes]:
    """The file open in a binary mode that writes, such as "ab", itself and not what a link leads to.

    Raises `OSError` where it is a link, or no file.
    """

    def opener(name: str, flags: int) -> int:
        handle = os.open(name, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(errno.EINVAL, "it is no file", name)
        return handle

    refuse_link(path)
    return open(path, mode, opener=opener)


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A new, empty file beside `path`, to be written inside the block, that takes its place at the end, or is removed.

    A link at `path` is replaced, not followed.
    """
    unfinished = path.with_name(f"{path.stem[:200]}.{secrets.token_hex(4)}.tmp{path.suffix}")
    os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield unfinished
        sync_file(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
    sync_folder(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write `data` so that, whatever happens meanwhile, `path` is either as it was or complete."""
    with replacing(path) as unfinished, open(unfinished, "wb") as file:
        file.write(data)


def write_first(path: Path, data: bytes) -> bool:
    """As `write_durably`, but only where there is no file yet; whether there was none. Of several processes one alone does."""
    unfinished = path.with_name(f"{path.stem[:200]}.{secrets.token_hex(4)}.tmp{path.suffix}")
    write_durably(unfinished, data)
    try:
        os.link(unfinished, path)
    except FileExistsError:
        return False
    finally:
        unfinished.unlink()
    sync_folder(path.parent)
    return True


def sync_file(path: Path) -> None:
    """Make what was written to the file survive a power cut."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make names created, replaced or removed in `folder` survive a power cut."""
    if os.name == "nt":  # pragma: no cover
        return  # Windows cannot open a folder; NTFS journals its names
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
