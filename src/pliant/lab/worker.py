"""A worker process: runs one job after another, each from where it stands.

Started by the runner as `python -m pliant.lab.worker STUDY PARENT`. Job names come in on standard
input, one a line; what happened goes out on standard output, one JSON object a line. What the
experiment itself prints goes to the worker's log.

A worker does not outlive its runner, however that ends: on Linux the kernel sees to it at once,
elsewhere the end of standard input does.
"""

from __future__ import annotations

import ctypes
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

from pliant.lab.experiment import Context, State, checked_rows
from pliant.lab.facts import session_facts
from pliant.lab.files import Lock
from pliant.lab.store import JobStore, Table
from pliant.lab.study import Job, Study, open_study

Report = Callable[[dict[str, Any]], None]


def run_job(study: Study, job: Job, report: Report) -> None:
    """Advance the job from its last commit to its end, committing each advance."""
    lock = Lock(study.job_lock(job), f"job {job.name} of {study.folder}")
    with lock, study.store(job) as store:
        state = resumed_state(study, job, store.state())
        store.begin_session(session_facts(study.plan.experiment))
        report(_progress(job, state, {}))
        if not _goes_on(state):
            store.settle(state.statuses())  # opened to be made longer, and then was not
        while _goes_on(state):
            report(_progress(job, state, advance(study, job, state, store)))


def _goes_on(state: State) -> bool:
    return any(status.word == "running" for status in state.statuses())


def resumed_state(study: Study, job: Job, stored: Mapping[str, Any] | None) -> State:
    """The state that was stored, or a fresh one."""
    data = os.environ.get("PLIANT_DATA")
    context = Context(device=study.plan.device, data=Path(data) if data else None)
    state: State = study.experiment.start(study.configs(job), context)
    if stored is not None:
        state.load_state_dict(stored)
    return state


def advance(study: Study, job: Job, state: State, store: JobStore) -> Table:
    """One advance, committed; its rows."""
    began = time.perf_counter()
    rows = checked_rows(study.experiment.advance(state), study.experiment.columns, len(job.runs))
    seconds = time.perf_counter() - began
    steps = (int(state.steps_done), int(state.steps_total))
    # a film begins at the last state, and a longer run
    keep_last = any(hasattr(study.experiment, name) for name in ("watch", "length"))
    store.commit(rows, state.statuses(), steps, state.state_dict(), seconds, keep_last)
    return rows


def _progress(job: Job, state: State, rows: Table) -> dict[str, Any]:
    """What the runner shows of a job: how far it is, and the mean of what it measured last."""
    measured = {name: values for name, values in rows.items() if values.dtype.kind == "f" and np.isfinite(values).any()}
    return {
        "job": job.name,
        "event": "advanced",
        "steps": [int(state.steps_done), int(state.steps_total)],
        "diverged": [[run, s.step] for run, s in enumerate(state.statuses()) if s.word == "diverged"],
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
        except Exception as error:  # a failed job is reported, and the next one runs
            study.log(name).write_text(traceback.format_exc(), encoding="utf-8")
            report({"job": name, "event": "failed", "why": f"{type(error).__name__}: {error}"})


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
    """Job names from standard input. A thread reads on meanwhile: at its end the process ends, busy or not."""
    names: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            names.put(line.strip())
        os._exit(0)  # nothing is lost: what is not committed is learnt again

    threading.Thread(target=read, daemon=True).start()
    return iter(names.get, None)


if __name__ == "__main__":
    main()
