"""Four bodies as data: what gymnasium's Ant, HalfCheetah, Hopper and Walker2d see, earn and survive.

    o = (qpos without the body's position in the plane, clip(qvel), [clip(contact forces)])
    r = v + [healthy] healthy_reward - control_cost |a|^2 - [5e-4 |clip(contact forces)|^2]

    v  forward speed over the step      a  action, as the agent gave it: the motors clip it, the cost does not

`version` says which of gymnasium's versions is followed. "v4" pays the healthy reward also on the step on which the body falls,
as all earlier versions did; "v5" does not. Only the ant observes contact forces: "v5" includes them in observations and in the
cost unless they are switched off, "v4" only where they are switched on. Bodies come from the XML files of the installed
gymnasium.

Source: gymnasium 1.4, `Ant-v4` to `Walker2d-v5`; a test holds each equal, bit for bit. One departure: numbers that are not
finite end the episode of every body (gymnasium's cheetah goes on, and MuJoCo silently resets the body to its start).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from pliant.base.choices import nearest, shown
from pliant.rl.environments.base import Flags, Floats

Version: TypeAlias = Literal["v4", "v5"]
Interval: TypeAlias = tuple[float, float]  # open

EVERYWHERE: Interval = (-math.inf, math.inf)
CONTACT_COST = 5e-4  # per squared newton, forces clipped to [-1, 1]
VERSIONS = ("v4", "v5")


def closed(low: float, high: float) -> Interval:
    """The open interval with the same floating-point numbers in it as [low, high]."""
    return math.nextafter(low, -math.inf), math.nextafter(high, math.inf)


@dataclass(frozen=True)
class Body:
    """The parameters of one body. Raises ValueError for values that no body can have."""

    name: str
    files: Mapping[str, str]  # version -> XML: an absolute path, or a name among gymnasium's
    frame_skip: int  # physics steps per action
    hidden_positions: int  # leading entries of qpos that are not observed: the body's position in the plane
    control_cost: float
    start_noise: float  # of positions (uniform) and velocities
    normal_velocities: bool  # start velocities are normal, else uniform
    height_index: int | None = None  # of `healthy_height` in qpos; 2 behind a free joint
    healthy_reward: float = 1.0
    healthy_height: Interval = EVERYWHERE
    healthy_angle: Interval = EVERYWHERE  # of qpos[2], planar bodies
    healthy_state: Interval = EVERYWHERE  # of qpos[2:] and qvel
    velocity_limit: float = math.inf  # observed velocities are clipped
    torso: bool = False  # forward speed is that of the torso (xpos, as of the last kinematics), else of qpos[0]
    feels_contact: bool = False

    def __post_init__(self) -> None:
        if not self.files or not {*self.files} <= {*VERSIONS}:
            raise ValueError(
                f"body '{self.name}': files are XML by version, of {' and '.join(VERSIONS)}; got {self.files}"
            )
        if self.frame_skip < 1 or self.hidden_positions < 0:
            raise ValueError(
                f"body '{self.name}': frame_skip={self.frame_skip} is 1 or more, hidden_positions={self.hidden_positions} 0 "
                "or more"
            )
        if self.healthy_height != EVERYWHERE and self.height_index is None:
            raise ValueError(
                f"body '{self.name}': healthy_height needs height_index, which number of qpos is the height"
            )

    def check_fits(self, positions: int) -> None:
        """Raise ValueError where a model of so many positions (nq) is not this body's."""
        if self.hidden_positions > positions or (self.height_index or 0) >= positions:
            raise ValueError(
                f"body '{self.name}': hidden_positions={self.hidden_positions}, height_index={self.height_index}, but its XML "
                f"has {positions} positions"
            )


def _files(v4: str, v5: str | None = None) -> Mapping[str, str]:
    return {"v4": v4, "v5": v5 or v4}


