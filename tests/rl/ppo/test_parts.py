import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pliant.rl.environments import Continuous, Discrete
from pliant.rl.ppo import PRESETS, Settings, preset
from pliant.rl.ppo.activations import ACTIVATIONS
from pliant.rl.ppo.advantages import advantages, normalized
from pliant.rl.ppo.loss import policy_loss
from pliant.rl.ppo.measures import measures
from pliant.rl.ppo.networks import ActorCritic
from pliant.rl.ppo.normalization import RunningMoments, discounted_sums, normalized_rewards
from pliant.rl.ppo.policies import Gaussian, Softmax


def test_advantages_are_those_worked_by_hand():
    rewards, values = np.array([1.0, 2.0, -1.0, 0.5]), np.array([0.1, 0.2, 0.3, 0.4])
    next_values, ended = np.array([0.2, 0.3, 0.4, 0.5]), np.array([False, True, False, False])
    raw = advantages(rewards, values, next_values, ~ended, ended, discount=0.99, trace_decay=0.95)
    assert np.allclose(raw, [2.7909, 1.8, -0.344402, 0.595], atol=1e-6)
    assert np.allclose(raw + values, [2.8909, 2.0, -0.044402, 0.995], atol=1e-6)
    assert np.allclose(normalized(raw), [1.152539, 0.429963, -1.133763, -0.448739], atol=1e-6)


def test_a_time_limit_that_bootstraps_keeps_the_value_of_the_last_state_and_cuts_the_trace():
    rewards, values, next_values = np.zeros(2), np.zeros(2), np.array([10.0, 20.0])
    ended = np.array([True, False])
    raw = advantages(rewards, values, next_values, np.array([True, True]), ended, discount=0.5, trace_decay=1.0)
    assert raw.tolist() == [5.0, 10.0]


def test_advantages_that_are_all_alike_are_centered_and_not_divided():
    assert normalized(np.array([3.0, 3.0, 3.0])).tolist() == [0.0, 0.0, 0.0]


