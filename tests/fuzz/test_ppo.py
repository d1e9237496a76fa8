"""Any settings of PPO: two updates, numbers that are finite or an agent that is said to have diverged; or an error in a line."""

from dataclasses import fields

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pliant.base.initial import INITS
from pliant.engine.utility import UTILITIES
from pliant.lab.stored.checkpoint import to_bytes
from pliant.rl.environments import MujocoBatch, RewiredCartPole
from pliant.rl.ppo import PPO, Settings
from pliant.rl.ppo.activations import ACTIVATIONS
from tests.fuzz.odd import MANY, a_sentence

shares = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
sizes = st.one_of(st.sampled_from([0.0, 1e-300, 1e-8, 1.0, 1e8, 1e300]), st.floats(0, 10))
VALUES = {
    "rollout_steps": st.integers(1, 16),
    "epochs": st.integers(1, 3),
    "minibatch_size": st.sampled_from([1, 2, 4, 8, 16, 3]),
    "hidden": st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    "activation": st.sampled_from(sorted(ACTIVATIONS)),
    "init": st.sampled_from(INITS),
    "log_std": st.one_of(st.floats(-5, 5), st.sampled_from([-800.0, 800.0])),
    "betas": st.tuples(shares, shares),
    "max_gradient_norm": st.none() | sizes,
    "normalize_advantages": st.sampled_from(["none", "minibatch", "batch"]),
    "time_limit": st.sampled_from(["terminal", "bootstrap"]),
    "method": st.sampled_from(["none", "cbp", "redo"]),
    "maturity_threshold": st.integers(0, 5),
    "utility": st.sampled_from(sorted(UTILITIES)),
    "count": st.sampled_from(["accumulate", "bernoulli"]),
    "period": st.integers(1, 5),
    "optimizer_state": st.sampled_from(["keep", "fresh", "forget", "zero"]),
    **dict.fromkeys(("discount", "trace_decay", "replacement_rate", "decay_rate"), shares),
}  # fmt: skip
odd = st.one_of(
    st.none(),
    st.text(max_size=3),
    st.floats(),
    st.integers(),
    st.booleans(),
    st.just(()),
    st.just([]),
    st.binary(max_size=2),
)


def strategy_of(field):
    return VALUES.get(field.name, st.booleans() if field.type == "bool" else sizes)


ALL = {field.name: strategy_of(field) for field in fields(Settings)}
ENVIRONMENTS = {
    "carts": lambda: RewiredCartPole(seeds=[0, 1], copies=2, time_limit=9),
    "hopper": lambda: MujocoBatch("hopper", seeds=[0, 1], copies=2, time_limit=9),
}


@st.composite
def changes(draw):
    small = {name: draw(ALL[name]) for name in ("rollout_steps", "minibatch_size", "hidden", "epochs")}
    method = draw(ALL["method"])
    names = draw(st.lists(st.sampled_from(sorted({*ALL} - {*small, "method"})), unique=True, max_size=6))
    return small | {"method": method} | {name: draw(ALL[name]) for name in names}


@pytest.mark.filterwarnings("error")
@MANY
@given(changed=changes(), where=st.sampled_from(sorted(ENVIRONMENTS)))
def test_settings_that_are_accepted_learn(changed, where):
    try:
        settings = Settings(**changed)
        ppo = PPO(ENVIRONMENTS[where](), settings)
    except (ValueError, TypeError) as error:
        a_sentence(str(error))
        return
    for _ in range(2):
        ppo.iterate()
    saved = ppo.state_dict()
    again = PPO(ENVIRONMENTS[where](), settings)
    again.load_state_dict(saved)
    ppo.iterate()
    again.iterate()
    assert to_bytes(again.state_dict()) == to_bytes(ppo.state_dict())


@MANY
@given(name=st.sampled_from(sorted(ALL)), value=odd)
def test_an_odd_value_of_a_setting_is_refused_by_its_name(name, value):
    try:
        settings = Settings(**{name: value})
    except (ValueError, TypeError) as error:
        a_sentence(str(error))
        assert name in str(error)  # noqa: PT017
        return
    assume(value is not None)
    held = getattr(settings, name)
    assert held == value or tuple(held) == tuple(value)
