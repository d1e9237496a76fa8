"""Continual backpropagation inside the algorithms of sb3-contrib."""

import pytest
import torch

pytest.importorskip("sb3_contrib", reason="sb3-contrib is not installed: `make integrations`")

import gymnasium as gym
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback

from pliant.integrations.sb3 import MethodCheckpointCallback, load_checkpoint
from pliant.integrations.sb3.networks import recent_inputs
from tests.integrations.test_sb3 import EPSILON, OFF, assert_same, hooks, often, optimizers, replaced, small, weights

pytestmark = pytest.mark.integrations


class Masked(gym.Wrapper):
    def action_masks(self):
        return [True, True]


def recurrent(**lstm):
    kwargs = {"net_arch": [16], "lstm_hidden_size": 16, **lstm}
    ppo = {"n_steps": 64, "batch_size": 32, "n_epochs": 8}
    return RecurrentPPO("MlpLstmPolicy", "CartPole-v1", **ppo, **small({}) | {"policy_kwargs": kwargs})


MAKE = {
    "RecurrentPPO": recurrent,
    "RecurrentPPO, two layers": lambda: recurrent(n_lstm_layers=2),
    "RecurrentPPO, one LSTM": lambda: recurrent(shared_lstm=True, enable_critic_lstm=False),
    "RecurrentPPO, critic without": lambda: recurrent(enable_critic_lstm=False),
    "MaskablePPO": lambda: MaskablePPO(
        "MlpPolicy", Masked(gym.make("CartPole-v1")), n_steps=64, batch_size=32, n_epochs=8, **small({})
    ),
    "TRPO": lambda: TRPO("MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=16, n_critic_updates=3, **small({})),
    "QRDQN": lambda: QRDQN("MlpPolicy", "CartPole-v1", **EPSILON, **OFF, **small({})),
    "TQC": lambda: TQC("MlpPolicy", "Pendulum-v1", **OFF, **small({})),
    "CrossQ": lambda: CrossQ("MlpPolicy", "Pendulum-v1", **OFF, **small({})),
}
STEPS = dict.fromkeys(MAKE, 160) | {"TRPO": 640, "TQC": 100}
MLP = ["policy.mlp_extractor.policy_net.0", "policy.mlp_extractor.value_net.0"]
LSTM = ["policy.lstm_actor.weight_ih_l0", "policy.lstm_critic.weight_ih_l0"]
CRITICS = [f"critic.qf{k}.{i}" for k in (0, 1) for i in (0, 2)]
GROUPS = {
    "RecurrentPPO": [*MLP, *LSTM],
    "RecurrentPPO, two layers": [
        *MLP,
        *(name.replace("l0", "l1") for name in LSTM),
    ],  # no hook reads those between the two
    "RecurrentPPO, one LSTM": [*MLP, LSTM[0]],
    "RecurrentPPO, critic without": [*MLP, LSTM[0], "policy.critic"],
    "MaskablePPO": [*MLP, *(name.replace("0", "2") for name in MLP)],
    "TRPO": [*MLP, *(name.replace("0", "2") for name in MLP)],
    "QRDQN": ["quantile_net.quantile_net.0", "quantile_net.quantile_net.2"],
    "TQC": ["actor.latent_pi.0", "actor.latent_pi.2", *CRITICS],
    "CrossQ": ["actor.latent_pi.1", "actor.latent_pi.4", *(f"critic.qf{k}.{i}" for k in (0, 1) for i in (1, 4))],
}
OFTEN = {"TRPO": {"replacement_rate": 0.1, "maturity_threshold": 3}, "CrossQ": {"replacement_rate": 0.1}}


@pytest.mark.parametrize("name", MAKE)
def test_hidden_units_of_everything_that_trains_are_replaced_at_the_pace_of_its_optimizer(name):
    model, callback = MAKE[name](), often(**OFTEN.get(name, {}))
    steps = dict.fromkeys(optimizers(model), 0)
    for optimizer in steps:
        optimizer.register_step_post_hook(lambda each, *_: steps.update({each: steps[each] + 1}))
    model.learn(STEPS[name], callback=callback)
    assert sorted(replaced(callback)) == sorted(GROUPS[name])
    assert min(replaced(callback).values()) >= 20, replaced(callback)
    first, *_, last = *steps.values(), *steps.values()
    for group, stats in callback.stats().items():
        expected = last if group.startswith("critic") else first
        if name == "TRPO" and "policy_net" in group:
            expected = STEPS[name] // 16  # a line search per rollout steps the actor
        assert stats["steps"] == expected, group
    assert all(torch.isfinite(each).all() for each in model.policy.state_dict().values())
    assert hooks(model) == len(steps)  # the ones of this test


@pytest.mark.parametrize("name", MAKE)
def test_rate_zero_leaves_training_the_same_to_the_bit(name):
    plain = MAKE[name]().learn(STEPS[name])
    drawn, callback = torch.get_rng_state(), often(replacement_rate=0.0, diagnose_every=20)
    watched = MAKE[name]().learn(STEPS[name], callback=callback)
    assert_same(weights(plain), weights(watched))
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(stats["steps"] >= 20 and not any(stats["replaced"]) for stats in callback.stats().values())


def test_a_recurrent_policy_is_diagnosed_from_the_states_that_it_was_in():
    class Look(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            buffer = model.rollout_buffer
            inputs, actions = recent_inputs(model, 20)
            value, log_prob, _ = model.policy.evaluate_actions(
                inputs.observations, actions, inputs.states, inputs.starts
            )
            torch.testing.assert_close(value.flatten(), torch.as_tensor(buffer.values[-20:, 0]).flip(0))
            torch.testing.assert_close(log_prob, torch.as_tensor(buffer.log_probs[-20:, 0]).flip(0))
            assert inputs.states.pi[0].abs().min(-1).values.max() > 0
            looked.append(inputs)

    looked, model = [], MAKE["RecurrentPPO, two layers"]()
    model.learn(64, callback=Look())
    assert len(looked) == 1


@pytest.mark.parametrize("name", ["RecurrentPPO", "TQC"])
def test_a_checkpoint_goes_on_to_the_bit(name, tmp_path):
    """In the middle of episodes, which a recurrent policy remembers. The environment stays where it was."""
    straight, one = MAKE[name](), often(replacement_rate=0.1)
    straight.learn(256, callback=one)

    model, two, three = MAKE[name](), often(replacement_rate=0.1), often(replacement_rate=0.1)
    model.learn(128, callback=[two, MethodCheckpointCallback(two, 64, tmp_path, save_replay_buffer=True)])
    half = replaced(two)
    torch.manual_seed(99)
    model = load_checkpoint(type(model), tmp_path, three, env=model.get_env(), force_reset=False, device="cpu")
    assert model.num_timesteps == 128
    model.learn(128, callback=three, reset_num_timesteps=False)
    assert one.stats() == three.stats()
    assert min(half.values()) >= 20
    assert min(now - half[group] for group, now in replaced(three).items()) >= 20
    assert_same(weights(straight), weights(model))
