"""What a figure says: the right means, bands, labels and colours."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from pliant.lab import LabError
from pliant.lab.curves import with_curves
from pliant.lab.figures import PALETTE, band, bin_centres, looks, panels, spread, styles, with_values


def rows(**changes):
    table = pd.DataFrame(
        [(m, s, x, level + s) for m, level in [("bp", 1.0), ("cbp", 0.0)] for s in (0, 1, 2) for x in (10, 20)],
        columns=["method", "seed", "step", "loss"],
    )
    return table.assign(**changes)


def drawn(table, **options):
    figure, ((axes,),) = panels(1, 1)
    band(axes, table, x="step", y="loss", **{"by": "method", **options})
    figure.canvas.draw()
    return axes


def test_a_curve_is_the_mean_over_seeds_and_its_band_students_interval():
    axes = drawn(rows())
    lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    assert_allclose(lines["bp"], [2.0, 2.0])
    assert_allclose(lines["cbp"], [1.0, 1.0])
    low, high = (
        axes.collections[0].get_paths()[0].vertices[:, 1].min(),
        axes.collections[0].get_paths()[0].vertices[:, 1].max(),
    )
    assert_allclose([low, high], 2.0 + np.array([-1, 1]) * 4.302653 / np.sqrt(3), rtol=1e-6)


def test_the_band_of_a_share_ends_at_its_bounds():
    """Of means 2 and 1 with intervals of 2.48 to both sides."""
    bands = [band.get_paths()[0].vertices[:, 1] for band in drawn(rows(), bounds=(0.0, 3.0)).collections]
    assert [(float(ends.min()), float(ends.max())) for ends in bands] == [(0.0, 3.0), (0.0, 3.0)]


def test_axes_and_line_ends_are_labelled():
    axes = drawn(rows(), labels={"step": "examples"})
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("examples", "loss")
    assert {(text.get_text(), text.get_color()) for text in axes.texts} == {("bp", PALETTE[0]), ("cbp", PALETTE[1])}


def test_lines_named_in_one_panel_can_go_unnamed_in_the_next():
    assert not drawn(rows(), name_lines=False).texts


def test_large_numbers_of_steps_are_counted_in_thousands():
    axes = drawn(rows(step=np.tile([100_000, 3_000_000], 6)))
    assert {"1M", "2M", "3M"} <= {tick.get_text() for tick in axes.get_xticklabels()}


def test_a_label_says_how_many_runs_went_missing():
    table = rows()
    table.loc[(table["method"] == "bp") & (table["seed"] == 2) & (table["step"] == 20), "loss"] = np.nan
    axes = drawn(table)
    assert "bp (1 of 3 missing)" in {text.get_text() for text in axes.texts}
    assert_allclose(axes.get_lines()[0].get_ydata(), [2.0, 1.5])


def test_bins_average_a_run_before_the_runs():
    table = rows(step=np.tile([10, 11], 6), loss=np.tile([0.0, 4.0], 6))
    axes = drawn(table, bins=1)
    assert_allclose(axes.get_lines()[0].get_xydata(), [[10.5, 2.0]])


def test_values_that_are_means_of_many_count_as_many_times():
    table = pd.DataFrame(
        {
            "method": "ppo",
            "seed": 0,
            "step": [10, 10, 20, 30],
            "loss": [1.0, 4.0, 7.0, np.nan],
            "episodes": [2, 1, 1, 0],
        }
    )
    (line,) = drawn(table, weight="episodes").get_lines()
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([10, 20], [2.0, 7.0])
    assert line.get_label() == "ppo"  # nothing went missing


def study(settings, seeds=(0, 1), **columns):
    """The table of a study with runs of these step sizes and seeds: three rows a run, of its step size and a tenth a seed."""
    runs = [(step_size, seed) for step_size in settings for seed in seeds]
    tables = [
        pd.DataFrame(
            {
                "run": run,
                "method": "bp",
                "seed": seed,
                "step_size": step_size,
                "note": None,
                "status": "done",
                "diverged_at": None,
                "commit": f"c{run}",
                "step": [1, 2, 3],
                "loss": step_size + seed / 10,
                "dead": run,
                **columns,
            }
        )
        for run, (step_size, seed) in enumerate(runs)
    ]
    return pd.concat(tables, ignore_index=True)


POOLED = (
    r"curve 'bp' would be a mean of runs that differ in more than the seed \(step_size: 1, 3\).*pooled=\['step_size'\]"
)


def test_runs_of_two_settings_are_not_pooled_unless_that_is_asked_for():
    with pytest.raises(LabError, match=POOLED):
        drawn(study([1.0, 3.0]))
    (line,) = drawn(study([1.0, 3.0]), pooled=["step_size"]).get_lines()
    assert_allclose(line.get_ydata(), 2.05)  # of 1, 1.1, 3, 3.1
    curves = drawn(with_curves(study([1.0, 3.0]), ["step", "loss", "dead"]), by="curve").get_lines()
    assert {line.get_label(): line.get_ydata()[0] for line in curves} == {
        "bp, step size 1": pytest.approx(1.05),
        "bp, step size 3": pytest.approx(3.05),
    }


@pytest.mark.parametrize("options", [{}, {"bins": 1}, {"weight": "dead"}, {"interval": "bootstrap"}])
def test_nor_where_each_has_seeds_of_its_own(options):
    table = pd.concat([study([1.0], seeds=(0, 1)), study([3.0], seeds=(2, 3)).assign(run=lambda rows: rows["run"] + 2)])
    with pytest.raises(LabError, match=POOLED):
        drawn(table, **options)


def test_what_was_measured_and_what_is_drawn_along_may_differ():
    assert len(drawn(study([1.0])).get_lines()) == 1  # `dead` and `commit` differ from run to run
    _, ((axes,),) = panels(1, 1)
    band(axes, study([1.0, 3.0]), x="step_size", y="loss", by="method")
    assert_allclose(axes.get_lines()[0].get_xydata(), [[1.0, 1.05], [3.0, 3.05]])


def test_a_setting_that_is_missing_in_some_rows_is_another_one():
    table = study([1.0])
    table.loc[table["run"] == 1, "note"] = "longer"
    with pytest.raises(LabError, match="the seed \\(note: None, longer\\)"):
        drawn(table)


def test_rows_of_two_studies_are_not_pooled():
    two = pd.concat([study([1.0]), study([1.0]).assign(run=lambda rows: rows["run"] + 7)])
    with pytest.raises(LabError, match="runs 0 and 7 are both seed 0 of the curve 'bp': rows of two studies"):
        drawn(two)


def test_settings_are_told_in_a_table_that_is_no_study_s():
    bare = study([1.0, 3.0]).drop(columns=["run", "status", "diverged_at", "commit", "dead"])
    with pytest.raises(LabError, match=POOLED):
        drawn(bare)
    assert len(drawn(bare, pooled=["step_size"]).get_lines()) == 1
    measured = pd.DataFrame(
        {"method": "bp", "seed": 0, "step": [1, 1, 2, 2], "loss": 1.0, "dead": [0.1, 0.2, 0.3, 0.4]}
    )
    assert len(drawn(measured).get_lines()) == 1  # two rows at a step, of one run


def test_every_x_lies_in_one_of_equal_bins():
    assert_allclose(bin_centres(np.arange(11.0), 2), [2.5] * 5 + [7.5] * 6)


def test_labels_stand_apart_and_keep_their_order():
    heights = np.array([0.9, 0.50, 0.51, 0.505, 0.1])
    moved = spread(heights, 0.05)
    assert (np.diff(moved[np.argsort(heights)]) >= 0.05 - 1e-12).all()
    assert_allclose(moved[[0, 4]], heights[[0, 4]])  # those with room do not move
    assert moved[1:4].mean() == pytest.approx(heights[1:4].mean())


def test_more_curves_than_colours_differ_in_dash():
    looks = [tuple(style.values()) for style in styles([str(i) for i in range(20)]).values()]
    assert len(set(looks)) == 20


def test_a_method_has_its_colours_and_its_settings_dashes():
    table = pd.DataFrame({"method": ["cbp"] * 3 + ["bp"] * 2, "curve": ["a", "b", "c", "d", "e"]})
    look = looks(table, {"cbp": ("blue", "green"), "bp": "red"})
    assert [tuple(style.values()) for style in look.values()] == [
        ("blue", "-"),
        ("green", "-"),
        ("blue", "--"),
        ("red", "-"),
        ("red", "--"),
    ]
    unforeseen = looks(table.assign(method=["mine"] * 3 + ["bp"] * 2), {"bp": "red"})
    assert [style["color"] for style in unforeseen.values()] == [PALETTE[0]] * 3 + ["red"] * 2
    of_both = looks(
        table.assign(start="warm"), {("cbp", "warm"): "blue", ("bp", "warm"): "red"}, by=["method", "start"]
    )
    assert [of_both[name]["color"] for name in "ae"] == ["blue", "red"]


def test_a_curve_without_any_value_is_not_shown_and_one_that_lost_some_is():
    table = pd.DataFrame({"curve": ["a", "a", "b", "b"], "dead": [np.nan, 0.5, np.nan, np.nan]})
    assert with_values(table, "dead")["curve"].tolist() == ["a", "a"]


def of_two_runs():
    rows = {
        "run": [0, 1],
        "method": "a",
        "seed": [0, 1],
        "status": "done",
        "diverged_at": None,
        "commit": "",
        "step": 1,
    }
    return pd.DataFrame({**rows, "x": [1.0, 2.0], "word": "w"})


ODD = {
    "a column that is not there": ({"x": "stp"}, "unknown column 'stp': did you mean 'step'"),
    "a grouping that is not there": ({"by": "metod"}, "unknown column 'metod': did you mean 'method'"),
    "a weight that is not there": ({"weight": "n"}, "unknown column 'n'"),
    "text": ({"y": "word"}, "column word holds something else than numbers"),
    "no bins": ({"bins": 0}, "bins is 0: a whole number from 1 on, or None"),
    "bins of text": ({"bins": "5"}, "bins is '5': a whole number"),
    "an interval of another kind": ({"interval": "boot"}, "unknown interval 'boot': did you mean 'bootstrap'"),
    "a look of others": ({"look": {"b": {}}}, "look does not say how the curve 'a' is drawn"),
}


@pytest.mark.parametrize("what", ODD)
def test_what_cannot_be_drawn_is_said_in_a_sentence(what):
    odd, message = ODD[what]
    _, [[axes]] = panels(1, 1)
    with pytest.raises(LabError, match=message):
        band(axes, of_two_runs(), **{"x": "step", "y": "x", "by": "method", **odd})
    assert axes.get_lines() == []


@pytest.mark.parametrize("shape", [(0, 1), (1, -1), ("1", 1), (1.5, 1), (None, 1)])
def test_a_figure_has_a_whole_number_of_panels(shape):
    with pytest.raises(LabError, match=r"(rows|columns) is .*: a figure has a whole number of panels"):
        panels(*shape)
