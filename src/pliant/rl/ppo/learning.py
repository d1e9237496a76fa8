"""One update: learning from a rollout, in minibatches.

    1  values of all states, from the critic before the update
    2  advantages and value targets
    3  `epochs` times: shuffle, then one step of Adam per minibatch; after each, units are replaced

Each agent shuffles in its own order, from a random stream keyed by its seed and the number of the rollout.

Source: Schulman et al., arXiv 1707.06347 (2017), algorithm 1; Dohare et al., Nature 632 (2024), methods.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pliant.rl.environments.base import Floats
from pliant.rl.ppo.adam import StackedAdam
from pliant.rl.ppo.advantages import advantages, normalized
from pliant.rl.ppo.loss import Losses, Minibatch, clip_gradients, losses
from pliant.rl.ppo.networks import ActorCritic
from pliant.rl.ppo.rollout import Rollout
from pliant.rl.ppo.settings import Settings
from pliant.rl.ppo.unit_method import UnitMethod


@torch.no_grad()
def prepared(
    networks: ActorCritic, rollout: Rollout, rewards: Floats, last: NDArray[Any], settings: Settings
) -> Minibatch:
    """A full rollout as one batch of (agents, steps * copies).

    `rewards` (steps, agents, copies) are normalized where the settings say so; `last` (agents, copies, size) are the networks'
    inputs after the rollout.
    """
    values = _values(networks, rollout.observations)
    next_values = np.concatenate([values[1:], _values(networks, last[:, None])])
    ended, bootstrap = rollout.ended, ~rollout.ended
    if settings.time_limit == "bootstrap":
        bootstrap = ~rollout.terminated
        for (step, agent, copy), state in rollout.cut.items():
            next_values[step, agent, copy] = networks.critic.of_agent(agent, state[None])[0, 0]
    raw = advantages(rewards, values, next_values, bootstrap, ended, settings.discount, settings.trace_decay)
    targets = _agent_first(raw + values)
    flat = _agent_first(raw)
    if settings.normalize_advantages == "batch":
        flat = normalized(flat, settings.advantage_epsilon)
    observations, actions, outputs = (
        torch.from_numpy(each).flatten(1, 2) for each in (rollout.observations, rollout.actions, rollout.outputs)
    )
    return Minibatch(
        observations,
        actions,
        networks.policy.log_probability(outputs, actions),
        torch.from_numpy(flat).to(outputs.dtype),
        torch.from_numpy(targets).to(outputs.dtype),
    )


def learn(
    networks: ActorCritic,
    adam: StackedAdam,
    method: UnitMethod | None,
    batch: Minibatch,
    orders: NDArray[np.int64],
    settings: Settings,
) -> Losses:
    """Step through the batch in the given orders, (epochs, agents, n). Losses before each step, (steps, agents)."""
    found: list[Losses] = []
    for order in orders:
        shuffled = taken(batch, order)
        for start in range(0, order.shape[1], settings.minibatch_size):
            minibatch = Minibatch(*(each[:, start : start + settings.minibatch_size] for each in shuffled))
            loss = losses(networks, minibatch, settings)
            adam.optimizer.zero_grad()
            loss.total.sum().backward()
            if settings.max_gradient_norm is not None:
                clip_gradients(networks, settings.max_gradient_norm)
            adam.step()
            if method is not None:
                method.step()
            found.append(Losses(*(each.detach() for each in loss)))
    return Losses(*map(torch.stack, zip(*found, strict=True)))


def taken(batch: Minibatch, order: NDArray[np.int64]) -> Minibatch:
    """The batch with each agent's states in its own order, (agents, n)."""
    agents, n = order.shape
    places = (torch.from_numpy(order) + n * torch.arange(agents)[:, None]).flatten()

    def rows(each: Tensor) -> Tensor:
        return each.flatten(0, 1).index_select(0, places).view_as(each)

    return Minibatch(*map(rows, batch))


def _values(networks: ActorCritic, observations: NDArray[Any]) -> Floats:
    """(agents, steps, copies, size) -> (steps, agents, copies)."""
    agents, steps, copies, _ = observations.shape
    found = networks.values(torch.from_numpy(observations).flatten(1, 2)).numpy()
    return found.astype(np.float64).reshape(agents, steps, copies).transpose(1, 0, 2)


def _agent_first(each: Floats) -> Floats:
    """(steps, agents, copies) -> (agents, steps * copies)."""
    return np.ascontiguousarray(each.transpose(1, 0, 2)).reshape(each.shape[1], -1)
