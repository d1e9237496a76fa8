"""Reading job files, also while a worker writes them: how far a job is, and the rows it has committed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pliant.lab.experiment import RunStatus
from pliant.lab.store import Table, check_format, connect, table_count

T = TypeVar("T")


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


def read(path: Path) -> Record | None:
    """None where the job has not begun."""
    return _read(path, _record)


def read_rows(path: Path) -> Measured | None:
    """None where the job has not begun."""
    return _read(path, _measured)


def _read(path: Path, what: Callable[[sqlite3.Connection], T]) -> T | None:
    if not path.is_file():
        return None
    database = connect(path, create=False)
    try:
        database.execute("BEGIN")  # one view of all tables
        if not table_count(database):
            return None
        check_format(database, path)
        return what(database)
    finally:
        database.close()


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
    history = np.array(database.execute("SELECT session, rows FROM advance ORDER BY advance").fetchall(), np.int64)
    sessions = database.execute("SELECT facts FROM session ORDER BY session")
    return Measured(
        statuses=_statuses(database),
        rows={name: np.concatenate(parts) for name, parts in columns.items()},
        sessions=[json.loads(facts) for (facts,) in sessions],
        session_of_row=np.repeat(*(history.reshape(-1, 2) - [1, 0]).T),
    )
