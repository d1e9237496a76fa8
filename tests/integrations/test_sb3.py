"""Continual backpropagation inside Stable-Baselines3."""

import copy
import csv
import gc
import importlib
import math
import pickle
import sys
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is not installed: pip install -e .[sb3]")

import gymnasium as gym
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import pliant
from pliant.integrations.sb3 import ContinualBackpropCallback, Networks, UnitResetCallback, example_inputs, networks_of
from pliant.integrations.sb3.networks import recent_inputs
from tests.networks import steps

pytestmark = pytest.mark.integrations

OFF = {"learning_starts": 32, "batch_size": 16, "buffer_size": 256}
EPSILON = {"train_freq": 2, "target_update_interval": 50, "exploration_initial_eps": 0.1, "exploration_final_eps": 0.1}
MAKE = {
    "PPO": lambda **kw: PPO("MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=32, n_epochs=8, **small(kw)),
    "A2C": lambda **kw: A2C("MlpPolicy", "CartPole-v1", n_steps=4, **small(kw)),
    "DQN": lambda **kw: DQN("MlpPolicy", "CartPole-v1", **EPSILON, **OFF, **small(kw)),
    "SAC": lambda **kw: SAC("MlpPolicy", "Pendulum-v1", **OFF, **small(kw)),
    "TD3": lambda **kw: TD3("MlpPolicy", "Pendulum-v1", **OFF, **small(kw)),
    "DDPG": lambda **kw: DDPG("MlpPolicy", "Pendulum-v1", **OFF, **small(kw)),
}
STEPS = {"PPO": 320, "A2C": 320, "DQN": 160, "SAC": 100, "TD3": 128, "DDPG": 100}
TWO = ["policy.mlp_extractor.policy_net.0", "policy.mlp_extractor.policy_net.2"]
ACTOR_CRITIC = [*TWO, *(name.replace("policy_net", "value_net") for name in TWO)]
GROUPS = {
    "PPO": ACTOR_CRITIC,
    "A2C": ACTOR_CRITIC,
    "DQN": ["q_net.q_net.0", "q_net.q_net.2"],
    "SAC": ["actor.latent_pi.0", "actor.latent_pi.2", *(f"critic.qf{k}.{i}" for k in (0, 1) for i in (0, 2))],
    "TD3": ["actor.mu.0", "actor.mu.2", *(f"critic.qf{k}.{i}" for k in (0, 1) for i in (0, 2))],
    "DDPG": ["actor.mu.0", "actor.mu.2", "critic.qf0.0", "critic.qf0.2"],
}


def small(settings):
    kwargs = {"net_arch": [16, 16], **settings.pop("policy_kwargs", {})}
    return {"policy_kwargs": kwargs, "device": "cpu", "seed": 0, **settings}


def often(**settings):
    return ContinualBackpropCallback(**{"replacement_rate": 0.05, "maturity_threshold": 5, **settings})


def weights(model):
    return {name: each.clone() for name, each in model.policy.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def replaced(callback):
    return {name: sum(group["replaced"]) for name, group in callback.stats().items()}


def global_random_state():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()  # noqa: NPY002


def optimizers(model):
    parts = [model.policy, *(getattr(model.policy, name, None) for name in ("actor", "critic"))]
    return [part.optimizer for part in parts if hasattr(part, "optimizer")]


def hooks(model):
    of_modules = [
        len(found) for module in model.policy.modules() for found in (module._forward_hooks, module._forward_pre_hooks)
    ]
    of_optimizers = [
        len(found)
        for each in optimizers(model)
        for found in (each._optimizer_step_pre_hooks, each._optimizer_step_post_hooks)
    ]
    return sum(of_modules) + sum(of_optimizers)


# -- every algorithm ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKE)
def test_hidden_units_of_everything_that_trains_are_replaced_at_the_pace_of_its_optimizer(name):
    model, callback = MAKE[name](), often()
    steps = dict.fromkeys(optimizers(model), 0)
    for optimizer in steps:
        optimizer.register_step_post_hook(lambda each, *_: steps.update({each: steps[each] + 1}))
    model.learn(STEPS[name], callback=callback)
    assert sorted(replaced(callback)) == sorted(GROUPS[name])
    assert min(replaced(callback).values()) >= 20, replaced(callback)
    first, *_, last = *steps.values(), *steps.values()
    for group, stats in callback.stats().items():
        assert stats["steps"] == (last if group.startswith("critic") else first), group
    assert all(torch.isfinite(each).all() for each in model.policy.state_dict().values())


@pytest.mark.parametrize("name", MAKE)
def test_rate_zero_leaves_training_the_same_to_the_bit(name):
    plain = MAKE[name]().learn(STEPS[name])
    drawn = global_random_state()
    callback = often(replacement_rate=0.0, diagnose_every=20)
    watched = MAKE[name]().learn(STEPS[name], callback=callback)
    assert_same(weights(plain), weights(watched))
    assert drawn == global_random_state()
    assert all(stats["steps"] > 20 and not any(stats["replaced"]) for stats in callback.stats().values())


@pytest.mark.parametrize("name", MAKE)
def test_training_leaves_no_hook(name):
    model = MAKE[name]()
    model.learn(64, callback=often())
    assert hooks(model) == 0


@pytest.mark.parametrize("name", MAKE)
def test_every_planned_unit_is_exact_by_trial(name):
    model, callback = MAKE[name](), often()
    model.learn(40, callback=callback)
    networks, (observations, actions) = networks_of(model), example_inputs(model, batch=8)
    if "policy" in dict(networks.named_children()):
        networks.run = lambda net, o, a: (
            net.policy.action_net(net.policy.mlp_extractor.policy_net(o)),
            net.policy.value_net(net.policy.mlp_extractor.value_net(o)),
        )  # without the preprocessing, which is in float32 always
    elif name == "DQN":
        networks.run = lambda net, o, a: net.q_net.q_net(o)
    else:
        body = (lambda net, o: net.actor.mu(o)) if name != "SAC" else _soft_head
        networks.run = lambda net, o, a: (body(net, o), *(q(torch.cat([o, a], 1)) for q in _twins(net.critic)))
    inputs = torch.randn(observations.shape), torch.randn(actions.shape)
    found = callback.plan.verify(networks, inputs)
    found.raise_if_wrong()
    assert {row.verdict for row in found.rows} == {"exact"}


def _soft_head(net, observations):
    latent = net.actor.latent_pi(observations)
    return net.actor.mu(latent), net.actor.log_std(latent)


def _twins(critic):
    return [child for name, child in critic.named_children() if name.startswith("qf")]


# -- what is read -------------------------------------------------------------------------------------------------


def read_at(model, module, optimizer):
    """Means of what entered a module in the last pass with gradients in training mode before the optimizer stepped."""
    seen = {}

    def enters(module, args):
        if torch.is_grad_enabled() and module.training:
            seen["now"] = args[0].detach().mean(0)

    handles = [
        module.register_forward_pre_hook(enters),
        optimizer.register_step_pre_hook(lambda *_: seen.update(stepped=seen["now"])),
    ]
    return seen, handles


@pytest.mark.parametrize("name", ["SAC", "TD3", "DDPG"])
def test_critics_are_read_in_their_own_loss_and_not_in_the_actors(name):
    model, callback = MAKE[name](train_freq=4, gradient_steps=5), often(replacement_rate=0.0, decay_rate=0.0)
    seen, _ = read_at(model, model.critic.qf0[2], model.critic.optimizer)
    model.learn(
        100, callback=callback
    )  # 17 rounds: the last critic step follows an actor's, also where that is delayed
    method = callback.unit_reset
    (group,) = [each for each in method.groups if each.name == "critic.qf0.0"]
    torch.testing.assert_close(method.score.mean(group).flatten(), seen["stepped"], rtol=1e-5, atol=1e-6)
    assert method.stats()[group.name]["steps"] > 20


@pytest.mark.parametrize("name", ["PPO", "A2C", "DQN"])
def test_rollouts_are_not_read(name):
    model, callback = MAKE[name](), often(replacement_rate=0.0, decay_rate=0.0)
    body = model.q_net.q_net if name == "DQN" else model.policy.mlp_extractor.policy_net
    seen, _ = read_at(model, body[2], model.policy.optimizer)
    model.learn(STEPS[name], callback=callback)
    method = callback.unit_reset
    torch.testing.assert_close(method.score.mean(method.groups[0]).flatten(), seen["stepped"], rtol=1e-5, atol=1e-6)


def test_a_minibatch_at_which_ppo_stops_is_not_read():
    class Unread(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_start(self):
            counts.append([*callback.unit_reset.recorded().values()])

        def _on_rollout_end(self):
            counts.append([*callback.unit_reset.recorded().values()])

    counts, callback = [], often()
    model = MAKE["PPO"](target_kl=1e-12)
    model.learn(192, callback=CallbackList([callback, Unread()]))
    assert counts[2] == [32] * 4  # the pass that no step followed is still there when the next rollout starts
    assert counts[3] == [0] * 4


def test_target_networks_are_left_to_polyak_averaging():
    model, callback = MAKE["TD3"](tau=0.0), often()
    start = [each.clone() for each in (*model.critic_target.parameters(), *model.actor_target.parameters())]
    model.learn(STEPS["TD3"], callback=callback)
    now = [*model.critic_target.parameters(), *model.actor_target.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(start, now, strict=True))
    assert min(replaced(callback).values()) >= 20


# -- the scale of fresh units --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["PPO", "A2C"])
def test_fresh_units_are_as_large_as_the_orthogonal_weights_that_policies_start_with(name, caplog):
    """An orthogonal matrix times √2 with 64 rows and columns: standard deviation √2 / 8; torch's own reset: 1 / √192."""
    model = MAKE[name](policy_kwargs={"net_arch": [64, 64]})
    callback = often()
    model.learn(STEPS[name], callback=callback)
    rows = {row.group.name: row.fresh_std for row in callback.plan.rows}
    for group in ACTOR_CRITIC:
        assert rows[group] == pytest.approx(math.sqrt(2) / 8, rel=0.02)
    assert "init: the scale found at construction is that of fresh units of" in str(callback.plan)
    model.learn(STEPS[name], callback=callback, reset_num_timesteps=False)  # on a network that has trained
    assert {row.group.name: row.fresh_std for row in callback.plan.rows} == rows
    assert not [record for record in caplog.records if record.name == "pliant"]


def test_a_network_that_torch_initialized_keeps_its_reset():
    callback = often()
    MAKE["DQN"]().learn(STEPS["DQN"], callback=callback)
    assert callback.state_dict()["units"]["redraw"] == {"starts": [["reset"], ["reset"]], "borrowed": []}


def test_a_policy_that_has_trained_is_told_of_with_a_warning(caplog):
    model = MAKE["PPO"](policy_kwargs={"net_arch": [64, 64]}).learn(64)
    model.learn(64, callback=often())
    (record,) = [record for record in caplog.records if record.name == "pliant"]
    assert "Adam has stepped already. If it was not the reset's, say so with init=" in record.getMessage()


# -- going on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["PPO", "SAC"])
def test_two_calls_of_learn_equal_one(name):
    one, two = often(), often()
    straight = MAKE[name]().learn(2 * STEPS[name], callback=one)
    halved = MAKE[name]().learn(STEPS[name], callback=two)
    assert hooks(halved) == 0
    halved.learn(STEPS[name], callback=two, reset_num_timesteps=False)
    assert one.stats() == two.stats()
    assert min(replaced(one).values()) >= 20
    assert_same(weights(straight), weights(halved))


@pytest.mark.parametrize("name", ["PPO", "DQN", "TD3"])
def test_saving_and_loading_changes_nothing(name, tmp_path):
    straight, one = MAKE[name](), often()
    straight.learn(2 * STEPS[name], callback=one)

    model, two = MAKE[name](), often()
    model.learn(STEPS[name], callback=two)
    model.save(tmp_path / "model.zip")
    two.save(tmp_path / "callback.pt")
    half = replaced(two)
    if name != "PPO":
        model.save_replay_buffer(tmp_path / "buffer.pkl")
    drawn = torch.get_rng_state(), np.random.get_state(), copy.deepcopy(model.action_space)  # noqa: NPY002
    env = model.get_env()

    model, three = type(model).load(tmp_path / "model.zip"), often()
    three.load(tmp_path / "callback.pt")
    model.set_env(env, force_reset=False)  # the same world, where it was
    if name != "PPO":
        model.load_replay_buffer(tmp_path / "buffer.pkl")
    torch.set_rng_state(drawn[0])  # neither of which Stable-Baselines3 saves
    np.random.set_state(drawn[1])  # noqa: NPY002
    model.action_space = drawn[2]
    model.learn(STEPS[name], callback=three, reset_num_timesteps=False)
    assert min(half.values()) >= 20
    assert min(now - half[group] for group, now in replaced(three).items()) >= 20
    assert one.stats() == three.stats()
    assert_same(weights(straight), weights(model))


def test_a_state_saved_while_training_is_the_state_of_that_moment(tmp_path):
    class SaveAtStep(BaseCallback):
        def _on_step(self):
            if self.n_calls == 128:
                callback.save(tmp_path / "callback.pt")
                seen.append(steps(callback.unit_reset))
            return True

    seen, callback = [], often()
    MAKE["PPO"]().learn(256, callback=CallbackList([callback, SaveAtStep()]))
    state = torch.load(tmp_path / "callback.pt", weights_only=True)
    assert state["units"]["panels"][0]["steps"] == seen * 4
    assert seen[0] < steps(callback.unit_reset)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
def test_a_copy_of_the_callback_has_its_settings_and_state_and_none_of_the_model(copied):
    model, callback = MAKE["PPO"](), often()
    model.learn(STEPS["PPO"], callback=callback)
    other = copied(callback)
    assert other.unit_reset is None
    assert not hasattr(other, "model")
    twin = MAKE["PPO"]()
    twin.set_parameters(model.get_parameters())
    twin.learn(64, callback=other)
    assert other.stats()[TWO[0]]["steps"] == callback.stats()[TWO[0]]["steps"] + 16


class Stop(BaseCallback):
    """Ctrl-C."""

    def _on_step(self):
        if self.n_calls == 100:
            raise KeyboardInterrupt
        return True


@pytest.mark.parametrize("lost", [False, True])
def test_what_a_learn_that_raised_left_on_the_model_is_taken_off_by_the_next(lost, caplog):
    model, callback, second = MAKE["PPO"](), often(), often()
    before = hooks(model)
    with pytest.raises(KeyboardInterrupt):
        model.learn(256, callback=CallbackList([callback, Stop()]))
    steps = callback.stats()[TWO[0]]["steps"]
    if lost:  # as a notebook's cell does that is run again; the optimizer alone knows of the method then
        del callback
        model.learn(0)  # forgets the callbacks of the learn() before
        gc.collect()
    caplog.clear()
    model.learn(64, callback=second)
    assert "ContinualBackprop of an earlier run, which did not end, is detached from its model" in caplog.text
    assert hooks(model) == before
    assert second.stats()[TWO[0]]["steps"] == 16
    if not lost:
        assert callback.stats()[TWO[0]]["steps"] == steps == callback.state_dict()["units"]["panels"][0]["steps"][0]


def test_after_a_learn_that_raised_the_next_one_goes_on():
    model, callback = MAKE["PPO"](), often()
    with pytest.raises(KeyboardInterrupt):
        model.learn(256, callback=CallbackList([callback, Stop()]))
    assert hooks(model) > 0
    model.learn(64, callback=callback)
    assert hooks(model) == 0
    assert callback.stats()[TWO[0]]["steps"] == 2 * 16


# -- policies -----------------------------------------------------------------------------------------------------


class Pictures(gym.Env):
    """Noise to look at, and a vector beside it if asked for."""

    def __init__(self, *, vector=False, continuous=False):
        image = gym.spaces.Box(0, 255, (36, 36, 1), np.uint8)
        both = gym.spaces.Dict({"image": image, "vector": gym.spaces.Box(-1.0, 1.0, (3,))})
        self.observation_space = both if vector else image
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,)) if continuous else gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, False, bool(self.np_random.random() < 0.1), {}


def few_features(space):
    images = {"features_dim": 16} if isinstance(space, gym.spaces.Box) else {"cnn_output_dim": 16}
    return {"features_extractor_kwargs": images, "net_arch": [16]}


@pytest.mark.parametrize("vector", [False, True])
def test_a_shared_convolutional_extractor_feeds_actor_and_critic(vector):
    env = Pictures(vector=vector)
    policy = "MultiInputPolicy" if vector else "CnnPolicy"
    model = PPO(
        policy,
        env,
        n_steps=32,
        batch_size=16,
        n_epochs=10,
        **small({"policy_kwargs": few_features(env.observation_space)}),
    )
    callback = often(replacement_rate=0.1, maturity_threshold=2, diagnose_every=10)
    model.learn(64, callback=callback)
    root = "policy.features_extractor" + (".extractors.image" if vector else "")
    found = {row.group.name: row.group for row in callback.plan.rows}
    body = [f"{root}.cnn.0", f"{root}.cnn.2", f"{root}.cnn.4", f"{root}.linear.0"]
    assert {*body, *(f"policy.mlp_extractor.{net}.0" for net in ("policy_net", "value_net"))} == set(found)
    assert [each.parameter for each in found[body[-1]].outgoing] == [
        "policy.mlp_extractor.policy_net.0.weight",
        "policy.mlp_extractor.value_net.0.weight",
    ]
    assert min(replaced(callback).values()) >= 20


@pytest.mark.parametrize("shared", [False, True])
def test_an_extractor_that_sac_shares_is_reset_once_with_its_readers_in_both_critics(shared):
    kwargs = {"features_extractor_kwargs": {"features_dim": 16}, "share_features_extractor": shared}
    model = SAC("CnnPolicy", Pictures(continuous=True), **OFF, **small({"policy_kwargs": kwargs}))
    callback = often(replacement_rate=0.1, maturity_threshold=2)
    model.learn(60, callback=callback)
    found = {row.group.name: row.group for row in callback.plan.rows}
    readers = {each.parameter for each in found["actor.features_extractor.linear.0"].outgoing}
    critics = {"critic.qf0.0.weight", "critic.qf1.0.weight"}
    assert readers == {"actor.latent_pi.0.weight", *(critics if shared else ())}
    assert ("critic.features_extractor.linear.0" in found) != shared
    assert min(replaced(callback).values()) >= 20


@pytest.mark.parametrize("algorithm", [TD3, DDPG])
def test_an_extractor_that_actor_and_critic_both_list_is_the_actors_whose_loss_trains_it(algorithm):
    kwargs = {"features_extractor_kwargs": {"features_dim": 16}, "share_features_extractor": True}
    model = algorithm("CnnPolicy", Pictures(continuous=True), **OFF, **small({"policy_kwargs": kwargs}))
    callback = often(replacement_rate=0.1, maturity_threshold=2)
    model.learn(70, callback=callback)
    (group,) = (row.group for row in callback.plan.rows if row.group.name == "actor.features_extractor.linear.0")
    critics = {f"critic.qf{number}.0.weight" for number in range(len(model.critic.q_networks))}
    assert {each.parameter for each in group.outgoing} == {"actor.mu.0.weight", *critics}
    steps = {name: stats["steps"] for name, stats in callback.stats().items()}
    assert steps["actor.features_extractor.linear.0"] == steps["actor.mu.0"] > 15
    assert steps["critic.qf0.0"] == steps["actor.mu.0"] * (2 if algorithm is TD3 else 1)
    assert min(replaced(callback).values()) >= 15


@pytest.mark.parametrize("vector", [False, True])
def test_dqn_on_pictures(vector):
    env = Pictures(vector=vector)
    kwargs = few_features(env.observation_space)
    policy = "MultiInputPolicy" if vector else "CnnPolicy"
    model = DQN(policy, env, train_freq=2, **OFF, **small({"policy_kwargs": kwargs}))
    callback = often(replacement_rate=0.2, maturity_threshold=2, diagnose_every=5)
    model.learn(80, callback=callback)
    assert len(replaced(callback)) == 5
    assert min(replaced(callback).values()) >= 20


@pytest.mark.parametrize("name", ["PPO", "SAC"])
def test_units_that_state_dependent_exploration_reads_are_left_alone(name):
    model, callback = MAKE[name](use_sde=True), often(replacement_rate=0.2)
    model.learn(100, callback=callback)
    last = {"PPO": TWO[1], "SAC": "actor.latent_pi.2"}[name]
    assert set(replaced(callback)) == set(GROUPS[name]) - {last}
    copied = copy.deepcopy(networks_of(model))  # as tracing on a GPU does; the tensors of a distribution refuse it
    again = pliant.trace(copied, example_inputs(model), activity=True)
    assert [row.group.name for row in again.rows] == [row.group.name for row in callback.plan.rows]


@pytest.mark.parametrize(
    "space", [gym.spaces.MultiDiscrete([2, 3]), gym.spaces.MultiBinary(3), gym.spaces.Box(-1.0, 1.0, (2, 2))]
)
def test_other_action_spaces(space):
    env = Pictures()
    env.action_space, env.observation_space = space, gym.spaces.Discrete(5)
    callback = often(replacement_rate=0.5, maturity_threshold=1, diagnose_every=10)
    PPO("MlpPolicy", env, n_steps=32, batch_size=16, **small({})).learn(64, callback=callback)
    assert min(replaced(callback).values()) >= 20


# -- what is logged -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["PPO", "SAC"])
def test_replacements_and_dead_units_are_logged(name, tmp_path):
    more = {"train_freq": 4} if name == "SAC" else {}
    model = MAKE[name](policy_kwargs={"activation_fn": nn.ReLU}, **more)
    with torch.no_grad():
        first = model.policy.mlp_extractor.policy_net[0] if name == "PPO" else model.actor.latent_pi[0]
        first.bias[:8] = -1e6  # half of a layer dead
    model.set_logger(configure(str(tmp_path), ["csv"]))
    callback = often(replacement_rate=1e-4, maturity_threshold=0, diagnose_every=10)
    model.learn(450, callback=callback, **({} if name == "PPO" else {"log_interval": 1}))
    model.logger.close()
    with open(tmp_path / "progress.csv") as file:
        last = list(csv.DictReader(file))[-1]
    units = 16 * len(GROUPS[name])
    assert int(float(last["pliant/optimizer_steps"])) > 20
    assert float(last["pliant/dead_share"]) >= (8 - float(last["pliant/replaced"])) / units > 0
    assert 0.0 <= float(last["pliant/dead_share"]) <= float(last["pliant/dormant_share"]) <= 1.0


def test_the_diagnosis_sees_observations_as_the_networks_do():
    class Look(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            buffer = on.rollout_buffer if self.model is on else off.replay_buffer
            last = buffer.observations[buffer.pos - 1]
            shown = last if self.model is on else env.normalize_obs(last)  # rollouts are stored as normalized
            if buffer.size() > 25:
                observations, actions = recent_inputs(self.model, 25)
                assert (*observations.shape, *actions.shape) == (25, 3, 25, 1)
                torch.testing.assert_close(observations[:2], torch.as_tensor(shown))
                looked.append(self.model)

    looked, env = [], VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")] * 2))
    on, off = (kind("MlpPolicy", env, **more, **small({})) for kind, more in ((PPO, {"n_steps": 32}), (SAC, OFF)))
    on.learn(128, callback=Look())
    off.learn(128, callback=Look())
    assert {on, off} == set(looked)


# -- other methods, other algorithms ------------------------------------------------------------------------------


def test_any_reset_method_attaches():
    model = MAKE["PPO"](policy_kwargs={"activation_fn": nn.ReLU})
    callback = UnitResetCallback(pliant.ReDo, tau=0.9, period=5, seed=3)
    model.learn(256, callback=callback)
    assert min(replaced(callback).values()) >= 20
    assert isinstance(callback.unit_reset, pliant.ReDo)


class Reinforce(OnPolicyAlgorithm):
    """An algorithm that this library does not know."""

    policy_aliases: ClassVar = {"MlpPolicy": ActorCriticPolicy}

    def train(self):
        self.policy.set_training_mode(True)
        for data in self.rollout_buffer.get(16):
            _, log_prob, _ = self.policy.evaluate_actions(data.observations, data.actions.long().flatten())
            self.policy.optimizer.zero_grad()
            (-data.returns * log_prob).mean().backward()
            self.policy.optimizer.step()


def reinforce():
    return Reinforce(
        "MlpPolicy",
        "CartPole-v1",
        learning_rate=1e-3,
        n_steps=32,
        gamma=0.99,
        gae_lambda=1.0,
        ent_coef=0.0,
        vf_coef=0.0,
        max_grad_norm=1.0,
        use_sde=False,
        sde_sample_freq=-1,
        **small({}),
    )


def test_an_unknown_algorithm_says_what_to_do():
    with pytest.raises(
        TypeError, match=r"networks of Reinforce with ActorCriticPolicy are not known.*networks=lambda model"
    ):
        reinforce().learn(64, callback=often())


def actor_alone(model):
    def run(networks, observations, actions):
        return networks.policy.get_distribution(observations).log_prob(actions)

    return Networks(run, [model.policy.optimizer], policy=model.policy)


def test_networks_can_be_given():
    callback = often(networks=actor_alone)
    reinforce().learn(1024, callback=callback)
    assert list(replaced(callback)) == TWO
    assert min(replaced(callback).values()) >= 20


def test_networks_that_leave_out_what_trains_are_an_error_and_can_be_detached():
    model, callback = MAKE["PPO"](), often(networks=actor_alone)
    with pytest.raises(RuntimeError, match=r"'policy\.\S+'.* never ran with the example inputs and trains now"):
        model.learn(64, callback=callback)
    callback.detach()
    assert hooks(model) == 0


def test_units_are_chosen_by_name():
    callback = often(exclude="policy.mlp_extractor.value_net*")
    MAKE["PPO"]().learn(128, callback=callback)
    assert list(callback.stats()) == TWO


# -- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replacement_rate": 2.0}, r"replacement_rate must lie in \[0, 1\], got 2.0"),
        ({"utility": "contributon"}, "contributon"),
        ({"init": "orthogonal"}, "unknown init 'orthogonal'"),
        ({"include": 3}, "include takes a pattern or a list of patterns, got 3"),
        ({"exclude": [None]}, "exclude takes a pattern or a list of patterns, got a list"),
        ({"exlude": "actor"}, r"takes no argument 'exlude' \(did you mean 'exclude'\?\)"),
        ({"replacement_rate": "1e-4"}, "replacement_rate must be a number, got '1e-4'"),
        ({"networks": lambda: None}, r"networks is called with 1 argument \(model\), which <lambda> does not take"),
        ({"optimizer_state": "none"}, "unknown optimizer_state 'none'"),
        ({"diagnose_every": 0}, "diagnose_every must be 1 or more whole optimizer steps"),
    ],
)
def test_bad_settings_are_refused_at_construction(settings, message):
    before = torch.get_rng_state()
    with pytest.raises((TypeError, ValueError), match=message):
        ContinualBackpropCallback(**settings)
    assert torch.equal(before, torch.get_rng_state())


