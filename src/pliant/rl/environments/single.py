"""The same environments, one at a time, with gymnasium's interface.

| id | class |
|---|---|
| `pliant/SlipperyAnt-v0`, `.../SlipperyHalfCheetah-v0`, `.../SlipperyHopper-v0`, `.../SlipperyWalker2d-v0` | `SlipperyBody` |
| `pliant/RewiredCartPole-v0` | `RewiredCart` |

Each holds a batch of one. `reset(seed=...)` begins the environment anew, with the first friction or wiring of that seed; a plain
`reset()` begins the next episode. Time limits are the environment's own and count as truncation. Actions arrive as 32-bit numbers
and their cost is computed in 64 bits (gymnasium: in 32). Observations lie within ±1e10, beyond which MuJoCo calls a number bad.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces

from pliant.rl.environments.base import Continuous, Floats
from pliant.rl.environments.bodies import Body
from pliant.rl.environments.cart_picture import cart_picture
from pliant.rl.environments.cart_pole import RewiredCartPole
from pliant.rl.environments.friction import FrictionSchedule
from pliant.rl.environments.mujoco_batch import MujocoBatch
from pliant.rl.environments.rendering import Camera

BAD = 1e10  # MuJoCo's mjMAXVAL
FARTHEST = 1e3  # a cart cannot reach it in an episode
CHANGING = FrictionSchedule()  # the default friction


class _Single(gymnasium.Env[Floats, Any], ABC):
    """What both have in common: a batch of one, and the end of an episode that the batch has already left behind."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012  (as gymnasium declares it)
    batch: MujocoBatch | RewiredCartPole

    def __init__(self, render_mode: str | None) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode={render_mode!r}: there is {self.metadata['render_modes']}")
        self.render_mode = render_mode
        self._seeded = False
        self._anew(0)
        self.metadata = {**self.metadata, "render_fps": round(1 / self.batch.seconds)}

    @abstractmethod
    def _make(self, seed: int) -> MujocoBatch | RewiredCartPole:
        """The environment of a seed, at its beginning."""

    @abstractmethod
    def _info(self) -> dict[str, Any]:
        """What the agent is not told."""

    def _anew(self, seed: int) -> None:
        self.close()
        self.batch = self._make(seed)
        self._begun = True  # an episode of which nothing was shown yet

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_camera": None}  # a copy opens its own when it is asked for a picture

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        if options:
            raise ValueError(
                f"reset: unknown options {', '.join(map(repr, options))}; there are none: settings are given when it is made"
            )
        super().reset(seed=seed)
        if seed is not None or not self._seeded:
            self._anew(seed if seed is not None else int(self.np_random.integers(2**31)))
            self._seeded = True
        elif not self._begun:
            self.batch.restart()
        self._begun = False
        return self.batch.observations[0, 0].copy(), self._info()

    def step(self, action: Any) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        info = self._info()  # of the step taken, not of the episode that may follow it
        observation, reward, terminated, truncated = (
            each[0, 0] for each in self.batch.step(np.asarray(action)[None, None])
        )
        self._begun = bool(terminated or truncated)
        return observation, float(reward), bool(terminated), bool(truncated), info


class SlipperyBody(_Single):
    """A body whose friction changes; `info["friction"]` is the current one. Raises what `MujocoBatch` raises.

    `friction` and the other options are those of `MujocoBatch`, but by default friction changes. `low`, `high`, `period` and
    `friction_seed` are those of its `FrictionSchedule`; together with a `friction` they are refused.
    """

    def __init__(
        self,
        body: str | Body = "ant",
        friction: FrictionSchedule | float | None = CHANGING,
        low: float | None = None,  # None: 0.02
        high: float | None = None,  # None: 2
        period: int | None = None,  # steps of this environment; None: 2 million
        friction_seed: int | None = None,  # None: the seed of `reset`
        render_mode: str | None = None,
        width: int = 320,
        height: int = 240,
        **options: Any,
    ) -> None:
        for name in ("seeds", "copies"):
            if name in options:
                raise ValueError(
                    f"{name}: this is one body, whose seed is that of reset(seed=...); for more, MujocoBatch"
                )
        changes = {"low": low, "high": high, "period": period, "friction_seed": friction_seed}
        self._options: dict[str, Any] = {"body": body, "friction": _friction(friction, changes), **options}
        self._size = (width, height)
        self._camera: Camera | None = None
        super().__init__(render_mode)
        motors, size = cast(Continuous, self.batch.actions), self.batch.observation_size
        self.observation_space = spaces.Box(-BAD, BAD, (size,), np.float64)
        self.action_space = spaces.Box(-motors.limit, motors.limit, (motors.size,), np.float32)

    def _make(self, seed: int) -> MujocoBatch:
        return MujocoBatch(seeds=[seed], **self._options)

    def _info(self) -> dict[str, Any]:
        return {"friction": float(cast(MujocoBatch, self.batch).frictions[0, 0])}

    def render(self) -> Any:
        if self.render_mode is None:
            return None
        if self._camera is None:
            width, height = self._size
            self._camera = Camera(cast(MujocoBatch, self.batch), width=width, height=height)
        return self._camera.picture()

    def close(self) -> None:
        if self._camera is not None:
            self._camera.close()
            self._camera = None


def _friction(friction: FrictionSchedule | float | None, changes: dict[str, Any]) -> FrictionSchedule | float | None:
    """The friction, given itself or by the settings of its schedule."""
    given = {name: value for name, value in changes.items() if value is not None}
    if not given:
        return friction
    if friction is not CHANGING:
        raise ValueError(
            f"friction={friction!r} beside {', '.join(given)}: give one or the other; low, high, period and seed can be given "
            "to a FrictionSchedule as well"
        )
    return replace(CHANGING, seed=given.pop("friction_seed", None), **given)


class RewiredCart(_Single):
    """Cart-pole, re-wired after every `period` steps; `info["task"]` is the number of the wiring."""

    def __init__(
        self,
        inputs: int = 16,
        period: int = 8192,  # environment steps
        time_limit: int = 200,  # environment steps
        render_mode: str | None = None,
        width: int = 320,
        height: int = 240,
    ) -> None:
        self._size = (width, height)
        self._options: dict[str, Any] = {"inputs": inputs, "period": period, "time_limit": time_limit}
        super().__init__(render_mode)
        self.observation_space = spaces.Box(-FARTHEST, FARTHEST, (inputs,), np.float64)
        self.action_space = spaces.Discrete(2)

    def _make(self, seed: int) -> RewiredCartPole:
        return RewiredCartPole(seeds=[seed], **self._options)

    def _info(self) -> dict[str, Any]:
        return {"task": int(cast(RewiredCartPole, self.batch).tasks[0])}

    def render(self) -> Any:
        if self.render_mode is None:
            return None
        return cart_picture(cast(RewiredCartPole, self.batch).states[0, 0], *self._size)
