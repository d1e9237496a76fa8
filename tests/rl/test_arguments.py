"""Odd arguments and odd states of environments and PPO: one sentence that names what is wrong, and nothing changed."""

import copy
import pickle
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from pliant.rl.environments import FrictionSchedule, GymnasiumBatch, MujocoBatch, RewiredCartPole
from pliant.rl.environments.single import RewiredCart, SlipperyBody
from pliant.rl.ppo import PPO, Settings, preset

ODD = ["1", "a", b"1", True, 1.5, -1, float("nan"), float("inf"), [], [[1]], {1: 2}, object(), 1 + 2j]
ODD += [np.zeros((2, 2)), "x" * 5000]
CARTS = ("seeds", "copies", "inputs", "time_limit", "period")
BODIES = (
    "seeds", "copies", "friction", "version", "contact_forces", "padding", "contact_margin", "integrator", "clip_actions",
    "time_limit", "body",
)  # fmt: skip


def same(odd, fine):
    return type(odd) is type(fine) and odd == fine


FINE = {("friction", 1.5), ("contact_forces", True), ("clip_actions", True)}


def refused(make, name, odd):
    if any(name == each and same(odd, value) for each, value in FINE):
        return 0
    with pytest.raises((ValueError, TypeError)) as raised:
        make(**{name: odd})
    said = str(raised.value)
    assert "\n" not in said
    assert len(said) < 500, said
    words = {name, name.rstrip("s"), name.replace("_", " "), "bodies", "frictions"}
    assert any(word in said for word in words), (name, odd, said)
    return 1


@pytest.mark.parametrize("name", CARTS)
def test_an_odd_option_of_the_carts(name):
    assert sum(refused(RewiredCartPole, name, odd) for odd in ODD) >= 10


@pytest.mark.parametrize("name", BODIES)
def test_an_odd_option_of_the_bodies(name):
    def make(**options):
        return MujocoBatch(**{"body": "hopper", **options})

    assert sum(refused(make, name, odd) for odd in ODD) >= 10


@pytest.mark.parametrize("name", ["environment", "seeds", "copies"])
def test_an_odd_option_of_environments_of_gymnasium(name):
    def make(**options):
        return GymnasiumBatch(**{"environment": "CartPole-v1", **options})

    assert sum(refused(make, name, odd) for odd in ODD) >= 10


@pytest.mark.parametrize("name", ["low", "high", "period", "seed"])
def test_an_odd_option_of_a_schedule(name):
    for odd in ODD:
        if name in ("low", "high") and same(odd, 1.5):
            continue
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            FrictionSchedule(**{name: odd})
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("options", [{"copies": 10**9}, {"inputs": 10**9}, {"copies": 10**30}])
def test_carts_that_do_not_fit_into_memory_are_refused_with_their_size(options):
    with pytest.raises(ValueError, match=r"GB of memory"):
        RewiredCartPole(**options)
    with pytest.raises(ValueError, match=r"GB of memory"):
        MujocoBatch("hopper", copies=10**9)


@pytest.mark.parametrize("changes", [{"hidden": (10**9,)}, {"hidden": (10**6, 10**6)}, {"rollout_steps": 10**12}])
def test_agents_that_do_not_fit_into_memory_are_refused_with_their_size(changes):
    with pytest.raises(ValueError, match=r"PPO: (hidden|rollout_steps)=.*GB of memory"):
        PPO(RewiredCartPole(), preset("ppo", **{"minibatch_size": 100, "rollout_steps": 100, **changes}))


@pytest.mark.parametrize("name", list(Settings().as_dict()))
def test_an_odd_setting_of_ppo(name):
    numbers = ("log_std", "entropy_weight", "value_weight", "clip", "step_size", "max_gradient_norm", "advantage_epsilon",
               "adam_epsilon", "weight_decay", "tau")  # fmt: skip
    for odd in ODD:
        if same(odd, True) and isinstance(getattr(Settings(), name), bool):
            continue
        if name in numbers and (same(odd, 1.5) or (name == "log_std" and same(odd, -1))):
            continue
        if name == "max_gradient_norm" and same(odd, float("inf")):
            continue
        with pytest.raises((ValueError, TypeError)) as raised:
            Settings(**{name: odd})
        said = str(raised.value)
        assert "\n" not in said
        assert len(said) < 500, said
        assert name in said


@pytest.mark.parametrize("seeds", [["0"], [0.5], [None], "0", [True]])
def test_odd_seeds_of_ppo(seeds):
    with pytest.raises((ValueError, TypeError), match="seeds"):
        PPO(RewiredCartPole(), preset("ppo", minibatch_size=128, rollout_steps=128), seeds=seeds)


SINGLE = [lambda: SlipperyBody("hopper", period=50), lambda: RewiredCart(period=100)]


