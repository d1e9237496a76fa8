"""Copies of a gymnasium environment, stepped together: one by one, or by a `VectorEnv`.

Where an episode ended the next has begun when a step returns. A `VectorEnv` begins it, as its autoreset mode says,

    in the same step      what the action led to is in `info["final_obs"]`
    in the next step      which would ignore an action: it is told to at once, by `reset(options={"reset_mask": ...})`
    when it is told to    by the same
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from pliant.base.choices import shown
from pliant.rl.environments.base import Flags, Floats


class Led(NamedTuple):
    """What a step led to in each of n copies."""

    observations: Any  # that the action led to
    rewards: Floats
    terminated: Flags
    truncated: Flags
    begun: Any  # observations now: where an episode ended, the first of the next


class Copies(Protocol):
    """n copies; observations and actions are those of the environment's own spaces."""

    count: int
    observation_space: Any  # of one copy
    action_space: Any

    @property
    def remembered(self) -> Any:
        """The objects that hold their state."""
        ...

    def reset(self, seeds: Sequence[int], /) -> Any:
        """Begin anew, with a seed for each copy; the first observations."""
        ...

    def step(self, actions: NDArray[Any], /) -> Led:
        """Take a step in each; where an episode ended, begin the next."""
        ...

    def close(self) -> None: ...


class OneByOne:
    """Environments in a list. Raises ValueError where their spaces differ."""

    def __init__(self, environments: Sequence[Any]) -> None:
        self.remembered, self.count = list(environments), len(environments)
        first = self.remembered[0]
        self.observation_space, self.action_space = first.observation_space, first.action_space
        for each in self.remembered[1:]:
            if (each.observation_space, each.action_space) != (first.observation_space, first.action_space):
                raise ValueError(
                    f"{type(first.unwrapped).__name__}: its copies have different spaces, {first.observation_space} and "
                    f"{each.observation_space}, {first.action_space} and {each.action_space}: make all alike"
                )

    def reset(self, seeds: Sequence[int], /) -> Any:
        return [_first(each.reset(seed=seed), each) for each, seed in zip(self.remembered, seeds, strict=True)]

    def step(self, actions: NDArray[Any], /) -> Led:
        led: list[tuple[Any, float, bool, bool, Any]] = []
        for environment, action in zip(self.remembered, actions, strict=True):
            observation, reward, terminated, truncated, _ = environment.step(action)
            terminated = bool(terminated) or not _finite(observation, reward)
            begun = environment.reset()[0] if terminated or truncated else observation
            led.append((observation, float(reward), terminated, bool(truncated), begun))
        observations, rewards, terminated, truncated, begun = zip(*led, strict=True)
        return Led(observations, np.array(rewards), np.array(terminated), np.array(truncated), begun)

    def close(self) -> None:
        for each in self.remembered:
            each.close()


class AllAtOnce:
    """A `gymnasium.vector.VectorEnv`."""

    def __init__(self, environments: Any) -> None:
        from gymnasium import vector

        self.remembered, self.count = environments, int(environments.num_envs)
        self.observation_space = environments.single_observation_space
        self.action_space = environments.single_action_space
        self._same_step = mode_of(environments) == "SAME_STEP"
        self._takes_seeds = isinstance(environments.unwrapped, vector.SyncVectorEnv | vector.AsyncVectorEnv)

    def reset(self, seeds: Sequence[int], /) -> Any:
        seed = list(seeds) if self._takes_seeds else seeds[0]  # others make those of all copies from one
        return np.array(_first(self.remembered.reset(seed=seed), self.remembered))

    def step(self, actions: NDArray[Any], /) -> Led:
        observations, rewards, terminated, truncated, info = self.remembered.step(actions)
        reached, begun = np.array(observations), np.array(observations)
        terminated, truncated = np.array(terminated, np.bool_), np.array(truncated, np.bool_)
        over = terminated | truncated
        if self._same_step:
            for copy in np.flatnonzero(over):
                reached[copy] = info["final_obs"][copy]
        elif over.any():
            begun[over] = self._begin(over)[over]
        return Led(reached, np.array(rewards, np.float64), terminated, truncated, begun)

    def _begin(self, which: Flags) -> NDArray[Any]:
        return np.asarray(self.remembered.reset(options={"reset_mask": which.copy()})[0])

    def begins_alone(self, seeds: Sequence[int]) -> bool:
        """Whether it begins the episode of one copy and leaves the others as they are: found by trying."""
        if self._same_step or self.count == 1:
            return True
        self.reset(seeds)
        before = np.array(self.remembered.step(deepcopy(self.remembered.action_space).sample())[0])
        first = np.arange(self.count) == 0
        try:
            after = self._begin(first)
        except Exception:  # whatever one raises that knows no such reset
            return False
        return bool(np.array_equal(before[~first], after[~first]))

    def close(self) -> None:
        self.remembered.close()


def mode_of(environments: Any) -> str | None:
    """When a `VectorEnv` begins the next episode: NEXT_STEP, SAME_STEP, DISABLED, or None where it does not say."""
    metadata: Any = environments.metadata or {}
    return getattr(metadata.get("autoreset_mode"), "name", None)


def _first(found: Any, environment: Any) -> Any:
    """The observation that a reset gave."""
    if type(found) is not tuple or len(cast(Any, found)) != 2:
        gave = shown(cast(object, found))
        raise ValueError(
            f"{type(environment).__name__}: reset() gave {gave}, and not (observation, info), as environments of gymnasium do"
        )
    return cast(Any, found)[0]


def _finite(observation: Any, reward: Any) -> bool:
    return bool(np.isfinite(reward) and np.isfinite(np.asarray(observation)).all())
