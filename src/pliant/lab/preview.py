"""What would run, in lines of text: the jobs, the data sets, and what the profile says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pliant.lab.study import Study


def preview_lines(study: Study, found: Callable[[str], str]) -> Iterator[str]:
    """The jobs of a study, then its data sets as `found` tells of them, then its profile. Nothing is opened or written."""
    for job in study.jobs:
        yield f"  job {job.name}  {study.labels.of_job(job.runs)}"
    for name in data_sets(study):
        yield f"  data     {found(name)}"
    yield f"  profile  {study.experiment.profiles[study.plan.profile]}"


def data_sets(study: Study) -> list[str]:
    """The names of the data sets that the runs need."""
    of_config = getattr(study.experiment, "data_sets", None)
    if of_config is None:
        return []
    return sorted({name for job in study.jobs for config in study.configs(job) for name in of_config(config)})