@pytest.mark.parametrize("make", SINGLE)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_of_an_environment_goes_on_to_the_bit_and_apart(make, copied):
    environment = make()
    environment.reset(seed=3)
    environment.action_space.seed(0)
    for _ in range(15):
        environment.step(environment.action_space.sample())
    twin, episodes = copied(environment), 0
    for _ in range(300):
        action = environment.action_space.sample()
        mine, theirs = environment.step(action), twin.step(action)
        np.testing.assert_array_equal(mine[0], theirs[0])
        assert mine[1:] == theirs[1:]
        if mine[2] or mine[3]:
            np.testing.assert_array_equal(environment.reset()[0], twin.reset()[0])
            episodes += 1
    assert episodes >= 3


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_of_bodies_goes_on_to_the_bit_and_apart(copied):
    bodies, draw = MujocoBatch("ant", seeds=[0, 1], friction=FrictionSchedule(period=20)), np.random.default_rng(0)
    for _ in range(30):
        bodies.step(draw.uniform(-1, 1, (2, 1, 8)))
    twin = copied(bodies)
    before = twin.observations.copy()
    actions = draw.uniform(-1, 1, (60, 2, 1, 8))
    mine = [bodies.step(each) for each in actions]
    np.testing.assert_array_equal(twin.observations, before)  # apart
    for one, each in zip(mine, actions, strict=True):
        for a, b in zip(one, twin.step(each), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", SINGLE)
def test_reset_has_no_options(make):
    environment = make()
    environment.reset(seed=0, options={})
    environment.reset(options=None)
    with pytest.raises(ValueError, match=r"reset: unknown options 'low', 'task'; there are none"):
        environment.reset(options={"low": 1, "task": 3})


def flat(state, path=()):
    if isinstance(state, Mapping):
        return {k: v for key, each in state.items() for k, v in flat(each, (*path, key)).items()}
    return {path: state}


def changed(state, path, value):
    """A copy in which one entry is another, or gone."""
    copied = dict(state)
    if len(path) > 1:
        copied[path[0]] = changed(state[path[0]], path[1:], value)
    elif value is changed:
        del copied[path[0]]
    else:
        copied[path[0]] = value
    return copied


def damaged(state):
    yield from (None, 5, [], "x", {})
    for path, value in flat(state).items():
        if path[0] == "method" and len(path) > 1:  # a method checks its own state
            continue
        yield changed(state, path, changed)
        if path[0] == "settings":
            continue
        odd = [{}, "x", [[1], [1, 2]]]
        if isinstance(value, np.ndarray | torch.Tensor) and value.ndim:
            odd += [value[:0] if len(value) else value[None], value[None]]
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size:
            odd += [value.astype(np.float16)]
        if isinstance(value, np.ndarray) and path[-1] in ("ages", "episodes", "tasks", "lives", "lengths", "own"):
            odd += [value - 10_000]
        if isinstance(value, np.ndarray) and path[-1] in ("physics", "geom_friction", "state"):
            odd += [value * np.nan]
        if isinstance(value, int) and path[-1] in ("steps", "number", "count", "filled"):
            odd += [-5, 1.5, None, "3", float("nan")]
        yield from (changed(state, path, each) for each in odd)


def leaves(state, path=()):
    if isinstance(state, Mapping):
        return {k: v for key, each in state.items() for k, v in leaves(each, (*path, key)).items()}
    if isinstance(state, list | tuple):
        return {k: v for number, each in enumerate(state) for k, v in leaves(each, (*path, number)).items()}
    return {path: state}


def assert_equal(one, other):
    one, other = leaves(one), leaves(other)
    assert one.keys() == other.keys()
    for path, value in one.items():
        np.testing.assert_array_equal(value, other[path], err_msg=str(path))


def carts():
    return RewiredCartPole(seeds=[0, 1], copies=2)


def bodies():
    return MujocoBatch("hopper", seeds=[0, 1])


def environments():
    return GymnasiumBatch("CartPole-v1", seeds=[0, 1], copies=2)


def agents():
    settings = preset("modern", rollout_steps=16, minibatch_size=16, hidden=(6, 5), epochs=1)
    return PPO(RewiredCartPole(seeds=[0, 1], copies=2), settings)


def advance(thing):
    if isinstance(thing, PPO):
        thing.iterate()
        thing.collect(5)
    elif isinstance(thing, MujocoBatch):
        thing.step(np.full((2, 1, 3), 0.5))
    else:
        thing.step(np.ones((2, 2), int))


@pytest.mark.parametrize(("make", "least"), [(carts, 25), (bodies, 40), (environments, 15), (agents, 200)])
def test_a_damaged_state_is_refused_in_a_sentence_and_changes_nothing(make, least):
    thing, other = make(), make()
    advance(thing)
    state = thing.state_dict()
    before, refusals = copy.deepcopy(other.state_dict()), 0
    for each in damaged(state):
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            other.load_state_dict(each)
        assert "\n" not in str(raised.value)
        refusals += 1
        assert_equal(other.state_dict(), before)
    assert refusals > least
    other.load_state_dict(state)
    assert_equal(other.state_dict(), state)
