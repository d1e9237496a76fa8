"""Checks of the numbers in a saved state, on which the kernels rely: they index memory by some of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.online.noise import REFRESH

COUNTS = ("age", "eligible", "replaced", "settled")
SHARES = ("decay_power", "beta_power")  # powers of numbers below 1


def refuse_impossible(state: Mapping[str, NDArray[Any]], steps: int) -> None:
    """Raise `ValueError` for numbers that no learner has after `steps` steps.

    Weights, and what is computed from them, may be anything: those of a learner that is about to diverge are.
    """
    wrong = {name: state[name] < 0 for name in COUNTS}
    wrong |= {name: ~((state[name] >= 0) & (state[name] <= 1)) for name in SHARES}
    wrong["shrunk"] = ~(np.isfinite(state["shrunk"]) & (state["shrunk"] != 0))
    wrong["diverged_at"] = (state["diverged_at"] < -1) | (state["diverged_at"] >= steps)
    until = np.where(state["diverged_at"] < 0, steps, state["diverged_at"])[:, None]
    wrong["settled"] |= (state["settled"] > until + 1) | (state["settled"] < until - REFRESH)
    for name, where in wrong.items():
        if where.any():
            held = state[name][where].flat[0]
            raise ValueError(f"'{name}' of the state holds {held}, which no learner has after {steps:,} steps")