def test_the_clipped_surrogate_takes_the_worse_of_both():
    ratio, gain = torch.tensor([1.5, 0.5, 1.5, 0.5]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    each = [policy_loss(ratio[i : i + 1], gain[i : i + 1], clip=0.2).item() for i in range(4)]
    assert np.allclose(each, [-1.2, -0.5, 1.5, 0.8])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_acting_and_learning_see_the_same_networks(name: str):
    networks = ActorCritic(3, 5, Continuous(2), Settings(hidden=(7, 6), activation=name), torch.float64)
    for agent in range(3):
        networks.redraw(agent, seed=agent, life=0)
    x = torch.linspace(-3, 3, 3 * 4 * 5, dtype=torch.float64).view(3, 4, 5)
    assert_close(torch.from_numpy(networks.actor.now(x.numpy())), networks.actor(x).detach(), rtol=0, atol=1e-13)
    alone = networks.critic.of_agent(1, x[1].numpy())
    assert_close(torch.from_numpy(alone), networks.critic(x)[1].detach(), rtol=0, atol=1e-13)


def test_first_weights_depend_on_the_seed_alone_and_fill_lecuns_bounds():
    wide = Settings(hidden=(200, 100))
    stack, alone = (ActorCritic(runs, 12, Discrete(4), wide, torch.float32) for runs in (3, 1))
    for agent, seed in enumerate((5, 6, 7)):
        stack.redraw(agent, seed, life=0)
    alone.redraw(0, 6, life=0)
    for mine, theirs in zip(stack.parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine[1], theirs[0])
    for layer, inputs in zip(stack.actor.linears(), (12, 200, 100), strict=True):
        assert 0.95 * (3 / inputs) ** 0.5 < layer.weight.abs().max() <= (3 / inputs) ** 0.5
        assert not layer.bias.any()


def test_a_gaussian_policy_knows_its_densities():
    policy = Gaussian(1, 2, start=-0.3, dtype=torch.float64)
    means, actions = torch.tensor([[[0.5, -1.0]]]).double(), torch.tensor([[[0.1, 0.2]]]).double()
    torchs = torch.distributions.Normal(means, torch.tensor(-0.3).double().exp())
    assert_close(policy.log_probability(means, actions), torchs.log_prob(actions).sum(-1))
    assert_close(policy.entropy(means), torchs.entropy().sum(-1))


def test_a_softmax_policy_draws_what_it_says():
    policy, n = Softmax(3), 20_000
    logits = np.log(np.array([0.2, 0.5, 0.3]))
    noise = policy.noise(np.random.default_rng(0), (1, n))
    drawn = policy.sample(np.broadcast_to(logits, noise.shape), noise, policy.spread())
    assert np.allclose(np.bincount(drawn[0]) / n, [0.2, 0.5, 0.3], atol=0.01)
    told = policy.log_probability(torch.from_numpy(logits).expand(1, 3, 3), torch.tensor([[0, 1, 2]]))
    assert_close(told.exp(), torch.tensor([[0.2, 0.5, 0.3]]).double())
    entropy = -(np.exp(logits) * logits).sum()
    assert_close(policy.entropy(torch.from_numpy(logits).expand(1, 1, 3)).item(), float(entropy))


def test_moments_are_those_of_all_rows_so_far():
    rows = np.random.default_rng(0).normal(3.0, 2.0, (2, 50, 4))
    moments = RunningMoments(2, 4)
    moments.update(rows[:, :20])
    moments.update(rows[:, 20:])
    assert np.allclose(moments.mean, rows.mean(1))
    assert np.allclose(moments.variance, rows.var(1))


def test_discounted_sums_begin_anew_with_each_episode():
    ended = np.array([False, True, False])
    sums, held = discounted_sums(np.ones(3), ended, np.array(4.0), discount=0.5)
    assert sums.tolist() == [3.0, 2.5, 1.0]
    assert held == 1.0


def test_rewards_are_divided_by_their_own_agents_deviation_and_cut_and_not_shifted():
    moments = RunningMoments(2)
    moments.mean[:], moments.variance[:] = 7.0, [4.0, 0.25]  # deviations 2 and 0.5
    rewards = np.array([[[2.0, -4.0, 0.0], [3.0, -1.0, 100.0]], [[18.0, 22.0, -30.0], [0.5, 0.25, -4.0]]])
    scaled = [[[1.0, -2.0, 0.0], [6.0, -2.0, 10.0]], [[9.0, 10.0, -10.0], [1.0, 0.5, -8.0]]]
    assert np.allclose(normalized_rewards(rewards, moments), scaled, rtol=1e-7, atol=0)


def test_presets_are_the_articles():
    told = {name: (each.betas, each.weight_decay, each.method) for name, each in PRESETS.items()}
    assert told["ppo"] == ((0.9, 0.999), 0.0, "none")
    assert told["ppo-tuned-adam"] == ((0.99, 0.99), 0.0, "none")
    assert told["ppo-l2"] == ((0.99, 0.99), 1e-3, "none")
    assert told["ppo-cbp"] == ((0.99, 0.99), 1e-4, "cbp")
    assert told["ppo-redo"] == ((0.99, 0.99), 1e-4, "redo")
    cbp, redo, modern = PRESETS["ppo-cbp"], PRESETS["ppo-redo"], PRESETS["modern"]
    assert (cbp.replacement_rate, cbp.maturity_threshold, cbp.count, cbp.optimizer_state) == (
        1e-4,
        10_000,
        "bernoulli",
        "keep",
    )
    assert (redo.tau, redo.period, redo.optimizer_state) == (0.1, 100, "keep")
    assert (modern.time_limit, modern.clip_actions, modern.optimizer_state) == ("bootstrap", True, "fresh")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": 1e300}, r"clip must be above 0, and finite in 32 bits, got 1e\+300"),
        ({"replacement_rte": 0.1}, "unknown setting 'replacement_rte' .did you mean 'replacement_rate'"),
        ({"replacement_rate": 0.1}, "replacement_rate = 0.1 is read by method cbp, not none"),
        ({"method": "cbp", "tau": 0.2}, "tau = 0.2 is read by method redo, not cbp"),
        ({"optimizer_state": "fresh"}, "is read by method cbp or redo, not none"),
        ({"method": "cpb"}, "unknown method 'cpb' .did you mean 'cbp'"),
        ({"time_limit": "boot"}, "unknown time_limit 'boot'"),
        ({"activation": "rely"}, "unknown activation 'rely' .did you mean 'relu'"),
        ({"discount": 1.5}, r"discount must be in \[0, 1\]"),
        ({"hidden": ()}, "hidden must be at least one layer"),
        ({"betas": (0.9, 1.0)}, "betas must be two"),
        ({"step_size": float("nan")}, "step_size must be above 0"),
        ({"max_gradient_norm": 0.0}, "max_gradient_norm must be above 0, or None"),
        ({"normalize_advantages": "none", "advantage_epsilon": 1e-8}, "advantage_epsilon needs"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        preset("ppo", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout_steps": 2048.0}, "rollout_steps must be a whole number, got 2048.0"),
        ({"epochs": True}, "epochs must be a whole number, got True"),
        ({"step_size": "1e-3"}, "step_size must be a number, got '1e-3'"),
        ({"clip_actions": 1}, "clip_actions must be True or False, got 1"),
        ({"max_gradient_norm": "0.5"}, "max_gradient_norm must be a number, or None"),
        ({"hidden": 64}, "hidden must be a sequence of whole numbers, got 64"),
        ({"hidden": [64, 0.5]}, r"hidden must be a sequence of whole numbers, got \[64, 0.5\]"),
        ({"betas": 0.9}, "betas must be two numbers, got 0.9"),
    ],
)
def test_settings_of_another_type_are_named(changes: dict, message: str):
    with pytest.raises(TypeError, match=message):
        Settings(**changes)


def test_numbers_of_numpy_are_numbers():
    given = Settings(rollout_steps=np.int64(8), step_size=np.float32(0.5), hidden=np.array([4, 3]))
    assert given == Settings(rollout_steps=8, step_size=0.5, hidden=(4, 3))


def test_a_setting_that_resembles_an_unknown_one_too_little_is_not_offered():
    with pytest.raises(ValueError, match="unknown setting 'clip_vloss'; known"):
        preset("ppo", clip_vloss=True)


def test_a_layer_that_never_fires_has_rank_0():
    networks = ActorCritic(1, 5, Continuous(2), Settings(hidden=(7, 6)), torch.float32)
    with torch.no_grad():
        networks.actor.linears()[1].weight.fill_(0.0)
        networks.actor.linears()[1].bias.fill_(-1.0)
    found = measures(networks, np.ones((1, 4, 5), np.float32))
    assert found["effective_rank"].tolist() == found["srank"].tolist() == [0.0]


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown preset 'ppo-cpb' .did you mean 'ppo-cbp'"):
        preset("ppo-cpb")
