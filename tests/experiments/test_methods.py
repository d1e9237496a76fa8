"""The rows of methods: one name, one color, the fields that make a method one; and names of fields of the version before."""

from itertools import combinations
from pathlib import Path

import pytest
from pydantic import ValidationError

from pliant.experiments import TABLE
from pliant.experiments.methods import METHODS, owners, rows_of
from pliant.lab import RunConfig
from pliant.lab.study.settings import override_axis
from pliant.lab.study.study import open_study
from pliant.lab.study.target import load, target

RESULTS = Path(__file__).parents[2] / "results"


@pytest.mark.parametrize("name", TABLE)
def test_every_method_has_a_row_and_in_an_experiment_a_color_of_its_own(name):
    methods = load(target(TABLE[name].target)).methods
    assert {*methods} <= METHODS.keys()
    for one, other in combinations(rows_of(methods), 2):
        assert one.color != other.color, (one.name, other.name)


@pytest.mark.parametrize("name", TABLE)
def test_the_fields_that_make_a_method_one_are_fields_of_the_config(name):
    experiment = load(target(TABLE[name].target))
    shipped = [name for name in experiment.methods if name not in experiment.rivals]  # a rival has a config of its own
    assert owners(rows_of(shipped)).keys() <= experiment.Config.model_fields.keys()


@pytest.mark.parametrize("name", TABLE)
def test_names_of_the_version_before_are_read(name):
    kind: type[RunConfig] = load(target(TABLE[name].target)).Config
    for old, new in kind.renamed.items():
        default = kind.model_fields[new].default
        assert kind.model_validate({"method": kind.model_fields["method"].default, old: default}) == kind()
        assert override_axis(f"{old}={default}", kind)[0] == new
        with pytest.raises(ValidationError, match=f"{old} and {new} are one field, which is called {new} now"):
            kind.model_validate({old: default, new: default})


def test_a_study_under_names_of_the_version_before_takes_more_runs(tmp_path, pliant):
    study, more = tmp_path / "study", ("--set", "steps=500", "--methods", "bp", "--out")
    assert pliant("run", "switching-markov-chain", "--seeds", "0", *more, study, "--set", "lanes=16")[0] == 0
    (study / "study.json").write_text(  # as the version before wrote it
        (study / "study.json").read_text().replace('"sequences"', '"lanes"').replace('"beta1"', '"beta_1"')
    )
    for file in (study / "jobs").iterdir():
        file.unlink()
    assert pliant("resume", study)[0] == 0
    kept = (study / "jobs" / "000.sqlite").read_bytes()
    status, said, _ = pliant("run", "switching-markov-chain", "--seeds", "0-1", *more, study, "--set", "sequences=16")
    assert (status, "2 of 2 finished" in said) == (0, True)
    assert (study / "jobs" / "000.sqlite").read_bytes() == kept
    assert [set(run) >= {"lanes"} for job in open_study(study).jobs for run in job.runs] == [True, False]
    assert pliant("status", study)[1].count("bp  seed") == 2
    assert "bp     2, few " in pliant("report", study, "--parts", "1", "--where", "lanes=16")[1]


def test_studies_of_one_problem_are_reported_side_by_side(pliant):
    files = [RESULTS / f"switching-markov-chain-{profile}.parquet" for profile in ("small", "tuning")]
    status, said, _ = pliant("report", *files, "--parts", "3", "--where", "method=fresh")
    assert status == 0
    assert "switching-markov-chain / small, tuning   excess by switch, 3 parts" in said
    curves = [line.split("  ")[0] for line in said.splitlines()[3:]]
    assert len(curves) == 12
    assert sum(curve.startswith("switching-markov-chain-small: fresh") for curve in curves) == 1
    assert sum(curve.startswith("switching-markov-chain-tuning: fresh") for curve in curves) == 11
    alone = pliant("report", files[0], "--parts", "3", "--where", "method=fresh")[1].splitlines()[-1]
    assert (
        alone.split("  ", 1)[1].split()
        == next(line for line in said.splitlines() if line.startswith("switching-markov-chain-small"))
        .split("  ", 1)[1]
        .split()
    )


def test_studies_of_two_problems_are_not(pliant):
    files = [RESULTS / f"{name}.parquet" for name in ("switching-markov-chain-small", "rewired-cart-pole-small")]
    status, _, errors = pliant("report", *files)
    assert status == 2
    assert "is of switching-markov-chain, and rewired-cart-pole-small of rewired-cart-pole" in errors
    status, _, errors = pliant("report", files[0], files[0])
    assert (status, "the same study twice" in errors) == (2, True)


def test_an_export_of_the_version_before_is_asked_by_names_of_now_and_of_then(pliant):
    file = RESULTS / "rewired-cart-pole-small.parquet"
    by_old, by_new = (pliant("report", file, "--where", f"{name}=0.99")[1] for name in ("beta_1", "beta1"))
    assert by_old == by_new
    assert "tuned-adam" in by_new
