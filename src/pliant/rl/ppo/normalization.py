"""Observations and rewards normalized by running moments, per agent.

    observations   (o - mean) / sqrt(variance + 1e-8), clipped to ±10
    rewards        r / sqrt(variance of the discounted sum of rewards so far + 1e-8), clipped to ±10

Mean and variance are over all of the agent's steps so far. Source: Engstrom et al., ICLR 2020; Huang et al. (2022), details 4 to
7 of continuous control.

Departure: the moments are updated once per rollout, not at every step: those of observations after the update, so that one
rollout is normalized by the same moments throughout (the first not at all), those of rewards before it, so that a rollout's own
rewards count in its scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pliant.base.saving import entry
from pliant.rl.environments.base import Flags, Floats

LARGEST, TINY = 10.0, 1e-8


class RunningMoments:
    """Mean and variance of all rows so far, of each agent: (agents, *shape). Before the first, 0 and 1."""

    def __init__(self, agents: int, *shape: int) -> None:
        self.count = np.zeros((agents, *[1] * len(shape)))
        self.mean = np.zeros((agents, *shape))
        self.variance = np.ones((agents, *shape))

    def update(self, rows: Floats) -> None:
        """Take in rows (agents, n, *shape), by the pairwise update of Chan, Golub and LeVeque (1979)."""
        mean, variance, new = rows.mean(1), rows.var(1), rows.shape[1]
        both = self.count + new
        apart = mean - self.mean
        squares = self.variance * self.count + variance * new + apart**2 * (self.count * new / both)
        self.mean = self.mean + apart * (new / both)
        self.variance, self.count = squares / both, both

    def forget(self, agent: int) -> None:
        """Begin anew."""
        self.count[agent], self.mean[agent], self.variance[agent] = 0.0, 0.0, 1.0

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).copy() for name in ("count", "mean", "variance")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        held = {name: entry(state, name, getattr(self, name)) for name in ("count", "mean", "variance")}
        if (held["count"] < 0).any() or (held["variance"] < 0).any():
            raise ValueError("'count' and 'variance' of this state are negative: they are 0 or more")
        for name, value in held.items():
            setattr(self, name, value)


def normalized_observations(observations: Floats, moments: RunningMoments) -> Floats:
    """(agents, n, size), normalized."""
    scaled = (observations - moments.mean[:, None]) / np.sqrt(moments.variance[:, None] + TINY)
    return np.clip(scaled, -LARGEST, LARGEST)


def normalized_rewards(rewards: Floats, moments: RunningMoments) -> Floats:
    """(steps, agents, copies), scaled and not shifted."""
    return np.clip(rewards / np.sqrt(moments.variance[:, None] + TINY), -LARGEST, LARGEST)


def discounted_sums(rewards: Floats, ended: Flags, before: Floats, discount: float) -> tuple[Floats, Floats]:
    """Sums of rewards so far, each older one discounted: (steps, ...) of each step, and (...) to go on from.

    >>> discounted_sums(np.array([1.0, 1.0]), np.array([False, True]), np.float64(2.0), discount=0.5)
    (array([2., 2.]), array(0.))
    """
    sums = np.empty_like(rewards)
    held = np.asarray(before)
    for step, (reward, end) in enumerate(zip(rewards, ended, strict=True)):
        sums[step] = discount * held + reward
        held = np.where(end, 0.0, sums[step])
    return sums, held
