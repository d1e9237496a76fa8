from copy import deepcopy

import numpy as np
import pytest
import torch

from pliant.experiments.class_incremental import ClassIncremental
from pliant.experiments.images.residual_run import first_not_finite, pieces_per_advance
from pliant.experiments.warm_starting import WarmStarting
from pliant.lab.stored.checkpoint import from_bytes, to_bytes
from tests.experiments.residual_runs import Runs, equal, joined
from tests.experiments.small_pictures import assert_same_state, make_pictures

PICTURES = {"train_images": 15, "validation_images": 5, "test_images": 6, "width": 4, "batch": 10}
GROWTH = Runs(ClassIncremental(), {**PICTURES, "increment": 2, "tasks": 2, "epochs": 3})
WARM = Runs(WarmStarting(), {**PICTURES, "classes": 4, "epochs": 5, "step_size": 0.05, "momentum": 0.9, "until": 2.0})
CBP = {"method": "cbp", "replacement_rate": 1.0, "maturity_threshold": 1}
GROWTH_SNP = {"method": "snp", "noise_std": 1e-3}
WARM_SNP = {"method": "snp", "shrink": 0.5, "noise_std": 0.01}
BOTH = pytest.mark.parametrize("runs", [GROWTH, WARM], ids=["class-incremental", "warm-starting"])


@pytest.mark.parametrize(
    ("runs", "settings", "advances"),
    [
        (GROWTH, {"method": "bp"}, 1),
        (GROWTH, {"method": "bp"}, 4),
        (GROWTH, CBP, 3),
        (GROWTH, {"method": "head"}, 2),
        (GROWTH, {"method": "full"}, 2),
        (GROWTH, GROWTH_SNP, 1),
        (WARM, {"method": "bp"}, 2),
        (WARM, WARM_SNP, 2),
        (WARM, WARM_SNP, 5),
        (WARM, CBP, 4),
    ],
)
def test_stopping_and_resuming_changes_nothing(data, runs, settings, advances):
    straight_state, rows = runs.straight(data, **settings)
    state = runs.begin(data, **settings)
    before = [runs.experiment.advance(state) for _ in range(advances)]
    assert 0 < state.steps_done < state.steps_total
    resumed = runs.begin(data, **settings)
    saved = to_bytes(state.state_dict())
    resumed.load_state_dict(from_bytes(saved))
    runs.experiment.advance(state)  # what was saved must not follow
    state.load_state_dict(from_bytes(saved))  # and a run can go back
    assert equal(joined([*before, runs.finish(state)]), rows)
    assert equal(joined([*before, runs.finish(resumed)]), rows)
    assert_same_state(resumed.state_dict(), straight_state.state_dict())
    if settings is CBP:
        assert min(group["replaced"][0] for group in straight_state.learner.method.stats().values()) >= 20


@pytest.mark.parametrize(("runs", "settings"), [(GROWTH, CBP), (GROWTH, GROWTH_SNP), (WARM, CBP), (WARM, WARM_SNP)])
def test_learning_on_changes_nothing_in_a_state_and_two_runs_go_on_from_it_alike(data, runs, settings):
    state = runs.begin(data, **settings)
    for _ in range(2):
        state.learn_a_while()
    assert state.epoch > 0, "of class-incremental learning, a best state is to be kept by now"
    saved = state.state_dict()
    kept = deepcopy(saved)
    rows = []
    for run in (state, *(runs.begin(data, **settings) for _ in range(2))):
        if run is not state:
            run.load_state_dict(saved)
        rows.append(runs.finish(run))
        assert_same_state(saved, kept)
    assert equal(rows[0], rows[1])
    assert equal(rows[0], rows[2])
    assert rows[0]["replaced"][-1] >= (20 if settings is CBP else 0)


@BOTH
def test_how_far_an_advance_goes_does_not_matter(data, runs):
    assert equal(runs.straight(data, **CBP)[1], runs.finish(runs.begin(data, pieces=40, **CBP)))


@BOTH
def test_other_pictures_under_the_same_name_are_refused(data, runs, tmp_path):
    state = runs.begin(data).state_dict()
    make_pictures(tmp_path / "small", seed=1)
    with pytest.raises(ValueError, match="began with other images of 'small'"):
        runs.begin(tmp_path).load_state_dict(state)


@BOTH
def test_a_diverged_run_is_a_result(data, runs):
    state = runs.begin(data, step_size=1e30)
    runs.finish(state)
    assert state.statuses()[0].word == "diverged"
    assert 1 <= state.statuses()[0].step <= 6
    resumed = runs.begin(data, step_size=1e30)
    resumed.load_state_dict(from_bytes(to_bytes(state.state_dict())))
    assert resumed.statuses() == state.statuses()


@pytest.mark.parametrize("pieces", [2, 100])
@pytest.mark.parametrize(
    ("runs", "broken", "rows_before"),
    [
        *((GROWTH, 0, 0), (GROWTH, 8, 0), (GROWTH, 13, 1)),  # an epoch of the first task has 3 updates, of the second 6
        *((WARM, 0, 0), (WARM, 4, 1), (WARM, 5, 1)),  # an epoch of the first stage has 3
    ],
)
def test_a_run_ends_with_the_row_before_the_update_whose_loss_is_not_finite(data, pieces, runs, broken, rows_before):
    state = runs.begin(data, pieces=pieces)
    learn = state.learner.learn
    state.learner.learn = lambda x, labels, among: learn(
        x * torch.nan if state.updates == broken + 1 else x, labels, among
    )
    rows = runs.finish(state)
    assert state.statuses() == [("diverged", broken)]
    assert len(rows["run"]) == rows_before
    assert all(np.isfinite(values).all() for values in rows.values())


@pytest.mark.parametrize(("runs", "last_update"), [(GROWTH, 9), (WARM, 6)], ids=["class-incremental", "warm-starting"])
def test_a_run_whose_last_update_of_an_epoch_breaks_it_has_no_accuracy_after_it(data, runs, last_update):
    state = runs.begin(data, pieces=1)
    while state.updates < last_update:
        rows = state.learn_a_while()
    assert not rows
    with torch.no_grad():
        state.learner.network.stem.weight.fill_(torch.nan)
    assert runs.finish(state)["run"].tolist() == []
    assert state.statuses() == [("diverged", last_update)]


def test_the_first_loss_that_is_not_finite_is_found():
    losses = [torch.tensor(each) for each in (1.0, float("inf"), 2.0, float("nan"))]
    assert first_not_finite(losses) == 1
    assert first_not_finite(losses[:1]) is None
    assert first_not_finite([]) is None


def test_an_advance_has_fewer_steps_where_a_step_takes_longer():
    assert pieces_per_advance(8, "cpu") > pieces_per_advance(16, "cpu") > pieces_per_advance(64, "cpu") == 1
    assert pieces_per_advance(64, "cuda") >= 100
