import re

import numpy as np
import pandas
import pytest
from scipy.stats import t as student

from pliant.lab.errors import LabError
from pliant.lab.report.summary import Format, curves, least_is_best, lines, reference

MEASURED = ["task", "accuracy"]


def study(values, method="bp", step_size=0.1, seeds=None, status="done"):
    """Rows of runs whose accuracies are `values` (seeds, tasks)."""
    values = np.array(values, dtype=float)
    seeds = range(len(values)) if seeds is None else seeds
    return pandas.concat(
        pandas.DataFrame(
            {"run": seed, "method": method, "seed": seed, "step_size": step_size, "width": 100, "status": status}
            | {"diverged_at": None, "commit": "c", "task": np.arange(1, len(own) + 1), "accuracy": own}
        )
        for seed, own in zip(seeds, values, strict=True)
    )


def test_a_curve_is_the_runs_that_differ_in_the_seed_alone():
    rows = pandas.concat(
        [study([[1, 2], [3, 4]]), study([[5, 6]], step_size=0.2), study([[7, 8]], method="cbp", step_size=0.2)]
    )
    found = curves(rows, MEASURED, "task", "accuracy", parts=2)
    assert [curve.name for curve in found] == ["bp step_size=0.1", "bp step_size=0.2", "cbp step_size=0.2"]
    assert [curve.seeds for curve in found] == [[0, 1], [0], [0]]
    assert found[0].values.tolist() == [[1, 2], [3, 4]]


def test_a_seed_that_two_studies_ran_is_refused():
    with pytest.raises(
        LabError, match="runs 0 and 5 are both seed 0 of the curve 'bp': rows of two studies in one table"
    ):
        curves(pandas.concat([study([[1, 2]]), study([[3, 4]]).assign(run=5)]), MEASURED, "task", "accuracy")


def test_places_are_cut_into_equal_parts_and_averaged_within_a_run():
    (curve,) = curves(study([[1, 3, 5, 7]]), MEASURED, "task", "accuracy", parts=2)
    assert curve.values.tolist() == [[2, 6]]
    assert curve.ends.tolist() == [2, 4]


def test_a_mean_of_episodes_counts_as_many_times_as_there_are_episodes():
    rows = study([[1.0, 5.0, np.nan, 2.0]]).assign(weight=[1, 3, 0, 4])  # any name will do
    (curve,) = curves(rows, [*MEASURED, "weight"], "task", "accuracy", parts=2, weight="weight")
    assert curve.values.tolist() == [[4.0, 2.0]]
    (counts,) = curves(rows, [*MEASURED, "weight"], "task", "weight", parts=2)
    assert counts.values.tolist() == [[2.0, 2.0]]
    with pytest.raises(LabError, match="unknown column 'episode': did you mean 'episodes'"):
        curves(rows, [*MEASURED, "episodes"], "task", "accuracy", parts=2, weight="episode")


def test_differences_are_paired_by_seed_and_the_interval_is_students():
    rows = pandas.concat(
        [study([[1.0, 2.0], [5.0, 6.5], [9.0, 9.0]]), study([[0, 1.0], [0, 5.0], [0, 9.0]], method="cbp")]
    )
    found = curves(rows, MEASURED, "task", "accuracy", parts=2)
    line = list(lines(found, Format(), reference(found, ["method=bp"])))[1:]
    change = np.array([1.0, 1.5, 0.0])
    half = student.ppf(0.975, 2) * change.std(ddof=1) / np.sqrt(3)
    assert f"+{change.mean():.4f} ± {half:.4f}" in line[0]
    gap = np.array([-1.0, -1.5, 0.0])
    assert line[1].endswith(f"{gap.mean():.4f} ± {student.ppf(0.975, 2) * gap.std(ddof=1) / np.sqrt(3):.4f}")
    assert line[0].endswith("-")


def test_a_reference_is_paired_over_the_seeds_that_both_have():
    rows = pandas.concat([study([[0, 1.0], [0, 2.0]]), study([[0, 5.0], [0, 9.0]], method="cbp", seeds=[1, 7])])
    found = curves(rows, MEASURED, "task", "accuracy", parts=2)
    assert list(lines(found, Format(), found[0]))[2].endswith("+3.0000")


def test_a_diverged_run_is_counted_and_left_out():
    rows = pandas.concat([study([[1, 2]]), study([[3, np.nan]], seeds=[1], status="diverged")])
    (curve,) = curves(rows, MEASURED, "task", "accuracy", parts=2)
    assert (curve.seeds, curve.left_out["diverged"]) == ([0], 1)
    assert "1 (1 diverged)" in list(lines([curve], Format()))[1]


def test_a_curve_of_diverged_runs_has_no_numbers():
    (curve,) = curves(study([[1, np.nan]], status="diverged"), MEASURED, "task", "accuracy")
    assert list(lines([curve], Format()))[1].split() == ["bp", "0", "(1", "diverged)", "-", "-", "-", "-", "-"]


def test_an_unfinished_run_is_counted_and_left_out():
    rows = pandas.concat(
        [
            study([[1, 2, 3, 4]]),
            study([[5, 6]], seeds=[1], status="running"),
            study([[7, 8, 9]], seeds=[2], status="running"),
        ]
    )
    (curve,) = curves(rows, MEASURED, "task", "accuracy", parts=2)
    assert curve.values.tolist() == [[1.5, 3.5]]  # seed 2 has begun the last part
    assert "1 (2 unfinished)" in list(lines([curve], Format()))[1]