BODIES: Mapping[str, Body] = {
    body.name: body
    for body in (
        Body("ant", _files("ant.xml"), 5, 2, 0.5, 0.1, True, 2,
             healthy_height=closed(0.2, 1.0), torso=True, feels_contact=True),
        Body("half-cheetah", _files("half_cheetah.xml"), 5, 1, 0.1, 0.1, True, 1, healthy_reward=0.0),
        Body("hopper", _files("hopper.xml"), 4, 1, 1e-3, 5e-3, False, 1, velocity_limit=10.0,
             healthy_height=(0.7, math.inf), healthy_angle=(-0.2, 0.2), healthy_state=(-100.0, 100.0)),
        Body("walker2d", _files("walker2d.xml", "walker2d_v5.xml"), 4, 1, 1e-3, 5e-3, False, 1, velocity_limit=10.0,
             healthy_height=(0.8, 2.0), healthy_angle=(-1.0, 1.0)),
    )
}  # fmt: skip


def body_named(name: str) -> Body:
    """Raises ValueError, with the nearest name, where there is none of this name.

    >>> body_named("hopper").frame_skip
    4
    """
    if isinstance(name, str) and name in BODIES:  # pyright: ignore[reportUnnecessaryIsInstance]
        return BODIES[name]
    near = nearest(name, BODIES, likeness=0.4)
    raise ValueError(
        f"no body is named {shown(name)}"
        + (f"; did you mean '{near}'?" if near else "")
        + f" There are {', '.join(BODIES)}"
    )


def start(body: Body, rest: Floats, speeds: int, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Positions near `rest`, (nq,), and `speeds` velocities, from which an episode begins."""
    noise = body.start_noise
    positions = rest + random.uniform(-noise, noise, rest.size)
    if body.normal_velocities:
        return positions, noise * random.standard_normal(speeds)
    return positions, random.uniform(-noise, noise, speeds)


def healthy(body: Body, positions: Floats, velocities: Floats) -> Flags:
    """Which bodies are healthy, so that their episode goes on, (bodies,); `positions` (bodies, nq), `velocities` (bodies, nv)."""
    alive = all_finite(positions) & all_finite(velocities)
    if body.healthy_height != EVERYWHERE:
        alive &= inside(body.healthy_height, positions[:, body.height_index])
    if body.healthy_angle != EVERYWHERE:
        alive &= inside(body.healthy_angle, positions[:, 2])
    if body.healthy_state != EVERYWHERE:
        alive &= np.logical_and.reduce(inside(body.healthy_state, positions[:, 2:]), axis=-1)
        alive &= np.logical_and.reduce(inside(body.healthy_state, velocities), axis=-1)
    return alive


def all_finite(values: Floats) -> Flags:
    """Which rows hold nothing but finite numbers, (rows,)."""
    return np.logical_and.reduce(np.isfinite(values), axis=-1)


def inside(interval: Interval, values: Floats) -> Flags:
    """Which values lie in the open interval; NaN in none."""
    return (interval[0] < values) & (values < interval[1])


def reward(body: Body, version: Version, speed: Floats, actions: Floats, alive: Flags, forces: Floats | None) -> Floats:
    """The reward of a step, (bodies,); `speed` (bodies,), `actions` (bodies, motors), `forces` clipped (bodies, k) or None.

    The operations are done in gymnasium's order, so that results are equal bit for bit.
    """
    paid = np.ones_like(alive) if version == "v4" else alive
    cost = body.control_cost * np.square(actions).sum(-1)
    if forces is not None:
        cost = cost + CONTACT_COST * np.square(forces).sum(-1)
    return (speed + paid * body.healthy_reward) - cost


def observe(body: Body, positions: Floats, velocities: Floats, out: Floats) -> None:
    """Write the bodies' observations into the first columns of `out`, (bodies, nq - hidden + nv) and more."""
    seen = positions.shape[1] - body.hidden_positions
    out[:, :seen] = positions[:, body.hidden_positions :]
    target = out[:, seen : seen + velocities.shape[1]]
    if body.velocity_limit == math.inf:
        target[:] = velocities
    else:
        np.clip(velocities, -body.velocity_limit, body.velocity_limit, out=target)
