"""Where the rows of a report come from: versions, machines, commit, data, cost, failures, and the command that makes them again.

Of an exported file only what it holds is known. No code that a study's folder names is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pliant.lab.report.page import Origin
from pliant.lab.report.summary import Summary, ranges
from pliant.lab.run.progress import duration
from pliant.lab.study.study import Study, open_study


def origin(paths: Sequence[Path], found: Summary, question: str, note: str, refresh: int) -> Origin:
    """Of a summary of `paths`. A study whose runs have all ended is not to be refreshed."""
    facts: dict[str, str] = {}
    studies = [open_study(path) for path in paths if not path.is_file()]
    facts["rows"] = ", ".join(map(str, paths))
    facts["seeds"] = ranges(found.seeds) or "none"
    if found.seconds:
        facts["cost"] = f"{duration(found.seconds)} of learning"
    for study in studies:
        head = f"{study.folder.name}: " if len(studies) > 1 else ""
        facts |= {head + name: text for name, text in _facts(study)}
    if len(studies) < len(paths):
        facts["machines, versions, failures"] = "not told by an exported file"
    going_on = any(not study.has_ended() for study in studies) if refresh else False
    return Origin(question, facts, _command(found, studies), note, refresh if going_on else 0)


def _facts(study: Study) -> Iterator[tuple[str, str]]:
    plan = study.plan
    yield "begun", plan.created
    yield "versions", ", ".join(f"{name} {version}" for name, version in plan.versions.items())
    measured = [found for job in study.jobs if (found := study.measured(job)) is not None]
    sessions = [session for each in measured for session in each.sessions]
    for fact in ("commit", "machine"):
        values = dict.fromkeys(session.get(fact, "") for session in sessions)
        yield fact, ", ".join(filter(None, values)) or "not known"
    if plan.data:
        yield "data", ", ".join(f"{name} (SHA-256 {digest[:12]})" for name, digest in plan.data.items())
    words = [status.word for each in measured for status in each.statuses]
    diverged, done = words.count("diverged"), words.count("done")
    yield "runs", f"{done} finished, {diverged} diverged, {study.run_count - diverged - done} not finished"


def _command(found: Summary, studies: Sequence[Study]) -> str:
    """Of the study that the rows are of; its settings beside the profile's own are in the page's table."""
    if len(studies) == 1:
        plan = studies[0].plan
        name = plan.name if plan.experiment.is_shipped else plan.experiment.shown
        return f"pliant run {name} --profile {plan.profile} --seeds {ranges(found.seeds)}"
    return "" if studies else f"pliant run {found.name} --profile {found.profile} --seeds {ranges(found.seeds)}"
