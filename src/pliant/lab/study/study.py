"""A study: a folder that says what runs, and holds what came of it.

    study.json          the experiment, every run's config, and how the runs are grouped into jobs
    study.lock          held by whoever runs the study; shard-1-of-2.lock by whoever runs that part of it
    jobs/000.sqlite     the rows of a job, and whose they are; jobs/000-17.safetensors its state after 17 advances
    jobs/000.lock       held by the worker at work on it
    logs/               what workers printed, and the traceback of a job that failed
    jobs.index          what finished jobs hold, for readers of many (`pliant.lab.stored.index`)

The grouping is decided once, from the configs alone, and kept: runs that learn side by side round
alike only if they always learn side by side. A job's file says what study.json said of it when it began: where the two no
longer agree, no row is told (`pliant.lab.stored.identity`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from itertools import count, pairwise
from pathlib import Path
from typing import Annotated, Any, TypeAlias
from uuid import uuid4

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from pliant.base.choices import shortened
from pliant.base.files import refuse_link, write_durably, write_first
from pliant.lab.errors import LabError
from pliant.lab.experiment import AnyExperiment, RunConfig, as_settings, canonical, config_kind, of_today
from pliant.lab.stored.files import is_parquet
from pliant.lab.stored.identity import Identity, changed_settings, names_job
from pliant.lab.stored.index import Index, Stamp
from pliant.lab.stored.records import Measured, Record, is_older, kept_identity, read, read_all, read_rows, read_state
from pliant.lab.stored.store import JobStore
from pliant.lab.study.labels import Labels
from pliant.lab.study.own_method import MethodTarget, refuse_changed, sha256_of
from pliant.lab.study.settings import why, with_fields
from pliant.lab.study.target import Target, load, load_alone

FORMAT = 2
OLDER = 1  # of studies whose job files did not say whose they are
RUNS_PER_JOB = 32  # at most: enough to vectorise over, few enough that a study fills the cores of a machine

Settings = dict[str, Any]  # a config as JSON


class Job(BaseModel, frozen=True):
    """Runs that learn side by side, in one process. Its name is part of the names of its files."""

    name: str = Field(pattern="^[0-9A-Za-z_]+$", max_length=64)
    runs: tuple[Settings, ...] = Field(min_length=1)

    @field_validator("runs")
    @classmethod
    def _say_what_they_are(cls, runs: tuple[Settings, ...]) -> tuple[Settings, ...]:
        for settings in runs:
            lacking = [name for name in RunConfig.model_fields if name not in settings]
            if lacking:
                raise ValueError(f"a run has no {' and no '.join(lacking)}")
            if not isinstance(settings["method"], str) or type(settings["seed"]) is not int or settings["seed"] < 0:
                method, seed = (shortened(repr(settings[name])) for name in ("method", "seed"))
                raise ValueError(f"a run has method {method} and seed {seed}, which are a name and a whole number")
        return runs


Color: TypeAlias = Annotated[str, Field(pattern=r"^#[0-9A-Fa-f]{6}$")]


class Reading(BaseModel, frozen=True):
    """What readers of the rows need to know of the experiment, so that its code need not run for them."""

    renamed: dict[str, str] = {}  # fields when the study began, and now
    weights: dict[str, str] = {}  # column -> the column that counts what it is a mean of
    shares: tuple[str, ...] = ()  # columns that are shares of a whole
    colors: dict[str, Color] = {}  # method -> its color in figures


class Plan(BaseModel, frozen=True, extra="forbid"):
    """The contents of study.json."""

    format: int = FORMAT
    id: str = ""  # names the study among all; those of format 1 have none
    name: str
    experiment: Target
    profile: str
    device: str
    created: str
    versions: dict[str, str]
    data: dict[str, str] = {}  # data set -> SHA-256 of its pixels and labels
    reading: Reading | None = None  # studies of before have none
    jobs: tuple[Job, ...] = ()

    @model_validator(mode="after")
    def _each_once(self) -> Plan:
        """Raise ValueError where two jobs would share a file, or one run would be told of as two."""
        names, runs = set[str](), set[str]()
        for job in self.jobs:
            if job.name.lower() in names:  # some file systems know no case
                raise ValueError(f"two jobs have the name {job.name}")
            names.add(job.name.lower())
            for settings in job.runs:
                if canonical(settings) in runs:
                    raise ValueError(
                        f"a run is listed twice: {settings['method']}, seed {settings['seed']}, in job {job.name}"
                    )
                runs.add(canonical(settings))
        return self


class Study:
    """A plan and its folder."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan

    @cached_property
    def experiment(self) -> AnyExperiment:
        """Its code is run when first asked for: rows are read without."""
        return load(self.plan.experiment)

    @property
    def reading(self) -> Reading:
        """What readers of rows need to know of the experiment. No code is run for it that is not shipped."""
        if "experiment" in self.__dict__:
            return reading_of(self.experiment)
        if self.plan.experiment.is_shipped:
            return reading_of(load_alone(self.plan.experiment))
        return self.plan.reading or Reading()

    @property
    def jobs(self) -> tuple[Job, ...]:
        return self.plan.jobs

    @property
    def run_count(self) -> int:
        return sum(len(job.runs) for job in self.jobs)

    @cached_property
    def labels(self) -> Labels:
        """What its runs and jobs are called. Where all runs have the same fields, no experiment need be imported."""
        runs = [settings for job in self.jobs for settings in job.runs]
        mixed = len({frozenset(settings) for settings in runs}) > 1
        return Labels(runs, self.reading.renamed if mixed else {})

    def settings(self, job: Job) -> list[Settings]:
        """Of the job's runs, under the names that fields have now; `job.runs` are as they were written."""
        try:
            return [of_today(settings, self.reading.renamed) for settings in job.runs]
        except ValueError as error:
            raise LabError(f"{self.folder}: {error}") from None

    @property
    def all_settings(self) -> list[Settings]:
        """Of all runs, under the names of now."""
        return [settings for job in self.jobs for settings in self.settings(job)]

    @property
    def lock_file(self) -> Path:
        return self.folder / "study.lock"

    def database(self, job: Job) -> Path:
        return self.folder / "jobs" / f"{job.name}.sqlite"

    @property
    def id(self) -> str:
        """Names the study among all."""
        return self.plan.id or f"begun {self.plan.created}"

    @property
    def code(self) -> str | None:
        """In words, which code is run when its experiment is asked for, if that is not shipped."""
        own = self.plan.experiment.own_code
        return f"{self.folder} runs code: {', '.join(own)}" if own else None

    @property
    def unsaid(self) -> str | None:
        """What readers of its rows should know: that an earlier version did not write down how to read them."""
        if self.plan.reading is not None or self.plan.experiment.is_shipped:
            return None
        return (
            f"{self.folder} does not say which columns weigh others, nor how fields are called now: rows are told without "
            "(`pliant resume` writes it down)"
        )

    @property
    def note(self) -> str | None:
        """What readers of its rows should know: that some are in files of an earlier version."""
        if not self.is_older or not any(is_older(self.database(job)) for job in self.jobs):
            return None
        return (
            f"{self.folder} was begun by an earlier version, whose job files do not say whose rows they hold: that they are "
            f"those of study.json is not checked (`pliant resume` writes it down as it is now)"
        )

    def identity(self, job: Job) -> Identity:
        """What the job's file has to say of itself."""
        plan = self.plan
        return Identity(
            study=self.id,
            job=job.name,
            name=plan.name,
            profile=plan.profile,
            experiment=plan.experiment.shown,
            device=plan.device,
            data=plan.data,
            runs=job.runs,
            methods={each.name: each.sha256 for each in self._own_methods(job)},
            older=self.is_older,
        )

    @cached_property
    def index(self) -> Index:
        """What earlier readers found in the files of finished jobs. Whoever reads them all saves it, see `save_index`."""
        return Index(self.folder / "jobs.index")

    def save_index(self) -> None:
        """Spare the next reader what this one had to read."""
        self.index.save(job.name for job in self.jobs)

    def record(self, job: Job) -> Record | None:
        """How far the job is; None where it has not begun. Raises LabError, as the next two, see `pliant.lab.stored.records`."""
        if self.is_older:
            return read(self.database(job), self.identity(job))
        stamp = Stamp.of(self.database(job))
        found = stamp and self.index.record(job.name, self._what(job), stamp)
        if found:
            return found
        found = self._read(job, stamp)
        return found[0] if found else None

    def has_ended(self) -> bool:
        """Whether no run goes on, or has still to begin."""
        return all(record is not None and record.is_done for record in map(self.record, self.jobs))

    def measured(self, job: Job) -> Measured | None:
        """Its rows."""
        if self.is_older:
            return read_rows(self.database(job), self.identity(job))
        stamp = Stamp.of(self.database(job))
        found = stamp and self.index.measured(job.name, self._what(job), stamp)
        if found:
            return found
        found = self._read(job, stamp)
        return found[1] if found else None

    def _read(self, job: Job, stamp: Stamp | None) -> tuple[Record, Measured] | None:
        found = read_all(self.database(job), self.identity(job))
        if found:
            self.index.note(job.name, self._what(job), stamp, *found)
        return found

    def _what(self, job: Job) -> str:
        """SHA-256 of all that the job's file has to say of itself."""
        return hashlib.sha256((self._head + job.name + "\n" + canonical(job.runs)).encode()).hexdigest()

    @cached_property
    def _head(self) -> str:
        """What is the same for all jobs, in a line."""
        plan, methods = self.plan, {each.name: each.sha256 for each in self.plan.experiment.methods}
        words = [self.id, plan.name, plan.profile, plan.experiment.shown, plan.device, plan.data, methods]
        return canonical(words) + "\n"

    def state(self, job: Job) -> dict[str, Any] | None:
        """The state after its last commit."""
        return read_state(self.database(job), self.identity(job))

    def store(self, job: Job) -> JobStore:
        """Its file, to be written to by whoever holds its lock."""
        return JobStore(self.database(job), len(job.runs), self.identity(job))

    def job_lock(self, job: Job) -> Path:
        return self.folder / "jobs" / f"{job.name}.lock"

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _own_methods(self, job: Job) -> list[MethodTarget]:
        """Those of a user's own by which its runs learn."""
        names = {settings["method"] for settings in job.runs}
        return [each for each in self.plan.experiment.methods if each.name in names]

    def configs(self, job: Job) -> list[RunConfig]:
        """The job's configs. Raises LabError where the experiment, or a user's method, is no longer as it was."""
        for each in self._own_methods(job):
            refuse_changed(each, sha256_of(each.file), "begin a new study")
        return [self._config(settings) for settings in job.runs]

    def _config(self, settings: Settings) -> RunConfig:
        kind = config_kind(self.experiment, settings["method"])
        try:
            config = kind.model_validate(settings)
        except ValidationError as error:
            raise LabError(f"{self.folder}: the experiment has changed: {why(error, kind)}") from None
        before = {**kind.added, **of_today(settings, kind.renamed)}
        changed = changed_settings(before, as_settings(config))
        if changed:
            raise LabError(f"{self.folder}: the experiment has changed since this study began: {changed}")
        return config

    def sealed(self) -> Study:
        """The study once all its job files say whose they are: from then on one that does not is none of its own."""
        return Study(self.folder, self.plan.model_copy(update={"format": FORMAT, "id": self.id}))

    @property
    def is_older(self) -> bool:
        """Whether it was begun before job files said whose they are."""
        return self.plan.format == OLDER

    def make_folders(self) -> None:
        """Make the folders that jobs and logs go to. Raises LabError where there are links in their places, or files."""
        for name in ("jobs", "logs"):
            place = self.folder / name
            try:
                refuse_link(place)
                place.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise LabError(f"cannot write {place}: {error.strerror or error}") from None

    def save(self) -> None:
        """Write study.json, and the folders that the rest goes to."""
        self.make_folders()
        write_durably(self.file, self._text)

    def save_first(self) -> bool:
        """Write study.json where there is none; whether there was none. Of several processes one alone does, without a lock."""
        try:
            is_first = write_first(self.file, self._text)
        except OSError as error:
            raise LabError(
                f"cannot write {self.file}: {error.strerror or error}. Where the file system has no hard links, let `pliant run` "
                "without --shard begin the study, stop it, and go on with `pliant resume --shard K/N`"
            ) from None
        self.make_folders()
        return is_first

    @property
    def file(self) -> Path:
        return self.folder / "study.json"

    @property
    def _text(self) -> bytes:
        return self.plan.model_dump_json(indent=1).encode()


