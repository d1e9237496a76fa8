"""Comparisons of two curves, and the forms in which a report is written."""

import numpy as np
import pandas
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from pliant.lab.errors import LabError
from pliant.lab.report.comparison import Measure, pairs
from pliant.lab.report.numbers import FORMS
from pliant.lab.report.parts import curves
from pliant.lab.report.summary import Asked, summary_lines
from tests.lab.report.test_summary import MEASURED, study

SIX = np.random.default_rng(0).normal(0.8, 0.05, (6, 4))


def found(*studies, parts=4):
    return curves(pandas.concat(studies), MEASURED, "task", "accuracy", parts)


@pytest.fixture
def exported(tmp_path):
    def written(rows, measured=tuple(MEASURED)):
        rows.attrs = {"name": "toy", "profile": "quick", "measured": [*measured], "weights": {}, "seconds": 1.0}
        rows.to_parquet(tmp_path / "rows.parquet", index=False, write_page_checksum=True)
        return tmp_path / "rows.parquet"

    return written


def test_a_pair_is_compared_over_the_seeds_that_both_have():
    (pair,) = pairs(found(study(SIX), study(SIX[1:] + 0.1, method="cbp", seeds=[1, 2, 3, 4, 5])), Measure())
    assert (pair.first.name, pair.second.name, pair.seeds) == ("bp", "cbp", [1, 2, 3, 4, 5])
    assert_allclose(pair.differences, -0.1)
    assert pair.p == 2 / 32


def test_better_is_higher_of_an_accuracy_and_lower_of_an_error_or_a_loss_of_plasticity():
    two = found(study(SIX), study(SIX - 10, method="worse"))
    (accuracy,), (error,) = (pairs(two, Measure(least_is_best=least)) for least in (False, True))
    assert (accuracy.improvement, error.improvement) == (1.0, 0.0)
    assert accuracy.effect == error.effect > 0  # of first - second, whichever is better
    falls, stays = SIX[:, :1] - [[0, 1, 2, 3]], SIX[:, :1] + np.zeros((1, 4))
    (lost,) = pairs(found(study(falls), study(stays, method="cbp")), Measure("plasticity-loss"))
    assert_allclose(lost.differences, 3.0)
    assert lost.improvement == 0.0


@pytest.mark.parametrize(("name", "value"), [("last", 4.0), ("first", 1.0), ("area", 2.5), ("plasticity-loss", -3.0)])
def test_a_measure_is_one_number_of_each_run(name, value):
    (curve,) = found(study([[1.0, 2.0, 3.0, 4.0]]))
    assert Measure(name).of(curve).tolist() == [value]


def test_the_table_of_pairs_holds_interval_p_holm_effect_and_improvement(exported):
    rows = pandas.concat([study(SIX), study(SIX + 0.1, method="cbp"), study(SIX[:, ::-1], method="l2")])
    lines = list(summary_lines([exported(rows.assign(run=np.arange(len(rows)) // 4))], Asked(pairs=True, parts=4)))
    assert lines[1] == "seeds 0-5; ± half the 95% interval"
    assert lines[2].split("  ")[0] == "first"
    assert len(lines) == 3 + 3
    gap = SIX[:, -1] - SIX[:, 0]
    half = stats.t.ppf(0.975, 5) * gap.std(ddof=1) / np.sqrt(6)
    bp_l2 = next(line for line in lines if line.startswith("bp") and " l2 " in line)
    assert f"{gap.mean():+.4f} ± {half:.4f}" in bp_l2
    bp_cbp = lines[3].split()
    assert bp_cbp[:3] == ["bp", "cbp", "6"]
    assert bp_cbp[6:8] == [".031", ".094"]  # 2 / 2⁶, times three comparisons


def test_fewer_than_five_seeds_are_called_few_and_why(exported):
    rows = pandas.concat([study(SIX[:4]), study(SIX, method="cbp")])
    _, note, _, bp, cbp = summary_lines([exported(rows.assign(run=np.arange(len(rows)) // 4))], Asked())
    assert note.endswith("fewer than 5 seeds are few: their intervals rest on the normal distribution")
    assert bp.split()[1:3] == ["4,", "few"]
    assert cbp.split()[1] == "6"


def test_an_interquartile_mean_has_the_bootstraps_interval(exported):
    lines = list(summary_lines([exported(study(SIX))], Asked(aggregate="iqm", parts=4, all_parts=True)))
    assert lines[1] == "seeds 0-5; interquartile mean [95% interval, BCa bootstrap]"
    assert f"  {stats.trim_mean(SIX[:, 0], 0.25):.4f} [" in lines[3]


def test_the_time_to_relearn_is_asked_for_with_a_level_and_places_within_tasks(exported):
    rows = study([[0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]).rename(columns={"task": "step"})
    rows["task"] = [1, 1, 2, 2] * 2
    file = exported(rows, ["step", "accuracy", "task"])
    ask = Asked(measure="time-to-relearn", level=0.5, parts=2)
    assert list(summary_lines([file], ask))[-1].endswith("0.5000 ± 6.3531")  # means (1 + 1) / 2 and 0; t(1) x .5
    for asked, message in (
        (Asked(measure="time-to-relearn"), "--level, the value to be reached again, go together"),
        (Asked(level=1.0), "go together"),
        (Asked(measure="time-to-relearn", level=1.0, over="task"), "needs places within a task"),
        (Asked(measure="latest"), "unknown measure 'latest': did you mean 'last'"),
        (Asked(aggregate="median"), "unknown aggregate 'median'"),
        (Asked(spread="sd"), "unknown spread 'sd'"),
        (Asked(aggregate="iqm", spread="error"), "is of a mean"),
        (Asked(form="html"), "unknown format 'html'"),
        (Asked(pairs=True), "there is no pair"),
    ):
        with pytest.raises(LabError, match=message):
            list(summary_lines([file], asked))


def test_a_task_column_is_needed_for_the_time_to_relearn(exported):
    rows = study([[0.0, 1.0]]).rename(columns={"task": "step"})
    with pytest.raises(LabError, match="needs a column task"):
        list(summary_lines([exported(rows, ["step", "accuracy"])], Asked(measure="time-to-relearn", level=0.5)))


# -- forms ------------------------------------------------------------------------------------------------------------

CELLS = [("curve", "last"), ("a_b|c & 5%", "0.9 ± 0.1")]


def test_markdown_and_latex_escape_what_they_would_read_as_their_own():
    assert FORMS["markdown"](CELLS)[2] == r"| a_b\|c & 5% | 0.9 ± 0.1 |"
    assert FORMS["latex"](CELLS)[4] == r"a\_b|c \& 5\% & 0.9 $\pm$ 0.1 \\"


@pytest.mark.parametrize("form", ["markdown", "latex"])
def test_a_report_can_be_pasted_whole(form, exported):
    lines = list(summary_lines([exported(study(SIX))], Asked(form=form)))
    if form == "latex":
        assert all(line.startswith("%") for line in lines[:2])
        assert (lines[2], lines[-1]) == (r"\begin{tabular}{lrrrrrr}", r"\end{tabular}")
    else:
        assert lines[1] == lines[3] == ""  # else the table would belong to the paragraph
        assert lines[5].startswith("|---")
