"""Continual backpropagation as a callback: `UnitResetCallback(ContinualBackprop)` with its arguments written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict, Unpack

from pliant.engine.optimizer_state.units import Policy
from pliant.engine.redraw import Init
from pliant.engine.select import Count, Eligible
from pliant.engine.utility import Utility
from pliant.integrations.sb3.callback import UnitResetCallback
from pliant.integrations.sb3.networks import Networks
from pliant.methods import ContinualBackprop


class Which(TypedDict, total=False):
    """Which units of the networks, and the seed of all draws: see `pliant.engine.unit_reset.UnitReset`."""

    include: str | list[str]
    exclude: str | list[str]
    strict: bool
    residual: bool
    heads: bool
    trial: bool
    seed: int | None


class ContinualBackpropCallback(UnitResetCallback):
    """Continual backpropagation while an algorithm of Stable-Baselines3 learns.

    Args:
        replacement_rate: share of mature units replaced per optimizer step. 0 observes and writes nothing.
        maturity_threshold: optimizer steps; a unit may be replaced when its age is greater.
        decay_rate, utility, count, eligible, hand_over_mean, optimizer_state, init: see `pliant.ContinualBackprop`.
        networks, diagnose_every: see `UnitResetCallback`, also for what is logged and raised.
        which: `include`, `exclude`, `strict`, `residual`, `heads`, `trial`, `seed`.

    >>> from stable_baselines3 import A2C
    >>> callback = ContinualBackpropCallback(replacement_rate=0.05, maturity_threshold=5)
    >>> model = A2C("MlpPolicy", "CartPole-v1", seed=0, device="cpu").learn(100, callback=callback)
    >>> callback.stats()["policy.mlp_extractor.value_net.0"]["steps"]
    20
    """

    def __init__(
        self,
        replacement_rate: float = 1e-4,
        maturity_threshold: int = 1000,
        *,
        decay_rate: float = 0.99,
        utility: str | Utility = "contribution",
        count: Count = "accumulate",
        eligible: Eligible = "mature",
        hand_over_mean: bool = True,
        optimizer_state: Policy = "fresh",
        init: Init = "module",
        networks: Callable[[Any], Networks] | None = None,
        diagnose_every: int | None = 10_000,
        verbose: int = 0,
        **which: Unpack[Which],
    ) -> None:
        super().__init__(
            ContinualBackprop,
            networks=networks,
            diagnose_every=diagnose_every,
            verbose=verbose,
            replacement_rate=replacement_rate,
            maturity_threshold=maturity_threshold,
            decay_rate=decay_rate,
            utility=utility,
            count=count,
            eligible=eligible,
            hand_over_mean=hand_over_mean,
            optimizer_state=optimizer_state,
            init=init,
            **which,
        )
