"""The networks that an algorithm of Stable-Baselines3 trains, how its losses run them, and which optimizers step them.

    algorithm          run on (observations, actions)                         stepped by
    PPO, A2C           policy.evaluate_actions                                policy.optimizer
    DQN                q_net(observations)                                    policy.optimizer
    SAC, TD3, DDPG     actor(observations) and critic(observations, actions)  actor.optimizer, critic.optimizer

and of sb3-contrib

    MaskablePPO, TRPO  as PPO; the actor of TRPO is stepped by a line search, and counts one step per rollout
    RecurrentPPO       as PPO, on `Sequences`
    QR-DQN             quantile_net(observations)                             policy.optimizer
    TQC, CrossQ        as SAC

Actor and critics are run as one module, so that a features extractor that they share has one plan, with its consumers in both.
Target networks, which follow by Polyak averaging or by copying, are not part of it, nor is SAC's entropy coefficient, one number
with an optimizer of its own.

The actor's loss of SAC, TD3 and their kin runs the critic as well, on actions of the policy. The critic's activity there belongs
to another loss and is not counted (`Networks.borrows`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim  # pyright: ignore[reportUnknownVariableType]
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.base.arguments import is_a

Run = Callable[[Any, Any, Tensor], Any]


class Networks(nn.Module):
    """The networks that an algorithm trains, as one module to find units in.

    Args:
        run: `run(networks, observations, actions)` runs all of them as the losses do, and returns what it computed.
            Observations, (batch, ...) or a mapping of those, and actions, (batch, ...), are those that `learn()` trains on.
        optimizers: those that step them. A unit's clock is the optimizer of its first incoming weight.
        borrows: pairs (borrower, lender) of optimizers. The borrower's loss runs the lender's networks after the lender's step;
            their activity there is dropped at the borrower's step.
        networks: by name, which the plan uses; `run` finds them as attributes.

    >>> q_net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> optimizer = torch.optim.Adam(q_net.parameters())
    >>> networks = Networks(lambda self, observations, actions: self.q_net(observations), [optimizer], q_net=q_net)
    >>> networks(torch.zeros(3, 4), torch.zeros(3)).shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        run: Run,
        optimizers: Sequence[Optimizer],
        borrows: Sequence[tuple[Optimizer, Optimizer]] = (),
        **networks: nn.Module,
    ) -> None:
        super().__init__()
        self.run, self.optimizers, self.borrows = run, tuple(optimizers), tuple(borrows)
        for name, network in networks.items():
            self.add_module(name, network)

    def forward(self, observations: Any, actions: Tensor) -> Any:
        return self.run(self, observations, actions)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Without copies of optimizers, and of distributions, whose tensors may be part of a graph and refuse it."""
        attributes = [value for module in self.modules() for value in vars(module).values()]
        for value in (*attributes, *self.optimizers):
            if isinstance(value, Optimizer | Distribution):
                memo[id(value)] = value
        copied = memo[id(self)] = type(self).__new__(type(self))
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied


def networks_of(model: BaseAlgorithm) -> Networks:
    """The networks that `model` trains. Raises `TypeError` for an algorithm or a policy that is not known."""
    policy = cast(Any, model.policy)
    is_ppo = isinstance(model, PPO | A2C) and is_a(policy, ActorCriticPolicy)
    if is_ppo or _of_contrib(model, *_LIKE_PPO):
        run = _evaluate_sequences if _is_recurrent(model) else _evaluate_actions
        return Networks(run, [policy.optimizer], policy=policy)
    if isinstance(model, DQN):
        return Networks(_q_values, [policy.optimizer], q_net=policy.q_net)
    if _of_contrib(model, "QRDQN"):
        return Networks(_quantiles, [policy.optimizer], quantile_net=policy.quantile_net)
    if isinstance(model, SAC | TD3) or _of_contrib(model, *_LIKE_SAC):
        actor, critic = policy.actor, policy.critic
        run = _actor_and_critic if isinstance(model, TD3) else _soft_actor_and_critic
        borrows = [(actor.optimizer, critic.optimizer)]
        return Networks(run, [actor.optimizer, critic.optimizer], borrows, actor=actor, critic=critic)
    raise TypeError(
        f"the networks of {type(model).__name__} with {type(policy).__name__} are not known; known: PPO, A2C, DQN, SAC, TD3, "
        f"DDPG, and of sb3-contrib {', '.join((*_LIKE_PPO, *_LIKE_SAC, 'QRDQN'))}. Say which they are with networks=lambda "
        f"model: pliant.integrations.sb3.Networks(run, [optimizer], name=network): docs/reinforcement-learning.md"
    )


_LIKE_PPO, _LIKE_SAC = ("MaskablePPO", "RecurrentPPO", "TRPO"), ("TQC", "CrossQ")


def _of_contrib(model: BaseAlgorithm, *algorithms: str) -> bool:
    """Whether it is one of these of sb3-contrib, or of a class made from it; sb3-contrib need not be installed."""
    kinds = {each.__name__ for each in type(model).__mro__ if each.__module__.partition(".")[0] == "sb3_contrib"}
    return not kinds.isdisjoint(algorithms)


def _is_recurrent(model: BaseAlgorithm) -> bool:
    return _of_contrib(model, "RecurrentPPO")


def _evaluate_actions(networks: Any, observations: Any, actions: Tensor) -> Any:
    return networks.policy.evaluate_actions(observations, actions)


def _evaluate_sequences(networks: Any, observations: Sequences, actions: Tensor) -> Any:
    return networks.policy.evaluate_actions(
        observations.observations, actions, observations.states, observations.starts
    )


def _quantiles(networks: Any, observations: Any, actions: Tensor) -> Any:
    return networks.quantile_net(observations)


def _q_values(networks: Any, observations: Any, actions: Tensor) -> Any:
    return networks.q_net(observations)


def _actor_and_critic(networks: Any, observations: Any, actions: Tensor) -> Any:
    return networks.actor(observations), networks.critic(observations, actions)


def _soft_actor_and_critic(networks: Any, observations: Any, actions: Tensor) -> Any:
    """The parameters of the actor's distribution, not a draw from it."""
    actor = networks.actor
    spread = actor.get_std() if actor.use_sde else None  # a parameter that meets the units outside the network
    return actor.get_action_dist_params(observations), spread, networks.critic(observations, actions)


