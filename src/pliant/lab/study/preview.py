"""What would run, in lines of text: the jobs, the data sets, and what the profile says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pliant.lab.experiment import as_settings
from pliant.lab.study.labels import in_words
from pliant.lab.study.study import Job, Study


def preview_lines(study: Study, jobs: Sequence[Job], found: Callable[[str], str]) -> Iterator[str]:
    """The jobs of a study that would run, its data sets as `found` tells of them, how it differs from its profile. Opens and
    writes nothing.
    """
    for job in jobs:
        yield f"  job {job.name}  {study.labels.of_job(job.runs)}"
    for name in data_sets(study):
        yield f"  data     {found(name)}"
    changed = changes(study)
    if changed:
        yield f"  changed  {'; '.join(changed)}"
    yield f"  profile  {study.experiment.profiles[study.plan.profile]}{' (before these changes)' if changed else ''}"


def changes(study: Study) -> list[str]:
    """Fields with other values than in the profile's runs of these methods, such as "steps 4096, not 2048000"."""
    now = [config for job in study.jobs for config in study.configs(job)]
    methods = {config.method for config in now}
    before = [config for config in study.experiment.runs(study.plan.profile) if config.method in methods]
    settings = [[as_settings(config) for config in configs] for configs in (now, before)]
    found: list[str] = []
    for name in dict.fromkeys(name for config in now for name in type(config).model_fields):
        own, usual = (
            list(dict.fromkeys(in_words(each[name]) for each in configs if name in each)) for configs in settings
        )
        if {*own} != {*usual} and name not in ("method", "seed"):
            found.append(f"{name} {','.join(own)}, not {','.join(usual)}")
    return found


def data_sets(study: Study) -> list[str]:
    """The names of the data sets that the runs need."""
    of_config = getattr(study.experiment, "data_sets", None)
    if of_config is None:
        return []
    return sorted({name for job in study.jobs for config in study.configs(job) for name in of_config(config)})
