"""Whose rows a job file holds: what `study.json` said of the job when it began, kept in the file and compared at every reading.

A job file in the place of another, of another study, or beside a `study.json` that was edited would have its rows told of a
run that did not measure them. What decides the rows is compared: experiment, device, data sets, and every setting of every
run of the job, whose learning side by side decides how they round. Which folder the study lies in, and where an experiment
of one's own lies, is left out: both may be moved.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pliant.lab.errors import LabError
from pliant.lab.experiment import canonical


@dataclass(frozen=True)
class Identity:
    """A job of a study, and all that decides its rows."""

    study: str  # names it among all studies
    job: str
    name: str  # of the experiment on the command line
    profile: str
    experiment: str  # its address, without folders
    device: str
    data: Mapping[str, str]  # data set -> SHA-256, of those that the study knew of then
    runs: tuple[Mapping[str, Any], ...]  # the settings of each
    methods: Mapping[str, str] = field(
        default_factory=dict[str, str]
    )  # of a user's own, by which runs learn -> SHA-256
    older: bool = False  # whether the study was begun before job files said whose they are, so that one may not

    def text(self) -> str:
        """As it is kept in the job file."""
        content = asdict(self)
        del content["older"]
        if not self.methods:  # as before there were any
            del content["methods"]
        return canonical(content)


def refuse_other(path: Path, kept: Sequence[str | None], expected: Identity) -> None:
    """Raise LabError where the job file at `path` is of none of the jobs `kept` in it that `study.json` takes it for.

    Two are kept while runs are made longer: as they were, and as they are to be.
    """
    reasons = [why_other(each, expected) for each in kept if each is not None]
    if all(reasons):
        reason = reasons[0] if reasons else "does not say whose it is"
        raise LabError(
            f"{path} {reason}. Put back what was changed, or move {path.name} away to start job {expected.job} anew"
        )


def why_other(kept: str, expected: Identity) -> str:
    """In words, how the job that is written in a job file differs from the one expected; empty where it does not."""
    found = _read(kept)
    if found is None:
        return "does not say whose it is"
    if found.study != expected.study:
        return f"is of another study: job {found.job} of {found.name} / {found.profile}"
    if found.job != expected.job:
        return f"is the file of job {found.job}"
    differing = "; ".join(_differing(found, expected))
    return f"holds other runs than study.json says: {differing}" if differing else ""


def names_job(kept: str | None, study: str, job: str) -> bool:
    """Whether what is written in a job file names this job of this study."""
    found = None if kept is None else _read(kept)
    return found is not None and (found.study, found.job) == (study, job)


def _read(kept: str) -> Identity | None:
    try:
        return Identity(**json.loads(kept))
    except (TypeError, ValueError):
        return None


def _differing(found: Identity, expected: Identity) -> Iterator[str]:
    """In words, what a job learned with and what it is said to have learned with, as far as they differ."""
    words = ("name", "profile", "experiment", "device")
    same, now = ({word: getattr(each, word) for word in words} for each in (found, expected))
    data = {name: expected.data.get(name, "absent") for name in found.data}  # others may have come to the study since
    changes = (changed_settings(*pair) for pair in ((same, now), (found.data, data), (found.methods, expected.methods)))
    yield from filter(None, changes)
    if len(found.runs) != len(expected.runs):
        yield f"{len(found.runs)} runs were learned, {len(expected.runs)} are listed"
        return
    for place, (old, new) in enumerate(zip(found.runs, expected.runs, strict=True)):
        changes = changed_settings(old, new)
        if changes:
            yield f"of run {place} ({old['method']}, seed {old['seed']}) {changes}"


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Such as "drift was 0.01, is 0.5"; empty where they are equal."""
    names = [
        name
        for name in {**old, **new}
        if canonical(old.get(name)) != canonical(new.get(name)) or (name in old) != (name in new)
    ]
    return ", ".join(f"{name} was {old.get(name, 'absent')}, is {new.get(name, 'absent')}" for name in names)
