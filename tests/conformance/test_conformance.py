"""`pliant.conformance`: our methods and a plain implementation pass, and each known defect is told by its checks."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import pliant
from pliant.conformance import Report, Result, UnitResetAdapter, check
from pliant.conformance.checking import CHECKS, result_of
from pliant.conformance.ours import OfContinualBackprop, adapter_of
from tests.conformance.defects import FAILS
from tests.conformance.plain import Plain

BY_NAME = {each.name: each for each in CHECKS}
OF_UTILITY = {each.name for each in CHECKS if each.needs == "utility"}
AT_A_RATE = {each.name for each in CHECKS if each.needs == "rate"}


def failures(report):
    return {each.check: each.says for each in report.results if each.outcome == "failed"}


def not_applicable(report):
    return {each.check for each in report.results if each.outcome == "not applicable"}


# -- what is right passes -----------------------------------------------------------------------------------------------


def test_continual_backpropagation_passes_every_check():
    report = check(pliant.ContinualBackprop)
    assert failures(report) == {}
    assert not_applicable(report) == set()
    assert report.passed
    assert len(report.results) == len(CHECKS) == 29


@pytest.mark.parametrize(
    ("method", "apart"),
    [
        (pliant.RandomReplacement, OF_UTILITY),
        (pliant.ReDo, OF_UTILITY | AT_A_RATE | {"hand-over"}),
        (pliant.GraMa, OF_UTILITY | AT_A_RATE | {"hand-over"}),
        (pliant.SelfNormalizedResets, OF_UTILITY | AT_A_RATE | {"hand-over"}),
    ],
)
def test_our_other_resets_pass_all_that_apply(method, apart):
    report = check(method)
    assert failures(report) == {}
    assert not_applicable(report) == apart


def test_a_plain_implementation_passes_and_refuses_the_networks_it_is_not_made_for():
    report = check(Plain)
    assert failures(report) == {}
    assert not_applicable(report) == {"norm", "branches", "convolution"}
    assert {each.says for each in report.results if each.outcome == "not applicable"} == {
        "refused by it: chains of linear layers only"
    }


@pytest.mark.parametrize(
    ("setting", "fails"),
    [
        pytest.param({"utility": "adaptable_contribution"}, set(), marks=pytest.mark.slow),
        pytest.param({"count": "bernoulli"}, set(), marks=pytest.mark.slow),
        ({"eligible": "all"}, set()),
        pytest.param({"hand_over_mean": False}, set(), marks=pytest.mark.slow),
        pytest.param({"optimizer_state": "zero"}, set(), marks=pytest.mark.slow),
        ({"optimizer_state": "keep"}, {"state", "state-by-parameter"}),
        ({"optimizer_state": "fill"}, {"state", "state-by-parameter", "fresh-units-learn"}),
        ({"init": "xavier"}, {"incoming"}),
    ],
    ids=lambda each: " and ".join(sorted(each)) if isinstance(each, set) else str(each),  # sets have no order
)
def test_published_variants_pass_and_others_fail_where_they_differ(setting, fails):
    class Variant(OfContinualBackprop):
        hands_over = setting.get("hand_over_mean", True)
        draws_count = "count" in setting

        def settings_of(self, settings):
            return {**super().settings_of(settings), **setting}

    assert failures(check(Variant)).keys() == fails


# -- what is wrong fails ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("defect", FAILS, ids=lambda defect: defect.__name__)
def test_each_defect_is_told_by_its_checks(defect):
    outcomes = {name: result_of(BY_NAME[name], defect) for name in FAILS[defect]}
    assert {name: each.outcome for name, each in outcomes.items()} == dict.fromkeys(FAILS[defect], "failed")


def test_every_check_tells_a_defect():
    assert {name for names in FAILS.values() for name in names} == BY_NAME.keys()


@pytest.mark.parametrize(
    ("name", "defect", "says"),
    [
        ("least-useful", "MostUseful", "expected units 5, 2, 7, 0, in this order; found units 4, 1, 6, 3"),
        (
            "fractions",
            "TruncatesEachStep",
            "expected 59 to 61 of 2000 units replaced in 300 steps at rate 0.0001; found 0",
        ),
        ("maturity", "MatureOneStepEarly", "expected ages greater than 7; found unit 0 replaced at age 7"),
        ("hand-over", "HandsNothingOver", "expected the bias to change by 0.231, 0.231, -0.231; found 0, 0, 0"),
    ],
)
def test_a_failure_says_what_was_expected_and_found(name, defect, says):
    """By hand: 60 = 1e-4 x 2,000 x 300, less what two steps of immaturity take."""
    (kind,) = [each for each in FAILS if each.__name__ == defect]
    assert result_of(BY_NAME[name], kind).says == says


def test_one_that_never_replaces_anything_fails_and_does_not_pass_for_want_of_a_change():
    class Idle(UnitResetAdapter):
        def attach(self, settings):
            pass

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    report = check(Idle)
    assert {each.check for each in report.results if each.outcome == "passed"} == {"rate-zero", "hooks", "saved-once"}


# -- how it is run ------------------------------------------------------------------------------------------------------


def test_what_the_implementation_raises_is_a_failed_check():
    class Raises(Plain):
        def reset(self):
            raise KeyError("features")

    result = result_of(BY_NAME["least-useful"], Raises)
    assert (result.outcome, result.says) == ("failed", "expected no error; found KeyError: 'features'")


def test_units_are_those_that_the_adapter_tells_of():
    class Tells(Plain):
        def replaced(self):
            return {"0": [3]}

    assert result_of(BY_NAME["ties"], Tells).found == "units 3, 3, 3, 3, 3"


def test_random_states_are_afterwards_as_before():
    class Draws(Plain):
        def reset(self):
            torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
            super().reset()

    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert result_of(BY_NAME["global-random-state"], Draws).says.endswith("that of torch, numpy, random")
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002


def test_what_is_no_adapter_is_refused():
    for given in (pliant.L2, pliant.PartialResets, dict, 3, None):
        with pytest.raises(TypeError, match=r"no adapter: write a class derived from pliant\.conformance"):
            check(given)
    with pytest.raises(TypeError, match=r"does not say how to attach: write attach\(self, settings\)"):
        check(UnitResetAdapter)


def test_a_class_derived_from_one_of_ours_is_checked_as_it_is():
    class Mine(pliant.ReDo):
        pass

    adapter = adapter_of(Mine)
    assert (adapter.__name__, adapter.kind, adapter.selection) == ("Mine", Mine, "threshold")


def test_a_report_prints_as_a_table_and_gives_plain_values():
    results = [
        Result("rate", "fractions", "They add up.", "passed"),
        Result("weights", "norm", "It starts over.", "not applicable", reason="refused by it: no norms"),
        Result("weights", "others", "They stay.", "failed", expected="4", found="5"),
    ]
    report = Report("Mine", results)
    assert str(report).splitlines() == [
        "outcome         check",
        "passed          fractions  They add up.",
        "not applicable  norm       refused by it: no norms",
        "failed          others     expected 4; found 5",
        "",
        "Mine: 3 checks, 1 passed, 1 not applicable, 1 failed",
    ]
    assert not report.passed
    assert report.to_dict() == {"adapter": "Mine", "passed": False, "checks": report.records()}
    assert report.records()[2] == {
        "family": "weights", "check": "others", "specification": "They stay.", "outcome": "failed",
        "expected": "4", "found": "5", "reason": None,
    }  # fmt: skip


def test_the_page_lists_every_check_as_its_docstring_says_it():
    page = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text().replace("\\|", "¦")
    listed = re.findall(r"^\| (\w+) \| `([\w-]+)` \| (.*) \| (.*) \|$", page, flags=re.M)
    applies = {None: "all", "utility": "least useful", "rate": "least useful, random", "means": "hands over"}
    expected = [(each.family, each.name, each.specification.replace("|", "¦"), applies[each.needs]) for each in CHECKS]
    assert listed == expected


def test_every_check_is_specified_in_one_line():
    assert [each.name for each in CHECKS if not 20 < len(each.specification) <= 110] == []
