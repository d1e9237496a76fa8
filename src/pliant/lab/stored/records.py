"""Reading job files, also while a worker writes them: how far a job is, the rows it has committed, the state after them."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pliant.base.files import goes_on_without
from pliant.lab.errors import LabError
from pliant.lab.experiment import RunStatus
from pliant.lab.stored.identity import Identity
from pliant.lab.stored.store import (
    OLDER,
    Table,
    check,
    connect,
    format_of,
    missing_state,
    readable,
    refuse_journal_of_others,
    stored_state,
    table_count,
)

T = TypeVar("T")
_PATIENCE = 10.0  # seconds for a worker to end what it is writing


@dataclass(frozen=True)
class Record:
    """How far a job is."""

    steps_done: int
    steps_total: int
    advances: int
    rows: int
    seconds: float  # of learning, in all sessions
    statuses: list[RunStatus]

    @property
    def is_done(self) -> bool:
        return all(status.word != "running" for status in self.statuses)


@dataclass(frozen=True)
class Measured:
    """What a job has measured, and who measured it."""

    statuses: list[RunStatus]
    rows: Table
    sessions: list[dict[str, Any]]  # host, process, commit and versions of each start
    session_of_row: NDArray[np.int64]


def read(path: Path, identity: Identity | None = None) -> Record | None:
    """None where the job has not begun.

    Raises LabError, here and below, where the file is of another job than `identity`, or not as it was written.
    """
    return _read(path, identity, _record)


def is_older(path: Path) -> bool:
    """Whether it is a job file of the first versions, which does not say whose rows it holds, and has no checksums."""
    return _unchecked(path, lambda database: format_of(database) == OLDER) or False


def kept_identity(path: Path) -> str | None:
    """What a job file says of whose it is, as it stands there; None where it says nothing, or is no job file."""
    try:
        found: Any = _unchecked(path, lambda database: database.execute("SELECT identity FROM job").fetchone()[0])
    except LabError:
        return None
    return found if isinstance(found, str) else None


def read_rows(path: Path, identity: Identity | None = None) -> Measured | None:
    """None where the job has not begun."""
    return _read(path, identity, _measured)


def read_state(path: Path, identity: Identity | None = None) -> dict[str, Any] | None:
    """The state after the last commit; None before the first. Raises LabError where it is not there, or another."""
    named = None
    while True:
        before, named = named, _read(path, identity, _state_file)
        if named is None:
            return None
        try:
            return stored_state(path, *named)
        except FileNotFoundError:  # a worker's next commit has removed it
            if named == before:
                raise missing_state(path, named[0]) from None


def read_all(path: Path, identity: Identity | None = None) -> tuple[Record, Measured] | None:
    """How far the job is and its rows, by one look. None where it has not begun."""
    return _read(path, identity, lambda database: (_record(database), _measured(database)))


def _state_file(database: sqlite3.Connection) -> tuple[str, str] | None:
    """Its name and SHA-256; None where no state is kept."""
    name, sha256 = database.execute("SELECT state_file, state_sha256 FROM job").fetchone()
    return None if name is None else (name, sha256)


def _read(path: Path, identity: Identity | None, what: Callable[[sqlite3.Connection], T]) -> T | None:
    def checked(database: sqlite3.Connection) -> T:
        check(database, path, identity)
        return what(database)

    return _unchecked(path, checked)


def _unchecked(path: Path, what: Callable[[sqlite3.Connection], T]) -> T | None:
    """None where the job has not begun."""
    with readable(path):
        if not path.exists():
            return None
        if not path.is_file():
            raise LabError(f"{path} is no file: move it away to start job {path.stem} anew")
        with _undisturbed(path) as file, closing(connect(file, create=False)) as database:
            database.execute("BEGIN")  # one view of all tables
            return what(database) if table_count(database) else None


@contextmanager
def _undisturbed(path: Path) -> Generator[Path]:
    """The file, or, where no lock tells readers of a writer, a copy of one moment: SQLite would take the journal of a worker at
    work for that of a dead one, and undo what it is writing.
    """
    if not goes_on_without(path.parent):
        yield path
        return
    refuse_journal_of_others(path)
    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        deadline = time.monotonic() + _PATIENCE
        while not _copied(path, copy):
            if time.monotonic() > deadline:
                raise LabError(f"{path} is being written to by another process: wait for it, or stop it")
            time.sleep(0.02)
        yield copy


def _copied(path: Path, copy: Path) -> bool:
    """Whether the job file and its journal could be copied with nothing written to them meanwhile."""
    pairs = [(each, copy.with_name(each.name)) for each in (path, path.with_name(path.name + "-journal"))]
    before = [_last_change(source) for source, _ in pairs]
    for source, target in pairs:
        target.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            shutil.copyfile(source, target)
    return before == [_last_change(source) for source, _ in pairs]


def _last_change(path: Path) -> tuple[int, int, int] | None:
    """None where there is no such file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _record(database: sqlite3.Connection) -> Record:
    done, total, advances = database.execute("SELECT steps_done, steps_total, advances FROM job").fetchone()
    rows, seconds = database.execute("SELECT total(rows), total(seconds) FROM advance").fetchone()
    return Record(done, total, advances, int(rows), seconds, _statuses(database))


def _statuses(database: sqlite3.Connection) -> list[RunStatus]:
    return [RunStatus(*row) for row in database.execute("SELECT status, step FROM run ORDER BY run")]


def _measured(database: sqlite3.Connection) -> Measured:
    columns: dict[str, list[NDArray[Any]]] = {}
    for name, dtype, data in database.execute("SELECT name, dtype, data FROM chunk ORDER BY advance, rowid"):
        columns.setdefault(name, []).append(np.frombuffer(data, dtype=dtype))
    sessions = database.execute("SELECT session, facts FROM session ORDER BY session").fetchall()
    place = {session: number for number, (session, _) in enumerate(sessions)}
    history = database.execute("SELECT session, rows FROM advance ORDER BY advance").fetchall()
    return Measured(
        statuses=_statuses(database),
        rows={name: _joined(parts) for name, parts in columns.items()},
        sessions=[json.loads(facts) for _, facts in sessions],
        session_of_row=np.repeat(
            np.array([place[session] for session, _ in history], np.int64), [rows for _, rows in history]
        ),
    )


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """All values of a column. An advance without rows has no say in its type."""
    return np.concatenate([part for part in parts if len(part)] or parts[:1])
