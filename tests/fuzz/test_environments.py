"""Any registered environment, any actions: numbers of the shapes that it says, and from a saved state the same to the bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pliant.lab.stored.checkpoint import from_bytes, to_bytes
from pliant.rl.environments import Discrete, FrictionSchedule, GymnasiumBatch, MujocoBatch, RewiredCartPole
from pliant.rl.environments.bodies import BODIES
from pliant.rl.environments.registration import IDS
from tests.fuzz.odd import FEW, a_sentence

EXTREME = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-300, 1e30, -1e30, 1e308, np.inf, -np.inf, np.nan])
GYMNASIUM = ["CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1", "Acrobot-v1"]
GYMNASIUM += ["FrozenLake-v1", "Taxi-v4", "CliffWalking-v1"]


def batches():
    slippery = {"seeds": [0, 3], "copies": 2, "time_limit": 7, "friction": FrictionSchedule(period=9)}
    yield from ((body, lambda body=body: MujocoBatch(body, **slippery)) for body in BODIES)
    yield "carts", lambda: RewiredCartPole(seeds=[0, 3], copies=2, time_limit=7)
    yield "rewired carts", lambda: RewiredCartPole(seeds=[0, 3], time_limit=7, period=9)
    yield from ((name, lambda name=name: GymnasiumBatch(name, seeds=[0, 3], copies=2)) for name in [*GYMNASIUM, *IDS])


BATCHES = dict(batches())


@st.composite
def actions(draw, batch):
    """Of a few steps; here and there a number that no policy would give."""
    shape = (draw(st.integers(1, 12)), batch.agents, batch.copies)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    if isinstance(batch.actions, Discrete):
        return random.integers(batch.actions.count, size=shape)
    given = random.uniform(-2, 2, (*shape, batch.actions.size))
    for _ in range(draw(st.integers(0, 3))):
        given[tuple(draw(st.integers(0, size - 1)) for size in given.shape)] = draw(EXTREME)
    return given


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BATCHES)
@FEW
@given(data=st.data())
def test_a_saved_environment_goes_on_to_the_bit(name, data):
    batch = BATCHES[name]()
    before, after = data.draw(actions(batch)), data.draw(actions(batch))
    for each in before:
        seen = batch.step(each)
        assert seen.observations.shape == (2, batch.copies, batch.observation_size)
        assert np.isfinite(batch.observations).all(), "an episode has begun, from a state that is not finite"
    saved = from_bytes(to_bytes(batch.state_dict()))
    resumed = BATCHES[name]()
    resumed.load_state_dict(saved)
    np.testing.assert_array_equal(resumed.observations, batch.observations)
    for each in after:
        for one, other in zip(batch.step(each), resumed.step(each), strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(resumed.observations, batch.observations)


NO_ACTIONS = [None, "x", [], [[1]], 5, np.zeros((2, 2, 99)), np.zeros(3), np.full((2, 2), "x"), np.full((2, 2), -1)]
NO_ACTIONS += [np.full((2, 2), 1.5), np.full((2, 2), np.nan), np.full((2, 2), 2**62), np.full((2, 2), 1 + 2j)]


@pytest.mark.parametrize("odd", NO_ACTIONS, ids=repr)
@pytest.mark.parametrize("name", [*BODIES, "carts", *GYMNASIUM])
def test_what_are_no_actions_is_refused(name, odd):
    batch = BATCHES[name]()
    before = batch.observations.copy()
    with pytest.raises((ValueError, TypeError)) as refused:
        batch.step(odd)
    a_sentence(str(refused.value))
    np.testing.assert_array_equal(batch.observations, before)
