"""What a job has produced: one SQLite file, and beside it the state that learning goes on from.

    advance     1. the new state goes to a file of its own, synchronised and renamed
                2. one transaction adds the rows and names that file and its SHA-256
                3. the state before it is removed

A process that dies before 2 leaves the old rows with the old state; one that dies after 2, the new
rows with the new. In neither case are there rows without the state that follows them.

Columns are kept as blobs of numbers, one per column and advance: a NaN stays a NaN (SQLite turns
one into NULL), and a hundred thousand rows are a few inserts.

The file says whose rows they are (`identity`), and each of its parts has a checksum (`seals`).
Files of format 1, of the first versions, have neither: they are read as they are, and given both by `adopt` before
anything is added to them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from numpy.typing import NDArray

from pliant.base.choices import shortened
from pliant.base.files import goes_on_without, is_no_file, refuse_link, sync_file, sync_folder, write_durably
from pliant.lab.errors import LabError
from pliant.lab.experiment import RUNNING, RunStatus
from pliant.lab.stored.checkpoint import from_bytes, to_bytes
from pliant.lab.stored.identity import Identity
from pliant.lab.stored.seals import (
    Advance,
    Chunk,
    fault_in_content,
    last_seal,
    origin,
    seal,
    seal_all,
    seal_of_advance,
    seal_of_chunk,
)

FORMAT = 2
OLDER = 1  # without identity and checksums

SCHEMA = """
CREATE TABLE job (steps_done INTEGER, steps_total INTEGER, advances INTEGER, state_file TEXT, state_sha256 TEXT);
CREATE TABLE run (run INTEGER PRIMARY KEY, status TEXT NOT NULL, step INTEGER);
CREATE TABLE session (session INTEGER PRIMARY KEY, started TEXT NOT NULL, facts TEXT NOT NULL);
CREATE TABLE advance (
    advance INTEGER PRIMARY KEY, session INTEGER NOT NULL, ended TEXT NOT NULL, seconds REAL NOT NULL, rows INTEGER NOT NULL
);
CREATE TABLE chunk (advance INTEGER, name TEXT, dtype TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (advance, name));
"""
SINCE_FORMAT_2 = """
ALTER TABLE job ADD COLUMN identity TEXT;
ALTER TABLE job ADD COLUMN next_identity TEXT;
ALTER TABLE job ADD COLUMN seal TEXT;
ALTER TABLE advance ADD COLUMN seal TEXT;
ALTER TABLE chunk ADD COLUMN sha256 TEXT
"""

Table = dict[str, NDArray[Any]]  # column -> values, equally long


class JobStore:
    """A job's file, open for its one worker. Made where it does not exist.

    Raises LabError where it is of another job than `identity`, or not as it was written.
    """

    def __init__(self, path: Path, runs: int, identity: Identity | None = None) -> None:
        self.path = path
        with readable(path):
            self.database = connect(path, create=True)
            try:
                self._open(runs, identity)
            except BaseException:
                self.database.close()
                raise

    def _open(self, runs: int, identity: Identity | None) -> None:
        if not table_count(self.database):
            self._create(runs, "{}" if identity is None else identity.text())
        check(self.database, self.path, identity)
        if identity is not None:
            self._be(identity)
        kept, self.advances, self._state_file, self._sha256 = self.database.execute(
            "SELECT identity, advances, state_file, state_sha256 FROM job"
        ).fetchone()
        self._origin = origin(kept)
        if self._state_file is None or state_path(self.path, self._state_file).exists():
            self._remove_other_states()  # where its own is lost, a newer one may be all there is

    def __enter__(self) -> JobStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(sqlite3.Error):  # where the disk failed, it fails again
            self.database.close()  # which undoes what was not committed
        if isinstance(error, sqlite3.Error):
            raise fault_of(self.path, error) from error

    def _create(self, runs: int, identity: str) -> None:
        with self._transaction():
            for statement in (*SCHEMA.split(";"), *SINCE_FORMAT_2.split(";")):
                self.database.execute(statement)
            self.database.execute("INSERT INTO job VALUES (0, 0, 0, NULL, NULL, ?, NULL, NULL)", (identity,))
            self._write_statuses([RUNNING] * runs)
            self.database.execute(f"PRAGMA user_version = {FORMAT}")
        sync_folder(self.path.parent)

    def _be(self, identity: Identity) -> None:
        """The runs are as long as study.json says: once it has been written, or was not."""
        kept = self.database.execute("SELECT identity, next_identity FROM job").fetchone()
        if kept != (identity.text(), None):
            with self._transaction():
                self.database.execute("UPDATE job SET identity = ?, next_identity = NULL", (identity.text(),))

    @contextmanager
    def _transaction(self) -> Generator[None]:
        """What is written inside is kept, sealed, or none of it is."""
        self.database.execute("BEGIN IMMEDIATE")
        yield
        seal(self.database)
        self.database.execute("COMMIT")

    def begin_session(self, facts: Mapping[str, Any]) -> None:
        """Note who works on the job from here on, with which versions."""
        self._facts = json.dumps(dict(facts))
        cursor = self.database.execute("INSERT INTO session (started, facts) VALUES (?, ?)", (_now(), self._facts))
        self._session = cast(int, cursor.lastrowid)

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

    def lengthen(self, identity: Identity, reopen: bool) -> None:
        """Be ready to be the job `identity`, of longer runs, from the moment that study.json says so; let done runs go on."""
        with self._transaction():
            self.database.execute("UPDATE job SET next_identity = ?", (identity.text(),))
            if reopen:
                self.database.execute("UPDATE run SET status = 'running' WHERE status = 'done'")

    def settle(self, statuses: Sequence[RunStatus]) -> None:
        """Write down what became of the runs, without an advance."""
        with self._transaction():
            self._write_statuses(statuses)

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
        with self._transaction():
            self._write_advance(Advance(advance, self._session, self._facts, _now(), seconds, len(rows["run"])), rows)
            self.database.execute("UPDATE job SET steps_done = ?, steps_total = ?", steps)
            self.database.execute(
                "UPDATE job SET advances = ?, state_file = ?, state_sha256 = ?",
                (advance, self._state_file, self._sha256),
            )
            self._write_statuses(statuses)
        _die_here_if_asked("after the transaction", advance)
        self.advances = advance
        sync_folder(self.path.parent)  # the commit must not be undone once the old state is gone
        self._remove_other_states()

    def _write_advance(self, advance: Advance, rows: Table) -> None:
        execute, number = self.database.execute, advance.number
        chunks = [Chunk(name, values.dtype.str, values.tobytes()) for name, values in rows.items()]
        seals = [seal_of_chunk(self._origin, number, chunk) for chunk in chunks]
        sealed = seal_of_advance(last_seal(self.database), advance, seals)
        for chunk, sha256 in zip(chunks, seals, strict=True):
            execute("INSERT INTO chunk VALUES (?, ?, ?, ?, ?)", (number, *chunk, sha256))
        _die_here_if_asked("inside the transaction", number)
        noted = (number, advance.session, advance.ended, advance.seconds, advance.rows, sealed)
        execute("INSERT INTO advance VALUES (?, ?, ?, ?, ?, ?)", noted)

    def _write_state(self, advance: int, state: Mapping[str, Any]) -> tuple[str, str]:
        data = to_bytes(state)
        file = self.path.with_name(f"{self.path.stem}-{advance}.safetensors")
        write_durably(file, data)
        return file.name, hashlib.sha256(data).hexdigest()

    def _remove_other_states(self) -> None:
        for file in self.path.parent.glob(f"{self.path.stem}-*.safetensors*"):
            if file.name != self._state_file and (file.is_symlink() or not file.is_dir()):
                file.unlink()

    def _write_statuses(self, statuses: Sequence[RunStatus]) -> None:
        rows = [(run, status.word, status.step) for run, status in enumerate(statuses)]
        self.database.executemany("INSERT OR REPLACE INTO run VALUES (?, ?, ?)", rows)


def connect(path: Path, create: bool) -> sqlite3.Connection:
    """The job file; transactions are begun and ended by hand. Raises `OSError` where it, to be written to, is a link.

    A reader too opens it for writing: where a worker died inside a transaction, SQLite must undo it first. Not through a link.
    """
    if create:
        for ending in ("", *_BESIDE):
            refuse_link(path.with_name(path.name + ending))
    refuse_journal_of_others(path)
    mode = "rwc" if create else "ro" if path.is_symlink() else "rw"
    unlocked = "&nolock=1" if goes_on_without(path.parent) else ""
    address = f"{path.resolve().as_uri()}?mode={mode}{unlocked}"
    database = sqlite3.connect(address, uri=True, timeout=60.0, isolation_level=None)
    try:
        database.execute("PRAGMA trusted_schema = OFF")
        database.execute("PRAGMA journal_mode = DELETE" if create else "PRAGMA query_only = ON")
        database.execute("PRAGMA synchronous = FULL")
    except BaseException:
        database.close()
        raise
    return database


_BESIDE = ("-journal", "-wal", "-shm")  # what SQLite may write beside a file
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")


def refuse_journal_of_others(path: Path) -> None:
    """Raise `LabError` where a journal beside the file says, as none of ours does, that it is part of another: SQLite would read
    that file, and may remove it.
    """
    for each in (path.with_name(path.name + ending) for ending in _BESIDE):
        if is_no_file(each):
            raise LabError(f"{each} is no file: move it away")
    journal = path.with_name(path.name + "-journal")
    with suppress(FileNotFoundError), open(journal, "rb") as file:  # a worker may remove it at any moment
        if file.seek(0, os.SEEK_END) > 512:
            file.seek(-len(_JOURNAL_MAGIC), os.SEEK_END)
            if file.read() == _JOURNAL_MAGIC:
                raise LabError(f"{journal} was not written by pliant: move it away")


@contextmanager
def readable(path: Path) -> Generator[None]:
    """Raises LabError, in words, where the job file at `path` cannot be read or written, or holds something else."""
    try:
        yield
    except LabError:
        raise
    except sqlite3.Error as error:
        raise fault_of(path, error) from error
    except OSError as error:
        raise LabError(f"cannot open {error.filename or path}: {error.strerror or error}") from error
    except Exception as error:  # a file may hold anything
        raise damaged(path, f"{type(error).__name__}: {error}") from error


def fault_of(path: Path, error: sqlite3.Error) -> LabError:
    """What SQLite met with in the job file at `path`, in words."""
    kind = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if kind == sqlite3.SQLITE_FULL:
        return LabError(f"cannot write {path}: the disk is full. What was committed is kept; make room, then resume")
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LabError(f"{path} is being written to by another process: wait for it, or stop it")
    if kind in _OF_THE_DISK:
        return LabError(f"cannot read or write {path}: {error} ({getattr(error, 'sqlite_errorname', kind)})")
    return damaged(path, str(error))


_OF_THE_DISK = (
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_NOLFS,
    sqlite3.SQLITE_NOMEM,
)


def damaged(path: Path, fault: str) -> LabError:
    """The error for a job file that is not as it was written."""
    return LabError(
        f"{path} is not as it was written: {shortened(fault, 300)}. Put back a copy of it, or move it away to start job "
        f"{path.stem} anew"
    )


def state_path(path: Path, name: str) -> Path:
    """Of the state that the job file at `path` names. Raises LabError where that is no name of one."""
    if not re.fullmatch(rf"{re.escape(path.stem)}-[0-9]+\.safetensors", name):
        raise damaged(path, f"its state is said to be in {shortened(name)}")
    return path.with_name(name)


def stored_state(path: Path, name: str, sha256: str) -> dict[str, Any]:
    """The state in the file `name` beside the job file `path`. Raises LabError where it is not the one that was written."""
    file = state_path(path, name)
    try:
        if is_no_file(file):
            raise LabError(f"the checkpoint {file} is no file: remove it and {path} to start this job anew")
        data = file.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise LabError(f"cannot read the checkpoint {file}: {error.strerror or error}") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise LabError(
            f"the checkpoint {file} is not the one that was written (its SHA-256 differs): "
            f"remove {path} to start this job anew"
        )
    try:
        return from_bytes(data)
    except Exception as error:  # whatever its hash says, it may hold anything
        raise LabError(f"the checkpoint {file} holds no state: {type(error).__name__}: {shortened(error)}") from error


def missing_state(path: Path, name: str) -> LabError:
    """The error for a state that the job file names, and that is not there."""
    return LabError(
        f"the checkpoint {state_path(path, name)} is missing: put it back, or remove {path} to start this job anew"
    )


def adopt(path: Path, identity: Identity) -> None:
    """Write into a file of the first format whose rows it holds, and its checksums: those of what is in it now.

    Raises LabError where its parts do not fit together.
    """
    with readable(path), closing(connect(path, create=True)) as database:
        if not table_count(database) or format_of(database) != OLDER:
            return
        check(database, path, identity)
        database.execute("BEGIN IMMEDIATE")
        for statement in SINCE_FORMAT_2.split(";"):
            database.execute(statement)
        database.execute("UPDATE job SET identity = ?", (identity.text(),))
        seal_all(database)
        database.execute(f"PRAGMA user_version = {FORMAT}")
        database.execute("COMMIT")
    sync_folder(path.parent)


def take_in(source: Path, path: Path, was: Identity, becomes: Identity) -> bool:
    """Copy the job file `source` and its state to `path`, as those of another job; whether there is anything in it.

    The rows stay as they are, under new checksums. `source` is only read: what a worker left half written is undone in the copy.
    A copy that was interrupted is nobody's file: the caller puts it in its place when this returns. Raises LabError where
    `source` is not the file of the job `was`, or not as it was written.
    """
    with readable(source):
        for ending in ("", "-journal"):
            beside = source.with_name(source.name + ending)
            if beside.is_file():
                shutil.copyfile(beside, path.with_name(path.name + ending))
        with closing(connect(path, create=True)) as database:
            if not table_count(database):
                return False
            check(database, source, was)
            kept = database.execute("SELECT state_file, state_sha256 FROM job").fetchone()
    state = _copied_state(source, path, *kept) if kept[0] is not None else None
    with readable(path), closing(connect(path, create=True)) as database:
        database.execute("PRAGMA synchronous = OFF")
        ended = not database.execute("SELECT count(*) FROM run WHERE status = 'running'").fetchone()[0]
        if kept[0] is not None and state is None and not ended:
            raise missing_state(source, kept[0])
        database.execute("BEGIN IMMEDIATE")
        database.execute(
            "UPDATE job SET identity = ?, next_identity = NULL, state_file = ?, state_sha256 = ?",
            (becomes.text(), state, kept[1] if state else None),
        )
        seal_all(database)
        database.execute("COMMIT")
    sync_file(path)
    return True


def _copied_state(source: Path, path: Path, name: str, sha256: str) -> str | None:
    """The name of the state beside `path`; None where there is none beside `source`. Raises LabError where it is another."""
    file = path.with_name(f"{path.stem}-{name.rpartition('-')[2]}")
    try:
        stored_state(source, name, sha256)
        shutil.copyfile(state_path(source, name), file)
    except FileNotFoundError:
        return None
    return file.name


def check(database: sqlite3.Connection, path: Path, identity: Identity | None) -> None:
    """Raise LabError where a job file is of another version of this module, of another job, or not as it was written."""
    found = format_of(database)
    if found not in (OLDER, FORMAT):
        raise LabError(
            f"{path} has format {found}, this version of pliant reads {OLDER} and {FORMAT}: use the pliant that wrote it"
        )
    if found == OLDER and (identity is None or not identity.older):
        raise LabError(
            f"{path} is of an earlier version than its study, and does not say whose rows it holds: put the study's own file "
            f"back, or move {path.name} away to start job {path.stem} anew"
        )
    fault = fault_in_content(database, path, identity, sealed=found == FORMAT)
    if fault is not None:
        raise damaged(path, fault)


def format_of(database: sqlite3.Connection) -> int:
    """Which version of this module wrote the file."""
    return cast(int, database.execute("PRAGMA user_version").fetchone()[0])


def table_count(database: sqlite3.Connection) -> int:
    """0 in a file whose making was interrupted."""
    return cast(int, database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _die_here_if_asked(place: str, advance: int) -> None:
    """For the tests of exactness: PLIANT_DIE="inside the transaction:3" kills the worker there, at its third advance."""
    if os.environ.get("PLIANT_DIE") == f"{place}:{advance}":
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
