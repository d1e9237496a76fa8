"""Spaces of gymnasium as PPO sees them: observations as rows of numbers, actions as one of several or as a vector.

Box                                      flattened
Discrete, MultiDiscrete, MultiBinary     as gymnasium flattens them: one-hot

action of a bounded Box   = middle + half a,  half = (high - low) / 2,  clipped to its bounds:  a in [-1, 1] covers them
action of an unbounded one = a
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.base.choices import shortened
from pliant.rl.environments.base import ActionSpace, Continuous, Discrete, Floats


class Observations:
    """Observations of a space as rows of numbers. Raises ValueError for a space that is not flattened here."""

    def __init__(self, space: Any, name: str) -> None:
        from gymnasium import spaces

        if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
            raise ValueError(
                f"{name}: its observations are of {_kind(space)}, and PPO sees one row of numbers: give a function that wraps it "
                f"in gymnasium.wrappers.FlattenObservation, lambda: FlattenObservation(...)"
            )
        self._space, self._is_box, self._name = space, isinstance(space, spaces.Box), name
        self.size = int(spaces.flatdim(space))
        if self.size == 0:
            raise ValueError(
                f"{name}: its observations are empty, of shape {space.shape}: PPO needs at least one number"
            )

    def rows(self, seen: Sequence[Any] | NDArray[Any]) -> Floats:
        """(n, size), of n observations. Raises ValueError where they are not of the space's shape."""
        from gymnasium import spaces

        found = np.asarray(seen)
        if found.shape[1:] != self._space.shape:
            raise ValueError(
                f"{self._name}: an observation has shape {found.shape[1:]}, and its observation_space says {self._space.shape}"
            )
        if self._is_box:
            return found.astype(np.float64).reshape(len(found), -1)
        return np.array([spaces.flatten(self._space, each) for each in found], np.float64)


class Actions:
    """What PPO chooses, as an action of the space. Raises ValueError for a space of another kind."""

    def __init__(self, space: Any, name: str) -> None:
        from gymnasium import spaces

        given: Any = space
        self._name = name
        if isinstance(space, spaces.Discrete):
            self.actions: ActionSpace = Discrete(int(given.n))
            self._start = int(given.start)
        elif isinstance(space, spaces.Box) and given.dtype.kind == "f" and np.prod(given.shape):
            self._shape: tuple[int, ...] = given.shape
            self._dtype: Any = given.dtype
            self._low, self._high = (np.array(each, np.float64) for each in (given.low, given.high))
            bounded = np.isfinite(self._low) & np.isfinite(self._high)
            low, high = (np.where(bounded, each, at) for each, at in ((self._low, -1.0), (self._high, 1.0)))
            self._middle, self._half = low / 2 + high / 2, high / 2 - low / 2
            self.actions = Continuous(int(np.prod(self._shape)), 1.0 if bounded.all() else np.inf)
        else:
            raise ValueError(
                f"{name}: its actions are of {_kind(space)}, and PPO chooses one of several (Discrete) or a vector of real "
                f"numbers (Box): wrap the environment in gymnasium.wrappers.TransformAction, which makes one of the other"
            )

    def given(self, chosen: NDArray[Any]) -> NDArray[Any]:
        """(n[, size]) of PPO, as n actions of the space. Raises ValueError where one is none of several."""
        if isinstance(self.actions, Discrete):
            known = np.isin(chosen, range(self.actions.count))
            if not known.all():
                raise ValueError(
                    f"{self._name}: an action is {shortened(chosen[~known][0])}; they are whole numbers from 0 to "
                    f"{self.actions.count - 1}"
                )
            return chosen.astype(np.int64) + self._start
        wanted = self._middle + self._half * chosen.reshape(-1, *self._shape)
        return np.clip(wanted, self._low, self._high).astype(self._dtype)


def _kind(space: Any) -> str:
    return shortened(repr(space)) if space is not None else "no space"
