"""One line in a single-file implementation: a PPO of our own, written in the manner of CleanRL."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal

import pliant

gym = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install -e .[rl]")

pytestmark = pytest.mark.integrations

ENVS, STEPS, EPOCHS, MINIBATCH, SEED = 4, 32, 4, 32, 1


def layer_init(layer, std=2**0.5):
    nn.init.orthogonal_(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(inputs, outputs, std):
    first, second = layer_init(nn.Linear(inputs, 16)), layer_init(nn.Linear(16, 16))
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), layer_init(nn.Linear(16, outputs), std))


class Agent(nn.Module):
    """Without a `forward`, with a parameter that belongs to no layer."""

    def __init__(self, inputs=3, actions=1):
        super().__init__()
        self.critic = mlp(inputs, 1, std=1.0)
        self.actor_mean = mlp(inputs, actions, std=0.01)
        self.actor_logstd = nn.Parameter(torch.zeros(1, actions))

    def get_value(self, x):
        return self.critic(x)

    def get_action_and_value(self, x, action=None):
        mean = self.actor_mean(x)
        chances = Normal(mean, self.actor_logstd.expand_as(mean).exp())
        action = chances.sample() if action is None else action
        return action, chances.log_prob(action).sum(1), chances.entropy().sum(1), self.critic(x)


class SharedAgent(nn.Module):
    """One trunk under both heads."""

    def __init__(self, inputs=4, actions=2):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.actor, self.critic = nn.Linear(16, actions), nn.Linear(16, 1)

    def get_value(self, x):
        return self.critic(self.network(x))

    def get_action_and_value(self, x, action=None):
        hidden = self.network(x)
        chances = Categorical(logits=self.actor(hidden))
        action = chances.sample() if action is None else action
        return action, chances.log_prob(action), chances.entropy(), self.critic(hidden)


def ppo(inserted, agent=Agent, world="Pendulum-v1", updates=6):
    """Proximal policy optimization from top to bottom. `inserted` is the line that a user adds."""
    torch.manual_seed(SEED)
    shuffle = np.random.default_rng(SEED)
    envs = gym.vector.SyncVectorEnv([lambda: gym.make(world)] * ENVS)
    agent = agent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-4, eps=1e-5)
    obs = torch.tensor(envs.reset(seed=SEED)[0], dtype=torch.float32)
    done = torch.zeros(ENVS)
    made = inserted(agent, optimizer, obs)  # where CleanRL's `next_obs` is there, and its loop begins
    for _ in range(updates):
        rows = []
        for _ in range(STEPS):
            with torch.no_grad():
                action, logprob, _, value = agent.get_action_and_value(obs)
            was, over = obs, done
            seen, reward, terminated, truncated, _ = envs.step(action.numpy())
            obs, done = torch.tensor(seen, dtype=torch.float32), torch.tensor(terminated | truncated).float()
            rows.append((was, action, logprob, torch.tensor(reward).float(), over, value.flatten()))
        b_obs, b_actions, b_logprobs, rewards, dones, values = (torch.stack(each) for each in zip(*rows, strict=True))

        with torch.no_grad():
            advantages, last, following, alive = (
                torch.zeros_like(rewards),
                0.0,
                agent.get_value(obs).flatten(),
                1 - done,
            )
            for t in reversed(range(STEPS)):
                delta = rewards[t] + 0.99 * following * alive - values[t]
                advantages[t] = last = delta + 0.99 * 0.95 * alive * last
                following, alive = values[t], 1 - dones[t]
        returns = (advantages + values).flatten()
        b_obs, b_actions, b_logprobs, b_advantages = (
            each.flatten(0, 1) for each in (b_obs, b_actions, b_logprobs, advantages)
        )

        for _ in range(EPOCHS):
            for rows in shuffle.permutation(ENVS * STEPS).reshape(-1, MINIBATCH):
                _, logprob, entropy, value = agent.get_action_and_value(b_obs[rows], b_actions[rows])
                ratio = (logprob - b_logprobs[rows]).exp()
                good = b_advantages[rows]
                good = (good - good.mean()) / (good.std() + 1e-8)
                policy_loss = -torch.min(good * ratio, good * ratio.clamp(0.8, 1.2)).mean()
                value_loss = 0.5 * (value.flatten() - returns[rows]).square().mean()
                optimizer.zero_grad()
                (policy_loss + 0.5 * value_loss - 0.01 * entropy.mean()).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
    envs.close()
    return agent, made


def nothing(agent, optimizer, obs):
    return None


def one_line(rate):
    def inserted(agent, optimizer, obs):
        # the line, as in docs/reinforcement-learning.md
        return [pliant.ContinualBackprop(net, optimizer, example_inputs=obs, replacement_rate=rate, maturity_threshold=5, seed=2 * SEED + k) for k, net in enumerate((agent.actor_mean, agent.critic))]  # noqa: E501  # fmt: skip

    return inserted


def with_a_forward(agent, optimizer, obs):
    agent.forward = agent.get_action_and_value
    return pliant.ContinualBackprop(agent, optimizer, example_inputs=obs, replacement_rate=0.05, maturity_threshold=5)


def replaced(*methods):
    return [sum(group["replaced"]) for method in methods for group in method.stats().values()]


def test_one_line_replaces_units_of_actor_and_critic():
    agent, methods = ppo(one_line(0.05))
    assert len(replaced(*methods)) == 4
    assert min(replaced(*methods)) >= 20
    assert [group["steps"] for method in methods for group in method.stats().values()] == [6 * EPOCHS * 4] * 4
    assert all(torch.isfinite(each).all() for each in agent.parameters())


def test_actor_and_critic_draw_differently():
    agent, _ = ppo(one_line(0.05))
    same = torch.isclose(agent.actor_mean[0].weight, agent.critic[0].weight).all(1)
    assert not same.any()


def test_at_rate_zero_the_line_changes_nothing():
    plain, _ = ppo(nothing)
    watched, methods = ppo(one_line(0.0))
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), watched.parameters(), strict=True))
    assert [group["steps"] for method in methods for group in method.stats().values()] == [6 * EPOCHS * 4] * 4


def test_an_agent_with_a_shared_trunk_needs_a_forward():
    _, method = ppo(with_a_forward, SharedAgent, "CartPole-v1")
    assert [row.group.name for row in method.plan.rows] == ["network.0", "network.2"]
    assert [each.parameter for each in method.plan.rows[1].group.outgoing] == ["actor.weight", "critic.weight"]
    assert min(replaced(method)) >= 20


def test_one_line_or_the_other_but_not_both():
    agent, x = Agent(), torch.zeros(2, 3)
    optimizer = torch.optim.Adam(agent.parameters())
    lines = one_line(0.05)(agent, optimizer, x)
    with pytest.raises(ValueError, match=r"units of 'critic\.0' are already reset"):
        with_a_forward(agent, optimizer, x)
    for each in lines:
        each.detach()
    assert len(with_a_forward(agent, optimizer, x).stats()) == 4


def test_a_parameter_of_no_layer_is_left_alone():
    _, method = ppo(with_a_forward)
    assert "actor_logstd" in {name for each in method.plan.skipped for name in each.parameters}
    assert min(replaced(method)) >= 20
