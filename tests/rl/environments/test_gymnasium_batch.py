"""Environments of gymnasium as PPO takes them: the same transitions whatever they are given as, states exact or named."""

import copy
import logging
import re

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="environments of gymnasium need gymnasium: pip install -e .[rl]")

import gymnasium
from gymnasium import spaces, wrappers

from pliant.base.saving import load_state, save_state
from pliant.rl.environments import Continuous, Discrete, GymnasiumBatch
from pliant.rl.environments.gymnasium_copies import AllAtOnce
from pliant.rl.environments.gymnasium_state import put_back, read
from tests.rl.gymnasium_environments import Buffered, Hidden, Phases, Sampling, Shared, Telling, Walk, WindyWalk

SEEDS = [0, 7]


def drawn(batch, steps, seed=0):
    """The actions of so many steps."""
    draws, shape = np.random.default_rng(seed), (steps, batch.agents, batch.copies)
    if isinstance(batch.actions, Discrete):
        return draws.integers(batch.actions.count, size=shape)
    return draws.uniform(-1.2, 1.2, (*shape, batch.actions.size))


def walked(batch, steps=150, seed=0):
    """All that was seen in so many steps: transitions, and the observations after them."""
    return [(*batch.step(each), batch.observations.copy()) for each in drawn(batch, steps, seed)]


def assert_same(one, other):
    for mine, its in zip(one, other, strict=True):
        for a, b in zip(mine, its, strict=True):
            np.testing.assert_array_equal(a, b)


# -- transitions ---------------------------------------------------------------------------------------------------------


def test_transitions_are_those_of_a_plain_loop():
    batch, plain = GymnasiumBatch(Walk, seeds=[3]), Walk()
    actions = drawn(batch, 300)
    seed = int(batch._copies.remembered[0].np_random_seed)
    seen, terminations, truncations = plain.reset(seed=seed)[0], 0, 0
    np.testing.assert_array_equal(batch.observations[0, 0], seen)
    for each in actions:
        step = batch.step(each)
        reached, reward, terminated, truncated, _ = plain.step(np.clip(each[0, 0], -1, 1).astype(np.float32))
        np.testing.assert_array_equal(step.observations[0, 0], reached)
        assert (step.rewards, step.terminated, step.truncated) == (reward, terminated, truncated)
        seen = plain.reset()[0] if terminated or truncated else reached
        np.testing.assert_array_equal(batch.observations[0, 0], seen)
        terminations, truncations = terminations + terminated, truncations + truncated
    assert min(terminations, truncations) >= 5


def vector(mode, kind=gymnasium.vector.SyncVectorEnv, make=Walk, count=4):
    return kind([make] * count, autoreset_mode=mode)


VECTORS = {
    "next step": lambda: vector("NextStep"),
    "same step": lambda: vector("SameStep"),
    "disabled": lambda: vector("Disabled"),
    "processes": lambda: vector("NextStep", gymnasium.vector.AsyncVectorEnv),
    "processes, same step": lambda: vector("SameStep", gymnasium.vector.AsyncVectorEnv),
    "wrapped": lambda: wrappers.vector.RecordEpisodeStatistics(vector("NextStep")),
}


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_env_gives_the_transitions_of_single_environments_whatever_its_autoreset_mode(name):
    singles, together = GymnasiumBatch(Walk, seeds=SEEDS, copies=2), GymnasiumBatch(VECTORS[name](), seeds=SEEDS)
    assert isinstance(together._copies, AllAtOnce)
    assert (together.agents, together.copies) == (2, 2)
    np.testing.assert_array_equal(singles.observations, together.observations)
    one, other = walked(singles, 400), walked(together, 400)
    together.close()
    assert_same(one, other)
    assert sum(step[2].sum() for step in one) >= 20
    assert sum(step[3].sum() for step in one) >= 20


def test_make_vec_of_an_environment_with_vectors_of_its_own_gives_single_ones_as_it_cannot_begin_one_episode_alone():
    made = gymnasium.make_vec("CartPole-v1", num_envs=4, max_episode_steps=12, sutton_barto_reward=True)
    together = GymnasiumBatch(made, seeds=SEEDS)
    settings = {"max_episode_steps": 12, "sutton_barto_reward": True}
    singles = GymnasiumBatch(lambda: gymnasium.make("CartPole-v1", **settings), seeds=SEEDS, copies=2)
    one, other = walked(singles), walked(together)
    assert_same(one, other)
    assert sum(step[2].sum() for step in one) >= 5
    assert sum(step[3].sum() for step in one) >= 5