def new_plan(name: str, experiment: Target, profile: str, device: str, versions: dict[str, str]) -> Plan:
    """A plan without runs."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Plan(
        id=uuid4().hex,
        name=name,
        experiment=experiment,
        profile=profile,
        device=device,
        created=created,
        versions=versions,
    )


def open_study(folder: Path) -> Study:
    """The study in `folder`. Raises LabError where there is none."""
    file = folder / "study.json"
    if is_parquet(folder):
        raise LabError(
            f"{folder} is an exported file: `pliant report` and `pliant plot` take it, the others a study's folder"
        )
    if folder.is_file():
        raise LabError(f"{folder} is a file: give a study's folder, as `pliant run NAME --out DIR` makes one")
    if not file.is_file():
        raise LabError(f"no study in {folder}: `pliant run NAME --out {folder}` makes one")
    try:
        content = json.loads(file.read_bytes())
        if type(content["format"]) is not int or content["format"] not in (OLDER, FORMAT):
            raise LabError(
                f"{file} has format {shortened(content['format'])}, this version of pliant reads {OLDER} and {FORMAT}"
            )
        plan = Plan.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise LabError(
            f"{file} is damaged: {shortened(where) + ': ' if where else ''}{shortened(first['msg'], 200)}: put it back as it was"
        ) from None
    except OSError as error:
        raise LabError(f"cannot read {file}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, LabError):
            raise
        raise LabError(f"{file} is damaged: {shortened(error)}: put it back as it was") from None
    study = Study(folder, plan)
    _refuse_unlisted(study)
    return study


def _refuse_unlisted(study: Study) -> None:
    """Raise LabError where rows of the study would be left out, as study.json has lost their job."""
    listed = {job.name for job in study.jobs}
    for file in sorted((study.folder / "jobs").glob("*.sqlite")):
        if file.stem not in listed and names_job(kept_identity(file), study.id, file.stem):
            raise LabError(
                f"{file} holds rows of this study, and study.json lists no job {file.stem}: put study.json back as it was, or "
                "move the file away"
            )


def reading_of(experiment: AnyExperiment) -> Reading:
    """What is to be written down of an experiment for readers of its rows."""
    told: dict[str, Any] = {
        name: getattr(experiment, name) for name in ("weights", "shares", "colors") if hasattr(experiment, name)
    }
    try:
        return Reading(renamed=dict(experiment.Config.renamed), **told)
    except ValidationError as error:
        first = error.errors()[0]
        where, given = ".".join(map(str, first["loc"])), shortened(repr(first["input"]))
        raise LabError(f"{where} of {type(experiment).__name__} is {given}: {first['msg']}") from None


def with_reading(study: Study) -> Study:
    """The study with what its readers need to know of its experiment, whose code is run."""
    return Study(study.folder, study.plan.model_copy(update={"reading": reading_of(study.experiment)}))


def begun(folder: Path, plan: Plan) -> Study:
    """The study that `folder` holds already, else a new one. Raises LabError where it holds another, or something else."""
    if not (folder / "study.json").exists():
        if folder.is_dir() and any(not _is_left_over(file.name) for file in folder.iterdir()):
            raise LabError(f"{folder} holds other files and no study: give another --out")
        return Study(folder, plan)
    study = open_study(folder)
    for word, old, new in [
        ("experiment", study.plan.experiment.address, plan.experiment.address),
        ("profile", study.plan.profile, plan.profile),
        ("device", study.plan.device, plan.device),
    ]:
        if old != new:
            raise LabError(f"{folder} holds a study with {word} '{old}', not '{new}': give another --out")
    return _joined_by(study, plan.experiment.methods)


def _is_left_over(name: str) -> bool:
    """Whether it may lie in the folder of a study whose making was interrupted."""
    is_lock = name == "study.lock" or (name.startswith("shard-") and name.endswith(".lock"))
    return is_lock or (name.startswith("study.") and name.endswith(".tmp.json"))


def _joined_by(study: Study, methods: Sequence[MethodTarget]) -> Study:
    """The study with these methods of a user's own too. Raises LabError where one has changed since it joined."""
    experiment = study.plan.experiment
    asked = {each.name: each for each in methods}
    for each in experiment.methods:
        if each.name in asked:
            refuse_changed(each, asked[each.name].sha256, "give another --out")
    together = {**{each.name: each for each in experiment.methods}, **asked}
    joined = experiment.model_copy(update={"methods": tuple(together.values())})
    return Study(study.folder, study.plan.model_copy(update={"experiment": joined}))


