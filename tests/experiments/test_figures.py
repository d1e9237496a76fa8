"""The figure of every experiment draws a line for each setting, whichever field it differs in: never the mean of two."""

import json
import re
from functools import cache
from typing import get_args

import pandas
import pytest
from pydantic import ValidationError

from pliant.experiments import TABLE
from pliant.lab.study.target import load, target

LEVELS = (0.9, 0.5)  # of all that is measured, in the one setting and the other
TOGETHER = {"body": {"padding": 0}}  # what a field asks of another
WHOLE = {"stage": 2, "last": 1}  # rows of warm starting that its figure shows


def candidates(value, annotation):
    """Other values of a field."""
    if get_args(annotation) and isinstance(value, str):
        return [other for other in get_args(annotation) if other != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, tuple):
        return [tuple(2 * each for each in value)]
    if isinstance(value, str):
        return ["another"]
    return [value * 2, value / 2, value + 0.01] if isinstance(value, float) else [value * 2, value // 2, value + 1]


@cache
def one_of_each_method(experiment):
    """Configs, from whichever profile has the method."""
    runs = (config for profile in reversed(experiment.profiles) for config in experiment.runs(profile))
    return list({config.method: config for config in runs}.values())


def pair_differing_in(experiment, field):
    """Two configs that differ in that field alone, of the first method that admits it."""
    annotation = experiment.Config.model_fields[field].annotation
    for each in one_of_each_method(experiment):
        config = type(each).model_validate({**each.model_dump(), **TOGETHER.get(field, {})})
        for other in candidates(getattr(config, field), annotation):
            try:
                changed = type(config).model_validate({**config.model_dump(), field: other})
            except ValidationError:
                continue
            if changed != config:
                return config, changed
    raise AssertionError(f"no setting of {field} could be changed")


def rows(experiment, config, run, level):
    """Rows as a study has them, all that is measured at one level."""
    flat = {
        name: json.dumps(value) if isinstance(value, list) else value
        for name, value in config.model_dump(mode="json").items()
    }
    place = next(iter(experiment.columns))
    at = {name: [1, 2, 3] for name in {place, "epoch", "classes"} if name in experiment.columns}
    measured = {name: WHOLE.get(name, at.get(name, level)) for name in experiment.columns}
    facts = {"status": "done", "diverged_at": None, "commit": "c"}
    return pandas.DataFrame({"run": run, **flat, **facts, **measured}, index=range(3))


@pytest.mark.parametrize("name", TABLE)
def test_bands_of_shares_end_at_0_and_at_1_or_100_percent(name):
    """Student's interval of 0.01 and 0.99 goes from -5.7 to 6.7. That of a bootstrap never leaves 0 to 1."""
    experiment = load(target(TABLE[name].target))
    config = one_of_each_method(experiment)[0]
    tables = [rows(experiment, config, run, level).assign(seed=run) for run, level in enumerate([0.01, 0.99])]
    axes = experiment.figure(pandas.concat(tables, ignore_index=True)).axes
    ends = {each.get_ylabel(): own for each in axes if (own := heights_of_bands(each))}
    assert {*experiment.shares} <= {*experiment.columns}
    for label, own in ends.items():
        if re.search("^(?!.*less that).*(share|accuracy|, %|\\(%)", label):
            assert 0 <= min(own) < max(own) <= (100 if "%" in label else 1), label


def heights_of_bands(axes):
    return [y for band in axes.collections for path in band.get_paths() for y in path.vertices[:, 1]]


def axes_labels(axes):
    return axes.get_xlabel(), axes.get_ylabel()


def fields():
    experiments = {name: load(target(entry.target)) for name, entry in TABLE.items()}
    drawn = {type(experiment).figure: name for name, experiment in reversed(experiments.items())}  # each figure once
    for name in drawn.values():
        experiment = experiments[name]
        for field in experiment.Config.model_fields:
            if field not in ("method", "seed"):
                yield pytest.param(experiment, field, id=f"{name}-{field}")


@pytest.mark.parametrize(("experiment", "field"), list(fields()))
def test_the_figure_has_a_line_for_each_of_two_settings_that_differ_in_any_field(experiment, field):
    pair = pair_differing_in(experiment, field)
    tables = [rows(experiment, *one) for one in zip(pair, range(2), LEVELS, strict=True)]
    figure = experiment.figure(pandas.concat(tables, ignore_index=True))
    first = [axes for axes in figure.axes if axes_labels(axes) == axes_labels(figure.axes[0])]
    lines = [line for axes in first for line in axes.get_lines()]
    heights = sorted({float(value) for line in lines for value in line.get_ydata()})
    assert len(lines) == 2
    assert [height / heights[-1] for height in heights] == pytest.approx([LEVELS[1] / LEVELS[0], 1])
