"""Checkpoints of Stable-Baselines3 with the state of a method: what is killed goes on to the bit."""

import os
import random
import signal
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is not installed: pip install -e .[sb3]")

import gymnasium as gym
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import pliant
from pliant.base.saving import load_state
from pliant.integrations.sb3 import MethodCallback, MethodCheckpointCallback, load_checkpoint
from tests.integrations.killed import METHODS, process
from tests.integrations.test_sb3 import OFF, assert_same, often, replaced, small, weights

pytestmark = pytest.mark.integrations


class Pendulum(gym.Env):
    """An environment whose observation is all of its state, so that it can be put back where it was."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (3,))

    def __init__(self, discrete):
        self.action_space = gym.spaces.Discrete(2) if discrete else gym.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = np.full(3, 0.1, np.float32)
        return self.state, {}

    def step(self, action):
        pushed = np.float32(np.asarray(action).item())
        self.state = np.sin(2 * np.roll(self.state, 1) - 0.3 * self.state + pushed).astype(np.float32)
        return self.state, -float(self.state @ self.state), False, False, {}


def put_back(env, observations):
    for each, observation in zip(env.envs, observations, strict=True):
        each.unwrapped.state = observation


def envs(discrete=False):
    return DummyVecEnv([partial(Pendulum, discrete)] * 2)


NOISE = NormalActionNoise(np.zeros(1), np.full(1, 0.2))
ALGORITHMS = {
    "PPO": (PPO, {"n_steps": 32, "batch_size": 32, "n_epochs": 8, "learning_rate": lambda left: 1e-3 * left}, False),
    "DQN": (DQN, {"exploration_fraction": 0.9, "target_update_interval": 40, "train_freq": 2, **OFF}, True),
    "SAC": (SAC, OFF, False),
    "TD3": (TD3, {"action_noise": NOISE, **OFF}, False),
}
TOTAL, EVERY, DIES_AT = 400, 100, 130  # timesteps of both environments; calls of the callback


def new(name):
    algorithm, settings, discrete = ALGORITHMS[name]
    return algorithm("MlpPolicy", envs(discrete), **settings, **small({}))


class DieAt(BaseCallback):
    def _on_step(self):
        if self.n_calls == DIES_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return True


def made(method):
    return often(seed=3) if method == "continual backprop" else MethodCallback(METHODS[method][0], **METHODS[method][1])


def start_and_die(name, method, folder):
    """In a process of its own."""
    callback = made(method)
    checkpoint = MethodCheckpointCallback(callback, EVERY // 2, folder, save_replay_buffer=True)
    new(name).learn(TOTAL, callback=[callback, checkpoint, DieAt()])


def go_on(name, method, folder):
    algorithm, _, discrete = ALGORITHMS[name]
    callback, env = made(method), envs(discrete)
    torch.manual_seed(99), np.random.seed(99), random.seed(99)  # noqa: NPY002
    model = load_checkpoint(algorithm, folder, callback, env=env, device="cpu", force_reset=False)
    env.reset()
    put_back(env, model._last_obs)
    half = model.num_timesteps
    model.learn(TOTAL - half, callback=callback, reset_num_timesteps=False)
    return model, callback, half


OTHERS = [("PPO", "l2"), ("PPO", "monitor")]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *(
            pytest.param(name, "continual backprop", marks=[pytest.mark.slow] if name in ("SAC", "TD3") else [])
            for name in ALGORITHMS
        ),
        *OTHERS,
    ],
)
def test_what_was_killed_goes_on_to_the_bit(name, method, tmp_path):
    assert process("test_sb3_checkpoint", f"start_and_die({name!r}, {method!r}, {str(tmp_path)!r})") == -signal.SIGKILL

    straight, one = new(name), made(method)
    straight.learn(TOTAL, callback=one)
    model, two, half = go_on(name, method, tmp_path)
    assert 2 * EVERY <= half <= 2 * DIES_AT
    assert_same(weights(straight), weights(model))
    if method == "monitor":
        assert str(one.method.rows) == str(two.method.rows)  # NaN equals itself
        assert len(one.method.rows) >= 20
    if one.unit_reset is not None:
        assert one.stats() == two.stats()
        at_half = replaced_at(tmp_path, half)
        assert min(now - before for now, before in zip(replaced(two).values(), at_half, strict=True)) >= 20
        assert min(at_half) >= 20


def replaced_at(folder, timesteps):
    state = load_state(folder / f"rl_model_method_{timesteps}_steps.pt")
    return [group["replaced"][0] for group in state["callbacks"][0]["state"]["units"]["counts"].values()]


def test_a_checkpoint_lies_between_two_rollouts(tmp_path):
    """PPO learns from 64 timesteps at once: a checkpoint is due every 50, at 64, 128, 192, and learning ends at 192."""
    callback = often()
    checkpoint = MethodCheckpointCallback(callback, 25, tmp_path / "new", name_prefix="ppo", save_vecnormalize=True)
    model = PPO("MlpPolicy", VecNormalize(envs()), n_steps=32, batch_size=32, **small({}))
    model.learn(192, callback=[callback, checkpoint])
    names = [f"ppo_{part}{steps}_steps.{end}" for steps in (128, 192, 64) for part, end in PARTS]
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == sorted(names)


PARTS = [("", "zip"), ("method_", "pt"), ("vecnormalize_", "pkl")]


def test_the_newest_checkpoint_is_complete_and_any_other_can_be_named(tmp_path):
    callback = often()
    new("PPO").learn(320, callback=[callback, MethodCheckpointCallback(callback, 32, tmp_path)])
    (tmp_path / "rl_model_method_320_steps.pt").unlink()  # killed while it wrote the last
    for path, steps in (
        (tmp_path, 256),
        (tmp_path / "rl_model_128_steps.zip", 128),
        (tmp_path / "rl_model_64_steps", 64),
    ):
        model = load_checkpoint(PPO, path, often(), env=envs(), device="cpu")
        assert model.num_timesteps == steps
    with pytest.raises(
        FileNotFoundError, match=r"rl_model_method_320_steps\.pt' is missing: MethodCheckpointCallback did not"
    ):
        load_checkpoint(PPO, tmp_path / "rl_model_320_steps.zip", often())


def test_several_callbacks_of_any_method_are_saved_in_their_order(tmp_path):
    def callbacks():
        return [often(), MethodCallback(pliant.L2, strength=1e-3, toward="initial")]

    first = callbacks()
    new("PPO").learn(128, callback=[*first, MethodCheckpointCallback(first, 32, tmp_path)])
    again = callbacks()
    load_checkpoint(PPO, tmp_path, again, device="cpu")
    assert again[0].state_dict()["units"]["counts"] == first[0].state_dict()["units"]["counts"]
    mine, saved = (each[1].state_dict()["units"] for each in (again, first))
    assert str(mine) == str(saved)
    said = "saved with callbacks of ContinualBackprop, L2, and is loaded with those of L2, ContinualBackprop"
    with pytest.raises(ValueError, match=said):
        load_checkpoint(PPO, tmp_path, again[::-1], device="cpu")


def test_chunks_of_learning_count_together(tmp_path):
    model, callback = new("PPO"), often()
    checkpoint = MethodCheckpointCallback(callback, 64, tmp_path)
    for _ in range(4):
        model.learn(64, callback=[callback, checkpoint], reset_num_timesteps=False)
    assert len(list(tmp_path.glob("*.zip"))) == 2


# -- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("callbacks", "settings", "message"),
    [
        (None, {}, "callbacks must be a callback of pliant.integrations.sb3, or several, .* got None"),
        ([], {}, "callbacks must be .* got a list"),
        ([BaseCallback], {}, "callbacks must be"),
        (pliant.ContinualBackprop, {}, "callbacks must be"),
        (often(), {"save_freq": 0}, "save_freq must be 1 or more whole steps of the environments"),
        (often(), {"save_freq": 10.5}, "save_freq must be"),
        (often(), {"name_prefix": ""}, "name_prefix"),
        (often(), {"save_replay_buffer": 1}, "save_replay_buffer must be True or False"),
    ],
)
def test_bad_settings_are_refused_at_construction(callbacks, settings, message, tmp_path):
    with pytest.raises((TypeError, ValueError), match=message):
        MethodCheckpointCallback(callbacks, **{"save_freq": 10, "save_path": tmp_path, **settings})


def test_a_callback_that_does_not_take_part_is_named_at_the_first_step(tmp_path):
    with pytest.raises(RuntimeError, match=r"does not take part in this learn\(\): give it both"):
        new("PPO").learn(64, callback=MethodCheckpointCallback(often(), 10, tmp_path))


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="holds no complete checkpoint of MethodCheckpointCallback with name_prefix"
    ):
        load_checkpoint(PPO, tmp_path, often())
    with pytest.raises(FileNotFoundError, match=r"'nowhere' is neither a folder of checkpoints nor one"):
        load_checkpoint(PPO, "nowhere", often())


def test_a_checkpoint_of_other_units_is_refused_by_learn(tmp_path):
    callback, other = often(), often()
    model = new("PPO").learn(64, callback=[callback, MethodCheckpointCallback(callback, 32, tmp_path)])
    load_checkpoint(PPO, tmp_path, other, device="cpu")
    with pytest.raises(ValueError, match="saved for other units"):
        PPO("MlpPolicy", envs(), **small({"policy_kwargs": {"net_arch": [8]}})).learn(64, callback=other)
    assert model.num_timesteps == 64
