"""Cart-pole behind sensors that are re-wired: plasticity lost and kept on a laptop.

    push   = (f + 0.05 w² sin q) / 1.1                                          f = ±10 N
    w'     = (9.8 sin q - push cos q) / (0.5 (4/3 - 0.1 cos² q / 1.1))          v' = push - 0.05 w' cos q / 1.1
    (x, v, q, w) <- (x, v, q, w) + 0.02 (v, v', w, w')                          Euler: positions with the old velocities
    o      = s M + c,   s = (x / 1.2, v / 1.5, q / 0.1, w / 1.5)

    x, v  cart: m, m/s     q, w  pole: rad, rad/s     M  (4, inputs), rows orthonormal     c  (inputs,), standard normal

A *task* is one draw of M, of c and of which action pushes to the right. Reward 1 per step; an episode ends as terminated at
|x| > 2.4 or |q| > 12 degrees, and is truncated after 200 steps. It starts uniform in ±0.05.

Source: Barto, Sutton and Anderson (1983) in the form of gymnasium's `CartPole-v1`, whose dynamics these are, bit for bit; the
re-wiring is this project's, after the permuted pixels of Dohare et al., Nature 632 (2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pliant.base.choices import shortened
from pliant.base.memory import refuse_too_large
from pliant.base.saving import all_or_nothing, count_in
from pliant.rl.environments.base import Discrete, Flags, Floats, Transition
from pliant.rl.environments.counts import check_counts, counts, finite, is_count, one_seed_each
from pliant.rl.environments.options import refuse_other_settings
from pliant.streams import generator, stream_key, uniform

GRAVITY, CART, POLE, HALF_LENGTH, FORCE, SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
TRACK, LEAN = 2.4, 12 * 2 * np.pi / 360  # m, rad: beyond these an episode ends
SCALE = np.array([1 / 1.2, 1 / 1.5, 1 / 0.1, 1 / 1.5])
START = 0.05


class Wiring(NamedTuple):
    """One task of one agent."""

    mixing: Floats  # (4, inputs)
    offset: Floats  # (inputs,)
    swapped: bool  # action 0 pushes to the right


def advance(state: Floats, force: Floats) -> Floats:
    """The state 0.02 s later; `state` (..., 4), `force` (...) in newtons."""
    x, v, q, w = np.moveaxis(state, -1, 0)
    sine, cosine = np.sin(q), np.cos(q)
    mass = POLE + CART
    push = (force + POLE * HALF_LENGTH * np.square(w) * sine) / mass
    lean = (GRAVITY * sine - cosine * push) / (HALF_LENGTH * (4.0 / 3.0 - POLE * np.square(cosine) / mass))
    roll = push - POLE * HALF_LENGTH * lean * cosine / mass
    return np.stack([x + SECONDS * v, v + SECONDS * roll, q + SECONDS * w, w + SECONDS * lean], axis=-1)


def fallen(state: Floats) -> Flags:
    """Where the cart has left its track or the pole leans too far, or where either is not a number; `state` (..., 4)."""
    standing = (np.abs(state[..., 0]) <= TRACK) & (np.abs(state[..., 2]) <= LEAN)
    return ~(standing & np.isfinite(state).all(-1))


def wiring(seed: int, number: int, inputs: int) -> Wiring:
    """Task `number` of a seed: the same for every learner.

    >>> task = wiring(seed=0, number=3, inputs=16)
    >>> np.allclose(task.mixing @ task.mixing.T, np.eye(4))
    True
    """
    random = generator(seed, "wiring", number)
    q, r = np.linalg.qr(random.standard_normal((inputs, inputs)))
    rotation = q * np.sign(np.diagonal(r))  # uniform over the orthogonal matrices
    return Wiring(rotation[:4], random.standard_normal(inputs), bool(random.integers(2)))


class RewiredCartPole:
    """`copies` carts for each of `len(seeds)` agents, all of an agent behind the same sensors. Raises ValueError on a bad option.

    `begin_task(number)` re-wires every agent and restarts every copy. With a `period` and one copy per agent, an agent is
    re-wired without a call, when the first episode after every `period` of its steps begins.

    >>> carts = RewiredCartPole(seeds=[0, 1, 2], copies=16)
    >>> carts.begin_task(1)
    >>> carts.observations.shape, carts.step(np.zeros((3, 16), int)).rewards.sum()
    ((3, 16, 16), np.float64(48.0))
    """

    actions = Discrete(2)
    seconds = SECONDS  # that a step takes

    def __init__(
        self,
        *,
        seeds: Sequence[int] = (0,),
        copies: int = 1,
        inputs: int = 16,
        time_limit: int = 200,  # environment steps
        period: int | None = None,  # environment steps of an agent; None: tasks begin when they are told to
    ) -> None:
        self.seeds = one_seed_each(seeds)
        counts = {"copies": copies, "time_limit": time_limit, "inputs": inputs}
        check_counts(self.seeds, counts, least={"inputs": 4})  # one for each number of the state
        if period is not None and (not is_count(period) or copies > 1):
            raise ValueError(
                f"period={shortened(repr(period))} with copies={copies}: a period is 1 or more whole steps, of agents with one "
                "copy; for more copies, call begin_task(number) between two steps"
            )
        what = f"seeds of {len(self.seeds)} agents, copies={copies}, inputs={inputs}"
        refuse_too_large(what, 2 * inputs**2 + len(self.seeds) * (6 * copies + 4 * inputs + copies * inputs))
        self._copies, self._inputs = copies, inputs
        self.time_limit, self.period = time_limit, period
        shape = (len(self.seeds), copies)
        self._starts = [
            [stream_key(seed, "start of an episode", copy) for copy in range(copies)] for seed in self.seeds
        ]
        self._state, self._observations = np.zeros((*shape, 4)), np.zeros((*shape, inputs))
        self._ages, self._episodes = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._tasks = np.zeros(len(self.seeds), np.int64)
        self._mixing, self._offset = np.zeros((shape[0], 4, inputs)), np.zeros((shape[0], 1, inputs))
        self._swapped = np.zeros((shape[0], 1), np.bool_)
        self.steps = 0  # of each copy, since the beginning
        self.begin_task(0)

    @property
    def agents(self) -> int:
        return len(self.seeds)

    @property
    def copies(self) -> int:
        return self._copies

    @property
    def observation_size(self) -> int:
        return self._inputs

    @property
    def observations(self) -> Floats:
        """What the agents see now, (agents, copies, inputs); a view that the next step writes over."""
        return self._observations

    @property
    def states(self) -> Floats:
        """x, v, q, w behind the sensors, (agents, copies, 4)."""
        return self._state.copy()

    @property
    def tasks(self) -> NDArray[np.int64]:
        """Number of the task each agent is in, (agents,)."""
        return self._tasks.copy()

    def begin_task(self, number: int) -> None:
        """Re-wire the sensors of all agents and begin a new episode in every copy."""
        if not is_count(number, least=0):
            raise ValueError(f"task {number!r}: tasks are numbered from 0")
        for agent in range(self.agents):
            self._rewire(agent, number)
        self.restart()

    def restart(self) -> None:
        """Begin an episode in every copy."""
        everywhere = np.ones(self._ages.shape, np.bool_)
        self._begin(everywhere)

    def _rewire(self, agent: int, number: int) -> None:
        task = wiring(self.seeds[agent], number, self._inputs)
        self._mixing[agent], self._offset[agent], self._swapped[agent] = task
        self._tasks[agent] = number

    def _begin(self, which: Flags) -> None:
        """Begin the next episode of the named copies, in the task that is due."""
        for agent, copy in np.argwhere(which).tolist():
            if self.period is not None and self.steps // self.period > self._tasks[agent]:
                self._rewire(agent, self.steps // self.period)
            u = uniform(self._starts[agent][copy], 4 * int(self._episodes[agent, copy]), 4)
            self._state[agent, copy] = START * (2.0 * u - 1.0)
        self._episodes[which] += 1
        self._ages[which] = 0
        self._observe()

    def _observe(self) -> None:
        np.matmul(self._state * SCALE, self._mixing, out=self._observations)
        self._observations += self._offset

    def step(self, actions: NDArray[Any], /) -> Transition:
        """Take a step everywhere; `actions` (agents, copies), 0 or 1."""
        actions = np.asarray(actions)
        if actions.shape != self._ages.shape or not ((actions == 0) | (actions == 1)).all():
            raise ValueError(
                f"actions are 0 or 1 and of shape {self._ages.shape}; these are {shortened(repr(actions))}"
            )
        right = (actions == 1) != self._swapped
        self._state = advance(self._state, np.where(right, FORCE, -FORCE))
        self.steps += 1
        self._ages += 1
        terminated, truncated = fallen(self._state), self._ages >= self.time_limit
        self._observe()
        led_to = self._observations.copy()
        ended = terminated | truncated
        if ended.any():
            self._begin(ended)
        return Transition(led_to, np.ones(ended.shape), terminated, truncated)

    def state_dict(self) -> dict[str, Any]:
        """The whole state, with the settings that it belongs to; the wiring is computed again from the seed."""
        return {
            "settings": self._settings,
            "steps": self.steps,
            "state": self._state.copy(),
            "ages": self._ages.copy(),
            "episodes": self._episodes.copy(),
            "tasks": self._tasks.copy(),
        }

    @property
    def _settings(self) -> dict[str, str]:
        named = {"seeds": self.seeds, "copies": self._copies, "inputs": self._inputs}
        return {
            name: str(value) for name, value in (named | {"time_limit": self.time_limit, "period": self.period}).items()
        }

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go on from there, to the bit. Raises ValueError, with nothing changed, where the state is of another setting."""
        refuse_other_settings(state["settings"], self._settings)
        self.steps = count_in(state, "steps")
        self._state = finite(state, "state", self._state)
        self._ages, self._episodes = counts(state, "ages", self._ages), counts(state, "episodes", self._episodes)
        for agent, number in enumerate(counts(state, "tasks", self._tasks)):
            self._rewire(agent, int(number))
        self._observe()
