"""How much better an action was than expected: generalized advantage estimation.

    δ[t] = r[t] + γ v'[t] - v[t],     v'[t] = value of the state that followed, 0 where there is no future
    A[t] = δ[t] + γ λ A[t+1],         A[t+1] = 0 where the episode ended at t

    γ  `discount`     λ  `trace_decay`     value targets: A + v, before A is normalized

Source: Schulman et al., ICLR 2016. Normalized A: (A - mean) / (standard deviation + ε), with n - 1, as in Dohare et al., Nature
632 (2024), where ε is 0; where the deviation is 0 or not a number, they are centered and not divided.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pliant.rl.environments.base import Flags, Floats


def advantages(
    rewards: Floats,
    values: Floats,
    next_values: Floats,
    bootstrap: Flags,
    ended: Flags,
    discount: float,
    trace_decay: float,
) -> Floats:
    """Raw advantages, (steps, ...), of arrays of that shape.

    `next_values` are of the states that followed, before a new episode began; `bootstrap` says whether they count; `ended`
    whether an episode ended at that step, terminated or truncated.

    >>> nothing, no = np.zeros(2), np.array([False, False])
    >>> advantages(np.array([1.0, 2.0]), nothing, nothing, ~no, no, discount=0.5, trace_decay=1.0)
    array([2., 2.])
    """
    errors = rewards + discount * np.where(bootstrap, next_values, 0.0) - values
    kept = discount * trace_decay * ~ended
    found = np.empty_like(errors)
    ahead = np.zeros_like(errors[0])
    for step in range(len(errors) - 1, -1, -1):
        ahead = errors[step] + kept[step] * ahead
        found[step] = ahead
    return found


def normalized(raw: NDArray[np.float64], epsilon: float = 0.0) -> NDArray[np.float64]:
    """Of mean 0 and standard deviation 1 along the last axis: (..., n) -> (..., n).

    >>> normalized(np.array([1.0, 2.0, 3.0]))
    array([-1.,  0.,  1.])
    """
    centered = raw - raw.mean(-1, keepdims=True)
    deviation = raw.std(-1, ddof=1, keepdims=True) if raw.shape[-1] > 1 else np.zeros_like(centered)
    return np.divide(centered, deviation + epsilon, out=centered, where=deviation > 0)
