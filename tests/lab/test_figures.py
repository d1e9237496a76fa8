"""What a figure says: the right means, bands, labels and colours."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from pliant.lab.figures import PALETTE, band, bin_centres, looks, panels, spread, styles, with_values


def rows(**changes):
    table = pd.DataFrame(
        [(m, s, x, level + s) for m, level in [("bp", 1.0), ("cbp", 0.0)] for s in (0, 1, 2) for x in (10, 20)],
        columns=["method", "seed", "step", "loss"],
    )
    return table.assign(**changes)


def drawn(table, **options):
    figure, ((axes,),) = panels(1, 1)
    band(axes, table, x="step", y="loss", by="method", **options)
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
    of_both = looks(
        table.assign(start="warm"), {("cbp", "warm"): "blue", ("bp", "warm"): "red"}, by=["method", "start"]
    )
    assert [of_both[name]["color"] for name in "ae"] == ["blue", "red"]


def test_a_curve_without_any_value_is_not_shown_and_one_that_lost_some_is():
    table = pd.DataFrame({"curve": ["a", "a", "b", "b"], "dead": [np.nan, 0.5, np.nan, np.nan]})
    assert with_values(table, "dead")["curve"].tolist() == ["a", "a"]
