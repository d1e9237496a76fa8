import re

import numpy as np
import pandas
import pytest
from scipy.stats import t as student

from pliant.lab.errors import LabError
from pliant.lab.report.numbers import FORMS, Format
from pliant.lab.report.parts import curves, reference
from pliant.lab.report.summary import Asked, least_is_best, summary_lines, table

MEASURED = ["task", "accuracy"]


def lines(*args, **options):
    return FORMS["text"](table(*args, **options))


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
    assert "1, few (1 diverged)" in list(lines([curve], Format()))[1]


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
    assert "1, few (2 unfinished)" in list(lines([curve], Format()))[1]


def test_a_finished_run_that_lacks_a_part_is_counted_and_left_out():
    (curve,) = curves(pandas.concat([study([[1, 2, 3, 4]]), study([[5]], seeds=[1])]), MEASURED, "task", "accuracy", 2)
    assert "1, few (1 lack a part)" in list(lines([curve], Format()))[1]


def test_a_value_that_is_no_number_makes_its_part_nan():
    (curve,) = curves(study([[1, 2, np.nan, 4], [1, 2, 3, 4]]), MEASURED, "task", "accuracy", parts=2)
    assert curve.seeds == [0, 1]
    assert np.isnan(curve.values).tolist() == [[False, True], [False, False]]
    assert list(lines([curve], Format()))[1].split() == [
        "bp",
        "2,",
        "few",
        "1.5000",
        "±",
        "0.0000",
        "nan",
        "(4)",
        *3 * ["nan"],
    ]


def test_a_method_without_the_column_has_a_line_of_its_own():
    rows = pandas.concat([study([[1, 2], [1, 2]]), study([[np.nan] * 2] * 2, method="linear")])
    found = curves(rows, MEASURED, "task", "accuracy", parts=2)
    printed = list(lines(found, Format(), found[0]))
    assert printed[1].startswith("bp      2, few  1.0000")
    assert printed[2].split() == ["linear", "2,", "few", *6 * ["-"]]


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
        ["bp", "2, few", "3.0000 ± 1.0000", "8.0000 ± 2.0000"],
    ]


def test_parts_that_end_at_different_places_are_numbered():
    head, long, short, none = table_of(
        study([[1, 3, 5]]), study([[1]], method="cbp"), study([[np.nan]], method="l2", status="diverged"), parts=3
    )
    assert head == ["curve", "seeds", "part 1", "part 2", "part 3"]
    assert long == ["bp", "1, few", "1.0000", "3.0000", "5.0000"]
    assert short == ["cbp", "1, few", "1.0000", "-", "-"]
    assert none == ["l2", "0 (1 diverged)", "-", "-", "-"]


def test_all_parts_may_end_in_a_comparison():
    rows = pandas.concat([study([[1, 2]]), study([[1, 5]], method="cbp")])
    found = curves(rows, MEASURED, "task", "accuracy", parts=2)
    printed = list(lines(found, Format(), found[0], all_parts=True))
    assert printed[0].endswith("last - reference")
    assert printed[2].endswith("+3.0000")


@pytest.mark.parametrize(
    ("value", "text"), [(0.52346, "0.5235"), (-1686.2444, "-1686.2"), (-163.046, "-163.05"), (np.inf, "inf")]
)
def test_large_numbers_have_as_many_digits_as_small_ones(value, text):
    (curve,) = curves(study([[value, value]]), MEASURED, "task", "accuracy", parts=2)
    assert f"  {text}  " in list(lines([curve], Format()))[1]


# -- which rows ---------------------------------------------------------------------------------------------------------


def cells(**settings):
    """A run of each cell with two seeds, one row each; x is the number of the cell, +1 for seed 1."""
    table = []
    for number, (method, step_size) in enumerate([("bp", 0.1), ("bp", 0.2), ("cbp", 0.2), ("cbp", 0.3)]):
        for seed in (0, 1):
            run = {"run": len(table), "method": method, "seed": seed, "step_size": step_size, "common": 7}
            table.append(
                {**run, "status": "done", "diverged_at": None, "commit": "", "step": 1, "x": 10.0 * number + seed}
            )
    return pandas.DataFrame(table).assign(**settings)


@pytest.fixture
def exported(tmp_path):
    def written(rows=None, **attrs):
        rows = cells() if rows is None else rows
        said = {"name": "toy", "profile": "quick", "measured": ["step", "x"], "weights": {}, "seconds": 1.0, **attrs}
        rows.attrs = {name: value for name, value in said.items() if value is not ...}
        rows.to_parquet(tmp_path / "rows.parquet", index=False, write_page_checksum=True)
        return tmp_path / "rows.parquet"

    return written


def told(file, where=(), against=None, metric=None, over=None, parts=1):
    return list(summary_lines([file], Asked(metric, over, parts, where, against)))[2:]


def test_where_does_not_drop_what_against_names(exported):
    """Seeds 0 and 1 of the curves differ by the same: 20 - 10 between cbp 0.2 and bp 0.2."""
    head, bp, cbp = told(exported(), ["method=cbp", "step_size=0.2"], "method=bp, step_size = 0.2")
    assert head.split()[-3:] == ["last", "-", "reference"]
    assert (bp.split()[0], bp.split()[-1]) == ("bp", "-")
    assert cbp.startswith("cbp ")
    assert cbp.endswith("+10.000 ± 0.000")


def test_a_reference_among_the_rows_that_are_asked_for_is_taken_from_them(exported):
    lines = told(exported(), ["step_size=0.2"], "method=bp")
    assert [line.split()[0] for line in lines[1:]] == ["bp", "cbp"]


