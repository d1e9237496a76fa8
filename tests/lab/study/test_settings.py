"""Which runs a command asks for."""

import pytest
from pydantic import model_validator

from pliant.lab import LabError, RunConfig
from pliant.lab.study.settings import override_axis, seed_range, selected, whole_number, with_fields
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
