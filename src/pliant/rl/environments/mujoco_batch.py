"""Many bodies on plain MuJoCo, one after the other in one thread: each has its own model, friction, seed and episode.

    qpos, qvel <- mj_step(qpos, qvel, a), `frame_skip` times      the arithmetic around it is done for all bodies at once

Observations and rewards are defined in `bodies.py`, friction in `friction.py`. Sliding friction is set on every geom, because a
contact takes the larger of the frictions of its two geoms: setting the floor's alone would leave the body's in force.

Source: gymnasium's `Ant-v4`, `Ant-v5` and their siblings, which this equals bit for bit when both take the same 64-bit actions.
Departures: start states are drawn from this package's named streams; see also `bodies.py`, `friction.py`, `physics.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.base.saving import all_or_nothing, count_in, entry
from pliant.rl.environments.base import Continuous, Floats, Transition
from pliant.rl.environments.bodies import Body, Version, all_finite, body_named, healthy, observe, reward, start
from pliant.rl.environments.counts import counts, finite, one_seed_each
from pliant.rl.environments.friction import FrictionSchedule, check_friction
from pliant.rl.environments.options import Friction, Options, one_for_each, refuse_other_settings
from pliant.rl.environments.physics import ContactMargin, Integrator, build_model, mujoco, warnings_logged
from pliant.streams import generator

TIME_LIMIT = 1000  # environment steps of an episode


class MujocoBatch:
    """`copies` bodies for each of `len(seeds)` agents. Raises ValueError on a bad option, ModuleNotFoundError without MuJoCo.

    >>> ants = MujocoBatch("ant", seeds=[0, 1], friction=FrictionSchedule(period=100_000), contact_forces=False)
    >>> ants.observations.shape, ants.actions
    ((2, 1, 27), Continuous(size=8, limit=1.0))
    >>> ants.step(np.zeros((2, 1, 8))).rewards.shape
    (2, 1)
    """

    def __init__(
        self,
        body: str | Body = "ant",  # a name of `BODIES`, or a body of your own
        *,
        seeds: Sequence[int] = (0,),
        copies: int = 1,
        friction: Friction = None,  # None: as in the XML; a number for all, or for each agent; or a schedule
        version: Version = "v5",
        contact_forces: bool | None = None,  # seen and charged; None: as gymnasium has it (the ant of v5 alone)
        padding: int = 0,  # zeros at the end of an observation: 84 make the ant's 27 the 111 of Ant-v3
        contact_margin: ContactMargin = "installed",
        integrator: Integrator | None = None,  # None: as in the XML
        clip_actions: bool = False,  # before they are charged for; the motors always clip
        time_limit: int = TIME_LIMIT,  # environment steps
    ) -> None:
        self.body, seeds = body if isinstance(body, Body) else body_named(body), one_seed_each(seeds)
        if contact_forces is None:
            contact_forces = self.body.feels_contact and version == "v5"
        self.options = Options(
            self.body, seeds, copies, one_for_each(friction, len(seeds)), version, contact_forces, padding, contact_margin,
            integrator, clip_actions, time_limit,
        )  # fmt: skip
        self.seeds, self.copies = seeds, copies
        self._simulators()
        self._arrays()
        if isinstance(self.options.friction, tuple):
            self.set_friction(np.array(self.options.friction)[:, None])
        self.restart()

    def __getstate__(self) -> dict[str, Any]:
        """The options and the state: a copy has simulators of its own, and goes on to the bit."""
        return {"options": self.options, "state": self.state_dict()}

    def __setstate__(self, held: dict[str, Any]) -> None:
        self.options = held["options"]
        self.body, self.seeds, self.copies = self.options.body, self.options.seeds, self.options.copies
        self._simulators()
        self._arrays()
        self.load_state_dict(held["state"])

    def _simulators(self) -> None:
        self._mj = mj = mujoco()
        self._kind = mj.mjtState.mjSTATE_INTEGRATION  # all that a simulation goes on from
        chosen = self.options
        self._models: list[Any] = [
            build_model(self.body, chosen.version, chosen.contact_margin, chosen.integrator)
            for _ in range(len(self.seeds) * self.copies)
        ]
        self.body.check_fits(int(self._models[0].nq))
        self._data: list[Any] = [mj.MjData(model) for model in self._models]
        # views of MuJoCo's own memory, made once: making one costs as much as reading it
        stands: list[Floats] = [data.xpos[1] if self.body.torso else data.qpos for data in self._data]
        self._views = [(data.qpos, data.qvel, where) for data, where in zip(self._data, stands, strict=True)]
        self._motors = [data.ctrl for data in self._data]

    def _arrays(self) -> None:
        bodies, model, chosen = len(self._data), self._models[0], self.options
        self.actions = Continuous(int(model.nu), float(model.actuator_ctrlrange[0, 1]))
        self.steps = 0  # of each copy, since the beginning
        self.seconds: float = model.opt.timestep * self.body.frame_skip  # that a step takes
        self._positions, self._velocities = np.zeros((bodies, model.nq)), np.zeros((bodies, model.nv))
        self._forces = np.zeros((bodies, model.nbody * 6)) if chosen.contact_forces else None
        # v5 leaves out MuJoCo's world body, whose forces are always 0
        self._felt_from = 6 if chosen.version == "v5" else 0
        self._where = np.zeros(bodies)  # along x, after the last step
        felt = 0 if self._forces is None else self._forces.shape[1] - self._felt_from
        self._moving = model.nq - self.body.hidden_positions + model.nv
        self._observations = np.zeros((bodies, self._moving + felt + chosen.padding))
        self._frictions = np.array([each.geom_friction[0, 0] for each in self._models])
        self._ages, self._episodes = np.zeros(bodies, np.int64), np.zeros(bodies, np.int64)

    @property
    def agents(self) -> int:
        return len(self.seeds)

    @property
    def observation_size(self) -> int:
        return self._observations.shape[1]

    @property
    def padding(self) -> int:
        """Numbers at the end of an observation that are always 0."""
        return self.options.padding

    @property
    def observations(self) -> Floats:
        """What the agents see now, (agents, copies, observation_size); a view that the next step writes over."""
        return self._shaped(self._observations)

    @property
    def frictions(self) -> Floats:
        """Sliding friction of each body, or of its first geom while those of the XML hold, (agents, copies)."""
        return self._shaped(self._frictions).copy()

    def simulation(self, agent: int = 0, copy: int = 0) -> tuple[Any, Any]:
        """The MjModel and MjData of one body, to look at."""
        index = agent * self.copies + copy
        return self._models[index], self._data[index]

    def set_friction(self, frictions: NDArray[Any] | float) -> None:
        """Change frictions now; `frictions` broadcasts to (agents, copies). A schedule takes over at the next episode."""
        values = np.broadcast_to(np.asarray(frictions, float), (self.agents, self.copies))
        for friction in values.flat:
            check_friction(float(friction))
        for index, friction in enumerate(values.flat):
            self._set_friction(index, float(friction))

    def _set_friction(self, index: int, friction: float) -> None:
        self._models[index].geom_friction[:, 0] = friction
        self._frictions[index] = friction

    def restart(self) -> None:
        """Begin an episode in every copy."""
        for index in range(len(self._data)):
            self._begin(index)

    def _begin(self, index: int) -> None:
        """Begin the next episode of one copy, with the friction that is due."""
        agent, copy = divmod(index, self.copies)
        seed, friction = self.seeds[agent], self.options.friction
        if isinstance(friction, FrictionSchedule):
            self._set_friction(index, friction.value(seed, friction.number(self.steps * self.copies)))
        random = generator(seed, "start of an episode", copy, int(self._episodes[index]))
        self._place(index, *start(self.body, self._models[index].qpos0, self._velocities.shape[1], random))
        self._episodes[index] += 1

    def place(self, positions: Floats, velocities: Floats, agent: int = 0, copy: int = 0) -> None:
        """Begin the episode of one copy over from `positions` (nq,) and `velocities` (nv,), in MuJoCo's own coordinates."""
        self._place(agent * self.copies + copy, positions, velocities)

    def _place(self, index: int, positions: Floats, velocities: Floats) -> None:
        model, data = self._models[index], self._data[index]
        self._mj.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = positions, velocities
        with warnings_logged():
            self._mj.mj_forward(model, data)
        self._ages[index] = 0
        self._read(index)
        self._observe(slice(index, index + 1))

    def _read(self, index: int) -> None:
        """Copy the state of one simulation."""
        positions, velocities, where = self._views[index]
        self._positions[index] = positions
        self._velocities[index] = velocities
        self._where[index] = where[0]
        if self._forces is not None:
            np.clip(self._data[index].cfrc_ext.reshape(-1), -1.0, 1.0, out=self._forces[index])

    def _observe(self, which: slice) -> None:
        seen = self._observations[which]
        observe(self.body, self._positions[which], self._velocities[which], seen)
        if self._forces is not None:
            felt = self._forces[which, self._felt_from :]
            seen[:, self._moving : self._moving + felt.shape[1]] = felt

    def step(self, actions: NDArray[Any], /) -> Transition:
        """Take a step everywhere; `actions` (agents, copies, motors). A body whose action is not finite does not move."""
        wanted = self._wanted(actions)
        sane = all_finite(wanted)
        before = self._where.copy()
        with warnings_logged():
            self._simulate(wanted, sane)
        self.steps += 1
        self._ages += 1
        alive = healthy(self.body, self._positions, self._velocities)
        with np.errstate(over="ignore", invalid="ignore"):
            speed = (self._where - before) / self.seconds
            earned = reward(self.body, self.options.version, speed, wanted, alive, self._forces)
        terminated = ~(alive & sane & np.isfinite(earned))
        truncated = self._ages >= self.options.time_limit
        self._observe(slice(None))
        led_to = self._observations.copy()
        for index in np.flatnonzero(terminated | truncated):
            self._begin(int(index))
        return Transition(*map(self._shaped, (led_to, earned, terminated, truncated)))

    def _wanted(self, actions: NDArray[Any]) -> Floats:
        expected = (self.agents, self.copies, self.actions.size)
        if np.shape(actions) != expected:
            raise ValueError(f"actions of shape {np.shape(actions)}: '{self.body.name}' expects {expected}")
        wanted = np.ascontiguousarray(actions, np.float64).reshape(-1, self.actions.size)
        return wanted.clip(-self.actions.limit, self.actions.limit) if self.options.clip_actions else wanted

    def _simulate(self, wanted: Floats, sane: NDArray[np.bool_]) -> None:
        step, skip = self._mj.mj_step, self.body.frame_skip
        for index, (model, data) in enumerate(zip(self._models, self._data, strict=True)):
            if sane[index]:
                self._motors[index][:] = wanted[index]
                step(model, data, skip)
                if self._forces is not None:
                    self._mj.mj_rnePostConstraint(model, data)
                self._read(index)

    def _shaped(self, values: NDArray[Any]) -> NDArray[Any]:
        return values.reshape(self.agents, self.copies, *values.shape[1:])

    def state_dict(self) -> dict[str, Any]:
        """The whole state, with the settings that it belongs to."""
        size = self._mj.mj_stateSize(self._models[0], self._kind)
        physics = np.zeros((len(self._data), size))
        for row, model, data in zip(physics, self._models, self._data, strict=True):
            self._mj.mj_getState(model, data, row, self._kind)
        geoms = np.stack([model.geom_friction[:, 0] for model in self._models])
        return {"settings": self._settings, "steps": self.steps, "physics": physics, "geom_friction": geoms} | {
            name: getattr(self, f"_{name}").copy() for name in self._remembered
        }

    @property
    def _settings(self) -> dict[str, str]:
        return self.options.as_text() | {"MuJoCo": self._mj.__version__}

    @property
    def _remembered(self) -> list[str]:
        names = ["positions", "velocities", "where", "observations", "frictions", "ages", "episodes"]
        return names if self._forces is None else [*names, "forces"]

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go on from that state, to the bit.

        Raises ValueError, with nothing changed, where it is of other settings or another MuJoCo.
        """
        refuse_other_settings(state["settings"], self._settings)
        steps, here = count_in(state, "steps"), self.state_dict()
        physics, geoms = (finite(state, name, here[name]) for name in ("physics", "geom_friction"))
        read = {"ages": counts, "episodes": counts}
        held = {name: read.get(name, entry)(state, name, here[name]) for name in self._remembered}
        self.steps = steps
        for index, (model, data) in enumerate(zip(self._models, self._data, strict=True)):
            model.geom_friction[:, 0] = geoms[index]
            self._mj.mj_resetData(model, data)
            self._mj.mj_setState(model, data, np.ascontiguousarray(physics[index]), self._kind)
        for name, value in held.items():
            getattr(self, f"_{name}")[:] = value
