"""Where measurements go while a network trains: files, and the trackers that people have, by what these can do.

    a path               .csv or .parquet, one row per group and measurement
    a SummaryWriter      `add_scalar(name, value, step)`
    a W&B run            `log(values)`, beside `define_metric`: at the run's own step, with ours as a value, `pliant/step`
    MLflow, Lightning    `log_metrics(values, step=)`
    `log(values, step)`  as a function or a method, such as Accelerate's

Nothing is imported for that, and nothing leaves the machine unless the tracker given sends it.
"""

from __future__ import annotations

import csv
import io
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from pliant.base.arguments import called_with, is_a, listed, shown
from pliant.base.choices import shortened
from pliant.base.files import open_itself, refuse_link, replacing
from pliant.base.tables import needed

log = logging.getLogger("pliant")

Row = Mapping[str, Any]
To = Any  # one of the above, a list of them, or None


class Destination(ABC):
    """Takes measurements."""

    @abstractmethod
    def write(self, rows: Sequence[Row], values: Mapping[str, float], step: int) -> None:
        """One measurement: its rows, and the same as numbers by name."""

    def go_on(self, rows: Sequence[Row]) -> None:  # noqa: B027  (a tracker keeps its own)
        """From here on `rows` are what was written before, whatever was."""


def destinations(to: To) -> list[Destination]:
    """Those given. Raises `TypeError` or `ValueError` for what is none, or a file that cannot be written, before anything is."""
    if to is None:
        return []
    several = listed(to) if not hasattr(to, "add_scalar") and not hasattr(to, "log") else None
    return [_one(each) for each in ([to] if several is None else several)]


def _one(given: object) -> Destination:
    to = cast(Any, given)
    if is_a(given, (str, PathLike)):
        return _file(Path(fspath(cast(str, to))))
    if is_a(given, (type, Tensor)):
        raise TypeError(f"to is {shown(to)}: give a tracker that was made, or a file")
    if callable(getattr(to, "add_scalar", None)):
        return _Tracker(lambda values, step: _scalars(to, values, step))
    if callable(getattr(to, "log_metrics", None)):
        return _Tracker(lambda values, step: to.log_metrics(dict(values), step=step))
    if callable(getattr(to, "log", None)) and callable(getattr(to, "define_metric", None)):
        return _Wandb(to)
    if callable(getattr(to, "log", None)):
        return _Tracker(lambda values, step: to.log(dict(values), step=step))
    if callable(to):
        called_with("to", to, "values", "step")
        return _Tracker(lambda values, step: to(dict(values), step))
    raise TypeError(
        f"to must be a file (.csv, .parquet), a tracker (SummaryWriter, W&B run, MLflow), a function of values and step, a list "
        f"of these or None, got {shown(to)}"
    )


def _scalars(writer: Any, values: Mapping[str, float], step: int) -> None:
    for name, value in values.items():
        writer.add_scalar(name, value, step)


class _Tracker(Destination):
    """What takes numbers by name and a step."""

    def __init__(self, log: Callable[[Mapping[str, float], int], object]) -> None:
        self._log = log

    def write(self, rows: Sequence[Row], values: Mapping[str, float], step: int) -> None:
        self._log(values, step)


class _Wandb(Destination):
    """Its own step goes on when the user logs, so that no step of theirs is ever behind; where they log nothing, by ours."""

    def __init__(self, run: Any) -> None:
        self._run, self._defined, self._waits_at = run, False, None

    def write(self, rows: Sequence[Row], values: Mapping[str, float], step: int) -> None:
        if not self._defined:
            self._run.define_metric("pliant/step", hidden=True)
            self._run.define_metric("pliant/*", step_metric="pliant/step")
            self._defined = True
        if self._waits_at is not None and self._own_step() == self._waits_at:
            self._run.log({}, commit=True)  # else these would take the place of those before
        self._run.log({**values, "pliant/step": step}, commit=False)
        self._waits_at = self._own_step()

    def _own_step(self) -> int | None:
        return getattr(getattr(self._run, "run", self._run), "step", None)  # `wandb` itself serves as well


