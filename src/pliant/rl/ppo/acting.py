"""Acting: several agents, each in its own copies of the environment, until a rollout is full.

The noise of actions is drawn for a whole rollout, from a random stream keyed by the agent's seed and the rollout's number. So no
generator need be saved, and an agent's actions do not depend on the agents beside it.

An agent with an observation, an action or a reward that is not finite has diverged: its numbers are 0 from there on, in the
environment and in the rollout, and the other agents are not affected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pliant.base.saving import count_in, entry
from pliant.rl.environments.base import Continuous, Environments, Flags, Floats, Transition
from pliant.rl.environments.counts import counts
from pliant.rl.ppo.networks import ActorCritic
from pliant.rl.ppo.normalization import RunningMoments, normalized_observations
from pliant.rl.ppo.rollout import Rollout
from pliant.rl.ppo.settings import Settings
from pliant.streams import generator

Array = NDArray[Any]


class Episodes(NamedTuple):
    """Episodes that ended, in the order in which they did; one entry each."""

    agent: NDArray[np.int64]
    step: NDArray[np.int64]  # the agent's steps until then, all copies counted
    returns: Floats  # sum of rewards, undiscounted, as the environment gave them
    length: NDArray[np.int64]  # steps

    @classmethod
    def of(cls, ended: Sequence[tuple[int, int, float, int]]) -> Episodes:
        """From tuples of agent, step, return and length."""
        agent, step, returns, length = zip(*ended, strict=True) if ended else [()] * 4
        whole = [np.array(each, np.int64) for each in (agent, step, length)]
        return cls(whole[0], whole[1], np.array(returns, np.float64), whole[2])


class RolloutCollector:
    """Steps the environments with the agents' actions and stores the rollout."""

    def __init__(
        self, environments: Environments, networks: ActorCritic, settings: Settings, seeds: Sequence[int], dtype: Any
    ) -> None:
        agents, copies, size = environments.agents, environments.copies, environments.observation_size
        self.environments, self.networks, self.settings, self.seeds = environments, networks, settings, seeds
        self._dtype = dtype
        raw = settings.normalize_observations
        self.rollout = Rollout(agents, settings.rollout_steps, copies, size, environments.actions, dtype, raw=raw)
        self.number = 0  # of the rollout at hand, from 0
        self.diverged_at = np.full(agents, -1, np.int64)
        self._all_well = True
        self.experience = RunningMoments(agents, size)  # of observations
        self._returns = np.zeros((agents, copies))
        self._lengths = np.zeros((agents, copies), np.int64)
        self._noise: Array | None = None  # of the rollout at hand

    @property
    def has_diverged(self) -> Flags:
        """Agents that have diverged."""
        return self.diverged_at >= 0

    @property
    def steps(self) -> int:
        """Of each agent so far, all of its copies counted."""
        return (self.number * self.rollout.steps + self.rollout.filled) * self.environments.copies

    def collect(self, steps: int) -> Episodes:
        """Take `steps` steps in every copy; the episodes that ended."""
        self.networks.check_places()
        noise = self._noise = self._draw_noise() if self._noise is None else self._noise
        spread = self.networks.policy.spread()
        ended: list[tuple[int, int, float, int]] = []
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is looked for
            for _ in range(steps):
                transition = self._step(noise[:, self.rollout.filled], spread)
                over = transition.terminated | transition.truncated
                if over.any():
                    ended += self._end_episodes(over, transition)
        return Episodes.of(ended)

    def _step(self, noise: Array, spread: Array) -> Transition:
        """Take one step in every copy and store it in the rollout."""
        rollout, now = self.rollout, self.rollout.filled
        seen = self.seen(self.environments.observations)
        outputs = self.networks.actor.now(seen)
        actions = self.networks.policy.sample(outputs, noise, spread)
        seen, outputs, actions = self._finite(seen, outputs, actions)
        if rollout.raw is not None:
            rollout.raw[:, now] = self.environments.observations
        transition = self.environments.step(self._given(actions))
        observations, rewards = self._finite(transition.observations, transition.rewards)
        rollout.observations[:, now], rollout.outputs[:, now], rollout.actions[:, now] = seen, outputs, actions
        rollout.rewards[now] = rewards
        rollout.terminated[now], rollout.truncated[now] = transition.terminated, transition.truncated
        rollout.filled += 1
        self._returns += rewards
        self._lengths += 1
        return transition._replace(observations=observations, rewards=rewards)

    def greedy_actions(self, observations: Floats | None = None) -> Array:
        """Mean actions, or the most probable of discrete ones, for `observations` (agents, n, size), or for the current ones.

        (agents, n[, size]); 0 for agents that have diverged. Raises `ValueError` for observations of another shape.
        """
        self.networks.check_places()
        ours = self.environments.observations
        given = ours if observations is None else np.asarray(observations, np.float64)
        if given.ndim != 3 or (len(given), given.shape[2]) != (len(ours), ours.shape[2]):
            raise ValueError(
                f"greedy_actions: observations are (agents, n, size) = ({len(ours)}, n, {ours.shape[2]}), got {given.shape}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            outputs = self.networks.actor.now(self.seen(given))
        return self._given(_without(self.has_diverged, self.networks.policy.likeliest(outputs)))

    def seen(self, observations: Floats) -> Array:
        """The observations as input of the networks, (agents, copies, size): normalized where the settings say so."""
        if self.settings.normalize_observations:
            observations = normalized_observations(observations, self.experience)
        shown = observations.astype(self._dtype)
        if not self._all_well:
            shown[self.has_diverged] = 0.0
        return shown

    def _given(self, actions: Array) -> Array:
        """The actions as input of the environments: float64, clipped where the settings say so."""
        space = self.environments.actions
        if not isinstance(space, Continuous):
            return actions
        wide = actions.astype(np.float64)
        return np.clip(wide, -space.limit, space.limit) if self.settings.clip_actions else wide

    def _finite(self, *found: Array) -> tuple[Array, ...]:
        """The arrays (agents, ...), with 0 for agents that have diverged before or with these numbers."""
        if self._all_well and all(isfinite(flat @ flat) for flat in [each.reshape(-1) for each in found]):
            return found  # no element can be infinite or NaN where the sum of squares is neither
        self.diverge(~np.logical_and.reduce([np.isfinite(each).reshape(len(each), -1).all(1) for each in found]))
        return tuple(_without(self.has_diverged, each) for each in found)

    def diverge(self, broken: Flags) -> None:
        """Note which agents diverged at this step, (agents,)."""
        self.diverged_at = np.where(~self.has_diverged & broken, self.steps, self.diverged_at)
        self._all_well = not self.has_diverged.any()

    def _end_episodes(self, over: Flags, transition: Transition) -> list[tuple[int, int, float, int]]:
        """The episodes that ended in this step; the last states of truncated ones are kept, for their values."""
        places = [(agent, copy) for agent, copy in np.argwhere(over).tolist() if not self.has_diverged[agent]]
        ended = [(agent, self.steps, self._returns[agent, copy], self._lengths[agent, copy]) for agent, copy in places]
        self._returns[over], self._lengths[over] = 0.0, 0
        cut = transition.truncated & ~transition.terminated
        if self.settings.time_limit == "bootstrap" and cut.any():
            last = self.seen(transition.observations)
            for agent, copy in np.argwhere(cut).tolist():
                self.rollout.cut[self.rollout.filled - 1, agent, copy] = last[agent, copy].copy()
        return ended

    def _draw_noise(self) -> Array:
        """Of the actions of a whole rollout, (agents, steps, copies, outputs)."""
        shape = (self.rollout.steps, self.environments.copies)
        streams = [generator(seed, "action noise", self.number) for seed in self.seeds]
        return np.stack([self.networks.policy.noise(draws, shape) for draws in streams]).astype(self._dtype)

    def forget_episodes(self) -> None:
        """For when the environments themselves began new episodes: those cut off are not reported."""
        self._returns[:], self._lengths[:] = 0.0, 0

    # -- between rollouts ---------------------------------------------------------------------------------------------

    def begin_rollout(self) -> None:
        """Begin the next rollout, after an update from the current one."""
        if self.rollout.raw is not None:
            self.experience.update(
                np.where(self.has_diverged[:, None, None], 0.0, self.rollout.raw.reshape(*self._all_states))
            )
        self.number += 1
        self.rollout.clear()
        self._noise = None

    @property
    def _all_states(self) -> tuple[int, int, int]:
        agents, _, _, size = self.rollout.observations.shape
        return agents, -1, size

    def states(self, last: int | None = None) -> Array:
        """Inputs of the networks in the last full rollout, (agents, n, size), or the `last` n of them."""
        shown = self.rollout.observations.reshape(*self._all_states)
        return shown if last is None else shown[:, -last:]

    # -- saving -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "rollout": self.rollout.state_dict(),
            "diverged_at": self.diverged_at.copy(),
            "experience": self.experience.state_dict(),
            "returns": self._returns.copy(),
            "lengths": self._lengths.copy(),
            "environments": self.environments.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.environments.load_state_dict(state["environments"])  # first: they refuse a state of another environment
        self.number = count_in(state, "number")
        self.rollout.load_state_dict(state["rollout"])
        self.diverged_at = entry(state, "diverged_at", self.diverged_at)
        self._all_well = not self.has_diverged.any()
        self.experience.load_state_dict(state["experience"])
        self._returns = entry(state, "returns", self._returns)
        self._lengths = counts(state, "lengths", self._lengths)
        self._noise = None
        left: Floats | None = getattr(self.environments, "interrupted", None)
        if left is not None:
            self._cut_episodes(left)

    def _cut_episodes(self, left: Floats) -> None:
        """Where episodes cannot go on, the last step of the rollout is as if a time limit had come after it, in `left`."""
        self.forget_episodes()
        rollout = self.rollout
        last = rollout.filled - 1
        if last < 0:
            return
        seen = self.seen(left)
        for agent, copy in np.argwhere(~rollout.ended[last]).tolist():
            rollout.truncated[last, agent, copy] = True
            if self.settings.time_limit == "bootstrap":
                rollout.cut[last, agent, copy] = seen[agent, copy].copy()


def _without(has_diverged: Flags, each: Array) -> Array:
    copied = each.copy()  # it may be the environments' own
    copied[has_diverged] = 0
    return copied