def test_without_stable_baselines3_the_error_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("pliant.integrations.sb3")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(ImportError, match=r'needs Stable-Baselines3: pip install -e "\.\[sb3\]"'):
        importlib.import_module("pliant.integrations.sb3")


def test_arguments_that_the_callback_finds_itself_are_refused():
    with pytest.raises(
        TypeError, match=r"groups: the callback sets these itself; choose other networks with networks="
    ):
        UnitResetCallback(pliant.ReDo, groups=[])


def test_a_second_model_is_refused():
    callback = often()
    MAKE["PPO"]().learn(64, callback=callback)
    with pytest.raises(RuntimeError, match=r"has trained another model\. Give every model its own"):
        MAKE["PPO"]().learn(64, callback=callback)


def test_two_callbacks_on_one_model_are_refused():
    model, callback, second = MAKE["PPO"](), often(), often()
    with pytest.raises(ValueError, match=f"units of '{TWO[0]}' are already reset by a ContinualBackprop"):
        model.learn(64, callback=CallbackList([callback, second]))
    model.learn(64, callback=callback)
    assert hooks(model) == 0
    model.learn(64, callback=often())  # learn() frees the units as it ends


def test_a_state_of_other_units_is_refused_and_leaves_no_hook():
    one, other = often(), often()
    MAKE["PPO"]().learn(64, callback=one)
    other.load_state_dict(one.state_dict())
    model = MAKE["PPO"](policy_kwargs={"net_arch": [8]})
    with pytest.raises(ValueError, match="saved for other units"):
        model.learn(64, callback=other)
    assert hooks(model) == 0


def test_there_is_nothing_to_save_before_the_first_step(tmp_path):
    with pytest.raises(RuntimeError, match=r"has no state yet: learn\(\) has not run with it"):
        often().save(tmp_path / "callback.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_method_on_whole_parameters_may_be_given_too():
    model, callback = MAKE["PPO"](), UnitResetCallback(pliant.L2, strength=0.01)
    model.learn(128, callback=callback)
    assert (callback.unit_reset, callback.plan, callback.stats()) == (None, None, {})
    assert callback.state_dict()["units"]["names"]
    assert hooks(model) == 0
