"""A worker process: runs one job after another, each from where it stands.

Started by the runner as `python -m pliant.lab.run.worker STUDY PARENT`. Job names come in on standard
input, one a line; what happened goes out on standard output, one JSON object a line. What the
experiment itself prints goes to the worker's log.

A worker does not outlive its runner, however that ends: on Linux the kernel sees to it at once,
elsewhere the end of standard input does.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pliant.base.files import open_itself
from pliant.lab.errors import LabError, ended
from pliant.lab.experiment import Context, State, checked_rows
from pliant.lab.run.promises import Promises
from pliant.lab.stored.files import Lock
from pliant.lab.stored.records import read
from pliant.lab.stored.store import JobStore, Table
from pliant.lab.study.facts import session_facts
from pliant.lab.study.study import Job, Study, open_study

Report = Callable[[dict[str, Any]], None]


def run_job(study: Study, job: Job, report: Report) -> None:
    """Advance the job from its last commit to its end, committing each advance. Nothing where it is at its end."""
    lock = Lock(study.job_lock(job), f"job {job.name} of {study.folder}")
    with lock, study.store(job) as store:
        record, stored = read(study.database(job)), store.state()
        if record is not None and record.is_done:
            return  # whoever held the lock before has ended it since it was handed out
        on_record = (record.statuses, record.steps_done) if record and stored is not None else None
        promises = Promises(resumed_state(study, job, stored), len(job.runs), on_record)
        store.begin_session(session_facts(study.plan.experiment))
        report(_progress(job, promises, {}))
        if not promises.goes_on:
            store.settle(promises.statuses)  # opened to be made longer, and then was not
        while promises.goes_on:
            report(_progress(job, promises, advance(study, promises, store)))


def resumed_state(study: Study, job: Job, stored: Mapping[str, Any] | None) -> State:
    """The state that was stored, or a fresh one."""
    data = os.environ.get("PLIANT_DATA")
    context = Context(device=study.plan.device, data=Path(data) if data else None)
    state: State = study.experiment.start(study.configs(job), context)
    if stored is not None:
        state.load_state_dict(stored)
    return state


def advance(study: Study, promises: Promises, store: JobStore) -> Table:
    """One advance, committed if it keeps what was promised; its rows."""
    began = time.perf_counter()
    rows = checked_rows(study.experiment.advance(promises.state), study.experiment.columns, promises.runs)
    seconds = time.perf_counter() - began
    state = promises.check_advance()
    # a film begins at the last state, and a longer run
    keep_last = any(hasattr(study.experiment, name) for name in ("watch", "length"))
    store.commit(rows, promises.statuses, promises.steps, state, seconds, keep_last)
    return rows


def _progress(job: Job, promises: Promises, rows: Table) -> dict[str, Any]:
    """What the runner shows of a job: how far it is, and the mean of what it measured last."""
    measured = {name: values for name, values in rows.items() if values.dtype.kind == "f" and np.isfinite(values).any()}
    return {
        "job": job.name,
        "event": "advanced",
        "steps": [*promises.steps],
        "diverged": [[run, s.step] for run, s in enumerate(promises.statuses) if s.word == "diverged"],
        "means": {name: float(values[np.isfinite(values)].mean()) for name, values in measured.items()},
    }


def main() -> None:
    """Serve the runner until it closes standard input or dies."""
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process: the runner answers it
    report = private_output()
    requests = requested_jobs()
    study = open_study(folder)
    jobs = {job.name: job for job in study.jobs}
    for name in requests:
        try:
            run_job(study, jobs[name], report)
            report({"job": name, "event": "finished"})
        except BaseException as error:  # also sys.exit(): a failed job is reported, and the next one runs
            why = f"{type(error).__name__}: {error}"
            if isinstance(error, SystemExit | LabError):
                why = str(ended(error) if isinstance(error, SystemExit) else error)
            report({"job": name, "event": "failed", "why": why, "log": logged(study.log(name), traceback.format_exc())})


def logged(path: Path, text: str) -> str | None:
    """Write a log; why that cannot be done, if it cannot: a disk may be full."""
    try:
        with open_itself(path, "wb") as file:
            file.write(text.encode(errors="replace"))
    except OSError as error:
        return error.strerror or str(error)
    return None


def die_with(parent: int) -> None:
    """Ask the kernel, where it can, to kill this process when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)


def private_output() -> Report:
    """A function that writes events to what was standard output, which from here on is the log."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def report(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    return report


def requested_jobs() -> Iterator[str]:
    """Job names from what was standard input. A thread reads on meanwhile: at its end the process ends, busy or not.

    From here on standard input is empty: an experiment that asks for something must not be given the name of a job.
    """
    names: queue.Queue[str] = queue.Queue()
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    sys.stdin = NoTerminal()

    def read() -> None:
        for line in requests:
            names.put(line.strip())
        os._exit(0)  # nothing is lost: what is not committed is learnt again

    threading.Thread(target=read, daemon=True).start()
    return iter(names.get, None)


class NoTerminal(io.TextIOBase):
    """Standard input of a worker. A breakpoint would wait for ever, so it raises, as `input()` does."""

    def readline(self, size: int | None = -1, /) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise RuntimeError(
            "the experiment asks for input, or has a breakpoint, and a worker has no terminal: call its start() and advance() "
            "from a script (docs/your-own-experiment.md)"
        )

    read = readline


if __name__ == "__main__":
    main()
