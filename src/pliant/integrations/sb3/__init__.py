"""Stable-Baselines3: a callback that resets hidden units while PPO, A2C, DQN, SAC, TD3 or DDPG learns, and those of sb3-contrib.

    from pliant.integrations.sb3 import ContinualBackpropCallback
    PPO("MlpPolicy", env).learn(100_000, callback=ContinualBackpropCallback(replacement_rate=1e-4))

See docs/reinforcement-learning.md.
"""

from __future__ import annotations

try:
    import stable_baselines3 as _stable_baselines3  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ImportError as error:
    from pliant.base.install import how_to_install

    raise ImportError(f"pliant.integrations.sb3 needs Stable-Baselines3: {how_to_install('sb3')}") from error

from pliant.integrations.sb3.callback import MethodCallback, UnitResetCallback
from pliant.integrations.sb3.checkpoint import MethodCheckpointCallback, load_checkpoint
from pliant.integrations.sb3.continual_backprop import ContinualBackpropCallback
from pliant.integrations.sb3.monitor import PlasticityMonitorCallback
from pliant.integrations.sb3.networks import Networks, example_inputs, networks_of

__all__ = [
    "ContinualBackpropCallback",
    "MethodCallback",
    "MethodCheckpointCallback",
    "Networks",
    "PlasticityMonitorCallback",
    "UnitResetCallback",
    "example_inputs",
    "load_checkpoint",
    "networks_of",
]
