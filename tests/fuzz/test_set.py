"""Any `--set` of any field of any experiment: runs whose settings are what they were set to, or an error in a line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pliant.experiments import TABLE
from pliant.lab.errors import LabError
from pliant.lab.experiment import as_settings
from pliant.lab.study.labels import labels
from pliant.lab.study.settings import seed_range, selected
from pliant.lab.study.target import load, target
from tests.fuzz.odd import MANY, a_sentence, odd_texts

numbers = st.one_of(st.floats(), st.integers(), st.floats(0, 1), st.integers(0, 100)).map(lambda each: f"{each}")
values = st.one_of(
    st.lists(st.one_of(odd_texts, numbers), min_size=1, max_size=3).map(",".join), st.lists(st.integers(-1, 9)).map(str)
)


@pytest.mark.parametrize("name", TABLE)
@MANY
@given(data=st.data())
def test_a_field_has_the_value_that_it_was_set_to(name, data):
    experiment = load(target(TABLE[name].target))
    profile = data.draw(st.sampled_from(list(experiment.profiles)))
    fields = data.draw(st.lists(st.sampled_from(list(experiment.Config.model_fields)), min_size=1, max_size=2))
    overrides = [f"{field}={data.draw(values)}" for field in fields]
    try:
        configs = selected(experiment, profile, None, "0", overrides)
    except LabError as error:
        a_sentence(str(error))
        return
    assert len({*configs}) == len(configs)
    for config in configs:
        settings = json.loads(json.dumps(as_settings(config), allow_nan=False))
        again = type(config).model_validate(settings)
        assert again == config
        assert hash(again) == hash(config)
    names = labels([as_settings(config) for config in configs])
    assert len({*names}) == len({config.model_copy(update={"seed": 0}) for config in configs})


@MANY
@given(text=st.one_of(odd_texts, st.text("0123456789-, ", max_size=12)))
def test_seeds_are_whole_numbers_or_refused(text):
    try:
        seeds = seed_range(text)
    except LabError as error:
        a_sentence(str(error))
        return
    assert seeds
    assert len({*seeds}) == len(seeds)
    assert all(type(seed) is int and seed >= 0 for seed in seeds)
