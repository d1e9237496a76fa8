"""Runs a study's unfinished jobs in worker processes, a few at a time.

The runner computes nothing. It hands out job names, shows what workers report, and replaces a
worker that died. All that matters is in the job files, so it may itself die at any moment.
"""

from __future__ import annotations

import queue
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import cast

from pliant.base.choices import shortened
from pliant.lab.run.processes import Crew, Event, Events, Worker
from pliant.lab.run.progress import Board, Display, JobProgress
from pliant.lab.run.shards import ALL, Shard
from pliant.lab.stored.files import Lock
from pliant.lab.stored.records import Record
from pliant.lab.stored.store import adopt
from pliant.lab.study.study import Job, Study, longer

_PATIENCE = 10.0  # seconds for a job whose runner was just killed to be let go


@dataclass
class Outcome:
    """How a start of a study ended."""

    failed: dict[str, str] = field(default_factory=dict[str, str])  # job -> why


def taken_over(study: Study, part: Shard = ALL) -> Study:
    """The study after a look at the files of a part's jobs; in one of an earlier version, all jobs are given identity and
    checksums as they are.

    The caller is `at_work` on the part. Raises LabError where a file is of another job, or not as it was written; then none
    of them has been changed.
    """
    for job in study.jobs if study.is_older else part.jobs(study):
        study.record(job)
    if not study.is_older:
        return study
    study.make_folders()
    for job in study.jobs:
        if study.database(job).is_file():
            with Lock(study.job_lock(job), f"job {job.name} of {study.folder}", _PATIENCE):
                adopt(study.database(job), study.identity(job))
    found = study.sealed()
    found.save()
    return found


def make_longer(study: Study, end: int) -> Study:
    """The study with runs that go on to `end`, written down. The caller holds the study's lock. Raises LabError, see `longer`.

    Jobs are opened before the plan is written: one that dies in between leaves a study of the old length, which `resume` ends.
    """
    found = longer(study, end)
    with ExitStack() as held:
        for job in study.jobs:
            held.enter_context(Lock(study.job_lock(job), f"job {job.name} of {study.folder}", _PATIENCE))
        begun = {job.name: record for job in study.jobs if (record := study.record(job)) is not None}
        stores = {job.name: held.enter_context(study.store(job)) for job in study.jobs if job.name in begun}
        for name, store in stores.items():
            if begun[name].is_done:
                store.check_kept()
        for job in found.jobs:
            if job.name in stores:
                stores[job.name].lengthen(found.identity(job), reopen=begun[job.name].is_done)
        found.save()
    return found


def run_study(study: Study, crew: Crew, display: Display, part: Shard = ALL) -> Outcome:
    """Run what is unfinished of a part. The caller is `at_work` on it. Raises `Held` where a worker still runs a job."""
    study.make_folders()
    records = {job.name: study.record(job) for job in part.jobs(study)}
    for job in part.jobs(study):
        if not is_done(records[job.name]):
            with Lock(study.job_lock(job), f"job {job.name} of {study.folder}", _PATIENCE):
                records[job.name] = study.record(job)  # a worker whose runner was killed may have ended it
    with ExitStack() as workers:
        return _Run(study, part, records, crew, display, workers).until_done()


def is_done(record: Record | None) -> bool:
    return record is not None and record.is_done


class _Run:
    """One start of a study: which jobs wait, which are at work, which failed."""

    def __init__(
        self,
        study: Study,
        part: Shard,
        records: Mapping[str, Record | None],
        crew: Crew,
        display: Display,
        workers: ExitStack,
    ) -> None:
        self.study = study
        self.part = part
        self.waiting = deque(job for job in part.jobs(study) if not is_done(records[job.name]))
        self.crew = crew
        self.deaths = Counter[str]()  # of workers, by their jobs
        self.display = display
        self.workers = workers
        self.started = 0
        self.busy = 0
        self.events: Events = queue.Queue()
        self.known_to_diverge = {job.name: set[int]() for job in part.jobs(study)}
        self.board = Board({job.name: self._progress(job, records[job.name]) for job in part.jobs(study)})
        self.outcome = Outcome()

    def _progress(self, job: Job, record: Record | None) -> JobProgress:
        label = self.study.labels.of_job(job.runs)
        if record is None:
            return JobProgress(job, label)
        self.known_to_diverge[job.name] |= {run for run, s in enumerate(record.statuses) if s.word == "diverged"}
        fraction = 1.0 if record.is_done else record.steps_done / max(1, record.steps_total)
        return JobProgress(job, label, fraction, (record.steps_done, record.steps_total))

    def until_done(self) -> Outcome:
        for _ in range(min(self.crew.at_once, len(self.waiting))):
            self._hand_out(self._new_worker())
        while self.busy:
            try:
                worker, event = self.events.get(timeout=0.5)  # a wait without end could not be interrupted on Windows
            except queue.Empty:
                continue
            self._note(worker, event)
        return self.outcome

    def _new_worker(self) -> Worker:
        worker = self.crew.start(self.study, f"{self.part.prefix}worker-{self.started}", self.events)
        self.workers.callback(worker.end)
        self.started += 1
        return worker

    def _hand_out(self, worker: Worker) -> None:
        worker.job = None
        if self.waiting:
            self.busy += 1
            worker.run(self.waiting.popleft())

    def _note(self, worker: Worker, event: Event | None) -> None:
        if event is None:
            self._bury(worker)
        elif event["event"] == "advanced":
            self._say_who_diverged(event)
            self.display.show(self.board, self.board.moved(event))
        else:
            self._end_of_job(worker, event)

    def _end_of_job(self, worker: Worker, event: Event) -> None:
        self.busy -= 1
        if event["event"] == "failed":
            job = self.board.jobs[event["job"]].job
            log = self.study.log(job.name)
            seen = f"and {log} cannot be written: {event['log']}" if event["log"] else f"see {log}"
            why = event["why"] if len(event["why"]) < 500 else shortened(event["why"], 500)
            self._fail(job, f"{why.replace(chr(10), ' ')}, {seen}")
        else:
            one = self.board.ended(event["job"], finished=True)
            self.display.show(self.board, one)
            self.display.say(f"{one.line()}   finished{self.board.left_in_words() if self.busy else ''}")
        self._hand_out(worker)

    def _bury(self, worker: Worker) -> None:
        if worker.job is None:
            return
        self.busy -= 1
        job, why = worker.job, worker.cause_of_death()
        worker.job = None
        self.deaths[job.name] += 1
        if self.deaths[job.name] <= self.crew.retries:
            self.waiting.appendleft(job)
            self.board.ended(job.name, finished=False)
            self.display.say(f"  job {job.name}  {why}; it is begun again from its last checkpoint")
        else:
            self._fail(job, why)
        if self.waiting:
            self._hand_out(self._new_worker())

    def _fail(self, job: Job, why: str) -> None:
        self.outcome.failed[job.name] = why
        self.board.ended(job.name, finished=False)
        self.display.say(f"  job {job.name}  failed")

    def _say_who_diverged(self, event: Event) -> None:
        job = self.board.jobs[event["job"]].job
        for run, step in cast(list[tuple[int, int]], event["diverged"]):
            if run not in self.known_to_diverge[job.name]:
                self.known_to_diverge[job.name].add(run)
                self.display.say(f"  {self.study.labels.of_run(job.runs[run])}   diverged at step {step:,}")
