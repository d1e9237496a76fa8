"""Figures of columns of one's choice."""

import numpy as np
import pandas
import pytest
from numpy.testing import assert_allclose

from pliant.lab.errors import LabError
from pliant.lab.report.drawing import figure_of_columns
from pliant.lab.report.summary import Asked, summary
from tests.lab.report.test_summary import MEASURED, study

NEAR_ONE = 0.97 + 0.02 * np.random.default_rng(0).random((3, 4))


@pytest.fixture
def found(tmp_path):
    rows = pandas.concat([study(NEAR_ONE), study(NEAR_ONE - 0.3, method="cbp")])
    rows = rows.assign(run=np.arange(len(rows)) // 4, excess=rows["accuracy"], none=np.nan)
    measured = [*MEASURED, "excess", "none"]
    rows.attrs = {"name": "toy", "profile": "quick", "measured": measured, "weights": {}, "seconds": 1.0}
    rows.attrs |= {"shares": ["accuracy"], "colors": {"cbp": "#0072B2", "bp": "#D55E00"}}
    rows.to_parquet(tmp_path / "rows.parquet", index=False, write_page_checksum=True)
    return summary([tmp_path / "rows.parquet"], Asked())


@pytest.mark.parametrize(("size", "width"), [("column", 85), ("page", 175), ("120", 120)])
def test_a_figure_is_as_wide_as_asked_and_has_a_panel_per_column(found, size, width):
    figure = figure_of_columns(found, ["accuracy", "excess"], 2, size)
    assert figure.get_figwidth() * 25.4 == pytest.approx(width)
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_ylabel() for axes in shown] == ["accuracy", "excess"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["bp", "cbp"]


def test_panels_are_put_below_each_other_where_there_is_one_per_line(found):
    figure = figure_of_columns(found, ["accuracy", "excess"], 1, "column")
    top, bottom = (axes.get_subplotspec().rowspan.start for axes in figure.axes)
    assert (top, bottom) == (0, 1)


def test_lines_are_means_and_the_band_of_a_share_ends_at_one(found):
    of_share, of_excess = figure_of_columns(found, ["accuracy", "excess"], 2, "page").axes
    assert_allclose(of_share.get_lines()[0].get_ydata(), NEAR_ONE.mean(0))
    tops = [axes.collections[0].get_paths()[0].vertices[:, 1].max() for axes in (of_share, of_excess)]
    half = 4.302653 * NEAR_ONE.std(0, ddof=1) / np.sqrt(3)  # t(2)
    assert tops[0] == 1.0
    assert tops[1] == pytest.approx((NEAR_ONE.mean(0) + half).max(), rel=1e-6)
    assert tops[1] > 1.0


def test_a_method_has_the_color_that_its_experiment_gives_it(found):
    lines = figure_of_columns(found, ["accuracy"], 1, "page").axes[0].get_lines()
    assert {line.get_label(): line.get_color() for line in lines} == {"bp": "#D55E00", "cbp": "#0072B2"}


@pytest.mark.parametrize(
    ("metrics", "per_line", "size", "message"),
    [
        (["accuracy"], 1, "wide", "--size 'wide': write column"),
        (["accuracy"], 1, "5", "--size '5': write column"),
        (["none"], 1, "page", "column none has no value"),
        (["accurcy"], 1, "page", "did you mean 'accuracy'"),
        (["accuracy"], 0, "page", "at least one panel"),
    ],
)
def test_what_cannot_be_drawn_is_said(found, metrics, per_line, size, message):
    with pytest.raises(LabError, match=message):
        figure_of_columns(found, metrics, per_line, size)


@pytest.mark.parametrize("form", ["png", "pdf", "svg"])
def test_plot_draws_columns_of_several_studies_to_a_file(found, form, tmp_path, pliant):
    other = tmp_path / "other.parquet"
    other.write_bytes((tmp_path / "rows.parquet").read_bytes())
    words = ("--metric", "accuracy", "--panels", "1", "--size", "column", "--out", tmp_path / f"figure.{form}")
    status, said, _ = pliant("plot", tmp_path / "rows.parquet", other, *words)
    assert (status, said.startswith("figure ")) == (0, True)
    begins = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[form]
    assert (tmp_path / f"figure.{form}").read_bytes().startswith(begins)


def test_options_of_columns_need_columns(found, tmp_path, pliant):
    status, _, why = pliant("plot", tmp_path / "rows.parquet", "--over", "task")
    assert (status, "go with --metric" in why) == (2, True)
