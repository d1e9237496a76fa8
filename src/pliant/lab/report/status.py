"""How far a study is, in lines of text. Reads only, also while the study runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from pliant.lab.experiment import RUNNING, RunStatus
from pliant.lab.run.progress import duration
from pliant.lab.run.shards import shards_at_work
from pliant.lab.stored.files import is_held, last_holder
from pliant.lab.stored.records import Record
from pliant.lab.study.labels import Labels
from pliant.lab.study.study import Job, Study

_LISTED = 20  # diverged runs named one by one

Found = list[tuple[Job, Record | None]]


def status_lines(study: Study) -> Iterator[str]:
    """The study in a line, then its jobs, then the runs that diverged."""
    found: Found = [(job, study.record(job)) for job in study.jobs]
    study.save_index()
    plan = study.plan
    yield f"{plan.name} / {plan.profile}   {study.run_count} runs in {len(study.jobs)} jobs   {study.folder}"
    yield from (_job_line(job, record, study.labels) for job, record in found)
    yield from _diverged_lines(found, study.labels)
    yield f"{_counts(found)}; {duration(sum(record.seconds for _, record in found if record))} of learning"
    held = is_held(study.lock_file)
    if held is None:
        yield f"  whether anybody is at work on it is not known: the file system of {study.folder} gives no locks"
    at_work = [last_holder(study.lock_file)] if held else shards_at_work(study.folder)
    yield from (f"  running now: {holder}" for holder in at_work)
    if not at_work and any(record is None or not record.is_done for _, record in found):
        yield f"  resume  pliant resume {study.folder}"


def counts_in_words(study: Study, jobs: Iterable[Job]) -> str:
    """Such as "4 of 5 finished, 1 diverged"."""
    found: Found = [(job, study.record(job)) for job in jobs]
    study.save_index()
    return _counts(found)


def _counts(found: Found) -> str:
    words = Counter(status.word for job, record in found for status in _statuses(job, record))
    diverged = f", {words['diverged']} diverged" if words["diverged"] else ""
    return f"{words['done']} of {sum(words.values())} finished{diverged}"


def _statuses(job: Job, record: Record | None) -> list[RunStatus]:
    return record.statuses if record else [RUNNING] * len(job.runs)


def _job_line(job: Job, record: Record | None, labels: Labels) -> str:
    name = f"  job {job.name}  {labels.of_job(job.runs)}"
    if record is None:
        return f"{name}   not begun"
    steps = f"steps {record.steps_done:,}/{record.steps_total:,}"
    return f"{name}   {steps}   {record.rows:,} rows   {duration(record.seconds)}"


def _diverged_lines(found: Found, labels: Labels) -> Iterator[str]:
    lines = [
        f"  {labels.of_run(job.runs[run])}   diverged at step {status.step:,}"
        for job, record in found
        for run, status in enumerate(_statuses(job, record))
        if status.word == "diverged"
    ]
    yield from lines[:_LISTED]
    if len(lines) > _LISTED:
        yield f"  and {len(lines) - _LISTED} more diverged"
