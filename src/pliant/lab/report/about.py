"""What an experiment offers, in lines of text: its profiles, the fields that `--set` takes, the columns that it measures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from textwrap import wrap

from pliant.lab.experiment import AnyExperiment, own_configs
from pliant.lab.study.settings import allowed

_WIDTH = 120


def experiment_lines(name: str, question: str, experiment: AnyExperiment) -> Iterator[str]:
    """All that can be asked of an experiment, and all that it measures."""
    fields = experiment.Config.model_fields
    yield f"{name}   {question}".rstrip()
    yield "profiles"
    yield from _table((profile, *_profile(experiment, profile)) for profile in experiment.profiles)
    yield "fields, for --set field=value"
    yield from _table(
        (field, allowed(info), info.description or "")
        for field, info in fields.items()
        if field not in ("method", "seed")
    )
    for method, kind in own_configs(experiment).items():
        yield f"fields of method {method}, for --set field=value"
        yield from _table(
            (field, allowed(info), info.description or "")
            for field, info in kind.model_fields.items()
            if field not in fields
        )
    yield "columns"
    yield from _table((column, meaning) for column, meaning in experiment.columns.items())


def _profile(experiment: AnyExperiment, profile: str) -> tuple[str, str]:
    """What a profile says of itself, and its methods."""
    configs = experiment.runs(profile)
    methods = ", ".join(dict.fromkeys(str(config.method) for config in configs))
    return experiment.profiles[profile], f"{len(configs)} runs of {methods}"


def _table(entries: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """A name, then its texts, each on lines of its own, one below the other."""
    table = list(entries)
    if not table:
        return
    width = max(len(name) for name, *_ in table)
    for name, *texts in table:
        lines = [line for text in texts for line in wrap(text, _WIDTH - width - 4)] or [""]
        for head, line in zip([name, *[""] * (len(lines) - 1)], lines, strict=True):
            yield f"  {head:{width}}  {line}".rstrip()
