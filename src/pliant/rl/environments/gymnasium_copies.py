"""Copies of a gymnasium environment, stepped together: one by one, or by a `VectorEnv`.

Where an episode ended the next has begun when a step returns. A `VectorEnv` begins it, as its autoreset mode says,

    in the same step      what the action led to is in `info["final_obs"]`
    in the next step      which would ignore an action: it is told to at once, by `reset(options={"reset_mask": ...})`
    when it is told to    by the same
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from math import isfinite
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
    begun: Any  # observations now: where an episode ended, the first of the next; where none did, the same object


class Copies(Protocol):
    """n copies; observations and actions are those of the environment's own spaces."""

    count: int
    observation_space: Any  # of one copy
    action_space: Any

    @property
    def remembered(self) -> list[Any]:
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
        for space in ("observation_space", "action_space"):
            if getattr(first, space, None) is None:
                raise ValueError(
                    f"{type(first.unwrapped).__name__} has no {space}: an environment sets it when it is made"
                )
        self.observation_space, self.action_space = first.observation_space, first.action_space
        for each in self.remembered[1:]:
            if (each.observation_space, each.action_space) != (first.observation_space, first.action_space):
                raise ValueError(
                    f"{type(first.unwrapped).__name__}: its copies have different spaces, {first.observation_space} and "
                    f"{each.observation_space}, {first.action_space} and {each.action_space}: make all alike"
                )

    def reset(self, seeds: Sequence[int], /) -> Any:
        for each, seed in zip(self.remembered, seeds, strict=True):
            each.action_space.seed(seed)  # an environment may draw from it
        return [_first(each.reset(seed=seed), each) for each, seed in zip(self.remembered, seeds, strict=True)]

    def step(self, actions: NDArray[Any], /) -> Led:
        led: list[tuple[Any, float, bool, bool]] = []
        begun: dict[int, Any] = {}
        for number, (environment, action) in enumerate(zip(self.remembered, actions, strict=True)):
            found = environment.step(action)
            if len(found) != 5:
                raise _no_step(environment, f"{len(found)} values")
            observation, reward, terminated, truncated = found[0], _number(found[1], environment), *found[2:4]
            terminated = bool(terminated) or not _finite(observation, reward)
            if terminated or truncated:
                observation = np.array(observation)  # a reset may write over what the environment gave
                begun[number] = environment.reset()[0]
            led.append((observation, reward, terminated, bool(truncated)))
        observations, rewards, terminated, truncated = zip(*led, strict=True)
        now = [begun.get(number, each) for number, each in enumerate(observations)] if begun else observations
        return Led(observations, np.array(rewards), np.array(terminated), np.array(truncated), now)

    def close(self) -> None:
        for each in self.remembered:
            each.close()


class AllAtOnce:
    """A `gymnasium.vector.VectorEnv`."""

    def __init__(self, environments: Any) -> None:
        from gymnasium import vector

        self.environment = environments
        self.remembered, self.count = [environments], int(environments.num_envs)
        self.observation_space = environments.single_observation_space
        self.action_space = environments.single_action_space
        self._same_step = mode_of(environments) == "SAME_STEP"
        self._takes_seeds = isinstance(environments.unwrapped, vector.SyncVectorEnv | vector.AsyncVectorEnv)

    def reset(self, seeds: Sequence[int], /) -> Any:
        ours: list[Any] = getattr(self.environment.unwrapped, "envs", [])
        for each, drawn in zip((self.environment, *ours), (seeds[0], *seeds), strict=False):
            each.action_space.seed(drawn)
        seed = list(seeds) if self._takes_seeds else seeds[0]  # others make those of all copies from one
        return np.array(_first(self.environment.reset(seed=seed), self.environment))

    def step(self, actions: NDArray[Any], /) -> Led:
        observations, rewards, terminated, truncated, info = self.environment.step(actions)
        reached = begun = np.array(observations)
        terminated, truncated = np.array(terminated, np.bool_), np.array(truncated, np.bool_)
        over = terminated | truncated
        if over.any():
            reached = begun.copy()
        if self._same_step:
            for copy in np.flatnonzero(over):
                reached[copy] = info["final_obs"][copy]
        elif over.any():
            begun[over] = self._begin(over)[over]
        return Led(reached, np.array(rewards, np.float64), terminated, truncated, begun)

    def _begin(self, which: Flags) -> NDArray[Any]:
        return np.asarray(self.environment.reset(options={"reset_mask": which.copy()})[0])

    def begins_alone(self, seeds: Sequence[int]) -> bool:
        """Whether it begins the episode of one copy and leaves the others as they are: found by trying."""
        if self._same_step or self.count == 1:
            return True
        self.reset(seeds)
        before = np.array(self.environment.step(deepcopy(self.environment.action_space).sample())[0])
        first = np.arange(self.count) == 0
        try:
            after = self._begin(first)
        except Exception:  # whatever one raises that knows no such reset
            return False
        return bool(np.array_equal(before[~first], after[~first]))

    def close(self) -> None:
        self.environment.close()


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


def _number(reward: Any, environment: Any) -> float:
    """A reward; an array of one number is one, too."""
    try:
        return float(reward)
    except TypeError:
        if np.size(reward) == 1 and np.asarray(reward).dtype.kind in "biuf":
            return float(np.asarray(reward).item())
        raise _no_step(environment, f"the reward {shown(reward)}") from None


def _no_step(environment: Any, gave: str) -> ValueError:
    return ValueError(
        f"{type(environment.unwrapped).__name__}: step() gave {gave}, and not (observation, reward, terminated, truncated, info) "
        f"with a number for the reward, as environments of gymnasium do"
    )


def _finite(observation: Any, reward: float) -> bool:
    total = np.add.reduce(np.asarray(observation), axis=None)
    return isfinite(reward) and (isfinite(total) or bool(np.isfinite(observation).all()))  # a sum may overflow
