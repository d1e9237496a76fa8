"""One study out of several folders: parts of a study that ran where no folder is shared, or studies of other runs.

All are of one experiment, profile, device and data, by versions of it that know the same fields. A job that several folders
hold is taken once: from where it is further, if it measured the same in all of them as far as each came. Jobs keep their
runs, and so their rows, to the bit; where two have one name, the second gets another. An unfinished job comes with its state.

Sources are only read. Files of jobs are copied first, then checked, then given the identity that they have in the merged
study; its folder appears when all of it is there.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from pliant.base.choices import shortened
from pliant.base.files import sync_folder
from pliant.lab.errors import LabError
from pliant.lab.experiment import canonical
from pliant.lab.stored.files import is_held, last_holder
from pliant.lab.stored.records import Measured, Record, read_all
from pliant.lab.stored.store import take_in
from pliant.lab.study.study import Job, Plan, Settings, Study, open_study

_WORDS = {"name": "experiment", "profile": "profile", "device": "device"}


def merged(folders: Sequence[Path], out: Path) -> tuple[Study, list[str]]:
    """The study of all these folders, in the new folder `out`, and what is to be known of its rows.

    Raises LabError, and makes none, where they do not fit together.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LabError(f"{out} is there, and holds something: give another --out")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise LabError(f"{', '.join(map(str, folders))}: the same folder twice")
    sources = [_source(folder) for folder in folders]
    for other in sources[1:]:
        _refuse_other_kind(sources[0], other)
    homes = _homes(sources)
    with _appearing(out) as place:
        study = Study(place, _plan(sources, homes))
        study.save()
        for job, candidates in zip(study.jobs, homes.values(), strict=True):
            _take(study, job, candidates)
    return Study(out, study.plan), list(_notes(sources))


def _source(folder: Path) -> Study:
    study = open_study(folder)
    if study.is_older:
        raise LabError(f"{folder} was begun by an earlier version: `pliant resume {folder}` brings it up to date")
    for lock in (study.lock_file, *sorted(folder.glob("shard-*.lock"))):
        if is_held(lock):
            raise LabError(f"{folder} is being run by {last_holder(lock)}: wait for it, or stop it")
    return study


def _refuse_other_kind(first: Study, other: Study) -> None:
    """Raise LabError where the two are not of one experiment, of one version, on one kind of device, from the same data."""
    one, two = first.plan, other.plan
    pairs = {word: (getattr(one, name), getattr(two, name)) for name, word in _WORDS.items()}
    pairs["code"] = (one.experiment.shown, two.experiment.shown)
    shared = one.data.keys() & two.data.keys()
    pairs |= {f"data set '{name}' (SHA-256)": (one.data[name], two.data[name]) for name in sorted(shared)}
    methods = ({each.name: each.sha256 for each in plan.experiment.methods} for plan in (one, two))
    mine, theirs = methods
    pairs |= {f"method '{name}' (SHA-256)": (mine[name], theirs[name]) for name in sorted(mine.keys() & theirs.keys())}
    if one.reading is not None and two.reading is not None:
        pairs["names of fields"] = (one.reading.renamed, two.reading.renamed)
        pairs["weights of columns"] = (one.reading.weights, two.reading.weights)
    fields = (_fields(study) for study in (first, other))
    known, found = fields
    pairs |= {f"fields of '{method}'": (known[method], found[method]) for method in known if method in found}
    for what, (here, there) in pairs.items():
        if here != there:
            raise LabError(
                f"{first.folder} and {other.folder} are no parts of one study: {what} {_shown(here)} and {_shown(there)}"
            )


def _fields(study: Study) -> dict[str, list[str]]:
    """Method -> the fields of its runs."""
    return {settings["method"]: sorted(settings) for job in study.jobs for settings in job.runs}


def _shown(value: Any) -> str:
    return shortened(value if isinstance(value, str) else canonical(value), 200)


def _notes(sources: Sequence[Study]) -> Iterator[str]:
    """Versions that differ, in words."""
    for package in sorted({name for study in sources for name in study.plan.versions}):
        found = {study.plan.versions.get(package, "absent"): study.folder for study in reversed(sources)}
        if len(found) > 1:
            told = ", ".join(f"{version} in {folder}" for version, folder in reversed(found.items()))
            yield f"{package} was {told}: rows of the two may differ in their last bits"


Homes = dict[str, list[tuple[Study, Job]]]  # the runs of a job -> who has it, in the order of the sources


def _homes(sources: Sequence[Study]) -> Homes:
    """Raises LabError where a run is in two jobs of different runs: beside others it may have learned otherwise."""
    homes: Homes = {}
    of_run: dict[str, tuple[str, Study, Job]] = {}  # a run -> its job
    for study in sources:
        for job in study.jobs:
            key = canonical(job.runs)
            homes.setdefault(key, []).append((study, job))
            for settings in job.runs:
                other, there, beside = of_run.setdefault(canonical(settings), (key, study, job))
                if other != key:
                    raise LabError(
                        f"{_named(settings)} is in job {beside.name} of {there.folder} and in job {job.name} of "
                        f"{study.folder}, beside other runs: leave one of the two folders out"
                    )
    return homes