class _File(Destination, ABC):
    def __init__(self, path: Path) -> None:
        self.path, self._mine, self._told = path, False, False

    def write(self, rows: Sequence[Row], values: Mapping[str, float], step: int) -> None:
        """A disk that is full ends no training: it is said once, and the rows stay in memory."""
        try:
            if not self._mine:
                self.go_on([])
            self._add(rows)
        except OSError as error:
            if not self._told:
                log.warning("step %d is not written to %s: %s", step, self.path, error.strerror or error)
            self._told = True

    def go_on(self, rows: Sequence[Row]) -> None:
        """What was written after the state that this one goes on from is taken out again; what another run left at the path is
        kept, under another name."""
        if not self._mine and self.path.exists() and not self._is_of(rows):
            names = (self.path.with_name(f"{self.path.stem}.{n}{self.path.suffix}") for n in range(1, 10**6))
            kept = next(each for each in names if not each.exists())
            self.path.rename(kept)
            log.warning("%s is of another run: it is now %s", self.path, kept.name)
        self._mine = True
        self._replace(rows)

    def _is_of(self, rows: Sequence[Row]) -> bool:
        """Whether the file begins with these rows."""
        try:
            held = [_place(row) for row in self._read()]
        except Exception:  # it may hold anything
            return False
        return bool(rows) and held[: len(rows)] == [_place(row) for row in rows]

    @abstractmethod
    def _read(self) -> Sequence[Row]:
        """The rows that the file holds."""

    @abstractmethod
    def _replace(self, rows: Sequence[Row]) -> None:
        """The file holds these rows."""

    @abstractmethod
    def _add(self, rows: Sequence[Row]) -> None:
        """The file holds these too."""


def _place(row: Row) -> tuple[str, ...]:
    """What tells a row from the others of its run, and runs apart, whatever a file makes of numbers."""
    size = row["weight_magnitude"]
    run = "" if row["run"] is None else str(row["run"])
    return str(row["step"]), str(row["group"]), run, f"{float(size):.6g}"


class _Csv(_File):
    def _read(self) -> Sequence[Row]:
        return list(csv.DictReader(self.path.read_text().splitlines()))

    def _replace(self, rows: Sequence[Row]) -> None:
        with replacing(self.path) as unfinished:
            unfinished.write_text(_lines(rows, head=True), newline="")

    def _add(self, rows: Sequence[Row]) -> None:
        with open_itself(self.path, "ab") as file:
            file.write(_lines(rows, head=file.tell() == 0).encode())


def _lines(rows: Sequence[Row], *, head: bool) -> str:
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    if head:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class _Parquet(_File):
    """Written whole each time: the format has no other way to add."""

    def __init__(self, path: Path) -> None:
        needed("pyarrow.parquet", "a .parquet file")
        super().__init__(path)
        self._rows: list[Row] = []

    def _read(self) -> Sequence[Row]:
        return needed("pyarrow.parquet", "a .parquet file").read_table(self.path).to_pylist()

    def _replace(self, rows: Sequence[Row]) -> None:
        self._rows = list(rows)
        self._write()

    def _add(self, rows: Sequence[Row]) -> None:
        self._rows += rows
        self._write()

    def _write(self) -> None:
        if not self._rows:
            return
        arrow, parquet = needed("pyarrow", "a .parquet file"), needed("pyarrow.parquet", "a .parquet file")
        with replacing(self.path) as unfinished:
            parquet.write_table(arrow.Table.from_pylist(self._rows), unfinished)


_KINDS: dict[str, type[_File]] = {".csv": _Csv, ".parquet": _Parquet}


def _file(path: Path) -> Destination:
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(
            f"to='{shortened(path)}' is no file that can be written: end it in .csv or .parquet. A tracker is given itself: "
            f"SummaryWriter(...), wandb.init(...), mlflow"
        )
    try:
        if not path.parent.is_dir():
            raise ValueError(f"to='{shortened(path)}': there is no folder '{shortened(path.parent)}'")
        refuse_link(path)
    except OSError as error:
        raise ValueError(f"to='{shortened(path)}' cannot be written: {shortened(error.strerror)}") from None
    return kind(path)
