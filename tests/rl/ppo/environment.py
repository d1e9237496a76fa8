"""A small environment for tests: x <- 0.95 x + B a, reward -|x|², an end where x leaves the box, a time limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pliant.rl.environments import Continuous, Discrete, Transition
from pliant.streams import generator, stream_key, uniform

SIZE = 3  # of the state


class LinearEnvironment:
    """`broken` = (agent, step, what): from that step on the agent's "observations" or "rewards" are not finite."""

    def __init__(
        self, seeds: Sequence[int], copies: int = 2, actions: Any = None, limit: int = 9, broken: Any = None
    ) -> None:
        self.agents, self.copies, self.observation_size = len(seeds), copies, SIZE
        self.actions = Continuous(2) if actions is None else actions
        self.seeds, self.limit, self.broken = list(seeds), limit, broken
        size = self.actions.size if isinstance(self.actions, Continuous) else self.actions.count
        self.push = np.stack([generator(seed, "push").standard_normal((size, SIZE)) * 0.3 for seed in seeds])
        self.episode = np.zeros((self.agents, copies), np.int64)
        self.age = np.zeros((self.agents, copies), np.int64)
        self.steps = 0
        self.given: list[Any] = []
        self.observations = np.zeros((self.agents, copies, SIZE))
        self._begin(np.ones((self.agents, copies), bool))

    def _begin(self, where: Any) -> None:
        for agent, copy in np.argwhere(where):
            key = stream_key(self.seeds[agent], "start", int(copy), int(self.episode[agent, copy]))
            self.observations[agent, copy] = uniform(key, 0, SIZE) - 0.5
            self.age[agent, copy] = 0
            self.episode[agent, copy] += 1

    def step(self, actions: Any) -> Transition:
        self.given.append(np.array(actions))
        wanted = actions if isinstance(self.actions, Continuous) else np.eye(self.actions.count)[actions]
        self.observations = 0.95 * self.observations + wanted @ self.push
        self.age += 1
        self.steps += 1
        reached = self.observations.copy()
        rewards = -np.square(reached).sum(-1)
        terminated = np.abs(reached).max(-1) > 1.5
        truncated = ~terminated & (self.age >= self.limit)
        self._begin(terminated | truncated)
        if self.broken is not None and self.steps >= self.broken[1]:
            agent, _, what = self.broken
            if what == "observations":
                reached[agent, 0, 1] = self.observations[agent, 0, 1] = np.nan
            else:
                rewards[agent, 0] = np.inf
        return Transition(reached, rewards, terminated, truncated)

    def state_dict(self) -> dict[str, Any]:
        return {
            "episode": self.episode.copy(),
            "age": self.age.copy(),
            "steps": self.steps,
            "x": self.observations.copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.episode, self.age, self.observations = (state[name].copy() for name in ("episode", "age", "x"))
        self.steps = state["steps"]


class Padded:
    """An environment whose observations have two zeros behind them; `told` is what it says of that."""

    def __init__(self, environment: LinearEnvironment, told: int) -> None:
        self.environment, self.observation_size = environment, environment.observation_size + 2
        if told:
            self.padding = told

    def __getattr__(self, name: str) -> Any:
        return getattr(self.environment, name)

    @property
    def observations(self) -> Any:
        return np.pad(self.environment.observations, ((0, 0), (0, 0), (0, 2)))

    def step(self, actions: Any) -> Transition:
        after = self.environment.step(actions)
        return after._replace(observations=np.pad(after.observations, ((0, 0), (0, 0), (0, 2))))


TWO_WAYS = [Continuous(2), Discrete(3)]