def test_what_is_asked_of_seeds_and_columns_holds_for_the_reference_too(exported):
    lines = told(exported(), ["method=cbp", "seed=1", "step=1-1"], "step_size=0.1")
    assert [line.split()[:2] for line in lines[1:]] == [
        ["bp", "step_size=0.1"],
        ["cbp", "step_size=0.2"],
        ["cbp", "step_size=0.3"],
    ]
    with pytest.raises(LabError, match="no run has step=5"):
        told(exported(), ["step=5"], "method=bp,step_size=0.1")


def test_a_setting_that_all_curves_have_may_name_the_reference(exported):
    assert told(exported(), [], "method=bp,step_size=0.1,common=7")[1].endswith("-")


@pytest.mark.parametrize(
    ("where", "against", "message"),
    [
        (["seed=99", "method=bp", "run=1"], None, "no run has seed=99 and method=bp and run=1"),
        (["method"], None, "--where 'method': write field=value"),
        (["metod=bp"], None, "unknown field 'metod': did you mean 'method'"),
        ([], "bp", "--against 'bp': write field=value"),
        ([], "metod=bp", "unknown field 'metod'"),
        ([], "method=" + "x" * 9999, "names 0 curves"),
        (["x" * 9999 + "=1"], None, "unknown field 'xxx"),
    ],
)
def test_what_cannot_be_asked_of_rows_is_said(where, against, message, exported):
    with pytest.raises(LabError, match=message) as refused:
        told(exported(), where, against)
    assert len(str(refused.value)) < 600


# -- exports that were edited ----------------------------------------------------------------------------------------------

EDITED = {
    **{f"without {name}": (lambda rows, name=name: rows.drop(columns=name), rf"it has no column {name}") for name in
       ("run", "seed", "method", "status", "step", "x")},
    "no rows": (lambda rows: rows.iloc[:0], "it has no rows"),
    "seeds of text": (lambda rows: rows.assign(seed="one"), "column seed holds something else than whole numbers"),
    "seeds of fractions": (lambda rows: rows.assign(seed=0.5), "column seed holds something else"),
    "a seed that is missing": (lambda rows: rows.assign(seed=pandas.array([None, *[0] * 7], dtype="Int64")), "column seed holds"),
    "negative runs": (lambda rows: rows.assign(run=-1), "column run holds something else"),
    "a status that is none": (lambda rows: rows.assign(status="finished"), "the status finished is none"),
    "a status that is a number": (lambda rows: rows.assign(status=1), "the status 1 is none"),
    "lists in a field": (lambda rows: rows.assign(step_size=[[1]] * 8), r"column step_size holds array\(\[1\]\), a ndarray"),
    "numbers and gaps in a measure": (lambda rows: rows.assign(x=[[1.0]] * 8), "column x holds"),
    "a measure of text": (lambda rows: rows.assign(x="high"), "column x holds text: a report is of numbers, here step"),
    "places of text": (lambda rows: rows.assign(step="late"), "column step holds text: a report is of numbers, here x"),
    "a place that is nan": (lambda rows: rows.assign(step=[np.nan, *[1.0] * 7]), "column step is nan in some rows"),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITED)
def test_an_export_whose_columns_were_edited_is_refused_in_a_sentence(what, exported):
    change, message = EDITED[what]
    with pytest.raises(LabError, match=message) as refused:
        told(exported(change(cells())))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"measured": ...}, "does not say which study it is of"),
        ({"measured": []}, "does not say which columns are measured"),
        ({"measured": "x"}, "does not say which columns are measured"),
        ({"measured": ["step", "y"]}, "it has no column y"),
        ({"measured": ["step"]}, "measured nothing but step: give --metric step"),
        ({"name": ...}, "does not say its name"),
        ({"name": 5}, "does not say its name"),
        ({"profile": None}, "does not say its profile"),
        ({"weights": {"x": "y"}}, "its weights .* are of columns that it has not"),
        ({"weights": [1]}, r"its weights \[1\] are of columns that it has not"),
        ({"shares": ["y"]}, r"its shares \['y'\] are of columns that it has not"),
        ({"shares": "x"}, "its shares 'x' are of columns that it has not"),
        ({"colors": {"bp": "red;}"}}, "its colors .* are none of methods, such as #0072B2"),
        ({"colors": ["#0072B2"]}, "its colors .* are none of methods"),
        ({"seconds": "long"}, "its seconds are 'long'"),
    ],
)
def test_an_export_that_says_something_else_of_its_study_is_refused(attrs, message, exported):
    with pytest.raises(LabError, match=message):
        told(exported(**attrs))


@pytest.mark.parametrize(
    "attrs", [{"seconds": ...}, {"weights": ...}, {"seconds": None}, {"shares": ["x"], "colors": {"bp": "#0072b2"}}]
)
def test_an_export_need_not_know_its_seconds_or_weights(attrs, exported):
    assert len(told(exported(**attrs))) == 1 + 4


@pytest.mark.parametrize("change", ["half", "noise", "empty", "csv"])
def test_a_damaged_export_is_refused_in_a_sentence(change, exported):
    file = exported()
    data = file.read_bytes()
    middle = {"noise": 60}.get(change, len(data) // 2)  # in the numbers, or in what tells of them
    changed = {
        "half": data[:middle],
        "noise": data[:middle] + bytes(8) + data[middle + 8 :],
        "empty": b"",
        "csv": b"run,method\n",
    }
    file.write_bytes(changed[change])
    with pytest.raises(
        LabError, match=r"rows\.parquet (is no Parquet file|cannot be read as Parquet|is not as)"
    ) as refused:
        told(file)
    assert len(str(refused.value)) < 600
