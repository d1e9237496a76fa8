"""Which runs a command asks for."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import Field, model_validator

from pliant.lab import LabError, RunConfig
from pliant.lab.study.settings import allowed, override_axis, seed_range, selected, whole_number, with_fields
from tests.toy_experiment import Config, Toy

TOY = Toy()


def cells(**asked):
    return [(c.method, c.step_size, c.seed) for c in selected(TOY, "quick", **asked)]


def test_a_profile_alone_is_its_own_runs():
    assert selected(TOY, "quick") == TOY.runs("quick")


def test_methods_keep_some_of_the_runs():
    assert {method for method, _, _ in cells(methods="nlms")} == {"nlms"}
    assert cells(methods="nlms,lms") == cells()


def test_seeds_replace_the_profiles_seeds():
    assert cells(methods="nlms", seeds="5,7-8") == [("nlms", s, seed) for s in (0.5, 0.1) for seed in (5, 7, 8)]


def test_an_axis_repeats_every_cell_and_equal_runs_collapse():
    asked = cells(methods="lms", seeds="0", overrides=["step_size=0.1,0.2"])
    assert asked == [("lms", 0.1, 0), ("lms", 0.2, 0)]  # the profile's two step sizes have become the same


def test_an_override_is_read_as_its_fields_type():
    (config, *_) = selected(TOY, "tiny", overrides=["steps=400", "note=none", "drift=1e-3"])
    assert (config.steps, config.note, config.drift) == (400, None, 0.001)
    assert selected(TOY, "tiny", overrides=["steps=4e2"])[0].steps == 400
    assert whole_number("--to", "9007199254740993") == 9007199254740993


class Layered(RunConfig):
    method: str = "m"
    hidden: tuple[int, ...] = (64, 32)


def test_a_list_that_is_not_one_is_told_how_to_write_one():
    name, values = override_axis("hidden=[8,4]", Layered)
    assert with_fields(Layered(), {name: values[0]}).hidden == (8, 4)
    with pytest.raises(LabError, match=r"hidden is a list in brackets, such as \[64,64\] \(default \[64,32\]\)"):
        with_fields(Layered(), {"hidden": "8"})


class Divided(RunConfig):
    method: str = "m"
    steps: int = 100
    bin: int = 50

    @model_validator(mode="after")
    def _whole_bins(self):
        if self.steps % self.bin:
            raise ValueError(f"steps ({self.steps}) must be a multiple of bin ({self.bin})")
        return self


def test_fields_that_depend_on_each_other_are_set_together():
    assert with_fields(Divided(), {"steps": "9", "bin": "3"}) == Divided(steps=9, bin=3)
    with pytest.raises(LabError, match=r"^steps=9 bin=2: steps \(9\) must be a multiple of bin \(2\)$"):
        with_fields(Divided(), {"steps": "9", "bin": "2"})


def test_commas_in_brackets_do_not_part_values():
    assert override_axis("note=[1, 2],[3]", Config) == ("note", [[1, 2], [3]])


@pytest.mark.parametrize(("text", "seeds"), [("3", [3]), ("0-2", [0, 1, 2]), ("4,1-2,4", [4, 1, 2])])
def test_seeds_are_numbers_and_ranges(text, seeds):
    assert seed_range(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-", "-1", "1.5", "5-2", "0-999999999", "1,,2"])
def test_other_seeds_are_refused(text):
    with pytest.raises(LabError, match="--seeds"):
        seed_range(text)


# -- as it is typed --------------------------------------------------------------------------------------------------------


class Listing(RunConfig):
    method: Literal["a", "b"] = "a"
    sizes: list[int] = Field(default_factory=lambda: [4, 4])
    words: set[str] = Field(default_factory=lambda: {"one", "two", "three"})
    table: dict[str, list[float]] = Field(default_factory=dict)
    pairs: frozenset[tuple[int, int]] = frozenset({(2, 1), (1, 2)})
    rate: float = 0.1
    steps: int = 1
    text: str = ""


class Lists:
    Config = Listing
    columns: ClassVar = {"step": "", "x": ""}
    profiles: ClassVar = {"quick": ""}

    def runs(self, profile):
        return [Listing(method=method) for method in "ab"]


def test_spaces_around_names_and_seeds_are_no_part_of_them():
    found = selected(Lists(), "quick", "a, b", "0, 2 - 3", ["rate = 0.1, 0.2"])
    assert [(run.method, run.rate, run.seed) for run in found] == list(product("ab", (0.1, 0.2), (0, 2, 3)))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("rate=0.1,steps=2", "repeat --set, as in --set rate=... --set steps=..."),
        ("rate=0.1, steps = 2", "repeat --set, as in --set rate=... --set steps=..."),
        ("text=x,steps=2", "repeat --set, as in --set text=... --set steps=..."),
        ("sizes=[1,2],rate=0.1", "repeat --set, as in --set sizes=... --set rate=..."),
    ],
)
def test_two_fields_in_one_set_are_refused_with_how_to_set_both(text, hint):
    with pytest.raises(LabError) as refused:
        selected(Lists(), "quick", overrides=[text])
    assert hint in str(refused.value)


def test_what_looks_like_a_field_and_is_none_is_a_value():
    assert [run.text for run in selected(Lists(), "quick", "a", None, ["text=x,y=2"])] == ["x", "y=2"]


def test_lists_sets_and_mappings_are_set_in_brackets():
    (run,) = selected(
        Lists(), "quick", "a", None, ["sizes=[1,2]", 'words=["b","a"]', 'table={"x,y":[1,2.5]}', "pairs=[[3,4]]"]
    )
    assert (run.sizes, run.words, run.table, run.pairs) == ([1, 2], {"a", "b"}, {"x,y": [1.0, 2.5]}, {(3, 4)})
    axis = selected(Lists(), "quick", "a", None, ["sizes=[1,2],[3]", 'table={"a":[1]},{"b":[2]}'])
    assert [(run.sizes, run.table) for run in axis] == list(product([[1, 2], [3]], [{"a": [1.0]}, {"b": [2.0]}]))


LONG = [
    "[" * 3000,
    "[" * 100_000,
    "x" * 10_000,
    "1" * 5000,
    "1e999",
    "{" * 3000,
    '{"a":' * 3000,
    "[1,",
    "]",
    "nan",
]


@pytest.mark.parametrize("value", LONG, ids=lambda value: value[:8])
@pytest.mark.parametrize("field", ["sizes", "words", "table", "pairs", "rate", "steps", "x" * 5000])
def test_what_cannot_be_a_value_is_refused_in_a_line_of_bounded_length(field, value):
    with pytest.raises(LabError) as refused:
        selected(Lists(), "quick", overrides=[f"{field}={value}"])
    assert len(str(refused.value)) < 900
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "seeds", ["1" * 5000, "0-" + "9" * 5000, "x" * 9999, ",", "", "١", "0-99999,100000-199999", "1e3", "-1"]
)
def test_what_are_no_seeds_is_refused_in_a_line_of_bounded_length(seeds):
    with pytest.raises(LabError) as refused:
        selected(Lists(), "quick", seeds=seeds)
    assert len(str(refused.value)) < 400


def test_configs_with_lists_sets_and_mappings_are_told_apart_and_hash():
    first, same, other = Listing(), Listing(words={"two", "three", "one"}), Listing(table={"a": [1.0]})
    assert first == same
    assert hash(first) == hash(same)
    assert len({first, same, other, Listing(sizes=[4, 4, 4])}) == 3


def test_a_set_reads_the_same_in_every_process():
    code = (
        "from pliant.lab.experiment import as_settings; from tests.lab.study.test_settings import Listing; "
        "print(as_settings(Listing()))"
    )
    command, root = [sys.executable, "-c", code], Path(__file__).parents[3]
    said = {
        subprocess.run(
            command, capture_output=True, text=True, cwd=root, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in "0123"
    }
    assert len(said) == 1, said
    assert "'words': ['one', 'three', 'two'], 'table': {}, 'pairs': [[1, 2], [2, 1]]" in said.pop()


def test_defaults_are_printed_as_they_are_typed():
    said = [allowed(Listing.model_fields[name]) for name in ("sizes", "words", "table", "pairs")]
    assert said == [
        "a list in brackets, such as [64,64] (default [4,4])",
        'a list in brackets, such as [64,64] (default ["one","three","two"])',
        'a mapping in braces, such as {"a":1} (default {})',
        "a list in brackets, such as [64,64] (default [[1,2],[2,1]])",
    ]