def test_an_agent_alone_sees_what_it_sees_in_a_stack_and_copies_differ():
    stack, alone = (
        GymnasiumBatch("CartPole-v1", seeds=[5, 9], copies=3),
        GymnasiumBatch("CartPole-v1", seeds=[9], copies=3),
    )
    actions = drawn(stack, 50)
    for each in actions:
        stacked, single = stack.step(each), alone.step(each[1:])
        for a, b in zip(stacked, single, strict=True):
            np.testing.assert_array_equal(a[1:], b)
    starts = GymnasiumBatch("CartPole-v1", seeds=range(4), copies=4).observations.reshape(16, 4)
    assert len(np.unique(starts, axis=0)) == 16


@pytest.mark.parametrize("given", [lambda: Walk, lambda: Sampling, lambda: vector("NextStep", make=Sampling)])
def test_the_same_seeds_repeat(given):
    one, other = (GymnasiumBatch(given(), seeds=SEEDS) for _ in range(2))
    assert_same(walked(one), walked(other))
    np.testing.assert_equal(one.state_dict(), other.state_dict())


def test_an_environment_may_write_over_its_observations():
    assert_same(walked(GymnasiumBatch(Buffered, copies=3)), walked(GymnasiumBatch(Walk, copies=3)))


def test_a_number_that_is_not_finite_ends_the_episode():
    class Broken(Walk):
        def seen(self):
            return np.array([np.nan if self.age == 3 else self.x, self.age])

    batch = GymnasiumBatch(Broken)
    steps = walked(batch, 3)
    assert [bool(step[2][0, 0]) for step in steps] == [False, False, True]
    assert np.isnan(steps[2][0][0, 0, 0])
    assert np.isfinite(batch.observations).all()


# -- spaces --------------------------------------------------------------------------------------------------------------


def acted(space, chosen):
    batch = GymnasiumBatch(lambda: Walk(actions=space))
    batch.step(np.array([[chosen]]))
    return batch.actions, batch._copies.remembered[0].given[-1]


def test_actions_from_minus_one_to_one_cover_the_bounds_and_no_more():
    space = spaces.Box(np.array([[0.0, -1.0]], np.float32), np.array([[4.0, 1.0]], np.float32))
    actions, given = acted(space, [0.5, 0.7])
    assert (actions, given.shape, given.dtype) == (Continuous(2, 1.0), (1, 2), np.float32)
    np.testing.assert_array_equal(given, np.array([[3.0, 0.7]], np.float32))
    _, given = acted(space, [-3.0, 1.5])
    np.testing.assert_array_equal(given, np.array([[0.0, 1.0]], np.float32))
    assert given in space


def test_actions_without_bounds_are_given_as_they_are():
    space = spaces.Box(np.array([-np.inf, 0.0]), np.array([np.inf, np.inf]), dtype=np.float64)
    actions, given = acted(space, [5.5, -2.0])
    assert actions == Continuous(2, np.inf)
    np.testing.assert_array_equal(given, [5.5, 0.0])


def test_discrete_actions_begin_where_the_space_says():
    actions, given = acted(spaces.Discrete(3, start=-1), 0)
    assert (actions, given) == (Discrete(3), -1)


def seeing(space, value):
    class Seeing(Walk):
        def __init__(self):
            super().__init__()
            self.observation_space = space

        def seen(self):
            return value

    return Seeing


@pytest.mark.parametrize(
    ("space", "value", "row"),
    [
        (spaces.Box(0, 255, (2, 1, 2), np.uint8), np.array([[[1, 2]], [[3, 255]]], np.uint8), [1, 2, 3, 255]),
        (spaces.Discrete(3, start=1), 2, [0, 1, 0]),
        (spaces.MultiDiscrete([2, 2]), np.array([1, 0]), [0, 1, 1, 0]),
        (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8), [1, 0, 1]),
        (spaces.Box(-1, 1, ()), np.float32(0.5), [0.5]),
    ],
)
def test_observations_are_rows_of_numbers(space, value, row):
    batch = GymnasiumBatch(seeing(space, value), copies=2)
    assert batch.observation_size == len(row)
    np.testing.assert_array_equal(batch.observations, [[row, row]])


# -- what is refused -----------------------------------------------------------------------------------------------------


def late_vector():
    """One that begins episodes a step late and knows no reset of one copy, made by hand."""
    made = gymnasium.make_vec("CartPole-v1", num_envs=4)
    made.spec = None
    return made


def silent_vector():
    made = vector("NextStep")
    made.metadata = {}
    return made


