"""Re-wired cart-pole: what a task is, what is measured of it, and what a method does to an agent."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pliant.experiments.rewired_cart_pole import Config, RewiredCartPole
from pliant.lab import Context
from pliant.rl.environments.cart_pole import SCALE, wiring

SMALL = {
    "tasks": 3,
    "updates": 4,
    "rollout_steps": 32,
    "copies": 4,
    "minibatch_size": 32,
    "hidden": (8, 8),
    "epochs": 4,
    "time_limit": 100,
}
CBP = {"method": "cbp", "replacement_rate": 0.1, "maturity_threshold": 5}
EXPERIMENT = RewiredCartPole()


def started(*seeds, **settings):
    return EXPERIMENT.start([Config(**{**SMALL, **settings}, seed=seed) for seed in seeds], Context())


def learned(state, tasks=3):
    tables = [EXPERIMENT.advance(state) for _ in range(tasks)]
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def test_an_advance_is_a_task_and_gives_a_row_for_each_agent():
    state = started(0, 1)
    rows = learned(state)
    assert rows["task"].tolist() == [1, 1, 2, 2, 3, 3]
    assert rows["run"].tolist() == [0, 1] * 3
    assert rows["step"].tolist() == [512, 512, 1024, 1024, 1536, 1536]  # 4 updates x 32 steps x 4 copies
    assert [status.word for status in state.statuses()] == ["done", "done"]


def test_every_task_wires_the_sensors_of_a_seed_alike_for_all_methods():
    for settings in ({}, CBP):
        state = started(3, **settings)
        EXPERIMENT.advance(state)
        state.begin_task()
        task = wiring(seed=3, number=1, inputs=16)
        seen = state.carts.states[0] * SCALE @ task.mixing + task.offset
        assert state.carts.observations[0] == pytest.approx(seen, abs=1e-12)


def test_returns_are_those_of_episodes_that_ended_and_none_goes_on_into_the_next_task():
    state = started(0, time_limit=6)
    rows = learned(state, tasks=2)
    assert rows["late_return"] == pytest.approx([6, 6], abs=1e-12)  # no pole falls in 6 steps of 0.02 s
    assert rows["whole_return"] == pytest.approx([6, 6], abs=1e-12)
    assert rows["failed"].tolist() == [1, 1]


def test_updates_in_which_no_episode_ends_count_in_no_mean():
    state = started(0)
    EXPERIMENT.advance(state)
    sums, ended = np.array([[0.0], [20.0], [0.0], [60.0]]), np.array([[0], [2], [0], [2]])  # of four updates
    found = state.measures(sums, ended)
    assert (found["whole_return"].tolist(), found["late_return"].tolist()) == ([20.0], [30.0])
    assert state.measures(sums[::-1], ended[::-1])["late_return"].tolist() == [20.0]  # none ended late: all of the task


def test_a_fresh_agent_begins_every_task_with_other_weights_and_an_adam_that_has_seen_nothing():
    fresh, standard = started(0, method="fresh"), started(0)
    for state, same in ((fresh, False), (standard, True)):
        EXPERIMENT.advance(state)
        before = [layer.weight.detach().clone() for layer in state.ppo.networks.actor.linears()]
        state.begin_task()
        after = [layer.weight for layer in state.ppo.networks.actor.linears()]
        assert [bool((old == new).all()) for old, new in zip(before, after, strict=True)] == [same] * len(before)
        assert (state.ppo.adam.own == 0).all() != same


def test_a_run_alone_and_in_a_stack_learns_the_same():
    alone, stack = learned(started(2, **CBP)), learned(started(0, 1, 2, **CBP))
    of_it = stack["run"] == 2
    assert alone["replaced"][-1] >= 20
    for name in ("late_return", "whole_return", "replaced", "step"):
        assert alone[name] == pytest.approx(stack[name][of_it], rel=1e-4), name


def test_stopping_between_tasks_and_going_on_changes_nothing():
    straight = started(0, 1, **CBP)
    expected = learned(straight)
    stopped = started(0, 1, **CBP)
    learned(stopped, tasks=1)
    resumed = started(0, 1, **CBP)
    resumed.load_state_dict(stopped.state_dict())
    found = learned(resumed, tasks=2)
    assert expected["replaced"].max() >= 20
    for name in found:
        assert found[name].tolist() == expected[name][2:].tolist(), name


def test_an_agent_that_diverges_has_no_rows_from_there_on_and_the_other_goes_on():
    state = started(0, 1)
    EXPERIMENT.advance(state)
    with torch.no_grad():
        state.ppo.networks.actor.linears()[0].weight[1] = torch.nan
    rows = EXPERIMENT.advance(state)
    assert rows["run"].tolist() == [0]
    assert [status.word for status in state.statuses()] == ["running", "diverged"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"minibatch_size": 100}, "a rollout has 128 states, which minibatch_size .100. does not divide"),
        ({"time_limit": 200}, "an episode may last time_limit .200. steps, and a task has 128 of each copy"),
        ({"replacement_rate": 0.1}, "replacement_rate is for method cbp, not ppo"),
        ({"method": "redo"}, "method redo needs tau > 0"),
        ({"method": "l2"}, "method l2 needs weight_decay > 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Config(**{**SMALL, **settings})
