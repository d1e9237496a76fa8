"""`pliant run --log tensorboard | wandb | mlflow`: a study's rows in a tracker, as they are committed.

    run     each run of the study is one of the tracker, with its settings
    names   pliant/<column>, of columns of numbers; a value that is nan is left out
    step    the experiment's first column
    where   TensorBoard: DIR/tensorboard; W&B, MLflow: as their own variables say (WANDB_PROJECT, MLFLOW_TRACKING_URI, ...)

How many rows of a job the tracker has for sure is kept in DIR/trackers: a study that goes on sends the others. If it was killed,
some are sent twice: those of its last commit; W&B, which keeps rows in its own time, gets all of a job that was at work.
A tracker that fails ends no study: it is said once, and the rows are in the study.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pliant.base.choices import shortened
from pliant.base.files import refuse_link, replacing
from pliant.diagnostics.destinations import Destination, destinations
from pliant.lab.errors import LabError, unknown

if TYPE_CHECKING:
    from pliant.lab.run.progress import Board, Display, JobProgress
    from pliant.lab.run.shards import Shard
    from pliant.lab.study.study import Job, Study


@dataclass(frozen=True)
class Run:
    """One of a tracker's."""

    to: Any  # what `pliant.Monitor` takes as a tracker
    key: str  # by which it is found again
    end: Callable[[], object]
    flush: Callable[[], object] | None  # after which no row is lost with this process; None: the end alone is that


class Tracker(Protocol):
    """Makes runs. One that is there already, by its `known` key, goes on."""

    def run(self, name: str, settings: Mapping[str, Any], known: str) -> Run: ...


class _TensorBoard:
    def __init__(self, study: Study) -> None:
        self._writer: Any = import_module("torch.utils.tensorboard.writer").SummaryWriter
        self._folder = study.folder / "tensorboard"

    def run(self, name: str, settings: Mapping[str, Any], known: str) -> Run:
        name = known or re.sub(r"[^\w=.,+-]+", "_", name)
        for place in (self._folder, self._folder / name):
            refuse_link(place)
        writer = self._writer(str(self._folder / name), flush_secs=10)
        if not known:
            writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()))
        return Run(writer, name, writer.close, writer.flush)


class _WeightsAndBiases:
    def __init__(self, study: Study) -> None:
        self._wandb: Any = import_module("wandb")
        self._study = study

    def run(self, name: str, settings: Mapping[str, Any], known: str) -> Run:
        plan = self._study.plan
        key = known or sha256(f"{self._study.id} {name}".encode()).hexdigest()[:16]
        run = self._wandb.init(
            id=key,
            resume="allow",
            reinit="create_new",
            project=os.environ.get("WANDB_PROJECT") or "pliant",
            group=f"{plan.name} / {plan.profile}",
            name=name,
            config=dict(settings),
            dir=str(self._study.folder),
        )
        return Run(run, key, run.finish, None)


class _MLflow:
    def __init__(self, study: Study) -> None:
        self._client: Any = import_module("mlflow.tracking").MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or f"pliant {study.plan.name}"
        found: Any = self._client.get_experiment_by_name(name)
        self._experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._study = study.id

    def run(self, name: str, settings: Mapping[str, Any], known: str) -> Run:
        key = known
        if known:
            self._client.update_run(known, status="RUNNING")
        else:
            made = self._client.create_run(self._experiment, run_name=name, tags={"pliant.study": self._study})
            key = made.info.run_id
            for field_name, value in settings.items():
                self._client.log_param(key, field_name, value)
        return Run(_MLflowRun(self._client, key), key, lambda: self._client.set_terminated(key), lambda: None)


@dataclass
class _MLflowRun:
    """One of several at a time: the functions of `mlflow` itself are of the one that is active."""

    client: Any
    key: str

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.key, name, value, step=step)


