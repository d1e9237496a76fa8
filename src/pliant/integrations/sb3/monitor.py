"""Measures of plasticity as a callback: `UnitResetCallback(Monitor)` with its parameters by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pliant.diagnostics import Monitor
from pliant.integrations.sb3.callback import UnitResetCallback
from pliant.integrations.sb3.networks import Networks


class PlasticityMonitorCallback(UnitResetCallback):
    """`pliant.Monitor` while an algorithm of Stable-Baselines3 learns: measures of the minibatch at every so many steps.

    Args:
        networks: see `UnitResetCallback`, and what is raised.
        settings: of `pliant.Monitor` (`every`, `to`, `warn`, ...), with its defaults.

    `callback.method.rows` holds what was measured.
    """

    def __init__(self, *, networks: Callable[[Any], Networks] | None = None, verbose: int = 0, **settings: Any) -> None:
        super().__init__(Monitor, networks=networks, diagnose_every=None, verbose=verbose, **settings)
