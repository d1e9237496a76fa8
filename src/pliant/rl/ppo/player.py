"""An agent that `PPO.save` wrote, to act in one environment of gymnasium and not to learn. Nothing in its file is executed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from pliant.base.saving import StrPath, load_state
from pliant.rl.environments.base import ActionSpace, Floats, Transition
from pliant.rl.environments.gymnasium_spaces import Actions, Observations
from pliant.rl.ppo.agents import PPO
from pliant.rl.ppo.settings import RENAMED, Settings

PARTS = ("settings", "seeds", "parameters", "acting")


class _Outline:
    """What agents see and do, without an environment to do it in."""

    def __init__(self, agents: int, copies: int, observation_size: int, actions: ActionSpace) -> None:
        self.agents, self.copies, self.observation_size, self.actions = agents, copies, observation_size, actions
        self.observations: Floats = np.zeros((agents, copies, observation_size))

    def step(self, actions: NDArray[Any], /) -> Transition:
        raise RuntimeError("these agents act, and do not learn")


def saved_agent(path: StrPath, environment: Any, name: str, seed: int | None = None) -> Callable[[Any], Any]:
    """A function from an observation of `environment` to the action of the agent of that seed, by default the first.

    Raises ValueError where the file holds no agents, none of that seed, or agents of another environment.
    """
    state = load_state(path)
    if not all(part in state for part in PARTS):
        raise ValueError(f"{path} holds no agents: PPO.save writes them")
    seeds: list[int] = list(state["seeds"])
    if seed is not None and seed not in seeds:
        raise ValueError(f"{path} has no agent with seed {seed}; it has {', '.join(map(str, seeds))}")
    agent = 0 if seed is None else seeds.index(seed)
    observed, acted = Observations(environment.observation_space, name), Actions(environment.action_space, name)
    agents = _to_act(
        state, _Outline(len(seeds), state["acting"]["lengths"].shape[1], observed.size, acted.actions), name
    )
    if agents.diverged_at[agent] >= 0:
        raise ValueError(f"{path}: the agent with seed {seeds[agent]} diverged at step {agents.diverged_at[agent]}")

    def act(observation: Any) -> Any:
        rows = observed.rows([observation])
        chosen = agents.greedy_actions(np.broadcast_to(rows, (len(seeds), *rows.shape)))
        return acted.given(chosen[agent])[0]

    return act


@torch.no_grad()
def _to_act(state: Mapping[str, Any], outline: _Outline, name: str) -> PPO:
    """Agents with the networks of a state, and what they normalize observations with."""
    held: Mapping[str, Any] = state["settings"]
    settings = Settings(**cast(Any, {RENAMED.get(each, each): held[each] for each in held}))
    saved: Mapping[str, torch.Tensor] = state["parameters"]
    agents = PPO(outline, settings, state["seeds"], next(iter(saved.values())).dtype)
    for each, parameter in agents.networks.named_parameters():
        if each not in saved or saved[each].shape != parameter.shape:
            there = "none" if each not in saved else tuple(saved[each].shape)
            raise ValueError(
                f"these agents are not of {name}, which gives {outline.observation_size} numbers and takes {outline.actions}: "
                f"parameter {each} of shape {there} would be of shape {tuple(parameter.shape)}"
            )
        parameter.copy_(saved[each])
    agents.acting.experience.load_state_dict(state["acting"]["experience"])
    agents.acting.diverge(state["acting"]["diverged_at"] >= 0)
    agents.acting.diverged_at = state["acting"]["diverged_at"].copy()
    return agents