def test_a_finished_run_that_lacks_a_part_is_counted_and_left_out():
    (curve,) = curves(pandas.concat([study([[1, 2, 3, 4]]), study([[5]], seeds=[1])]), MEASURED, "task", "accuracy", 2)
    assert "1 (1 lack a part)" in list(lines([curve], Format()))[1]


def test_a_value_that_is_no_number_makes_its_part_nan():
    (curve,) = curves(study([[1, 2, np.nan, 4], [1, 2, 3, 4]]), MEASURED, "task", "accuracy", parts=2)
    assert curve.seeds == [0, 1]
    assert np.isnan(curve.values).tolist() == [[False, True], [False, False]]
    assert list(lines([curve], Format()))[1].split() == ["bp", "2", "1.5000", "±", "0.0000", "nan", "(4)", *3 * ["nan"]]


def test_a_method_without_the_column_has_a_line_of_its_own():
    rows = pandas.concat([study([[1, 2], [1, 2]]), study([[np.nan] * 2] * 2, method="linear")])
    found = curves(rows, MEASURED, "task", "accuracy", parts=2)
    table = list(lines(found, Format(), found[0]))
    assert table[1].startswith("bp      2      1.0000")
    assert table[2].split() == ["linear", "2", *6 * ["-"]]


def test_curves_that_end_at_different_places_are_not_compared():
    rows = pandas.concat([study([[1, 2, 3, 4]]), study([[5, 6]], method="cbp"), study([[5, 6, 7, 9]], method="l2")])
    found = curves(rows, MEASURED, "task", "accuracy", parts=2)
    bp, cbp, l2 = list(lines(found, Format(), found[0]))[1:]
    assert bp.endswith(" -")
    assert cbp.endswith(" -")
    assert l2.endswith(f"{(7 + 9) / 2 - 3.5:+.4f}")


@pytest.mark.parametrize("typed", ["true", "True", "TRUE", "1"])
def test_a_setting_that_is_true_is_met_as_it_may_be_typed(typed):
    rows = pandas.concat([study([[1, 2]]).assign(bias=True), study([[3, 4]]).assign(bias=False)])
    found = curves(rows, MEASURED, "task", "accuracy")
    assert reference(found, [f"bias={typed}"]) is found[0]
    assert reference(found, ["bias=false"]) is found[1]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["method=bp"], "names 2 curves, not one, of: bp step_size=0.1; bp step_size=0.2"),
        (["method=l2"], "names 0 curves"),
    ],
)
def test_a_reference_must_be_one_curve(wanted, message):
    found = curves(pandas.concat([study([[1, 2]]), study([[1, 2]], step_size=0.2)]), MEASURED, "task", "accuracy")
    with pytest.raises(LabError, match=message):
        reference(found, wanted)


def test_an_unknown_column_is_named_with_the_nearest_known():
    with pytest.raises(LabError, match="unknown column 'accurcy': did you mean 'accuracy'"):
        curves(study([[1, 2]]), MEASURED, "task", "accurcy")


def test_the_best_part_is_the_highest_of_an_accuracy_and_the_lowest_of_an_error():
    (curve,) = curves(study([[1, 5, 2]]), MEASURED, "task", "accuracy", parts=3)
    high, low = (list(lines([curve], Format(least_is_best=least)))[1] for least in (False, True))
    assert "5.0000 (2)" in high
    assert "1.0000 (1)" in low
    assert [least_is_best(name) for name in ("squared_error", "loss", "accuracy")] == [True, True, False]


def test_the_spread_may_be_the_standard_error():
    (curve,) = curves(study([[1.0], [2.0], [3.0]]), MEASURED, "task", "accuracy")
    assert "2.0000 ± 0.5774" in list(lines([curve], Format(spread="error")))[1]


def table_of(*studies, parts=2, **options):
    found = curves(pandas.concat(studies), MEASURED, "task", "accuracy", parts)
    return [re.split("  +", line) for line in lines(found, Format(spread="error"), all_parts=True, **options)]


def test_all_parts_have_a_column_each_named_by_the_last_place():
    assert table_of(study([[1, 3, 5, 7], [3, 5, 9, 11]])) == [
        ["curve", "seeds", "to 2", "to 4"],
        ["bp", "2", "3.0000 ± 1.0000", "8.0000 ± 2.0000"],
    ]


def test_parts_that_end_at_different_places_are_numbered():
    head, long, short, none = table_of(
        study([[1, 3, 5]]), study([[1]], method="cbp"), study([[np.nan]], method="l2", status="diverged"), parts=3
    )
    assert head == ["curve", "seeds", "part 1", "part 2", "part 3"]
    assert long == ["bp", "1", "1.0000", "3.0000", "5.0000"]
    assert short == ["cbp", "1", "1.0000", "-", "-"]
    assert none == ["l2", "0 (1 diverged)", "-", "-", "-"]


def test_all_parts_may_end_in_a_comparison():
    rows = pandas.concat([study([[1, 2]]), study([[1, 5]], method="cbp")])
    found = curves(rows, MEASURED, "task", "accuracy", parts=2)
    table = list(lines(found, Format(), found[0], all_parts=True))
    assert table[0].endswith("last - reference")
    assert table[2].endswith("+3.0000")


@pytest.mark.parametrize(
    ("value", "text"), [(0.52346, "0.5235"), (-1686.2444, "-1686.2"), (-163.046, "-163.05"), (np.inf, "inf")]
)
def test_large_numbers_have_as_many_digits_as_small_ones(value, text):
    (curve,) = curves(study([[value, value]]), MEASURED, "task", "accuracy", parts=2)
    assert f"  {text}  " in list(lines([curve], Format()))[1]
