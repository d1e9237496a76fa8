"""All rows of a study as one long table: a row's run, its config, what became of it, and what was measured.

run | method seed step_size ... | status diverged_at commit | the experiment's columns
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas and matplotlib are typed in part)

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from pydantic import ValidationError

from pliant.base.choices import shortened
from pliant.lab.curves import config_fields
from pliant.lab.errors import LabError, NoRows, unknown
from pliant.lab.experiment import RunConfig
from pliant.lab.stored.files import is_parquet
from pliant.lab.stored.records import Measured
from pliant.lab.study.study import Reading, Settings, Study, open_study

if TYPE_CHECKING:
    import pandas

FORMATS = ("csv", "parquet")
STATUSES = ("running", "done", "diverged")
_ADDED = ("run", *RunConfig.model_fields, "status", "diverged_at", "commit")  # columns of every table of rows


def rows_of(study: Study) -> pandas.DataFrame:
    """The committed rows of every job, in the order of the plan; also while the study runs."""
    import pandas

    alike: dict[Any, list[_JobRows]] = {}  # jobs whose rows have the same columns
    first_run = 0
    for job in study.jobs:
        measured = study.measured(job)
        if measured is not None and len(measured.rows.get("run", ())):
            rows = _JobRows(study.settings(job), measured, first_run)
            alike.setdefault(rows.columns, []).append(rows)
        first_run += len(job.runs)
    study.save_index()
    if not alike:
        raise NoRows(f"{study.folder} has no rows yet: `pliant status {study.folder}` says how far it is")
    parts: list[Any] = [_together(jobs) for jobs in alike.values()]
    if len(parts) == 1:
        return parts[0]
    jobs_of_rows = np.concatenate(
        [np.repeat([j.first_run for j in jobs], [j.count for j in jobs]) for jobs in alike.values()]
    )
    table: Any = pandas.concat(parts, ignore_index=True)
    table = table.iloc[np.argsort(jobs_of_rows, kind="stable")].reset_index(drop=True)
    return table if len({tuple(part.columns) for part in parts}) == 1 else _fields_together(table, study)


def _fields_together(table: pandas.DataFrame, study: Study) -> pandas.DataFrame:
    """The columns in their order, where some runs have fields that others have not: NaN in the rows of those."""
    fields = list(dict.fromkeys(name for settings in study.all_settings for name in settings))
    others = [str(name) for name in table.columns if name not in fields]
    return cast(Any, table)[["run", *fields, *(name for name in others if name != "run")]]


@dataclass(frozen=True)
class _JobRows:
    """What a job measured, and of which runs."""

    runs: Sequence[Settings]
    measured: Measured
    first_run: int

    @property
    def count(self) -> int:
        return len(self.measured.rows["run"])

    @property
    def columns(self) -> Hashable:
        """Equal where rows may stand in one array for each column."""
        fields = tuple(dict.fromkeys(name for settings in self.runs for name in settings))
        return fields, tuple(
            (name, values.dtype.str.rstrip("0123456789")) for name, values in self.measured.rows.items()
        )


def _together(jobs: Sequence[_JobRows]) -> pandas.DataFrame:
    import pandas

    statuses = [status for job in jobs for status in job.measured.statuses]
    about_runs = pandas.DataFrame([_flat(settings) for job in jobs for settings in job.runs])
    about_runs.insert(0, "run", np.concatenate([np.arange(len(job.runs)) + job.first_run for job in jobs]))
    about_runs["status"] = [status.word for status in statuses]
    about_runs["diverged_at"] = pandas.array([status.step for status in statuses], dtype="Int64")
    first_run = np.cumsum([0, *(len(job.runs) for job in jobs)])
    rows = {name: np.concatenate([job.measured.rows[name] for job in jobs]) for name in jobs[0].measured.rows}
    place = np.concatenate(
        [job.measured.rows["run"].astype(np.int64) + first for job, first in zip(jobs, first_run[:-1], strict=True)]
    )
    commits = [facts["commit"] for job in jobs for facts in job.measured.sessions]
    first_session = np.cumsum([0, *(len(job.measured.sessions) for job in jobs)])
    session = np.concatenate(
        [job.measured.session_of_row + first for job, first in zip(jobs, first_session[:-1], strict=True)]
    )
    table = cast(Any, about_runs.iloc[place]).reset_index(drop=True)
    table["commit"] = np.array(commits, dtype=object)[session]
    return table.assign(**{name: values for name, values in rows.items() if name != "run"})


def _flat(settings: Settings) -> dict[str, Any]:
    """Settings that a table can hold: a list becomes its JSON text."""
    return {name: json.dumps(value) if isinstance(value, list | dict) else value for name, value in settings.items()}


def export_to(folder: Path, form: str | None, out: Path | None) -> tuple[str, Path]:
    """The format and file of an export of `folder`, as far as they were asked for. The suffix of `out` says the format.

    >>> export_to(Path("runs/demo"), None, Path("rows.parquet"))[0], export_to(Path("runs/demo"), None, None)[0]
    ('parquet', 'csv')

    Raises `LabError` where the two disagree, where neither is a format, and where `out` is a file and no earlier export.
    """
    if form is not None and form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if out is None:
        return form or FORMATS[0], folder / f"rows.{form or FORMATS[0]}"
    suffix = out.suffix.lower().removeprefix(".")
    if form is None and suffix not in FORMATS:
        raise LabError(f"{out} does not end in .csv or .parquet: let it, or add --format csv or --format parquet")
    if form is not None and suffix in FORMATS and suffix != form:
        raise LabError(f"--format {form} and --out {out} contradict each other: leave one out")
    if not _may_be_replaced(out):
        raise LabError(f"{out} is there, and is no earlier export: give another --out")
    return form or suffix, out


def _may_be_replaced(file: Path) -> bool:
    """Whether there is no such file, or an empty one, or one with the columns that every export has."""
    if not file.is_file() or not file.stat().st_size:
        return True
    if is_parquet(file):
        from pyarrow import parquet  # pyright: ignore[reportMissingTypeStubs]

        try:
            columns: list[str] = cast(Any, parquet).read_schema(file).names
        except (OSError, ValueError):
            return False
    else:
        with open(file, encoding="utf-8", errors="replace") as text:
            columns = text.readline(1 << 16).rstrip("\r\n").split(",")
    return {*_ADDED} <= {*columns}


def export(study: Study, form: str, file: Path) -> int:
    """Write all rows to `file`; their number. A Parquet file also says which study it is of, in its `attrs`."""
    rows = with_attrs(study)
    if form == "csv":
        rows.to_csv(file, index=False)
    else:
        rows.to_parquet(file, index=False, compression="zstd", write_page_checksum=True)
    return len(rows)


def with_attrs(study: Study) -> pandas.DataFrame:
    """The rows, and in their `attrs` what they do not say: see `about`."""
    rows: Any = rows_of(study)
    columns = [str(name) for name in rows.columns]
    rows.attrs = about(study, measured=columns[columns.index("commit") + 1 :])
    return rows


def about(study: Study, measured: list[str]) -> dict[str, Any]:
    """What rows do not say: which study of which class they are, its columns, which of them weigh others, seconds of learning."""
    plan = study.plan
    records = [study.record(job) for job in study.jobs]
    return {
        "name": plan.name,
        "experiment": plan.experiment.shown,
        "profile": plan.profile,
        "measured": measured,
        **_told(study.reading),
        "seconds": round(sum(record.seconds for record in records if record), 1),
    }


def _told(reading: Reading) -> dict[str, Any]:
    return {"weights": reading.weights, "shares": list(reading.shares), "colors": reading.colors}


def check_runs(rows: pandas.DataFrame, file: Path) -> None:
    """Raise `LabError` where a run has several settings, or a row twice: the table is of two studies, or of one twice."""
    table: Any = rows
    several = (table.groupby("run")[config_fields(rows)].nunique(dropna=False) > 1).any(axis=1)
    if several.any():
        raise LabError(
            f"run {several.idxmax()} of {file} has rows of several settings: number the runs of two studies apart"
        )
    if table.duplicated().any():
        raise LabError(f"{file} has the same row twice: is it a study in two copies?")


ReadingOf: TypeAlias = Callable[[Mapping[Any, Any]], Reading]  # by an export's attrs: what it does not say itself


def nothing_more(attrs: Mapping[Any, Any]) -> Reading:
    """Exports of this version alone."""
    return Reading()


def rows_at(path: Path, reading_of: ReadingOf = nothing_more) -> pandas.DataFrame:
    """The rows of a study's folder, or of an exported file; in their `attrs` what they do not say, see `about`.

    `reading_of` tells of an export, which may be of the version before, what its fields are called now, and what else it does
    not say: a study knows it by itself. Raises `LabError` where `path` is neither, or has no rows.
    """
    return exported(path, reading_of) if path.is_file() else with_attrs(open_study(path))


def exported(file: Path, reading_of: ReadingOf = nothing_more) -> pandas.DataFrame:
    """The rows of an exported study, with its `attrs`. Raises `LabError` where the file is none."""
    import pandas

    if not is_parquet(file):
        raise LabError(f"{file} is no Parquet file: `pliant export DIR --format parquet` makes one")
    try:
        rows = pandas.read_parquet(file, page_checksum_verification=True)
    except Exception as error:  # what is damaged in it may raise nearly anything
        reason = shortened(error, 200) or type(error).__name__
        raise LabError(f"{file} cannot be read as Parquet: {reason}") from None
    if "measured" not in rows.attrs:
        raise LabError(
            f"{file} does not say which study it is of: `pliant export --format parquet` writes one that does"
        )
    fault = next(_faults(rows), None)
    if fault is not None:
        raise LabError(f"{file} is not as `pliant export` writes it: {fault}")
    reading = reading_of(rows.attrs)
    rows.attrs = {**_told(reading), "seconds": None, **rows.attrs}  # which not every export knows
    check_runs(rows, file)
    return rows.rename(columns=reading.renamed)


def _faults(rows: pandas.DataFrame) -> Iterator[str]:
    """What is wrong with a table that says it is an export, in words."""
    table: Any = rows
    columns = [str(name) for name in table.columns]
    yield from (f"it has the column {shortened(name)} twice" for name in columns if columns.count(name) > 1)
    yield from _faults_of_attrs(table.attrs, columns)
    lacking = [name for name in ("run", *RunConfig.model_fields, "status") if name not in columns]
    if lacking:
        yield f"it has no column {', '.join(lacking)}"
    if not len(table):
        yield "it has no rows"
    for name in ("run", "seed"):
        if table[name].dtype.kind not in "iu" or table[name].isna().any() or table[name].min() < 0:
            yield f"column {name} holds something else than whole numbers from 0 on"
    yield from (f"the status {shortened(word)} is none" for word in table["status"].unique() if word not in STATUSES)
    measured: list[str] = table.attrs["measured"]
    for name in columns:
        if table[name].dtype == object:
            known = (str,) if name in measured else (str, bool, int, float, type(None))
            other = next((value for value in table[name] if not isinstance(value, known)), None)
            if other is not None:
                yield f"column {name} holds {shortened(repr(other))}, a {type(other).__name__}"


def _faults_of_attrs(attrs: Mapping[Any, Any], columns: Sequence[str]) -> Iterator[str]:
    """What is wrong with what it says of its study."""
    measured, seconds = attrs.get("measured"), attrs.get("seconds")
    for name in ("name", "profile"):
        if not isinstance(attrs.get(name), str):
            yield f"it does not say its {name}"
    if not (
        isinstance(measured, list) and measured and all(isinstance(name, str) for name in cast(list[Any], measured))
    ):
        yield "it does not say which columns are measured"
        return
    lacking = [name for name in cast(list[str], measured) if name not in columns]
    if lacking:
        yield f"it has no column {', '.join(map(shortened, lacking))}"
    weights = attrs.get("weights", {})
    if not isinstance(weights, dict) or {*cast(Any, weights), *cast(Any, weights).values()} - {*cast(Any, measured)}:
        yield f"its weights {shortened(cast(Any, weights))} are of columns that it has not"
    shares, colors = attrs.get("shares", []), attrs.get("colors", {})
    if not isinstance(shares, list) or [name for name in cast(list[Any], shares) if name not in cast(Any, measured)]:
        yield f"its shares {shortened(repr(cast(Any, shares)))} are of columns that it has not"
    try:
        Reading(colors=colors)
    except ValidationError:
        yield f"its colors {shortened(repr(colors))} are none of methods, such as #0072B2"
    if not isinstance(seconds, int | float | NoneType):
        yield f"its seconds are {shortened(repr(seconds))}"
