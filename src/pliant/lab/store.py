"""What a job has produced: one SQLite file, and beside it the state that learning goes on from.

    advance     1. the new state goes to a file of its own, synchronised and renamed
                2. one transaction adds the rows and names that file and its SHA-256
                3. the state before it is removed

A process that dies before 2 leaves the old rows with the old state; one that dies after 2, the new
rows with the new. In neither case are there rows without the state that follows them.

Columns are kept as blobs of numbers, one per column and advance: a NaN stays a NaN (SQLite turns
one into NULL), and a hundred thousand rows are a few inserts.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from numpy.typing import NDArray

from pliant.lab.checkpoint import from_bytes, to_bytes
from pliant.lab.errors import LabError
from pliant.lab.experiment import RUNNING, RunStatus
from pliant.lab.files import sync_folder, write_durably

FORMAT = 1

SCHEMA = """
CREATE TABLE job (steps_done INTEGER, steps_total INTEGER, advances INTEGER, state_file TEXT, state_sha256 TEXT);
CREATE TABLE run (run INTEGER PRIMARY KEY, status TEXT NOT NULL, step INTEGER);
CREATE TABLE session (session INTEGER PRIMARY KEY, started TEXT NOT NULL, facts TEXT NOT NULL);
CREATE TABLE advance (
    advance INTEGER PRIMARY KEY, session INTEGER NOT NULL, ended TEXT NOT NULL, seconds REAL NOT NULL, rows INTEGER NOT NULL
);
CREATE TABLE chunk (advance INTEGER, name TEXT, dtype TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (advance, name));
"""

Table = dict[str, NDArray[Any]]  # column -> values, equally long


class JobStore:
    """A job's file, open for its one worker. Made where it does not exist."""

    def __init__(self, path: Path, runs: int) -> None:
        self.path = path
        self._database = connect(path, create=True)
        if not table_count(self._database):
            self._create(runs)
        check_format(self._database, path)
        self.advances, self._state_file, self._sha256 = self._database.execute(
            "SELECT advances, state_file, state_sha256 FROM job"
        ).fetchone()
        self._remove_other_states()

    def __enter__(self) -> JobStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._database.close()

    def _create(self, runs: int) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        for statement in SCHEMA.split(";"):
            self._database.execute(statement)
        self._database.execute("INSERT INTO job VALUES (0, 0, 0, NULL, NULL)")
        self._write_statuses([RUNNING] * runs)
        self._database.execute(f"PRAGMA user_version = {FORMAT}")
        self._database.execute("COMMIT")
        sync_folder(self.path.parent)

    def begin_session(self, facts: Mapping[str, Any]) -> None:
        """Note who works on the job from here on, with which versions."""
        cursor = self._database.execute(
            "INSERT INTO session (started, facts) VALUES (?, ?)", (_now(), json.dumps(dict(facts)))
        )
        self._session = cursor.lastrowid

    def state(self) -> dict[str, Any] | None:
        """The state to go on from, None at the beginning. Raises LabError where it is not the one that was written."""
        if self._state_file is None:
            return None
        try:
            return stored_state(self.path, self._state_file, str(self._sha256))
        except FileNotFoundError:
            raise missing_state(self.path, self._state_file) from None

    def check_kept(self) -> None:
        """Raise LabError where the last state was not kept."""
        if self._state_file is None:
            raise LabError(
                f"{self.path} ended without keeping its state, and cannot go on: `pliant run` longer runs, with another --out"
            )

    def reopen(self) -> None:
        """Let runs that are done go on."""
        self._database.execute("UPDATE run SET status = 'running' WHERE status = 'done'")

    def settle(self, statuses: Sequence[RunStatus]) -> None:
        """Write down what became of the runs, without an advance."""
        self._database.execute("BEGIN IMMEDIATE")
        self._write_statuses(statuses)
        self._database.execute("COMMIT")

    def commit(
        self,
        rows: Table,
        statuses: Sequence[RunStatus],
        steps: tuple[int, int],
        state: Mapping[str, Any],
        seconds: float,
        keep_last: bool = False,
    ) -> None:
        """One advance: its rows, and the state after it. All of it is kept, or none.

        A job that is at its end needs its state no more; `keep_last` keeps it, to look at.
        """
        advance = self.advances + 1
        wanted = keep_last or any(status.word == "running" for status in statuses)
        self._state_file, self._sha256 = self._write_state(advance, state) if wanted else (None, None)
        _die_here_if_asked("before the transaction", advance)
        execute = self._database.execute
        execute("BEGIN IMMEDIATE")
        for name, values in rows.items():
            execute("INSERT INTO chunk VALUES (?, ?, ?, ?)", (advance, name, values.dtype.str, values.tobytes()))
        _die_here_if_asked("inside the transaction", advance)
        execute(
            "INSERT INTO advance VALUES (?, ?, ?, ?, ?)", (advance, self._session, _now(), seconds, len(rows["run"]))
        )
        execute("UPDATE job SET steps_done = ?, steps_total = ?", steps)
        execute(
            "UPDATE job SET advances = ?, state_file = ?, state_sha256 = ?", (advance, self._state_file, self._sha256)
        )
        self._write_statuses(statuses)
        execute("COMMIT")
        _die_here_if_asked("after the transaction", advance)
        self.advances = advance
        sync_folder(self.path.parent)  # the commit must not be undone once the old state is gone
        self._remove_other_states()

    def _write_state(self, advance: int, state: Mapping[str, Any]) -> tuple[str, str]:
        data = to_bytes(state)
        file = self.path.with_name(f"{self.path.stem}-{advance}.safetensors")
        write_durably(file, data)
        return file.name, hashlib.sha256(data).hexdigest()

    def _remove_other_states(self) -> None:
        for file in self.path.parent.glob(f"{self.path.stem}-*.safetensors*"):
            if file.name != self._state_file:
                file.unlink()

    def _write_statuses(self, statuses: Sequence[RunStatus]) -> None:
        rows = [(run, status.word, status.step) for run, status in enumerate(statuses)]
        self._database.executemany("INSERT OR REPLACE INTO run VALUES (?, ?, ?)", rows)