def given(environment, **others):
    return {"environment": environment, **others}


walk = Walk()
REFUSED = {
    "an unknown id": (given("CartPol-v1"), r"gymnasium makes no environment 'CartPol-v1': .*`CartPole`"),
    "a module that is not there": (given("nowhere:It-v0"), "gymnasium makes no environment 'nowhere:It-v0'"),
    "a number": (given(3), "3 is no environment: .* an id such as 'CartPole-v1'"),
    "None": (given(None), "None is no environment"),
    "a list": (given([Walk()]), "a list is no environment"),
    "a function of nothing": (given(lambda: 3), "made 3, and no gymnasium.Env"),
    "one for several": (given(Walk(), copies=3), r"Walk is one environment, and 1 agents with 3 copies each need 3"),
    "the same twice": (given(lambda: walk, copies=2), "gave the same environment twice"),
    "uneven": (given(vector("NextStep"), seeds=[0, 1, 2]), "has 4 environments, which 3 agents .* cannot share evenly"),
    "other copies": (given(vector("NextStep"), copies=3), "4 for each of 1 agents, and not copies=3: leave copies out"),
    "late": (given(late_vector()), "begins the next episode one step late .* autoreset_mode SAME_STEP"),
    "silent": (given(silent_vector()), "does not say when it begins the next episode"),
    "no copies": (given(Walk, copies=0), "copies=0: a whole number, 1 or more"),
    "too many": (given(Walk, copies=10**9), "would take .* memory"),
    "no seeds": (given(Walk, seeds=[]), "0 seeds"),
    "a mapping": (
        given(seeing(spaces.Dict({"a": spaces.Discrete(2)}), {"a": 0})),
        r"its observations are of Dict.* gymnasium.wrappers.FlattenObservation",
    ),
    "several at once": (
        given(lambda: Walk(actions=spaces.MultiDiscrete([2, 3]))),
        r"its actions are of MultiDiscrete\(\[2 3\]\).*TransformAction",
    ),
    "whole numbers": (given(lambda: Walk(actions=spaces.Box(0, 9, (2,), np.int64))), "its actions are of Box"),
    "another shape": (
        given(seeing(spaces.Box(-1, 1, (3,)), np.zeros(2))),
        r"an observation has shape \(2,\), and its observation_space says \(3,\)",
    ),
    "no space": (given(type("Bare", (gymnasium.Env,), {})), "Bare has no observation_space"),
    "as before gymnasium": (
        given(type("Old", (Walk,), {"reset": lambda self, seed=None: np.zeros(2)})),
        r"Old: reset\(\) gave a ndarray, and not \(observation, info\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_a_sentence(name):
    arguments, said = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=said) as raised:
        GymnasiumBatch(**arguments)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_actions_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"CartPole-v1: actions of shape \(2,\); here they are of shape \(1, 2\)"):
        GymnasiumBatch("CartPole-v1", copies=2).step(np.zeros(2, int))


@pytest.mark.parametrize("odd", [-1, 2, 1.5, float("nan"), 2**62])
def test_an_action_that_is_none_of_several_is_refused_and_no_step_is_taken(odd):
    batch = GymnasiumBatch("CartPole-v1", copies=2)
    before = batch.observations.copy()
    with pytest.raises(ValueError, match=rf"CartPole-v1: an action is {odd}; they are whole numbers from 0 to 1"):
        batch.step(np.array([[0, odd]]))
    np.testing.assert_array_equal(batch.observations, before)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda step: (step[0], step[1], step[2], {}), r"Odd: step\(\) gave 4 values, and not \(observation, reward"),
        (lambda step: (step[0], None, *step[2:]), r"Odd: step\(\) gave the reward None, and not"),
        (lambda step: (step[0], np.zeros(2), *step[2:]), r"Odd: step\(\) gave the reward a ndarray, and not"),
        (
            lambda step: (np.zeros(5), *step[1:]),
            r"an observation has shape \(5,\), and its observation_space says \(2,\)",
        ),
    ],
)
def test_a_step_of_another_kind_is_refused(given, said):
    odd = type("Odd", (Walk,), {"step": lambda self, action: given(Walk.step(self, action))})
    with pytest.raises(ValueError, match=said):
        walked(GymnasiumBatch(odd), 3)


def test_a_reward_may_be_an_array_of_one_number():
    odd = type(
        "Odd", (Walk,), {"step": lambda self, a: (lambda s: (s[0], np.array([s[1]]), *s[2:]))(Walk.step(self, a))}
    )
    assert_same(walked(GymnasiumBatch(odd)), walked(GymnasiumBatch(Walk)))


