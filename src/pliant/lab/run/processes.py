"""Worker processes: how they are started, here or on a node of a cluster, and what a runner asks of them."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, cast

from pliant.base.files import open_itself
from pliant.lab.errors import LabError
from pliant.lab.study.study import Job, Study

# One thread a process: jobs fill the cores, and sums that threads share out round differently. No
# hash of a string may differ between processes either: it decides the order of a set.
WORKER_ENVIRONMENT = {
    **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA", "NUMEXPR")},
    "VECLIB_MAXIMUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
}

Event: TypeAlias = dict[str, Any]


class Worker(Protocol):
    """Runs one job after another. It puts what is reported of them on the queue that it was given, beside itself; None when
    it has died.
    """

    job: Job | None

    def run(self, job: Job) -> None: ...

    def end(self) -> None:
        """At once; what is not committed is learnt again."""
        ...

    def cause_of_death(self) -> str: ...


Events: TypeAlias = "queue.Queue[tuple[Worker, Event | None]]"


class Crew(Protocol):
    """Where workers are."""

    @property
    def at_once(self) -> int:
        """How many work at a time."""
        ...

    @property
    def retries(self) -> int:
        """How often a job whose worker died is begun again, from its last checkpoint."""
        ...

    def start(self, study: Study, name: str, events: Events) -> Worker: ...


def start_process(folder: Path, log: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """A process that runs the jobs whose names it reads, and prints what happens (`pliant.lab.run.worker`)."""
    with _log_at(log) as errors:
        # -P: the current folder stays out of the module search path, where a file could hide a library
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "pliant.lab.run.worker", str(folder), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **environment, **WORKER_ENVIRONMENT},
            text=True,
            encoding="utf-8",
        )


def _log_at(path: Path) -> IO[bytes]:
    try:
        return open_itself(path, "ab")
    except OSError as error:
        raise LabError(f"cannot write {path}: {error.strerror or error}") from None


@dataclass(frozen=True)
class Here:
    """On this machine."""

    at_once: int
    retries: int = 0

    def start(self, study: Study, name: str, events: Events) -> Worker:
        return LocalWorker(study, name, events)


class LocalWorker:
    """A process of this machine, and the thread that forwards what it reports."""

    def __init__(self, study: Study, name: str, events: Events) -> None:
        self.job: Job | None = None
        self.log = study.log(name)
        self._process = start_process(study.folder, self.log, {})
        self._reader = threading.Thread(target=self._forward, args=(events,), daemon=True)
        self._reader.start()

    def _forward(self, events: Events) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            events.put((self, cast(Event, json.loads(line)) if line.endswith("\n") else None))
        events.put((self, None))  # it ended

    def run(self, job: Job) -> None:
        assert self._process.stdin is not None
        self.job = job
        with suppress(BrokenPipeError):  # where it has died, the end of its output says so
            self._process.stdin.write(job.name + "\n")
            self._process.stdin.flush()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):  # a job name that it did not live to read
                assert pipe is not None
                pipe.close()

    def cause_of_death(self) -> str:
        return f"its worker ended with status {self._process.wait()}, see {self.log}"
