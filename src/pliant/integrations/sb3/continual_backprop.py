"""Continual backpropagation as a callback: `UnitResetCallback(ContinualBackprop)` with its parameters by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from pliant.integrations.attaching import Settings
from pliant.integrations.sb3.callback import UnitResetCallback
from pliant.integrations.sb3.networks import Networks
from pliant.methods import ContinualBackprop


class ContinualBackpropCallback(UnitResetCallback):
    """Continual backpropagation while an algorithm of Stable-Baselines3 learns.

    Args:
        networks, diagnose_every: see `UnitResetCallback`, and what is logged, and what is raised.
        settings: the parameters of `pliant.ContinualBackprop` (`replacement_rate`, `maturity_threshold`, `decay_rate`,
            `observe_every`, `utility`, `count`, `eligible`, `hand_over_mean`, `optimizer_state`, `init`), with its defaults,
            and `include`, `exclude`, `strict`, `residual`, `heads`, `trial`, `seed`.

    >>> from stable_baselines3 import A2C
    >>> callback = ContinualBackpropCallback(replacement_rate=0.05, maturity_threshold=5)
    >>> model = A2C("MlpPolicy", "CartPole-v1", seed=0, device="cpu").learn(100, callback=callback)
    >>> callback.stats()["policy.mlp_extractor.value_net.0"]["steps"]
    20
    """

    def __init__(
        self,
        *,
        networks: Callable[[Any], Networks] | None = None,
        diagnose_every: int | None = 10_000,
        verbose: int = 0,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(
            ContinualBackprop, networks=networks, diagnose_every=diagnose_every, verbose=verbose, **settings
        )
