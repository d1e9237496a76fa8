"""What a curve is: all runs that differ in the seed alone, whatever the field in which others differ."""

import numpy as np
import pandas
import pytest

from pliant.lab.curves import fields_that_differ, in_words, less_reference, settings, with_curves
from pliant.lab.errors import LabError

MEASURED = ["task", "accuracy"]


def rows(*runs, tasks=2, **common):
    """Rows of runs, each its settings; a run's accuracy is its number."""
    defaults = {"run": 0, "method": "bp", "seed": 0, "step_size": 0.1, "bias": True, "note": None, **common}
    facts = {"status": "done", "diverged_at": None, "commit": "c"}
    return pandas.concat(
        pandas.DataFrame({**defaults, **run, **facts, "task": np.arange(1, tasks + 1), "accuracy": float(number)})
        for number, run in enumerate(runs)
    )


def names(*runs, **options):
    return list(dict.fromkeys(with_curves(rows(*runs), MEASURED, **options)["curve"]))


def test_seeds_runs_commits_and_what_was_measured_set_no_curve_apart():
    table = rows({"seed": 0, "run": 0}, {"seed": 1, "run": 1})
    table["commit"] = ["a", "b", "c", "d"]
    table["status"] = ["done", "done", "diverged", "diverged"]
    assert settings(table, MEASURED).to_dict("records") == [{"method": "bp"}]
    assert set(with_curves(table, MEASURED)["curve"]) == {"bp"}


@pytest.mark.parametrize(("field", "value"), [("step_size", 0.2), ("bias", False), ("note", "x"), ("nobody_knew", 1)])
def test_runs_that_differ_in_any_field_are_two_curves(field, value):
    table = rows({}, {field: value}, nobody_knew=0)
    assert with_curves(table, MEASURED)["curve"].nunique() == 2
    assert table.groupby(with_curves(table, MEASURED)["curve"].to_numpy())["accuracy"].nunique().tolist() == [1, 1]


def test_a_name_says_the_fields_in_which_curves_of_its_method_differ():
    runs = [{"method": "bp"}, {"method": "cbp", "rate": 1e-5}, {"method": "cbp", "rate": 1e-6}]
    table = with_curves(rows(*runs, rate=0.0), MEASURED, {"bp": "backprop"})
    assert list(dict.fromkeys(table["curve"])) == ["backprop", "cbp, rate 1e-5", "cbp, rate 1e-6"]
    assert fields_that_differ(settings(table, MEASURED)) == {"bp": [], "cbp": ["rate"]}


def test_fields_are_called_as_the_experiment_says():
    runs = {"step_size": 0.2}, {"note": "few"}
    assert names(*runs, words={"step_size": "", "note": "with"}) == ["bp 0.2, with None", "bp 0.1, with few"]
    assert names({}, {"bias": False}) == ["bp, bias", "bp"]
    assert names({"note": "warm"}, words={"note": ""}, always=["note"]) == ["bp, warm"]


def test_fields_that_define_the_panels_set_no_curve_apart():
    assert names({"step_size": 0.2}, {}, panel=["step_size"]) == ["bp"]


def test_rows_keep_their_order_and_index():
    table = rows({"step_size": 0.2}, {}, {"step_size": 0.2, "seed": 1})
    named = with_curves(table, MEASURED)
    assert named["curve"].tolist() == [f"bp, step size {value}" for value in (0.2, 0.2, 0.1, 0.1, 0.2, 0.2)]
    pandas.testing.assert_frame_equal(named.drop(columns="curve"), table)


def test_values_that_are_nearly_equal_have_names_of_their_own():
    close = np.nextafter(0.1, 1)
    assert in_words(close) == str(close)
    assert len(names({}, {"step_size": close})) == 2


def test_two_curves_of_one_name_are_refused():
    with pytest.raises(LabError, match="two curves would be called 'the same'"):
        names({"method": "bp"}, {"method": "cbp"}, methods={"bp": "the same", "cbp": "the same"})


def test_a_difference_is_to_the_reference_of_the_same_seed_and_place():
    table = rows({"seed": 0}, {"seed": 1}, {"method": "cbp", "seed": 1}, {"method": "cbp", "seed": 2})
    table["accuracy"] += 10 * table["task"]
    difference = less_reference(table, table[table["method"] == "bp"], "accuracy", ["task"], MEASURED)
    np.testing.assert_array_equal(difference, [0, 0, 0, 0, 1, 1, np.nan, np.nan])


def test_of_several_references_a_run_is_compared_with_that_of_its_own_setting():
    table = rows(
        {}, {"step_size": 0.2}, {"method": "cbp", "step_size": 0.2}, {"method": "cbp", "step_size": 0.3}, tasks=1
    )
    difference = less_reference(table, table[table["method"] == "bp"], "accuracy", ["task"], MEASURED)
    np.testing.assert_array_equal(difference, [0, 0, 1, np.nan])