def with_runs(study: Study, configs: Sequence[RunConfig]) -> Study:
    """The study with those runs added that it lacks, in jobs of their own. Raises LabError where a setting changed."""
    _refuse_changes(study, configs)
    present = {canonical(settings) for settings in study.all_settings}
    missing = [config for config in configs if canonical(as_settings(config)) not in present]
    keys = [study.experiment.stack_key(config, study.plan.device) for config in missing]
    groups = grouped(missing, keys)
    taken = {job.name for job in study.jobs}
    names = (name for i in count(len(study.jobs)) if (name := f"{i:03d}") not in taken)
    added = [Job(name=name, runs=tuple(map(as_settings, group))) for name, group in zip(names, groups, strict=False)]
    return Study(study.folder, study.plan.model_copy(update={"jobs": (*study.jobs, *added)}))


def longer(study: Study, end: int) -> Study:
    """The study with runs that go on to `end`, in the experiment's `length`. Raises LabError where they cannot, or do already."""
    name = getattr(study.experiment, "length", None)
    if name is None:
        raise LabError(f"runs of {study.plan.name} cannot be made longer: `pliant run` longer ones, with another --out")
    runs = study.all_settings
    latest = max(settings[name] for settings in runs)
    if end <= latest:
        raise LabError(
            f"--to {end}: {study.folder} has runs of {latest} {name} already: give a larger number, or leave --to out"
        )
    told_apart = {canonical({**settings, name: end}) for settings in runs}
    if len(told_apart) < len({canonical(settings) for settings in runs}):
        raise LabError(f"--to {end}: runs of {study.folder} that differ in {name} alone would become the same")
    jobs = [
        Job(name=job.name, runs=tuple(as_settings(with_fields(config, {name: end})) for config in study.configs(job)))
        for job in study.jobs
    ]
    return Study(study.folder, study.plan.model_copy(update={"jobs": tuple(jobs)}))