# -- states --------------------------------------------------------------------------------------------------------------


def wrapped():
    made = wrappers.TimeLimit(Walk(limit=100), 12)
    for each in (wrappers.NormalizeObservation, wrappers.NormalizeReward, wrappers.RecordEpisodeStatistics):
        made = each(made)
    return wrappers.FrameStackObservation(made, 2)


EXACT = {
    "CartPole-v1": "CartPole-v1",
    "Pendulum-v1": "Pendulum-v1",
    "Acrobot-v1": "Acrobot-v1",
    "MountainCarContinuous-v0": "MountainCarContinuous-v0",
    "FrozenLake-v1": "FrozenLake-v1",
    "re-wired carts": "pliant/RewiredCartPole-v0",
    "attributes": Walk,
    "objects": WindyWalk,
    "wrappers": wrapped,
    "asked": Telling,
    "its space": Sampling,
}
EXACT_OF_ONE = {
    "an environment": Walk,
    "a vector": lambda: vector("NextStep"),
    "of one step": lambda: vector("SameStep"),
}


def resumed_equals_uninterrupted(begin, path, caplog):
    straight, stopped, again = begin(), begin(), begin()
    first, second = walked(straight, 70, seed=1), walked(straight, 120, seed=2)
    assert_same(walked(stopped, 70, seed=1), first)
    save_state(stopped.state_dict(), path)
    walked(again, 5, seed=3)  # somewhere else
    again.load_state_dict(load_state(path))
    assert again.interrupted is None
    np.testing.assert_array_equal(again.observations, stopped.observations)
    assert_same(walked(again, 120, seed=2), second)
    assert not caplog.records
    return sum(int((step[2] | step[3]).sum()) for step in second)


@pytest.mark.parametrize("name", EXACT)
def test_stopping_and_resuming_changes_nothing(name, tmp_path, caplog):
    def begin():
        return GymnasiumBatch(EXACT[name], seeds=SEEDS, copies=2)

    ends = resumed_equals_uninterrupted(begin, tmp_path / "state.pt", caplog)
    assert ends >= 20 or name in ("Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0")


def newest(name):
    """The id of an environment of which gymnasium renumbers its versions."""
    return max(each for each in gymnasium.registry if each.startswith(f"{name}-v"))


@pytest.mark.parametrize(
    "name", [newest("Taxi"), newest("CliffWalking"), "Ant-v5", "Humanoid-v5", "pliant/SlipperyHopper-v0"]
)
def test_toys_and_bodies_of_gymnasium_go_on_to_the_bit(name, tmp_path, caplog):
    if "v5" in name or "Hopper" in name:
        pytest.importorskip("mujoco", reason="bodies need MuJoCo: pip install -e .[rl]")
    assert resumed_equals_uninterrupted(lambda: GymnasiumBatch(name, copies=2), tmp_path / "s.pt", caplog) >= 0


@pytest.mark.parametrize("name", EXACT_OF_ONE)
def test_one_environment_and_those_of_a_vector_go_on_to_the_bit(name, tmp_path, caplog):
    assert resumed_equals_uninterrupted(lambda: GymnasiumBatch(EXACT_OF_ONE[name]()), tmp_path / "s.pt", caplog) >= 5


class Market(Walk):
    """It reads a large array, which stays the same, and a table that cannot be read, and samples from a space of its own."""

    def __init__(self, changes=False):
        super().__init__()
        self.prices, self.table, self.changes = np.sin(np.arange(20_000.0)), Table(), changes
        self.extra = spaces.Discrete(5, seed=3)

    def noise(self):
        if self.changes:
            self.prices[7] += 1
        return self.prices[int(1000 * abs(self.x)) % 20_000] + self.table.held["a"] * int(self.extra.sample())


class Table:
    """An object without attributes, as tables of compiled libraries are."""

    __slots__ = ("held",)

    def __init__(self):
        self.held = {"a": 0.5}


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("changes", [False, True])
def test_large_arrays_and_tables_are_left_out_where_they_are_as_in_a_new_environment(changes, anew, tmp_path, caplog):
    def begin():
        return GymnasiumBatch((lambda: Market(changes)) if anew else Market(changes), seeds=SEEDS if anew else [0])

    assert resumed_equals_uninterrupted(begin, tmp_path / "state.pt", caplog) >= 5
    assert ((tmp_path / "state.pt").stat().st_size > 150_000) == changes


