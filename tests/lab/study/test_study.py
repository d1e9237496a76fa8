"""How a study is planned, kept, and added to."""

from pathlib import Path

import pytest

from pliant.lab import LabError
from pliant.lab.study.settings import selected
from pliant.lab.study.study import Study, grouped, longer, new_plan, open_study, with_runs
from pliant.lab.study.target import target
from tests.toy_experiment import Config

TOY = target(str(Path(__file__).parents[2] / "toy_experiment.py") + ":Toy")


@pytest.fixture
def empty(tmp_path):
    return Study(tmp_path / "study", new_plan("toy", TOY, "quick", "cpu", {}))


def first_configs(folder):
    study = open_study(folder)
    return study.configs(study.jobs[0])


def asked(study, **what):
    return selected(study.experiment, "quick", **what)


def test_runs_of_one_key_share_jobs_of_nearly_equal_size():
    configs = [Config(seed=seed) for seed in range(10)]
    groups = grouped(configs, ["a"] * 7 + ["b"] * 3, most=3)
    assert [[c.seed for c in group] for group in groups] == [[0, 1], [2, 3], [4, 5, 6], [7, 8, 9]]


def test_a_saved_study_opens_as_it_was(empty):
    study = with_runs(empty, asked(empty))
    study.save()
    again = open_study(study.folder)
    assert again.plan == study.plan
    assert [config for job in again.jobs for config in again.configs(job)] == [
        config for job in study.jobs for config in study.configs(job)
    ]


def test_runs_that_are_there_already_are_not_added_again(empty):
    study = with_runs(empty, asked(empty, seeds="0-1"))
    assert with_runs(study, asked(empty, seeds="0")).jobs == study.jobs
    assert with_runs(study, asked(empty, methods="nlms", seeds="1")).jobs == study.jobs


def test_added_runs_get_jobs_of_their_own_and_leave_the_others_alone(empty):
    study = with_runs(empty, asked(empty, seeds="0-1"))
    larger = with_runs(study, asked(empty, seeds="0-2"))
    assert larger.jobs[: len(study.jobs)] == study.jobs
    assert {run["seed"] for job in larger.jobs[len(study.jobs) :] for run in job.runs} == {2}
    assert larger.run_count == 12


def test_a_further_value_of_a_field_may_be_added(empty):
    study = with_runs(empty, asked(empty, methods="nlms", overrides=["step_size=0.1"]))
    assert with_runs(study, asked(empty, methods="nlms", overrides=["step_size=0.1,0.2"])).run_count == 6


@pytest.mark.parametrize("seeds", ["0-1", "5-6"])
def test_a_changed_setting_is_refused_by_name_whatever_the_seeds(empty, seeds):
    study = with_runs(empty, asked(empty, seeds="0-1"))
    with pytest.raises(LabError, match=r"runs of 'lms' with other settings: drift was 0\.01, is 0\.5; ask for the old"):
        with_runs(study, asked(empty, seeds=seeds, overrides=["drift=0.5"]))


def test_an_experiment_whose_fields_changed_is_refused(empty):
    study = with_runs(empty, asked(empty, seeds="0"))
    study.save()
    text = (study.folder / "study.json").read_text()
    (study.folder / "study.json").write_text(text.replace('"drift": 0.01,', '"drfit": 0.01,'))
    with pytest.raises(LabError, match="the experiment has changed: unknown field 'drfit': did you mean 'drift'"):
        first_configs(study.folder)
    (study.folder / "study.json").write_text(text.replace('"drift": 0.01,', ""))
    with pytest.raises(LabError, match=r"has changed since this study began: drift was absent, is 0\.01"):
        first_configs(study.folder)


def test_a_study_from_before_a_field_was_added_goes_on_where_it_is_said_what_it_was(empty, monkeypatch):
    study = with_runs(empty, asked(empty, seeds="0"))
    study.save()
    text = (study.folder / "study.json").read_text()
    (study.folder / "study.json").write_text(text.replace('"drift": 0.01,', ""))
    kind = open_study(study.folder).experiment.Config
    monkeypatch.setattr(kind, "added", {"drift": 0.01})
    assert [config.drift for config in first_configs(study.folder)][:1] == [0.01]
    monkeypatch.setattr(kind, "added", {"drift": 0.5})
    with pytest.raises(LabError, match=r"has changed since this study began: drift was 0\.5, is 0\.01"):
        first_configs(study.folder)


def test_a_plan_of_another_format_or_damaged_is_refused(empty):
    empty.save()
    file = empty.folder / "study.json"
    text = file.read_text()
    file.write_text(text.replace('"format": 2', '"format": 7'))
    with pytest.raises(LabError, match="has format 7, this version of pliant reads 1"):
        open_study(empty.folder)
    file.write_text(text[: len(text) // 2])
    with pytest.raises(LabError, match=r"study\.json is damaged"):
        open_study(empty.folder)


def carts(folder, *overrides):
    plain = Study(
        folder, new_plan("carts", target("pliant.experiments.rewired_cart_pole:RewiredCartPole"), "quick", "cpu", {})
    )
    return with_runs(plain, selected(plain.experiment, "quick", "ppo", "0", overrides))


def test_runs_are_made_longer_in_the_field_that_says_when_they_end(tmp_path):
    (job,) = longer(carts(tmp_path), 40).jobs
    before = carts(tmp_path).jobs[0].runs[0]
    assert job.runs == ({**before, "tasks": 40},)


@pytest.mark.parametrize(
    ("overrides", "end", "message"),
    [
        ((), 30, "has runs of 30 tasks already: give a larger number"),
        (("tasks=20,30",), 40, "runs of .* that differ in tasks alone would become the same"),
    ],
)
def test_runs_that_cannot_be_made_longer_are_refused(tmp_path, overrides, end, message):
    with pytest.raises(LabError, match=message):
        longer(carts(tmp_path, *overrides), end)


def test_an_experiment_without_a_length_has_no_longer_runs(empty):
    with pytest.raises(LabError, match=r"runs of .* cannot be made longer"):
        longer(with_runs(empty, [Config()]), 40)