def with_data(study: Study, found: Mapping[str, str]) -> Study:
    """The study with the hashes of the data sets it learns from. Raises LabError where one is not what it was."""
    for name, sha256 in found.items():
        before = study.plan.data.get(name, sha256)
        if before != sha256:
            raise LabError(
                f"{study.folder} learned from another '{name}' (SHA-256 {before[:12]}..., this one has {sha256[:12]}...): "
                "put that back, or give another --out"
            )
    return Study(study.folder, study.plan.model_copy(update={"data": {**study.plan.data, **found}}))


def grouped(configs: Sequence[RunConfig], keys: Sequence[Hashable], most: int = RUNS_PER_JOB) -> list[list[RunConfig]]:
    """Runs of equal keys together, in nearly equal groups of at most `most`; depends on nothing else."""
    alike: dict[Hashable, list[RunConfig]] = {}
    for config, key in zip(configs, keys, strict=True):
        try:
            hash(key)
        except TypeError as error:
            raise LabError(
                f"stack_key gave {shortened(key)}: {error}; give numbers, texts and tuples of them"
            ) from None
        alike.setdefault(key, []).append(config)
    return [part for group in alike.values() for part in _parts(group, -(-len(group) // most))]


def _parts(group: list[RunConfig], count: int) -> Iterable[list[RunConfig]]:
    edges = [len(group) * i // count for i in range(count + 1)]
    return (group[a:b] for a, b in pairwise(edges))


def _refuse_changes(study: Study, configs: Sequence[RunConfig]) -> None:
    """Seeds, methods and further values of a field may be added. A field whose old value is no longer
    asked for has been changed, and its runs do not belong beside the old ones."""
    before = _by_method(study.all_settings)
    for method, asked in _by_method([as_settings(config) for config in configs]).items():
        kept = before.get(method, {})
        if not (kept.keys() <= asked.keys() or asked.keys() <= kept.keys()):
            old = next(kept[key] for key in kept if key not in asked)
            new = next(asked[key] for key in asked if key not in kept)
            raise LabError(
                f"{study.folder} holds runs of '{method}' with other settings: {changed_settings(old, new)}; "
                "ask for the old values too, or give another --out"
            )


def _by_method(runs: Iterable[Settings]) -> dict[str, dict[str, Settings]]:
    """Method -> its settings without the seed, each once."""
    found: dict[str, dict[str, Settings]] = {}
    for settings in runs:
        seedless = {name: value for name, value in settings.items() if name != "seed"}
        found.setdefault(settings["method"], {})[canonical(seedless)] = seedless
    return found
