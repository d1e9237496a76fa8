"""All rows in one table: each knows its run, config, status and commit."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pliant.lab import LabError
from pliant.lab.report.table import export, exported, rows_of
from pliant.lab.study.study import Study, new_plan, open_study
from pliant.lab.study.target import target
from tests.kill_and_resume import finish

TOY = str(Path(__file__).parents[2] / "toy_experiment.py") + ":Toy"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table") / "s"
    finish(["run", TOY, "--profile", "tiny", "--out", str(folder)], folder)
    return open_study(folder)


def test_every_row_is_joined_to_its_config(study):
    rows = rows_of(study)
    assert len(rows) == 12 * 5
    cells = rows.groupby("run")[["method", "step_size", "seed"]].first()
    assert sorted(cells.itertuples(index=False, name=None)) == sorted(
        (c.method, c.step_size, c.seed) for c in study.experiment.runs("tiny")
    )
    assert rows.groupby("run")["step"].apply(list).tolist() == [[200, 400, 600, 800, 1000]] * 12


def test_a_diverged_run_says_so_in_every_row(study):
    rows = rows_of(study)
    lost = rows[rows["status"] == "diverged"]
    assert set(lost["step_size"]) == {5.0}
    assert lost["squared_error"].isna().all()
    assert (lost["diverged_at"] < 200).all()
    assert rows[rows["status"] == "done"]["diverged_at"].isna().all()


EXACT = {} if int(pd.__version__.partition(".")[0]) >= 3 else {"float_precision": "round_trip"}  # as pandas 3 reads
EXACTLY = partial(pd.read_csv, **EXACT)


@pytest.mark.parametrize(("form", "reader"), [("csv", EXACTLY), ("parquet", pd.read_parquet)], ids=["csv", "parquet"])
def test_an_export_reads_back_to_the_bit(study, form, reader, tmp_path):
    file = tmp_path / f"rows.{form}"
    assert export(study, form, file) == 60
    back, rows = reader(file), rows_of(study)
    assert list(back) == list(rows)
    np.testing.assert_array_equal(back["squared_error"], rows["squared_error"])
    np.testing.assert_array_equal(back["step_size"], rows["step_size"])


def test_a_study_without_rows_says_so(tmp_path):
    empty = Study(tmp_path, new_plan("toy", target(TOY), "tiny", "cpu", {}))
    with pytest.raises(LabError, match="has no rows yet: `pliant status"):
        rows_of(empty)


QUIET = """
class Quiet(Toy):
    def advance(self, state):
        rows = super().advance(state)
        return {name: values[:0] for name, values in rows.items()} if state.configs[0].method == "lms" else rows
"""


def test_a_job_whose_advances_had_no_rows_has_none_in_the_table(tmp_path):
    file = tmp_path / "silent.py"
    file.write_text(Path(TOY.rpartition(":")[0]).read_text() + QUIET)
    study = tmp_path / "s"
    finish(["run", f"{file}:Quiet", "--profile", "tiny", "--seeds", "0", "--out", str(study)], study)
    assert set(rows_of(open_study(study))["method"]) == {"nlms"}
    finish(
        ["run", f"{file}:Quiet", "--profile", "tiny", "--seeds", "0", "--methods", "lms", "--out", str(tmp_path / "q")],
        study,
    )
    with pytest.raises(LabError, match="has no rows yet"):
        rows_of(open_study(tmp_path / "q"))


@pytest.mark.parametrize(
    ("merged", "message"),
    [
        (lambda rows: pd.concat([rows, rows]), "has the same row twice: is it a study in two copies"),
        (
            lambda rows: pd.concat([rows[rows["run"] == 0], rows[rows["run"] == 11].assign(run=0)]),
            "run 0 of .* has rows of several settings: number the runs of two studies apart",
        ),
    ],
)
def test_an_export_of_two_studies_in_one_is_refused(study, merged, message, tmp_path):
    export(study, "parquet", tmp_path / "rows.parquet")
    rows = exported(tmp_path / "rows.parquet")
    both = merged(rows)
    both.attrs = rows.attrs
    both.to_parquet(tmp_path / "both.parquet")
    with pytest.raises(LabError, match=message):
        exported(tmp_path / "both.parquet")
