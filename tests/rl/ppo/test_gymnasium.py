"""Agents in environments of gymnasium: whatever these are given as, at time limits, saved, and where that cannot be."""

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="environments of gymnasium need gymnasium: pip install -e .[rl]")

import gymnasium

from pliant.lab.stored.checkpoint import to_bytes
from pliant.rl.environments import GymnasiumBatch
from pliant.rl.ppo import PPO, preset
from tests.rl.gymnasium_environments import Hidden, Walk
from tests.rl.ppo.environment import LinearEnvironment
from tests.rl.ppo.small import CBP, MODERN, in_every_group

SEEDS = [0, 7]


def learned(ppo, updates=3):
    for _ in range(updates):
        ppo.iterate()
    return {name: state for name, state in ppo.state_dict().items() if name != "acting"}


def vector(mode):
    return gymnasium.vector.SyncVectorEnv([Walk] * 4, autoreset_mode=mode)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_agents_learn_the_same_from_a_vector_env_as_from_single_environments(mode):
    singles, together = PPO(Walk, MODERN, seeds=SEEDS, copies=2), PPO(vector(mode), MODERN, seeds=SEEDS)
    assert to_bytes(learned(singles)) == to_bytes(learned(together))
    assert in_every_group(singles) >= 20


@pytest.mark.parametrize("given", ["CartPole-v1", lambda: gymnasium.make("CartPole-v1"), gymnasium.spec("CartPole-v1")])
def test_an_id_a_function_and_a_specification_are_the_same(given):
    agents = PPO(given, CBP, seeds=SEEDS, copies=2)
    assert isinstance(agents.environments, GymnasiumBatch)
    assert to_bytes(learned(agents)) == to_bytes(learned(PPO("CartPole-v1", CBP, seeds=SEEDS, copies=2)))


def test_one_environment_is_one_copy_for_one_agent():
    agents = PPO(gymnasium.make("Pendulum-v1"), preset("modern", rollout_steps=64, minibatch_size=32, hidden=(8, 8)))
    agents.iterate()
    assert (agents.seeds, agents.steps, agents.diverged_at.tolist()) == ([0], 64, [-1])


def test_an_agent_that_is_rewarded_for_staying_up_stays_up_longer():
    settings = preset("modern", rollout_steps=128, minibatch_size=64, hidden=(32, 32), epochs=6, step_size=1e-3)
    agents = PPO("CartPole-v1", settings, seeds=[0, 1], copies=4)
    returns = [agents.iterate()[0].returns for _ in range(16)]
    assert returns[0].mean() < 40
    assert np.concatenate(returns[12:]).mean() > 120


@pytest.mark.parametrize("mode", [None, "NextStep", "SameStep", "Disabled"])
def test_at_a_time_limit_the_value_is_that_of_the_last_state_of_the_episode(mode):
    agents = PPO(Walk if mode is None else vector(mode), MODERN, seeds=SEEDS, copies=2)
    agents.collect()
    rollout = agents.acting.rollout
    cut = rollout.truncated & ~rollout.terminated
    assert cut.sum() >= 5
    assert len(rollout.cut) == cut.sum()
    for state in rollout.cut.values():
        assert state[1] == 9  # the age at the limit, before normalization, which changes nothing in the first rollout


def test_agents_are_resumed_to_the_bit_amid_a_rollout(tmp_path):
    def begun():
        return PPO("CartPole-v1", MODERN, seeds=SEEDS, copies=2)

    straight, stopped, again = begun(), begun(), begun()
    for agents in (straight, stopped):
        agents.iterate()
        agents.collect(11)
    stopped.save(tmp_path / "agents.pt")
    again.load(tmp_path / "agents.pt")
    for agents in (straight, again):
        agents.collect()
        agents.update()
        agents.iterate()
    assert in_every_group(straight) >= 20
    assert to_bytes(straight.state_dict()) == to_bytes(again.state_dict())


# -- episodes that cannot go on ------------------------------------------------------------------------------------------


def loaded(steps, tmp_path):
    """Agents `steps` into their second rollout, and those that were loaded from what they saved."""
    stopped, again = (PPO(Hidden, MODERN, seeds=SEEDS, copies=2) for _ in range(2))
    stopped.iterate()
    stopped.collect(steps)
    stopped.save(tmp_path / "agents.pt")
    again.load(tmp_path / "agents.pt")
    return stopped, again


def test_a_rollout_ends_its_episodes_where_they_cannot_go_on_as_a_time_limit_does(tmp_path):
    stopped, again = loaded(13, tmp_path)
    before, rollout = stopped.acting.rollout, again.acting.rollout
    going_on = ~before.ended[12]
    assert going_on.sum() >= 2
    assert rollout.ended[12].all()
    np.testing.assert_array_equal(rollout.truncated[12], going_on | before.truncated[12])
    np.testing.assert_array_equal(rollout.terminated[:13], before.terminated[:13])
    seen = stopped.acting.seen(stopped.environments.observations)
    for agent, copy in np.argwhere(going_on):
        np.testing.assert_array_equal(rollout.cut[12, agent, copy], seen[agent, copy])
    assert (again.environments.observations[..., 1] == 0).all()
    episodes = again.collect()
    assert episodes.length.max() <= 9  # none goes on across the cut
    again.update()
    assert again.diverged_at.tolist() == [-1, -1]


def test_between_two_rollouts_only_the_episodes_begin_anew(tmp_path):
    _, again = loaded(0, tmp_path)
    assert not again.acting.rollout.cut
    assert (again._discounted == 0).all()
    assert again.collect().length.max() <= 9
    twice = PPO(Hidden, MODERN, seeds=SEEDS, copies=2)
    twice.load(tmp_path / "agents.pt")
    np.testing.assert_array_equal(twice.environments.observations[..., 1], 0)


def test_agents_that_refuse_a_state_keep_the_episodes_that_they_are_in():
    agents, other = (PPO(Hidden, MODERN, seeds=SEEDS, copies=2) for _ in range(2))
    for each in (agents, other):
        each.collect(14)
    other.collect(3)
    before, observations = to_bytes(agents.state_dict()), agents.environments.observations.copy()
    for damaged in ({**other.state_dict(), "adam": {}}, {**other.state_dict(), "lives": 3}):
        with pytest.raises(ValueError):  # noqa: PT011
            agents.load_state_dict(damaged)
        assert to_bytes(agents.state_dict()) == before
        np.testing.assert_array_equal(agents.environments.observations, observations)


# -- what is refused -----------------------------------------------------------------------------------------------------


def test_what_is_no_environment_is_refused_in_a_sentence():
    for given, said in (
        (3, "3 is no environment: give one of pliant.rl.environments.* an id such as 'CartPole-v1'"),
        ([Walk()], "a list is no environment: .* gymnasium.vector.SyncVectorEnv of such functions"),
        ("MlpPolicy", "PPO: 'MlpPolicy' comes first in Stable-Baselines3; here it is PPO"),
        (lambda: 3, "made 3, and no gymnasium.Env"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            PPO(given, MODERN)
    with pytest.raises(ValueError, match="Walk is one environment, and 2 agents with 1 copies each need 2"):
        PPO(Walk(), MODERN, seeds=[0, 1])
    with pytest.raises(ValueError, match="copies=3, and LinearEnvironment has 2: leave copies out"):
        PPO(LinearEnvironment([0]), MODERN, copies=3)