def _named(settings: Settings) -> str:
    return f"the run of {settings['method']}, seed {settings['seed']}"


def _plan(sources: Sequence[Study], homes: Homes) -> Plan:
    plans = [study.plan for study in sources]
    ids = {plan.id for plan in plans}
    code = next((p.experiment for p in plans if p.experiment.file and p.experiment.file.is_file()), plans[0].experiment)
    methods = {each.name: each for plan in reversed(plans) for each in plan.experiment.methods}
    jobs, used = list[Job](), set[str]()
    wanted = {home[0][1].name.lower() for home in homes.values()}
    free = (name for n in count(len(wanted)) if (name := f"{n:03d}") not in wanted)
    for home in homes.values():
        job = home[0][1]
        if job.name.lower() in used:
            job = job.model_copy(update={"name": next(free)})
        used.add(job.name.lower())
        jobs.append(job)
    return plans[0].model_copy(
        update={
            "id": ids.pop() if len(ids) == 1 else uuid4().hex,
            "experiment": code.model_copy(update={"methods": tuple(methods.values())}),
            "created": min(plan.created for plan in plans),
            "data": {name: sha256 for plan in plans for name, sha256 in plan.data.items()},
            "reading": next((plan.reading for plan in plans if plan.reading is not None), None),
            "jobs": tuple(jobs),
        }
    )


def _take(study: Study, job: Job, candidates: Sequence[tuple[Study, Job]]) -> None:
    """The job's file, from the folder in which it is furthest. Raises LabError where two measured something else."""
    taken: tuple[str, Record, Measured] | None = None
    for source, theirs in candidates:
        if not source.database(theirs).exists():
            continue
        with TemporaryDirectory(dir=study.folder) as scratch:
            place = Path(scratch) / f"{job.name}.sqlite"
            if not take_in(source.database(theirs), place, source.identity(theirs), study.identity(job)):
                continue
            found = read_all(place, study.identity(job))
            assert found is not None
            label = f"job {theirs.name} of {source.folder}"
            if taken is not None:
                difference = _difference(taken[1:], found)
                if difference:
                    raise LabError(
                        f"{taken[0]} and {label} are of the same runs ({_named(job.runs[0])}), and measured otherwise: "
                        f"{difference}. Leave out the folder that is wrong"
                    )
            if taken is None or _reach(found[0]) > _reach(taken[1]):
                for old in study.database(job).parent.glob(f"{job.name}-*.safetensors"):
                    old.unlink()
                for file in Path(scratch).iterdir():
                    file.replace(study.folder / "jobs" / file.name)
                taken = (label, *found)
    sync_folder(study.folder / "jobs")


def _reach(record: Record) -> tuple[bool, int, int]:
    return record.is_done, record.rows, record.advances


def _difference(one: tuple[Record, Measured], other: tuple[Record, Measured]) -> str:
    """In words, how far as both came, what the two measured otherwise; empty where they did not."""
    (shorter, first), (longer, second) = sorted((one, other), key=lambda found: found[0].rows)
    if shorter.is_done and longer.rows > shorter.rows:
        return f"one ends after {shorter.rows} rows, the other goes on"
    if first.rows and first.rows.keys() != second.rows.keys():
        return f"columns {', '.join(sorted(first.rows.keys() ^ second.rows.keys()))}"
    for name, values in first.rows.items():
        unlike = _unlike(values, second.rows[name][: len(values)])
        if unlike is not None:
            return f"column {name}, row {unlike}: {values[unlike]!s} and {second.rows[name][unlike]!s}"
    for run, (mine, theirs) in enumerate(zip(shorter.statuses, longer.statuses, strict=True)):
        may_go_on = theirs.word == "running" and shorter.rows == longer.rows  # it ended without a row more
        if mine.word != "running" and mine != theirs and not may_go_on:
            return f"run {run} is {mine.word} and {theirs.word}"
    return ""


def _unlike(one: NDArray[Any], other: NDArray[Any]) -> int | None:
    """The first place where two columns differ in a bit."""
    if one.dtype == other.dtype and len(one):
        first, second = (np.ascontiguousarray(each).view(np.uint8).reshape(len(each), -1) for each in (one, other))
        differ = (first != second).any(axis=1)
    else:  # texts of other lengths; numbers of another type, where both came as far
        differ = (one != other) & ~((one != one) & (other != other))
    return int(differ.argmax()) if differ.any() else None


@contextmanager
def _appearing(out: Path) -> Generator[Path]:
    """A folder to be filled, that is at `out` when the block ends, and nowhere where it fails."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
            yield Path(scratch) / "study"
            if out.is_dir():
                out.rmdir()
            (Path(scratch) / "study").replace(out)
        sync_folder(out.parent)
    except OSError as error:
        raise LabError(f"cannot write {error.filename or out}: {error.strerror or error}") from None