TRACKERS: dict[str, Callable[[Study], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
    "mlflow": _MLflow,
}


def check_tracker(name: str) -> None:
    """Raise `LabError` for what is none, and `ModuleNotFoundError` where it is not installed."""
    if name not in TRACKERS:
        raise unknown("tracker", name, TRACKERS)
    import_module(name)  # called as the tracker is


@dataclass
class _Sent:
    """What a tracker has of a job: rows, and the ids of its runs."""

    rows: int = 0
    keys: list[str] = field(default_factory=list[str])


class Followed:
    """A display of a study's progress that sends what is committed to a tracker."""

    def __init__(self, shown: Display, study: Study, part: Shard, name: str) -> None:
        self._shown, self._study, self._name = shown, study, name
        self._jobs = part.jobs(study)
        self._tracker: Tracker | None = None
        self._open: dict[str, list[tuple[Run, Destination]]] = {}  # of jobs at work
        self._sent: dict[str, _Sent] = {}

    def __enter__(self) -> Followed:
        """What earlier starts have not sent, and the runs of the first job: a tracker that cannot be reached is an error now."""
        self._study.make_folders()
        try:
            self._tracker = TRACKERS[self._name](self._study)
            for job in self._jobs:
                self._send(job)
            first = next((job for job in self._jobs if not self._is_done(job)), None)
            if first is not None:
                self._runs(first)
        except (ModuleNotFoundError, LabError):
            raise
        except Exception as error:
            raise LabError(f"--log {self._name}: {_in_words(error)}") from error
        self._shown.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._shown.__exit__(kind, error, at)
        for job in self._jobs:
            self._try(lambda job=job: self._close(job))

    def show(self, board: Board, moved: JobProgress) -> None:
        self._shown.show(board, moved)
        self._try(lambda: self._send(moved.job))

    def say(self, text: str) -> None:
        self._shown.say(text)

    def _try(self, what: Callable[[], None]) -> None:
        if self._tracker is None:
            return
        try:
            what()
        except Exception as error:
            self._tracker = None
            self.say(
                f"  --log {self._name}: {_in_words(error)}; the study goes on, and no more is logged until it is resumed"
            )

    def _is_done(self, job: Job) -> bool:
        record = self._study.record(job)
        return record is not None and record.is_done

    def _send(self, job: Job) -> None:
        """The rows that the job has committed since it was last asked."""
        found, sent = self._study.measured(job), self._known(job)
        rows = found.rows if found is not None else {}
        new = len(rows.get("run", ())) - sent.rows
        if new:
            place = next(iter(self._study.experiment.columns))
            numbers = [
                name for name, values in rows.items() if values.dtype.kind in "biuf" and name not in ("run", place)
            ]
            for at in range(sent.rows, sent.rows + new):
                values = {f"pliant/{name}": float(rows[name][at]) for name in numbers if not np.isnan(rows[name][at])}
                _, destination = self._runs(job)[int(rows["run"][at])]
                destination.write([], values, int(rows[place][at]))
            sent.rows += new
            flushes = [run.flush for run, _ in self._runs(job)]
            for flush in filter(None, flushes):
                flush()
            if all(flushes):
                self._note(job)
        if job.name in self._open and self._is_done(job):
            self._close(job)

    def _runs(self, job: Job) -> list[tuple[Run, Destination]]:
        """The tracker's, in the order of the job's."""
        if job.name not in self._open and self._tracker is not None:
            sent, runs = self._known(job), list[Run]()
            for number, settings in enumerate(self._study.settings(job)):
                name = f"{self._study.labels.of_run(settings)}  ({job.name}.{number})"
                runs.append(self._tracker.run(name, settings, sent.keys[number] if sent.keys else ""))
            self._open[job.name] = [(run, destinations(run.to)[0]) for run in runs]
            sent.keys = [run.key for run in runs]
            if not sent.rows:
                self._note(job)
        return self._open[job.name]

    def _close(self, job: Job) -> None:
        if job.name in self._open:
            for run, _ in self._open.pop(job.name):
                run.end()
            self._note(job)

    def _file(self, job: Job) -> Path:
        return self._study.folder / "trackers" / self._name / f"{job.name}.json"

    def _known(self, job: Job) -> _Sent:
        """What an earlier start has sent."""
        if job.name not in self._sent:
            file = self._file(job)
            try:
                self._sent[job.name] = _Sent(**json.loads(file.read_text())) if file.exists() else _Sent()
            except (ValueError, TypeError) as error:
                raise LabError(
                    f"{file} is damaged: {shortened(error)}: remove it, and all rows are sent again"
                ) from None
        return self._sent[job.name]

    def _note(self, job: Job) -> None:
        file, sent = self._file(job), self._sent[job.name]
        for place in (file.parent.parent, file.parent):
            refuse_link(place)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as unfinished:
            unfinished.write_text(json.dumps({"rows": sent.rows, "keys": sent.keys}))


def _in_words(error: Exception) -> str:
    return shortened(f"{type(error).__name__}: {error}".replace("\n", " "), 300)
