"""The rollout: observations, actions and rewards since the last update.

Observations, actions and the actor's outputs are stored agent first, as learning needs them, (agents, steps, copies, ...);
rewards and ends of episodes step first, as advantages need them, (steps, agents, copies). `raw` are observations before
normalization.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pliant.base.saving import count_in, entry
from pliant.rl.environments.base import ActionSpace, Continuous, Flags
from pliant.rl.environments.counts import counts


class Rollout:
    """A buffer for `steps` steps of every copy, of which `filled` are stored."""

    _step_first = ("rewards", "terminated", "truncated")

    def __init__(
        self,
        agents: int,
        steps: int,
        copies: int,
        observation_size: int,
        actions: ActionSpace,
        dtype: DTypeLike,
        *,
        raw: bool = False,
    ) -> None:
        self.steps, self.filled = steps, 0
        size = actions.size if isinstance(actions, Continuous) else actions.count
        vectors = isinstance(actions, Continuous)
        each = (agents, steps, copies)
        self.observations = np.zeros((*each, observation_size), dtype)
        self.raw = np.zeros((*each, observation_size)) if raw else None
        self._agent_first = ("observations", "actions", "outputs", *(("raw",) if raw else ()))
        self.actions: NDArray[Any] = np.zeros((*each, size), dtype) if vectors else np.zeros(each, np.int64)
        self.outputs = np.zeros((*each, size), dtype)
        self.rewards = np.zeros((steps, agents, copies))
        self.terminated = np.zeros((steps, agents, copies), np.bool_)
        self.truncated = np.zeros((steps, agents, copies), np.bool_)
        self.cut: dict[tuple[int, int, int], NDArray[Any]] = {}  # (step, agent, copy) -> the state it was cut short in

    @property
    def full(self) -> bool:
        return self.filled == self.steps

    @property
    def ended(self) -> Flags:
        return self.terminated | self.truncated

    def clear(self) -> None:
        """Begin anew; stored steps can be read until they are overwritten."""
        self.filled = 0
        self.cut.clear()

    def state_dict(self) -> dict[str, Any]:
        places = sorted(self.cut)
        size = self.observations.shape[-1]
        return {
            "filled": self.filled,
            **{name: getattr(self, name)[:, : self.filled].copy() for name in self._agent_first},
            **{name: getattr(self, name)[: self.filled].copy() for name in self._step_first},
            "cut_at": np.array(places, np.int64).reshape(-1, 3),
            "cut_states": np.array([self.cut[place] for place in places], self.observations.dtype).reshape(-1, size),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        filled = count_in(state, "filled", most=self.steps)
        parts = {name: getattr(self, name)[:, :filled] for name in self._agent_first}
        parts |= {name: getattr(self, name)[:filled] for name in self._step_first}
        held = {name: entry(state, name, part) for name, part in parts.items()}
        count = len(state["cut_at"])
        places = counts(state, "cut_at", np.empty((count, 3), np.int64))
        if count and (places >= (filled, *self.terminated.shape[1:])).any():
            raise ValueError(f"'cut_at' of this state names places beyond its {filled} steps, agents and copies")
        cut = entry(state, "cut_states", np.empty((count, self.observations.shape[-1]), self.observations.dtype))
        for name, part in parts.items():
            part[...] = held[name]
        at = [(int(step), int(agent), int(copy)) for step, agent, copy in places]
        self.filled, self.cut = filled, dict(zip(at, list(cut), strict=True))
