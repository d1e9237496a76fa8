"""PPO for one agent, as plainly as it can be written: what the stacked one is held against."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from pliant import ContinualBackprop, Slice, Tap, UnitGroup
from pliant.rl.environments import Continuous
from pliant.rl.ppo import Settings
from pliant.streams import generator


class Agent(nn.Module):
    def __init__(self, inputs: int, outputs: int, settings: Settings) -> None:
        super().__init__()
        self.actor = self._mlp(inputs, settings.hidden, outputs)
        self.critic = self._mlp(inputs, settings.hidden, 1)
        self.log_std = nn.Parameter(torch.zeros(outputs))

    def _mlp(self, inputs: int, hidden: Any, outputs: int) -> nn.Sequential:
        first, second = hidden
        layers = [nn.Linear(inputs, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, outputs)]
        return nn.Sequential(*layers)


class PlainPPO:
    """`environment` has one agent of one or more copies."""

    def __init__(self, environment: Any, settings: Settings, seed: int) -> None:
        self.environment, self.settings, self.seed, self.rollouts = environment, settings, seed, 0
        self.continuous = isinstance(environment.actions, Continuous)
        self.outputs = environment.actions.size if self.continuous else environment.actions.count
        self.seen: list[Any] = []  # raw observations, of all rollouts that were learned from
        self.sums: list[Any] = []  # discounted sums of rewards, of all steps
        self.sum = np.zeros(environment.copies)  # at the step before
        self.agent = Agent(environment.observation_size, self.outputs, settings).double()
        self.optimizer = torch.optim.Adam(
            self.agent.parameters(), lr=settings.step_size, betas=settings.betas, weight_decay=settings.weight_decay
        )
        if settings.method == "cbp":
            self.cbp = ContinualBackprop(
                self.agent,
                self.optimizer,
                groups=[
                    UnitGroup(
                        f"{net}{layer}",
                        incoming=[Slice(f"{net}.{layer}.weight", 0), Slice(f"{net}.{layer}.bias", 0)],
                        outgoing=[Slice(f"{net}.{layer + 2}.weight", 1)],
                        tap=Tap(f"{net}.{layer + 2}"),
                    )
                    for net in ("actor", "critic")
                    for layer in (0, 2)
                ],
                replacement_rate=settings.replacement_rate,
                maturity_threshold=settings.maturity_threshold,
                count=settings.count,
                hand_over_mean=settings.hand_over_mean,
                optimizer_state=settings.optimizer_state,
                init="lecun",
                seed=seed,
            )

    def distribution(self, observation: torch.Tensor) -> Any:
        outputs = self.agent.actor(observation)
        if self.continuous:
            return torch.distributions.Independent(torch.distributions.Normal(outputs, self.agent.log_std.exp()), 1)
        return torch.distributions.Categorical(logits=outputs)

    def iterate(self) -> None:
        with torch.no_grad():
            transitions, raw = self.collect()
            batch = self.batch(transitions)
        self.update(batch)
        self.seen += raw
        self.rollouts += 1

    def shown(self, observation: Any) -> torch.Tensor:
        """As the networks see it."""
        if not self.settings.normalize_observations:
            return torch.tensor(observation)
        rows = np.concatenate(self.seen or [[[-1.0], [1.0]]])  # of mean 0 and variance 1 before there are any
        return torch.tensor(((observation - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-8)).clip(-10, 10))

    def scaled(self, transitions: list[Any]) -> Any:
        """Rewards as they are learned from, (steps, copies)."""
        rewards = np.array([each[5] for each in transitions])
        if not self.settings.normalize_rewards:
            return rewards
        for reward, (*_, terminated, truncated) in zip(rewards, transitions, strict=True):
            self.sum = self.settings.discount * self.sum + reward
            self.sums.append(self.sum)
            self.sum = self.sum * ~(terminated | truncated)
        return (rewards / np.sqrt(np.var(self.sums) + 1e-8)).clip(-10, 10)

    def collect(self) -> tuple[list[Any], list[Any]]:
        """One tuple a step, each of (copies, ...); and the observations as they were."""
        draws, shape = (
            generator(self.seed, "action noise", self.rollouts),
            (self.settings.rollout_steps, self.environment.copies),
        )
        noise = (
            draws.standard_normal((*shape, self.outputs))
            if self.continuous
            else draws.gumbel(size=(*shape, self.outputs))
        )
        transitions, raw = [], []
        for step in range(self.settings.rollout_steps):
            raw.append(self.environment.observations[0].copy())
            observation = self.shown(raw[-1])
            outputs = self.agent.actor(observation)
            drawn = torch.tensor(noise[step])
            action = outputs + self.agent.log_std.exp() * drawn if self.continuous else (outputs + drawn).argmax(-1)
            log_probability = self.distribution(observation).log_prob(action)
            value = self.agent.critic(observation).squeeze(-1)
            clipped = action.clamp(-1, 1) if self.settings.clip_actions and self.continuous else action
            after = self.environment.step(clipped.numpy()[None])
            reached = self.shown(after.observations[0])
            next_value = self.agent.critic(reached).squeeze(-1)
            ends = (after.terminated[0], after.truncated[0])
            transitions.append((observation, action, log_probability, value, next_value, after.rewards[0], *ends))
        return transitions, raw

    def batch(self, transitions: list[Any]) -> list[tuple[Any, ...]]:
        """One tuple a state: observation, action, log-probability, advantage, target. Copies of a step are neighbors."""
        gamma, trace = self.settings.discount, self.settings.trace_decay
        rewards = self.scaled(transitions)
        raw = np.zeros((len(transitions), self.environment.copies))
        for copy in range(self.environment.copies):
            ahead = 0.0
            for step in reversed(range(len(transitions))):
                _, _, _, value, next_value, _, terminated, truncated = (each[copy] for each in transitions[step])
                no_future = terminated or (truncated and self.settings.time_limit == "terminal")
                error = rewards[step, copy] + (0.0 if no_future else gamma * float(next_value)) - float(value)
                ahead = error + (0.0 if terminated or truncated else gamma * trace * ahead)
                raw[step, copy] = ahead
        scaled = self.normalized(raw) if self.settings.normalize_advantages == "batch" else raw
        return [
            (transitions[step][0][copy], transitions[step][1][copy], transitions[step][2][copy], scaled[step, copy],
             raw[step, copy] + float(transitions[step][3][copy]))
            for step in range(len(transitions))
            for copy in range(self.environment.copies)
        ]  # fmt: skip

    def normalized(self, advantages: Any) -> Any:
        return (advantages - advantages.mean()) / (advantages.std(ddof=1) + self.settings.advantage_epsilon)

    def update(self, batch: list[tuple[Any, ...]]) -> None:
        draws = generator(self.seed, "minibatch order", self.rollouts)
        for _ in range(self.settings.epochs):
            order = draws.permutation(len(batch))
            for start in range(0, len(batch), self.settings.minibatch_size):
                chosen = [batch[place] for place in order[start : start + self.settings.minibatch_size]]
                observations, actions, old = (torch.stack([each[k] for each in chosen]) for k in range(3))
                gains, targets = (np.array([each[k] for each in chosen]) for k in (3, 4))
                gains = self.normalized(gains) if self.settings.normalize_advantages == "minibatch" else gains
                advantages, targets = torch.tensor(gains), torch.tensor(targets)
                loss = self.loss(observations, actions, old, advantages, targets)
                self.optimizer.zero_grad()
                loss.backward()
                if self.settings.max_gradient_norm is not None:
                    nn.utils.clip_grad_norm_(self.agent.parameters(), self.settings.max_gradient_norm)
                self.optimizer.step()

    def loss(self, observations: Any, actions: Any, old: Any, advantages: Any, targets: Any) -> torch.Tensor:
        distribution = self.distribution(observations)
        ratio = torch.exp(distribution.log_prob(actions) - old)
        clipped = torch.clamp(ratio, 1 - self.settings.clip, 1 + self.settings.clip)
        policy = torch.max(-ratio * advantages, -clipped * advantages).mean()
        value = ((targets - self.agent.critic(observations).squeeze(-1)) ** 2).mean()
        entropy = distribution.entropy().mean()
        return policy + self.settings.value_weight * value - self.settings.entropy_weight * entropy
