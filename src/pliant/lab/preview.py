"""What would run, in lines of text: the jobs, the data sets, and what the profile says of itself."""

from __future__ import annotations

from collections.abc import Iterator

from pliant.lab.study import Study


def preview_lines(study: Study) -> Iterator[str]:
    """The jobs of a study, then its data sets, then its profile. Nothing is opened, fetched or written."""
    for job in study.jobs:
        yield f"  job {job.name}  {study.labels.of_job(job.runs)}"
    for name in data_sets(study):
        yield f"  data     {data_in_words(name)}"
    yield f"  profile  {study.experiment.profiles[study.plan.profile]}"


def data_sets(study: Study) -> list[str]:
    """The names of the data sets that the runs need."""
    of_config = getattr(study.experiment, "data_sets", None)
    if of_config is None:
        return []
    return sorted({name for job in study.jobs for config in study.configs(job) for name in of_config(config)})


def data_in_words(name: str) -> str:
    """A data set's name and where it is, or what it takes to have it."""
    from pliant.data import CATALOG, where

    place, entry = where(name), CATALOG.get(name)
    if place is not None:
        return f"{name}: {place}"
    if entry is not None and entry.files:
        return f"{name}: not here, {sum(file.megabytes for file in entry.files):.0f} MB will be fetched"
    return f"{name}: not here, and a run is refused; to get it: {entry.how if entry else f'pliant data add {name} FOLDER-OR-ZIP'}"