def test_a_table_that_changes_cannot_be_saved(caplog):
    batch = GymnasiumBatch(Market)
    assert batch.state_dict()["remembered"] is not None
    batch._copies.remembered[0].table.held["a"] = 0.75
    assert batch.state_dict()["remembered"] is None
    assert "Market: what it remembers cannot be saved (environment.table is a Table)" in caplog.text


def test_a_state_that_could_not_be_put_back_is_not_saved(caplog):
    batch = GymnasiumBatch(Phases)
    walked(batch, 200)
    assert batch.state_dict()["remembered"] is not None
    assert not caplog.records
    walked(batch, 200)
    assert batch.state_dict()["remembered"] is None
    assert "there is a Gust where it had a Lull" in caplog.text


class Changing(gymnasium.Wrapper):
    """Another friction in each episode."""

    def reset(self, **options):
        found = self.env.reset(**options)
        self.unwrapped.model.geom_friction[:, 0] = self.unwrapped.np_random.uniform(0.1, 2)
        return found


def test_a_body_of_gymnasium_goes_on_to_the_bit_with_the_friction_of_its_episode(tmp_path, caplog):
    pytest.importorskip("mujoco")

    def begin():
        return GymnasiumBatch(lambda: Changing(gymnasium.make("Hopper-v5")), seeds=SEEDS)

    assert resumed_equals_uninterrupted(begin, tmp_path / "state.pt", caplog) >= 5


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Hidden, r"Hidden: what it remembers cannot be saved \(environment.hidden is a generator\)"),
        (Shared, r"Shared: .* \(it goes on in another way when its attributes are put back\)"),
    ],
)
def test_what_cannot_be_saved_is_named_once_and_new_episodes_begin(make, why, caplog):
    batch, again = GymnasiumBatch(make, copies=2), GymnasiumBatch(make, copies=2)
    walked(batch, 13)
    numbers = np.random.get_state()[1].copy()  # noqa: NPY002
    with caplog.at_level(logging.WARNING, "pliant"):
        state, _ = batch.state_dict(), batch.state_dict()
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith(make.__name__)
    assert re.search(why, caplog.text)
    np.testing.assert_array_equal(np.random.get_state()[1], numbers)  # noqa: NPY002
    again.load_state_dict(state)
    np.testing.assert_array_equal(again.interrupted, batch.observations)
    assert again.steps == 13
    assert (again.observations[..., 1] == 0).all()  # an age of 0
    assert again.interrupted is None


def test_a_state_that_is_refused_leaves_episodes_that_cannot_be_saved_as_they_are():
    batch = GymnasiumBatch(Hidden)
    walked(batch, 4)
    here, other = batch.state_dict(), {**batch.state_dict(), "steps": 9}
    before, age = batch.observations.copy(), batch._copies.remembered[0].age
    batch.load_state_dict(other)
    batch.load_state_dict(here)  # as PPO does where another part of a state is refused
    np.testing.assert_array_equal(batch.observations, before)
    assert (batch.interrupted, batch._copies.remembered[0].age) == (None, age)


def test_what_does_not_fit_is_put_back_nowhere():
    one, other = WindyWalk(), WindyWalk()
    for each in (one, other):
        each.reset(seed=0)
    for _ in range(20):
        one.step(np.zeros(1))
    plain, before = read(one, "it"), read(other, "it")
    plain["attributes"]["winds"]["list"].pop()  # behind age, gust and others
    with pytest.raises(
        ValueError, match="this state does not fit the environment: there is a NoneType where it had a Wind"
    ):
        put_back(plain, other)
    np.testing.assert_equal(read(other, "it"), before)


def test_a_state_of_another_environment_is_refused_and_changes_nothing():
    batch = GymnasiumBatch("CartPole-v1", seeds=SEEDS)
    walked(batch, 5)
    before = copy.deepcopy(batch.state_dict())
    for other, said in (
        (GymnasiumBatch("Acrobot-v1", seeds=SEEDS), "belongs to environment = Acrobot-v1; here it is CartPole-v1"),
        (GymnasiumBatch("CartPole-v1", seeds=[0, 8]), r"belongs to seeds = \(0, 8\)"),
    ):
        with pytest.raises(ValueError, match=said):
            batch.load_state_dict(other.state_dict())
    damaged = [3, {}, {"list": []}, {"list": [{"attributes": {"env": 3}}, 5]}, {"list": [{"odd": 1}, {"odd": 1}]}]
    for remembered in damaged:
        with pytest.raises(ValueError):  # noqa: PT011
            batch.load_state_dict({**before, "steps": 9, "remembered": remembered})
        np.testing.assert_equal(batch.state_dict(), before)