def connect(path: Path, create: bool) -> sqlite3.Connection:
    """The job file; transactions are begun and ended by hand.

    A reader too opens it for writing: where a worker died inside a transaction, SQLite must undo it first.
    """
    mode = "rwc" if create else "rw"
    database = sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True, timeout=60.0, isolation_level=None)
    database.execute("PRAGMA journal_mode = DELETE" if create else "PRAGMA query_only = ON")
    database.execute("PRAGMA synchronous = FULL")
    return database


def stored_state(path: Path, name: str, sha256: str) -> dict[str, Any]:
    """The state in the file `name` beside the job file `path`. Raises LabError where it is not the one that was written."""
    data = path.with_name(name).read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise LabError(
            f"the checkpoint {path.with_name(name)} is not the one that was written (its SHA-256 differs): "
            f"remove {path} to start this job anew"
        )
    return from_bytes(data)


def missing_state(path: Path, name: str) -> LabError:
    """The error for a state that the job file names, and that is not there."""
    return LabError(
        f"the checkpoint {path.with_name(name)} is missing: put it back, or remove {path} to start this job anew"
    )


def check_format(database: sqlite3.Connection, path: Path) -> None:
    """Raises LabError where the file was written by another version of this module."""
    (found,) = database.execute("PRAGMA user_version").fetchone()
    if found != FORMAT:
        raise LabError(
            f"{path} has format {found}, this version of pliant reads {FORMAT}: use the pliant that wrote it"
        )


def table_count(database: sqlite3.Connection) -> int:
    """0 in a file whose making was interrupted."""
    return cast(int, database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _die_here_if_asked(place: str, advance: int) -> None:
    """For the tests of exactness: PLIANT_DIE="inside the transaction:3" kills the worker there, at its third advance."""
    if os.environ.get("PLIANT_DIE") == f"{place}:{advance}":
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
