import warnings

import numpy as np
import pytest

from pliant.lab.stored.checkpoint import from_bytes, to_bytes
from pliant.rl.environments import RewiredCartPole
from pliant.rl.environments.cart_pole import FORCE, SCALE, advance, fallen, wiring


def actions(environment: RewiredCartPole, step: int):
    return np.random.default_rng([9, step]).integers(0, 2, (environment.agents, environment.copies))


def test_the_dynamics_are_those_of_the_textbook_bit_for_bit():
    gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    theirs = gymnasium.make("CartPole-v1").unwrapped
    theirs.reset(seed=0)
    random, falls = np.random.default_rng(1), 0
    ours = np.array(theirs.state)
    for _ in range(3000):
        action = int(random.integers(2))
        ours = advance(ours, np.array(FORCE if action else -FORCE))
        _, _, terminated, _, _ = theirs.step(action)
        np.testing.assert_array_equal(ours, theirs.state)
        assert terminated == bool(fallen(ours))
        if terminated:
            falls += 1
            theirs.reset()
            ours = np.array(theirs.state)
    assert falls >= 50


def test_an_observation_is_the_scaled_state_rotated_and_shifted():
    environment = RewiredCartPole(seeds=[4], copies=3)
    environment.begin_task(2)
    task = wiring(4, 2, 16)
    np.testing.assert_allclose(
        environment.observations[0], (environment.states[0] * SCALE) @ task.mixing + task.offset, atol=1e-12
    )


def test_tasks_differ_in_mixing_offset_and_order_of_the_actions():
    tasks = [wiring(0, number, 16) for number in range(40)]
    assert len({task.mixing.tobytes() for task in tasks}) == 40
    assert len({task.offset.tobytes() for task in tasks}) == 40
    assert 8 <= sum(task.swapped for task in tasks) <= 32


def test_where_actions_are_swapped_action_zero_pushes_to_the_right():
    environment = RewiredCartPole(seeds=range(12))
    swapped = np.array([wiring(seed, 0, 16).swapped for seed in range(12)])
    assert 0 < swapped.sum() < 12
    before = environment.states[:, 0, 1]
    environment.step(np.zeros((12, 1), int))
    np.testing.assert_array_equal(environment.states[:, 0, 1] > before, swapped)


def test_a_new_task_restarts_every_copy():
    environment = RewiredCartPole(seeds=[0, 1], copies=4)
    for t in range(15):
        environment.step(actions(environment, t))
    environment.begin_task(1)
    assert np.abs(environment.states).max() <= 0.05
    assert environment.tasks.tolist() == [1, 1]


def test_an_agent_alone_and_in_a_stack_of_eight_meets_the_same_environment():
    stack, alone = RewiredCartPole(seeds=range(8), copies=4), RewiredCartPole(seeds=[5], copies=4)
    ends = 0
    for t in range(300):
        if t % 100 == 99:
            stack.begin_task(t)
            alone.begin_task(t)
        chosen = actions(stack, t)
        together, single = stack.step(chosen), alone.step(chosen[5:6])
        for a, b in zip(together, single, strict=True):
            np.testing.assert_array_equal(a[5:6], b)
        ends += int(single.terminated.sum())
    assert ends >= 20


def test_who_acts_without_looking_earns_22():
    environment, random = RewiredCartPole(seeds=range(8), copies=16), np.random.default_rng(0)
    earned, ended = np.zeros((8, 16)), []
    for _ in range(1000):
        step = environment.step(random.integers(0, 2, (8, 16)))
        earned += step.rewards
        over = step.terminated | step.truncated
        ended += earned[over].tolist()
        earned[over] = 0.0
    assert len(ended) > 5000
    assert np.mean(ended) == pytest.approx(22.1, abs=0.5)


def test_an_episode_ends_by_a_fall_or_is_cut_at_the_time_limit():
    environment = RewiredCartPole(seeds=[0], copies=64, time_limit=25)
    fell, cut = 0, 0
    for t in range(100):
        step = environment.step(actions(environment, t))
        assert (step.rewards == 1).all()
        fell, cut = fell + int(step.terminated.sum()), cut + int(step.truncated.sum())
    assert fell > 20
    assert cut > 20


def test_a_period_rewires_an_agent_when_its_next_episode_begins():
    environment = RewiredCartPole(seeds=[0, 1, 2], period=100)
    changed = []
    for t in range(1, 350):
        before = environment.tasks
        step = environment.step(actions(environment, t))
        ended = (step.terminated | step.truncated)[:, 0]
        assert (ended | (environment.tasks == before)).all()
        np.testing.assert_array_equal(environment.tasks[ended], t // 100)
        changed += [(agent, t) for agent in np.flatnonzero(environment.tasks != before)]
    assert len(changed) == 9


def test_stopping_and_resuming_amid_episodes_changes_nothing():
    for options in ({"copies": 4}, {"period": 120}):
        straight, resumed = (RewiredCartPole(seeds=[0, 7], **options) for _ in range(2))
        straight.begin_task(3)
        for t in range(333):
            straight.step(actions(straight, t))
        resumed.load_state_dict(from_bytes(to_bytes(straight.state_dict())))
        np.testing.assert_array_equal(resumed.observations, straight.observations)
        ends = 0
        for t in range(333, 900):
            a, b = straight.step(actions(straight, t)), resumed.step(actions(resumed, t))
            for x, y in zip(a, b, strict=True):
                np.testing.assert_array_equal(x, y)
            ends += int(a.terminated.sum())
        np.testing.assert_array_equal(resumed.tasks, straight.tasks)
        assert ends >= 20


def test_a_state_of_other_agents_is_refused():
    with pytest.raises(ValueError, match=r"the state belongs to seeds = \(1,\); here it is \(0,\)"):
        RewiredCartPole(seeds=[0]).load_state_dict(RewiredCartPole(seeds=[1]).state_dict())


def test_a_state_that_is_not_finite_has_fallen():
    assert fallen(np.array([0.0, np.inf, 0.0, 0.0]))
    assert fallen(np.array([np.nan, 0.0, 0.0, 0.0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": []}, "0 seeds"),
        ({"seeds": 3}, "seeds=3: give a whole number for each agent"),
        ({"inputs": 3}, "inputs=3: a whole number, 4 or more"),
        ({"period": 100, "copies": 2}, "call begin_task"),
        ({"period": 0}, "1 or more whole steps"),
    ],
)
def test_a_bad_option_is_refused(options, message: str):
    with pytest.raises(ValueError, match=message):
        RewiredCartPole(**options)


@pytest.mark.parametrize("bad", [np.full((1, 1), 2), np.zeros((1, 2), int), np.full((1, 1), np.nan)])
def test_an_action_that_is_none_is_refused(bad):
    with warnings.catch_warnings(), pytest.raises(ValueError, match="actions are 0 or 1 and of shape"):
        RewiredCartPole().step(bad)