# -- what to run them on ------------------------------------------------------------------------------------------


class Sequences(NamedTuple):
    """Observations as recurrent policies take them: those of each sequence in turn, (sequences * steps, ...).

    states: two tensors, hidden and cell, of the actor and of the critic, each (layers, sequences, hidden). starts: 1 where an
    episode starts, (sequences * steps).
    """

    observations: Any
    states: Any
    starts: Tensor


def example_inputs(model: BaseAlgorithm, batch: int = 2) -> tuple[Any, Tensor]:
    """Observations and actions of the right shape, all 0; the random state of the spaces is not used."""
    observations = obs_as_tensor(_zeros(model.observation_space, batch), model.device)
    if _is_recurrent(model):
        policy = cast(Any, model.policy)
        state = torch.zeros(policy.lstm_hidden_state_shape, device=model.device)
        states = type(cast(Any, model)._last_lstm_states)((state, state), (state, state))
        observations = Sequences(observations, states, torch.zeros(batch, device=model.device))
    if isinstance(model.action_space, spaces.Discrete):
        return observations, torch.zeros(batch, dtype=torch.long, device=model.device)
    return observations, torch.zeros(batch, int(get_action_dim(model.action_space)), device=model.device)


def _zeros(space: Any, batch: int) -> Any:
    if isinstance(space, spaces.Dict):
        return {name: _zeros(each, batch) for name, each in cast(Mapping[str, Any], space.spaces).items()}
    return np.zeros((batch, *space.shape), space.dtype)


def recent_inputs(model: BaseAlgorithm, count: int) -> tuple[Any, Tensor] | None:
    """The last `count` observations and actions of the rollout or replay buffer, as a loss sees them; None without a buffer."""
    on_policy = getattr(model, "rollout_buffer", None)
    buffer: Any = on_policy if on_policy is not None else getattr(model, "replay_buffer", None)
    if buffer is None or not buffer.size():
        return None
    newest = np.arange(int(min(buffer.size(), -(-count // buffer.n_envs))))
    steps: Any = (buffer.pos - 1 - newest) % buffer.buffer_size

    def taken(stored: Any) -> Any:
        if isinstance(stored, Mapping):
            return {name: taken(each) for name, each in cast(Mapping[str, Any], stored).items()}
        return stored[steps].reshape(-1, *stored.shape[2:])[:count]

    observations, normalize = taken(buffer.observations), model.get_vec_normalize_env()
    if on_policy is None and normalize is not None:  # rollouts are stored as normalized, replays as they came
        observations = normalize.normalize_obs(observations)
    inputs = obs_as_tensor(observations, model.device)
    actions = torch.as_tensor(taken(buffer.actions), device=model.device).float()
    if isinstance(model.action_space, spaces.Discrete):
        actions = actions.long().flatten()
    if _is_recurrent(model):  # each is a sequence of its own, from the state that was there
        stored = (buffer.hidden_states_pi, buffer.cell_states_pi, buffer.hidden_states_vf, buffer.cell_states_vf)
        pi_h, pi_c, vf_h, vf_c = (
            torch.as_tensor(taken(each.swapaxes(1, 2)), device=model.device).transpose(0, 1).contiguous()
            for each in stored
        )
        states = type(cast(Any, model)._last_lstm_states)((pi_h, pi_c), (vf_h, vf_c))
        inputs = Sequences(inputs, states, torch.as_tensor(taken(buffer.episode_starts), device=model.device))
    return inputs, actions
