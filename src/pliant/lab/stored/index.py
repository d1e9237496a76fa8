"""What the finished jobs of a study hold, in one file beside them: a reader opens it, and not ten thousand job files.

The job files are the truth. An entry counts where its checksum is right, study.json says of the job what it said then, and
the job's file has the size and the time of change that it had when it was read and checked; else that file is read. So the
index may be stale, damaged or removed at any time: it only costs time. It is replaced whole and needs no lock; where the folder
cannot be written to there is none. Rows of large jobs stay in their files alone.

    line 1     SHA-256 of line 2
    line 2     JSON: job -> size and time of change, SHA-256 of what it is, how far it is, where its rows are
    then       the rows of each job: a line of JSON on its columns and sessions, then the numbers
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from pliant.base.files import write_durably
from pliant.lab.experiment import RunStatus
from pliant.lab.stored.records import Measured, Record

FORMAT = 1
WORTH = 50  # jobs read from their own files, from which on the next reader is spared that
_LARGEST = 1 << 16  # bytes of a job's rows
_MOST = 1 << 27  # bytes of all rows


class Stamp(NamedTuple):
    """By which a job file that was changed since is noticed."""

    size: int
    changed: int  # ns

    @staticmethod
    def of(path: Path) -> Stamp | None:
        """None where there is no such file."""
        try:
            found, itself = os.stat(path), os.lstat(path)  # a link is as new as itself and as what it leads to
        except OSError:
            return None
        return Stamp(found.st_size, max(found.st_mtime_ns, itself.st_mtime_ns))


@dataclass(frozen=True)
class _Entry:
    stamp: Stamp
    what: str  # SHA-256 of whose the job is
    record: Record
    place: tuple[int, int, str] | None  # of its rows: from which byte on, how many, SHA-256
    data: bytes | None = None  # the rows, where they were noted since


class Index:
    """The index in a file, and what a reader has noted since."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._noted: dict[str, _Entry] = {}

    def record(self, job: str, what: str, stamp: Stamp | None) -> Record | None:
        """How far the job `what` is, with a file of this stamp; None where the index does not know."""
        entry = self._entry(job, what, stamp)
        return None if entry is None else entry.record

    def measured(self, job: str, what: str, stamp: Stamp | None) -> Measured | None:
        """Its rows; None where the index does not know them."""
        entry = self._entry(job, what, stamp)
        data = None if entry is None else self._rows(entry)
        return None if entry is None or data is None else _unpacked(data, entry.record.statuses)

    def note(self, job: str, what: str, stamp: Stamp | None, record: Record, measured: Measured) -> None:
        """Take in a finished job that was read from its own file, which had this stamp before."""
        if stamp is None or not record.is_done:
            return
        data = None
        if sum(values.nbytes for values in measured.rows.values()) <= min(_LARGEST, self._room):
            data = _packed(measured)
            self._room -= len(data)
        if data is not None or self._entry(job, what, stamp) is None:
            self._noted[job] = _Entry(stamp, what, record, None, data)

    def save(self, jobs: Iterable[str]) -> None:
        """Write it, with the entries of these jobs, where much was noted since. Nothing is said where that cannot be done."""
        if len(self._noted) < WORTH:
            return
        entries = {**self._stored, **self._noted}
        head, rows, length = dict[str, Any](), list[bytes](), 0
        for job in jobs:
            entry = entries.get(job)
            if entry is None:
                continue
            data = self._rows(entry)
            place = None if data is None else (length, len(data), hashlib.sha256(data).hexdigest())
            if data is not None:
                rows.append(data)
                length += len(data)
            own = entry.record
            head[job] = [*entry.stamp, entry.what, [*vars(own).values()], place]
        text = json.dumps({"format": FORMAT, "jobs": head}).encode()
        with suppress(OSError):
            write_durably(self.file, b"".join([hashlib.sha256(text).hexdigest().encode(), b"\n", text, b"\n", *rows]))

    def _entry(self, job: str, what: str, stamp: Stamp | None) -> _Entry | None:
        entry = self._noted.get(job) or self._stored.get(job)
        return entry if entry is not None and (entry.what, entry.stamp) == (what, stamp) else None

    @cached_property
    def _stored(self) -> dict[str, _Entry]:
        """The entries of the file, but for their rows; none where it is not as it was written."""
        if not self.file.is_file():  # such as a pipe, which would be waited for
            return {}
        try:
            with open(self.file, "rb") as file:
                sha256, text = file.readline(65).strip(), file.readline()[:-1]
                self._rows_at = file.tell()
            if hashlib.sha256(text).hexdigest().encode() != sha256:
                return {}
            content = json.loads(text)
            jobs: dict[str, Any] = content["jobs"] if content["format"] == FORMAT else {}
            return {job: _entry(*kept) for job, kept in jobs.items()}
        except Exception:  # a file may hold anything
            return {}

    @cached_property
    def _room(self) -> int:
        """How many bytes of rows may still be noted."""
        return _MOST - sum(entry.place[1] for entry in self._stored.values() if entry.place is not None)

    def _rows(self, entry: _Entry) -> bytes | None:
        if entry.data is not None or entry.place is None:
            return entry.data
        first, length, sha256 = entry.place
        with suppress(OSError), open(self.file, "rb") as file:
            file.seek(self._rows_at + first)
            data = file.read(length)
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
        return None


def _entry(size: int, changed: int, what: str, record: list[Any], place: list[Any] | None) -> _Entry:
    done, total, advances, rows, seconds, statuses = record
    told = Record(done, total, advances, rows, seconds, [RunStatus(*status) for status in statuses])
    return _Entry(Stamp(size, changed), what, told, None if place is None else cast(Any, tuple(place)))


def _packed(measured: Measured) -> bytes:
    columns = {**measured.rows, "": measured.session_of_row}
    head = {
        "columns": [[name, values.dtype.str, values.nbytes] for name, values in columns.items()],
        "sessions": measured.sessions,
    }
    return b"".join([json.dumps(head).encode(), b"\n", *(values.tobytes() for values in columns.values())])


def _unpacked(data: bytes, statuses: list[RunStatus]) -> Measured:
    text, _, numbers = data.partition(b"\n")
    head: dict[str, Any] = json.loads(text)
    columns, first = dict[str, Any](), 0
    for name, dtype, length in head["columns"]:
        columns[name] = np.frombuffer(numbers[first : first + length], dtype)
        first += length
    return Measured(statuses, rows=columns, sessions=head["sessions"], session_of_row=columns.pop(""))
