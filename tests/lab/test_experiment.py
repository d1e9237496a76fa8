"""What the laboratory takes for an experiment, and for rows."""

import numpy as np
import pytest

from pliant.lab import LabError, RunConfig, check_owners, diverged, shared_config
from pliant.lab.experiment import checked_rows
from pliant.lab.study.target import load, target

COLUMNS = {"loss": "nats"}
GOOD = {"run": np.array([0, 1]), "loss": np.array([0.5, np.nan])}


def test_documented_rows_pass_with_run_first():
    assert list(checked_rows({"loss": GOOD["loss"], "run": GOOD["run"]}, COLUMNS, runs=2)) == ["run", "loss"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"los": np.zeros(2)}, r"have \['los'\], which `columns` does not document"),
        ({"loss": np.zeros((2, 1))}, r"column 'loss' is float64\[2, 1\]"),
        ({"loss": np.zeros(3)}, r"column 'loss' is float64\[3\] beside run \[2\]"),
        ({"loss": np.array([None, 1])}, "column 'loss' is object"),
        ({"run": np.array([0, 2])}, "column 'run' indexes the 2 configs"),
        ({"run": np.array([0.0, 1.0])}, "column 'run' indexes the 2 configs"),
    ],
)
def test_other_rows_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        checked_rows({**GOOD, **changed}, COLUMNS, runs=2)


def test_missing_columns_are_refused():
    with pytest.raises(ValueError, match=r"rows lack the columns \['loss'\]"):
        checked_rows({"run": GOOD["run"]}, COLUMNS, runs=2)


EXPERIMENT = """
from pliant.lab import RunConfig
from neighbour import METHOD
class Config(RunConfig):
    method: str = METHOD
class Mine:
    Config, columns, profiles = Config, {"loss": "nats"}, {"quick": "fast"}
    runs = stack_key = start = advance = figure = None
class Clash(Mine):
    columns = {"seed": "taken"}
class Reserved(Mine):
    columns = {"status": "taken"}
class Nameless(Mine):
    columns = {"loss": "nats", "": "a blank"}
class Broken(Mine):
    columns = {"a\\nb": "two lines"}
class NoConfig(Mine):
    Config = dict
class Half:
    Config = Config
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "neighbour.py").write_text("METHOD = 'sgd'\n")
    (tmp_path / "mine.py").write_text(EXPERIMENT)
    return tmp_path / "mine.py"


def test_an_experiment_of_ones_own_is_found_with_what_lies_beside_it(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    where = target("mine.py:Mine")
    monkeypatch.chdir("/")
    assert load(where).Config().method == "sgd"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Mime", "unknown class in .*mine.py 'Mime': did you mean 'Mine'"),
        ("Half", "Half is no experiment: it lacks columns, profiles, runs, stack_key, start, advance, figure"),
        ("NoConfig", r"Config must be a subclass of pliant\.lab\.RunConfig"),
        ("Clash", "share the name seed"),
        ("Reserved", "share the name status"),
        ("Nameless", "'' is no name of a column"),
        ("Broken", r"'a\\nb' is no name of a column"),
    ],
)
def test_what_is_no_experiment_is_refused(file, name, message):
    with pytest.raises(LabError, match=message):
        load(target(f"{file}:{name}"))


@pytest.mark.parametrize("step", [None, "x", float("nan"), float("inf"), -1], ids=repr)
def test_a_run_diverges_at_a_step(step):
    with pytest.raises(LabError, match=r"diverged\(.*\): the step at which a run diverged is a whole number from 0 on"):
        diverged(step)


def test_a_field_that_methods_can_do_without_is_refused_with_the_others_alone():
    for method in ("a", "b"):
        check_owners(RunConfig(method=method, seed=0), {}, {"seed": ["a", "b"]})
        check_owners(RunConfig(method=method, seed=1), {}, {"seed": ["a", "b"]})
    check_owners(RunConfig(method="c", seed=0), {}, {"seed": ["a", "b"]})
    with pytest.raises(ValueError, match="seed is for method a or b, not c: add --methods a"):
        check_owners(RunConfig(method="c", seed=1), {}, {"seed": ["a", "b"]})


def test_a_job_without_runs_and_owners_of_no_field_are_refused():
    with pytest.raises(LabError, match="no configs: a job has at least one run"):
        shared_config([])
    with pytest.raises(LabError, match="unknown field 'sede': did you mean 'seed'"):
        check_owners(RunConfig(method="a"), {"sede": ["a"]})
    with pytest.raises(LabError, match="owners of seed are none"):
        check_owners(RunConfig(method="a"), {"seed": []})
