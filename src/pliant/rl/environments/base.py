"""The interface of environments: copies of one problem for each of several agents, stepped together.

    observations                             what the agents see now, (agents, copies, observation_size)
    transition = environments.step(actions)  every copy takes a step; where an episode ended, the next one has begun

Axis 0 is the agent, axis 1 its copies of the problem. An agent's copies depend on its seed alone, not on the agents beside
it. One process and one thread: where physics is the cost, one process per core is faster than any pool of workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Discrete:
    """Actions are integers from 0 to `count - 1`, given as (agents, copies)."""

    count: int


@dataclass(frozen=True)
class Continuous:
    """Actions are vectors, given as (agents, copies, size). Motors act between -`limit` and `limit`."""

    size: int
    limit: float = 1.0


ActionSpace: TypeAlias = Discrete | Continuous


class Transition(NamedTuple):
    """What a step led to, each (agents, copies, ...).

    `observations` follow the action, before a new episode begins in that copy: the value of the next state is computed
    from them. `terminated`: the episode ended in a terminal state; `truncated`: it was cut short by a time limit. Numbers
    that are not finite are returned as they are, and end the copy's episode as terminated; the learning algorithm notes
    that agent as diverged.
    """

    observations: Floats
    rewards: Floats
    terminated: Flags
    truncated: Flags


class Environments(Protocol):
    """Copies of a problem for several agents."""

    @property
    def agents(self) -> int: ...

    @property
    def copies(self) -> int:
        """Of each agent."""
        ...

    @property
    def observation_size(self) -> int: ...

    @property
    def actions(self) -> ActionSpace: ...

    @property
    def observations(self) -> Floats:
        """What the agents see now, (agents, copies, observation_size); a view that the next step writes over."""
        ...

    def step(self, actions: NDArray[Any], /) -> Transition:
        """Take a step everywhere. Where an episode ends, the next begins, and `observations` shows its first state."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """The whole state: nested mappings of arrays, numbers and strings."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go on from that state, to the bit."""
        ...
