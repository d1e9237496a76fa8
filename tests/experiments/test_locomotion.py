"""Walking on ground that changes: what a row is the mean of, when the ground changes, and what goes on across it."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pliant.experiments.locomotion import Ant, Config, SlipperyAnt, SlipperyCheetah
from pliant.lab import Context

SMALL = {
    "body": "hopper",
    "steps": 1024,
    "rollout_steps": 128,
    "rollouts_per_row": 2,
    "minibatch_size": 32,
    "epochs": 3,
    "hidden": (8, 8),
    "friction_period": 300,
}
CBP = {"method": "cbp", "replacement_rate": 0.1, "maturity_threshold": 5}
EXPERIMENT = SlipperyAnt()


def started(*seeds, **settings):
    return EXPERIMENT.start([Config(**{**SMALL, **settings}, seed=seed) for seed in seeds], Context())


def learned(state, advances=8):
    tables = [EXPERIMENT.advance(state) for _ in range(advances)]
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def test_a_row_tells_of_a_stretch_of_rollouts_and_an_advance_is_at_most_one_of_these():
    state = started(0, 1)
    rows = learned(state)
    assert rows["step"].tolist() == [256, 256, 512, 512, 768, 768, 1024, 1024]
    assert [status.word for status in state.statuses()] == ["done", "done"]
    steps = rows["episodes"] * rows["length"]
    assert (steps[::2].sum() <= 1024) & (steps[::2].sum() > 1024 - 400)  # all but the episode at the end


def test_the_ground_changes_at_the_first_episode_after_every_period_alike_for_all_methods():
    first, second = learned(started(4)), learned(started(4, **CBP))
    assert first["task"].tolist() == [1, 1, 2, 3]  # due as each stretch of 256 steps began
    assert len(set(first["friction"])) == 4
    assert first["friction"].tolist() == second["friction"].tolist()
    assert ((first["friction"] >= 0.02) & (first["friction"] <= 2)).all()


def test_a_fresh_agent_starts_over_after_the_rollout_in_which_its_own_ground_changed():
    state = started(0, 1, method="fresh")
    grounds, lives = [state.bodies.frictions[:, 0]], [np.zeros(2, np.int64)]
    for _ in range(8):
        EXPERIMENT.advance(state)
        grounds.append(state.bodies.frictions[:, 0])
        lives.append(state.ppo.state_dict()["lives"])
    assert np.array_equal(np.diff(lives, axis=0) > 0, np.diff(grounds, axis=0) != 0)
    assert min(lives[-1]) >= 2


def test_a_run_alone_and_in_a_stack_learns_the_same():
    alone, stack = learned(started(2, **CBP)), learned(started(0, 1, 2, **CBP))
    of_it = stack["run"] == 2
    assert alone["replaced"][-1] >= 20
    for name in ("return", "friction", "replaced", "step"):
        assert alone[name] == pytest.approx(stack[name][of_it], rel=1e-3, nan_ok=True), name


def test_stopping_amid_a_stretch_and_going_on_changes_nothing():
    expected = learned(started(0, 1, **CBP))
    stopped, resumed = started(0, 1, **CBP), started(0, 1, **CBP)
    before = learned(stopped, advances=3)
    resumed.load_state_dict(stopped.state_dict())
    after = learned(resumed, advances=5)
    assert expected["replaced"].max() >= 20
    for name, whole in expected.items():
        assert np.concatenate([before[name], after[name]]).tolist() == whole.tolist(), name


def test_an_agent_that_diverges_has_no_rows_from_there_on_and_the_other_goes_on():
    state = started(0, 1)
    learned(state, advances=2)
    with torch.no_grad():
        state.ppo.networks.actor.linears()[0].weight[0] = torch.nan
    rows = learned(state, advances=2)
    assert rows["run"].tolist() == [1]
    assert [status.word for status in state.statuses()] == ["diverged", "running"]


def test_the_articles_ant_sees_111_numbers_and_keeps_the_moments_of_replaced_units():
    (config,) = [each for each in SlipperyAnt().runs("paper") if each.method == "cbp" and each.seed == 0]
    state = EXPERIMENT.start([config.model_copy(update={"hidden": (8, 8)})], Context())
    assert state.bodies.observation_size == 111
    settings = state.ppo.settings
    assert (settings.betas, settings.weight_decay, settings.replacement_rate) == ((0.99, 0.99), 1e-4, 1e-4)
    assert (settings.maturity_threshold, settings.optimizer_state, settings.hand_over_mean) == (10_000, "keep", False)
    assert {each.friction_period for each in Ant().runs("paper")} == {0}


def test_a_run_ends_with_its_last_whole_row():
    state = started(0, steps=511)
    assert learned(state, advances=2)["step"].tolist() == [256]
    assert state.statuses()[0].word == "done"


def test_a_job_has_at_most_eight_seeds():
    keys = {EXPERIMENT.stack_key(config, "cpu") for config in SlipperyCheetah().runs("paper") if config.method == "ppo"}
    assert len(keys) == 4  # 30 seeds


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"minibatch_size": 100}, "a rollout has 128 states, which minibatch_size .100. does not divide"),
        ({"method": "fresh", "friction_period": 0}, "method fresh starts over when friction changes"),
        ({"lowest_friction": 3.0}, "frictions from 3.0 to 2.0: the lowest comes first"),
        ({"highest_friction": 50.0}, "sliding friction lies in"),
        ({"friction_period": 0, "lowest_friction": 0.5}, "need a friction_period"),
        ({"steps": 100}, "steps .100. are fewer than a row's: 2 rollouts of 128"),
        ({"hidden": (0,)}, "hidden must be at least one layer"),
        ({"maturity_threshold": 7}, "maturity_threshold is read by method cbp, not ppo: leave it out"),
        ({"method": "tuned-adam"}, "method tuned-adam has equal betas"),
        ({"body": "horse"}, "Input should be 'ant', 'half-cheetah', 'hopper' or 'walker2d'"),
        ({"weight_decay": 1e-3}, "weight_decay is for method l2 or cbp or redo, not ppo"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Config(**{**SMALL, **settings})
