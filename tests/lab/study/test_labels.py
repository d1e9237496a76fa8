"""Names of curves in text: they say what tells one from another, and nothing that a method does not have."""

import pytest

from pliant.lab.study.labels import Labels, common_value, labels


def curves(fields, *rows):
    """Settings by the words of each row: method, then the values of `fields`."""
    names = ["method", *fields.split()]
    return [dict(zip(names, row, strict=True)) for row in rows]


def test_a_curve_says_the_fields_in_which_the_curves_of_its_method_differ():
    found = curves("step_size rate", ("bp", 0.1, 0.0), ("cbp", 0.1, 1e-4), ("cbp", 0.1, 1e-5), ("bp", 0.2, 0.0))
    assert labels(found) == ["bp step_size=0.1", "cbp rate=0.0001", "cbp rate=1e-5", "bp step_size=0.2"]


def test_a_method_of_one_curve_says_its_step_size_beside_others():
    found = curves("step_size decay", ("bp", 0.01, 0.0), ("l2", 0.003, 0.001))
    assert labels(found) == ["bp step_size=0.01", "l2 step_size=0.003 decay=0.001"]
    found = curves("step_size", ("bp", 0.01), ("bp", 0.003), ("cbp", 0.01), ("linear", 0.01))
    assert labels(found)[2:] == ["cbp step_size=0.01", "linear step_size=0.01"]


def test_what_one_method_alone_has_otherwise_only_it_says():
    betas = curves("beta_1", ("ppo", 0.9), ("tuned-adam", 0.99), ("l2", 0.9))
    assert labels(betas) == ["ppo", "tuned-adam beta_1=0.99", "l2"]


def test_a_word_that_one_method_alone_is_tried_with_the_others_do_not_say():
    found = curves(
        "utility", ("bp", "contribution"), ("cbp", "contribution"), ("cbp", "random"), ("l2", "contribution")
    )
    assert labels(found) == ["bp", "cbp utility=contribution", "cbp utility=random", "l2"]


@pytest.mark.parametrize(("field", "own", "others"), [("hidden_layers", 0, 3), ("activation", "linear", "relu")])
@pytest.mark.parametrize("methods", [("bp", "linear"), ("bp", "adam", "linear")])
def test_methods_are_plain_names_where_only_what_makes_one_differs(field, own, others, methods):
    found = curves(field, *((method, own if method == "linear" else others) for method in methods))
    assert labels(found) == list(methods)


def test_several_methods_with_values_of_their_own_are_all_named_with_them():
    found = curves("step_size", ("bp", 0.01), ("l2", 0.01), ("snp", 0.03), ("fresh", 0.02))
    assert labels(found) == ["bp step_size=0.01", "l2 step_size=0.01", "snp step_size=0.03", "fresh step_size=0.02"]


def test_a_value_that_a_single_method_has_is_not_common():
    assert common_value({"bp": ["0.1"], "l2": ["0.2"]}, is_number=True) is None
    assert common_value({"bp": ["0.1"], "snp": ["0.1"], "l2": ["0.2"]}, is_number=True) == "0.1"


@pytest.mark.parametrize("methods", [("a",), ("a", "b"), ("a", "b", "a", "b")])
def test_curves_that_differ_have_different_names(methods):
    values = [(0.1, "x", True), (0.1, "y", True), (0.2, "x", False), (0.2, "x", True)]
    found = curves("step_size kind bias", *((m, *own) for m, own in zip(methods, values, strict=False)))
    assert len(set(labels(found))) == len(found)


RUNS = [
    {"method": "bp", "seed": seed, "step_size": step_size, "hidden": [64, 64]}
    for seed in (0, 1, 3)
    for step_size in (0.1, 0.2)
]


def test_a_run_is_called_by_its_curve_and_seed():
    assert Labels(RUNS).of_run(RUNS[-1]) == "bp step_size=0.2  seed 3"


def test_a_job_is_called_by_all_its_curves_in_the_order_of_the_study():
    named = Labels([*RUNS, {"method": "cbp", "seed": 0, "step_size": 0.3, "hidden": [64, 64]}])
    assert named.of_job(RUNS[::-1]) == "bp step_size=0.1,0.2  6 runs, seeds 0-1,3"
    assert named.of_job(RUNS[:1]) == "bp step_size=0.1  seed 0"
    assert named.of_job(RUNS[:2]) == "bp step_size=0.1,0.2  2 runs, seed 0"


def test_a_list_is_named_like_any_other_value():
    wide = {**RUNS[0], "hidden": [256, 256]}
    assert Labels([RUNS[0], wide]).of_run(wide) == "bp hidden=[256, 256]  seed 0"
