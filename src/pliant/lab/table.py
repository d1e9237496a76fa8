"""All rows of a study as one long table: a row's run, its config, what became of it, and what was measured.

run | method seed step_size ... | status diverged_at commit | the experiment's columns
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas and matplotlib are typed in part)

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pliant.lab.errors import LabError
from pliant.lab.records import Measured, read, read_rows
from pliant.lab.study import Job, Settings, Study

if TYPE_CHECKING:
    import pandas

FORMATS = ("csv", "parquet")


def rows_of(study: Study) -> pandas.DataFrame:
    """The committed rows of every job, in the order of the plan; also while the study runs."""
    import pandas

    parts: list[pandas.DataFrame] = []
    first_run = 0
    for job in study.jobs:
        measured = read_rows(study.database(job))
        if measured is not None and measured.rows:
            parts.append(_job_rows(job, measured, first_run))
        first_run += len(job.runs)
    if not parts:
        raise LabError(f"{study.folder} has no rows yet: `pliant status {study.folder}` says how far it is")
    return pandas.concat(parts, ignore_index=True)


def _job_rows(job: Job, measured: Measured, first_run: int) -> pandas.DataFrame:
    import pandas

    run = measured.rows["run"]
    about_runs = pandas.DataFrame([_flat(settings) for settings in job.runs])
    about_runs.insert(0, "run", np.arange(first_run, first_run + len(job.runs)))
    about_runs["status"] = [status.word for status in measured.statuses]
    about_runs["diverged_at"] = pandas.array([status.step for status in measured.statuses], dtype="Int64")
    table = cast(Any, about_runs.iloc[run]).reset_index(drop=True)
    table["commit"] = np.array([facts["commit"] for facts in measured.sessions], dtype=object)[measured.session_of_row]
    return table.assign(**{name: values for name, values in measured.rows.items() if name != "run"})


def _flat(settings: Settings) -> dict[str, Any]:
    """Settings that a table can hold: a list becomes its JSON text."""
    return {name: json.dumps(value) if isinstance(value, list | dict) else value for name, value in settings.items()}


def export(study: Study, form: str, file: Path) -> int:
    """Write all rows to `file`; their number. A Parquet file also says which study it is of, in its `attrs`."""
    rows = with_attrs(study)
    if form == "csv":
        rows.to_csv(file, index=False)
    else:
        rows.to_parquet(file, index=False, compression="zstd")
    return len(rows)


def with_attrs(study: Study) -> pandas.DataFrame:
    """The rows, and in their `attrs` what they do not say: see `about`."""
    rows: Any = rows_of(study)
    rows.attrs = about(study)
    return rows


def about(study: Study) -> dict[str, Any]:
    """What rows do not say: which study they are of, which columns it measured, and its seconds of learning."""
    plan = study.plan
    records = [read(study.database(job)) for job in study.jobs]
    return {
        "name": plan.name,
        "profile": plan.profile,
        "measured": list(study.experiment.columns),
        "seconds": round(sum(record.seconds for record in records if record), 1),
    }


def exported(file: Path) -> pandas.DataFrame:
    """The rows of an exported study, with its `attrs`."""
    import pandas

    try:
        rows = pandas.read_parquet(file)
    except (OSError, ValueError) as error:
        raise LabError(f"{file} cannot be read as Parquet: {error}") from None
    if "measured" not in rows.attrs:
        raise LabError(
            f"{file} does not say which study it is of: `pliant export --format parquet` writes one that does"
        )
    return rows
