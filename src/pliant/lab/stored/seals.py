"""Checksums of a job file, by which rows that were altered, lost, doubled or exchanged are noticed before they are told.

    chunk     SHA-256 of the job it is of, its advance, its column, its type, and its numbers
    advance   ... of the advance before it, of what was noted of it, and of its chunks
    job       ... of whose it is, how far it is, which state follows, what became of its runs, and of its last advance

So each part vouches for those before it, and a commit computes no more than what it adds. They tell an accident or a slip
from what was written; they are no signature.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pliant.lab.experiment import canonical
from pliant.lab.stored.identity import Identity, refuse_other


class Chunk(NamedTuple):
    """A column of an advance, as it is stored."""

    name: str
    dtype: str
    data: bytes


class Advance(NamedTuple):
    """What is noted of an advance."""

    number: int
    session: int
    facts: str  # of that session
    ended: str
    seconds: float
    rows: int


def seal_of_chunk(origin: str, advance: int, chunk: Chunk) -> str:
    head = canonical([origin, advance, chunk.name, chunk.dtype]).encode()
    return hashlib.sha256(head + b"\n" + chunk.data).hexdigest()


def seal_of_advance(before: str, advance: Advance, chunks: list[str]) -> str:
    return _sha256([before, *advance, sorted(chunks)])


def seal_of_job(database: sqlite3.Connection) -> str:
    """From what the file holds now."""
    job = database.execute(
        "SELECT identity, next_identity, steps_done, steps_total, advances, state_file, state_sha256 FROM job"
    ).fetchall()
    runs = database.execute("SELECT run, status, step FROM run ORDER BY run").fetchall()
    return _sha256([job, runs, last_seal(database)])


def last_seal(database: sqlite3.Connection) -> str:
    """Of the last advance; empty where there is none."""
    found = database.execute("SELECT seal FROM advance ORDER BY advance DESC LIMIT 1").fetchone()
    return str(found[0]) if found else ""


def origin(identity: str) -> str:
    """Of which job of which study a chunk is: what stays the same where its runs are made longer."""
    found = json.loads(identity)
    return canonical([found.get("study"), found.get("job")])


def _sha256(content: Any) -> str:
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def advances(database: sqlite3.Connection) -> Iterator[Advance]:
    rows = database.execute(
        "SELECT advance, advance.session, facts, ended, seconds, rows "
        "FROM advance LEFT JOIN session USING (session) ORDER BY advance"
    )
    return (Advance(*row) for row in rows.fetchall())


def chunks(database: sqlite3.Connection, advance: int) -> Iterator[Chunk]:
    rows = database.execute("SELECT name, dtype, data FROM chunk WHERE advance = ? ORDER BY rowid", (advance,))
    return (Chunk(*row) for row in rows)


def fault_in_content(database: sqlite3.Connection, path: Path, expected: Identity | None, sealed: bool) -> str | None:
    """What is wrong with the job file at `path`, in words. Raises LabError where it is not that of the job `expected`.

    Files of earlier versions are not `sealed`: of them only that their parts fit together is known.
    """
    if sealed and expected is not None:
        refuse_other(path, database.execute("SELECT identity, next_identity FROM job").fetchone() or (), expected)
    return next(_faults(database, None if expected is None else len(expected.runs), sealed), None)


def _faults(database: sqlite3.Connection, runs: int | None, sealed: bool) -> Iterator[str]:
    """What is wrong, in words."""
    jobs, listed = (
        database.execute(query).fetchall() for query in ("SELECT advances FROM job", "SELECT run FROM run ORDER BY run")
    )
    if len(jobs) != 1:
        yield f"it has {len(jobs)} rows on how far it is"
        return
    if [run for (run,) in listed] != list(range(len(listed) if runs is None else runs)):
        yield f"it has the runs {[run for (run,) in listed]}, not {len(listed) if runs is None else runs} from 0 on"
    found = list(advances(database))
    numbers, count = [advance.number for advance in found], jobs[0][0]
    if numbers != list(range(1, count + 1)):
        yield f"of its {count} advances {len(numbers)} are there"
    (strays,) = database.execute(
        "SELECT count(*) FROM chunk WHERE advance NOT IN (SELECT advance FROM advance)"
    ).fetchone()
    if strays:
        yield f"{strays} of its columns are of no advance"
    names: set[str] | None = None
    for advance in found:
        columns = list(chunks(database, advance.number))
        names = {chunk.name for chunk in columns} if names is None else names
        yield from _faults_of_advance(advance, columns, names, len(listed))
    if sealed:
        yield from _broken_seals(database, found)


def _faults_of_advance(advance: Advance, columns: list[Chunk], names: set[str], runs: int) -> Iterator[str]:
    if advance.facts is None:  # pyright: ignore[reportUnnecessaryComparison]  (a file may hold anything)
        yield f"who made advance {advance.number} is not there"
    if {chunk.name for chunk in columns} != names or "run" not in names:
        yield f"advance {advance.number} has other columns than the first, which has {', '.join(sorted(names)) or 'none'}"
    for chunk in columns:
        if len(chunk.data) != advance.rows * np.dtype(chunk.dtype).itemsize:
            yield f"'{chunk.name}' of advance {advance.number} is not of its {advance.rows} rows"
        if chunk.name == "run" and advance.rows:
            index = np.frombuffer(chunk.data, chunk.dtype)
            if index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= runs:
                yield f"advance {advance.number} has rows of a run that is not among its {runs}"


def _broken_seals(database: sqlite3.Connection, found: list[Advance]) -> Iterator[str]:
    identity, kept = database.execute("SELECT identity, seal FROM job").fetchone()
    of, before = origin(identity), ""
    seals = dict(database.execute("SELECT advance, seal FROM advance").fetchall())
    for advance in found:
        number = advance.number
        of_chunks: dict[str, str] = dict(
            database.execute("SELECT name, sha256 FROM chunk WHERE advance = ?", (number,)).fetchall()
        )
        for chunk in chunks(database, number):
            if seal_of_chunk(of, number, chunk) != of_chunks[chunk.name]:
                yield f"'{chunk.name}' of advance {number} was altered, or is of another advance or job"
        before = seal_of_advance(before, advance, list(of_chunks.values()))
        if before != seals[number]:
            yield f"what is noted of advance {number}, or one before it, was altered"
    if seal_of_job(database) != kept:
        yield "how far it is, or what became of its runs, was altered"


def seal(database: sqlite3.Connection) -> None:
    """Seal the job as it is now; the last thing that a transaction does."""
    database.execute("UPDATE job SET seal = ?", (seal_of_job(database),))


def seal_all(database: sqlite3.Connection) -> None:
    """Seal a file that has no seals, as it is now."""
    of, before = origin(database.execute("SELECT identity FROM job").fetchone()[0]), ""
    for advance in advances(database):
        of_chunks = {chunk.name: seal_of_chunk(of, advance.number, chunk) for chunk in chunks(database, advance.number)}
        for name, sha256 in of_chunks.items():
            database.execute(
                "UPDATE chunk SET sha256 = ? WHERE advance = ? AND name = ?", (sha256, advance.number, name)
            )
        before = seal_of_advance(before, advance, list(of_chunks.values()))
        database.execute("UPDATE advance SET seal = ? WHERE advance = ?", (before, advance.number))
    seal(database)
