"""Settings with which much happens in a few updates, and what is asked of agents."""

from __future__ import annotations

from dataclasses import replace

import torch

from pliant.rl.ppo import PPO, Settings, preset

SMALL = Settings(rollout_steps=32, epochs=3, minibatch_size=16, hidden=(12, 10), step_size=3e-3)


CBP = replace(SMALL, method="cbp", replacement_rate=0.15, maturity_threshold=2, count="accumulate")


REDO = replace(SMALL, method="redo", tau=0.9, period=2)


MODERN = preset(
    "modern",
    **{
        name: getattr(CBP, name) for name in ("rollout_steps", "epochs", "minibatch_size", "hidden", "replacement_rate")
    },
    maturity_threshold=2,
)


EVERY = {"cbp": CBP, "redo": REDO, "modern": MODERN}


def in_every_group(ppo: PPO) -> int:
    """The least that any group of any agent had replaced."""
    assert ppo.method is not None
    return min(min(group["replaced"]) for group in ppo.method.stats().values())


def parameters(ppo: PPO, agent: int | None = None) -> dict[str, torch.Tensor]:
    every = {name: value.detach() for name, value in ppo.networks.named_parameters()}
    return every if agent is None else {name: value[agent] for name, value in every.items()}
