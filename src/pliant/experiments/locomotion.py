"""Walking under changing friction: does an agent go on improving, on ice as on rubber, after nine changes?

Stream  one body for each agent; with `friction_period`, the friction of every contact is redrawn, log-uniform in [0.02, 2], as
        the first episode begins after every so many steps; the agent is not told
Curve   mean return of the episodes that end in every `rollouts_per_row` rollouts, over environment steps; dormant units,
        ranks, weight magnitudes, largest weight change of an update
Source  Dohare et al., Nature 632 (2024), figures 3 and 4; departures: docs/experiments/slippery-ant.md

All methods of a seed meet the same frictions and start from the same weights. The seeds of a setting learn as a stack of at
most `SEEDS_PER_JOB`; a run gives the same, to rounding, alone and in it.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas and matplotlib are typed in part)

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pliant.base.saving import all_or_nothing, count_in, entry, load_part
from pliant.experiments.agent_config import AgentConfig, AgentExperiment, agents
from pliant.experiments.base import Cell, Profile, is_own
from pliant.lab import DONE, RUNNING, Context, RunStatus, diverged, shared_config
from pliant.lab.figures import Part, figure_of
from pliant.lab.film import Scene
from pliant.rl.environments import FrictionSchedule, MujocoBatch
from pliant.rl.environments.rendering import Camera
from pliant.rl.ppo import MEASURES, Episodes

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

SEEDS_PER_JOB = 8  # more gain little, and leave cores idle
STEPS_PER_ADVANCE = 8192  # environment steps of all agents in an advance, a few seconds


class Config(AgentConfig, frozen=True):
    """One agent in one body. The defaults are the article's slippery ant."""

    renamed: ClassVar[Mapping[str, str]] = {**AgentConfig.renamed, "stretch": "rollouts_per_row"}

    body: Literal["ant", "half-cheetah", "hopper", "walker2d"] = "ant"
    steps: int = Field(20_000_000, gt=0, description="environment steps, of which those of whole rows are taken")
    friction_period: int = Field(0, ge=0, description="environment steps between changes of friction; 0: it stays")
    lowest_friction: float = Field(0.02, gt=0, description="of what is drawn")
    highest_friction: float = Field(2.0, gt=0, description="of what is drawn")
    rollouts_per_row: int = Field(10, gt=0, description="rollouts that a row is the mean of")
    padding: int = Field(0, ge=0, description="zeros after an observation; 84 make the ant's 27 the 111 of Ant-v3")
    contact_margin: Literal["before-3.5", "installed"] = Field(
        "before-3.5", description="how near a contact begins: as in MuJoCo before 3.5, or as in the one installed"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.rollout_steps % self.minibatch_size:
            raise ValueError(
                f"a rollout has {self.rollout_steps} states, which minibatch_size ({self.minibatch_size}) does not divide"
            )
        if self.padding and self.body != "ant":
            raise ValueError(
                f"padding ({self.padding}) is of the ant's observation, not {self.body}'s: add --set padding=0"
            )
        if self.method == "fresh" and not self.friction_period:
            raise ValueError("method fresh starts over when friction changes: add --set friction_period=...")
        if not self.rollouts:
            raise ValueError(
                f"steps ({self.steps}) are fewer than a row's: {self.rollouts_per_row} rollouts of {self.rollout_steps}"
            )
        FrictionSchedule(self.lowest_friction, self.highest_friction)  # what it refuses is refused here
        if not self.friction_period and (self.lowest_friction, self.highest_friction) != (0.02, 2.0):
            raise ValueError("lowest_friction and highest_friction need a friction_period")
        return self

    @property
    def rollouts(self) -> int:
        """Those of whole rows."""
        return self.steps // (self.rollout_steps * self.rollouts_per_row) * self.rollouts_per_row


class Stationary(Config, frozen=True):
    """The same where nothing changes."""

    method: Literal["ppo", "tuned-adam", "l2", "cbp", "redo"] = "ppo"  # pyright: ignore[reportIncompatibleVariableOverride]
    friction_period: Literal[0] = Field(0, description="friction stays")  # pyright: ignore[reportIncompatibleVariableOverride]


COLUMNS = {
    "step": "environment steps so far",
    "return": "undiscounted, mean of the episodes that ended in the row's rollouts (NaN: none did)",
    "episodes": "that ended in these rollouts",
    "length": "their mean length, steps (NaN: none ended)",
    "friction": "at the end of these rollouts",
    "task": "number of the friction that was due as these rollouts began, from 1",
    **{name: f"{meaning}; the last 1000 states of these rollouts" for name, meaning in MEASURES.items()},
    "weight_change": "largest change of an update in these rollouts: sum of |new - old| over the actor's matrices, also redrawn",
    "replaced": "hidden units replaced so far",
}


class Agents:
    """The runs of a job: one setting, several seeds, as a stack."""

    def __init__(self, configs: Sequence[Config]) -> None:
        self.config = config = shared_config(configs)
        seeds = [each.seed for each in configs]
        self.schedule = None
        if config.friction_period:
            self.schedule = FrictionSchedule(config.lowest_friction, config.highest_friction, config.friction_period)
        self.bodies = MujocoBatch(
            config.body,
            seeds=seeds,
            friction=self.schedule,
            version="v4",
            padding=config.padding,
            contact_margin=config.contact_margin,
        )
        self.ppo = agents(self.bodies, config, seeds)
        self.friction = self.bodies.frictions[:, 0]  # that each agent's networks were last renewed for
        self.task = 0  # number of the friction that was due as the row at hand began
        # of the row at hand: sums over its episodes, and the largest change
        self.returns, self.lengths, self.weight_change = np.zeros((3, len(seeds)))
        self.ended = np.zeros(len(seeds), np.int64)

    @property
    def steps_done(self) -> int:
        return self.ppo.steps

    @property
    def steps_total(self) -> int:
        return self.config.rollouts * self.config.rollout_steps

    def statuses(self) -> list[RunStatus]:
        alive = DONE if self.ppo.updates >= self.config.rollouts else RUNNING
        return [alive if step < 0 else diverged(int(step)) for step in self.ppo.diverged_at]

    def state_dict(self) -> dict[str, Any]:
        sums = {name: getattr(self, name).copy() for name in ("returns", "lengths", "weight_change", "ended")}
        return {"task": self.task, "ground": self.friction.copy(), **sums, "ppo": self.ppo.state_dict()}

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.task, self.friction = count_in(state, "task"), entry(state, "ground", self.friction)
        for name in ("returns", "lengths", "weight_change", "ended"):
            setattr(self, name, entry(state, name, getattr(self, name)))
        load_part(self.ppo, state, "ppo")

    def learn_a_while(self) -> dict[str, NDArray[Any]] | None:
        """A part of a rollout, and the update where it is full; what the row at hand measured if it ended, each (agents,)."""
        self._note(self.ppo.collect(max(1, STEPS_PER_ADVANCE // self.bodies.agents)))
        if not self.ppo.full:
            return None
        np.maximum(self.weight_change, self.ppo.update().weight_change, out=self.weight_change)
        found = None
        if self.ppo.updates % self.config.rollouts_per_row == 0:
            found = self._measures()
            self.task = self._due
            for sums in (self.returns, self.lengths, self.weight_change, self.ended):
                sums[:] = 0
        if self.config.method == "fresh":
            self._renew()
        return found

    def _renew(self) -> None:
        """New networks for the agents whose friction changed in the rollout just learned from."""
        friction = self.bodies.frictions[:, 0]
        moved = np.flatnonzero(friction != self.friction)
        if len(moved):
            self.ppo.restart(moved.tolist())
        self.friction = friction

    @property
    def _due(self) -> int:
        """How many changes of friction were due by now."""
        return self.schedule.number(self.ppo.steps) if self.schedule else 0

    def _note(self, episodes: Episodes) -> None:
        np.add.at(self.returns, episodes.agent, episodes.returns)
        np.add.at(self.lengths, episodes.agent, episodes.length)
        np.add.at(self.ended, episodes.agent, 1)

    def _measures(self) -> dict[str, NDArray[Any]]:
        agents = len(self.ended)
        with np.errstate(invalid="ignore"):
            means = {"return": self.returns / self.ended, "length": self.lengths / self.ended}
        return {
            "step": np.full(agents, self.ppo.steps),
            **means,
            "episodes": self.ended.copy(),
            "friction": self.bodies.frictions[:, 0],
            "task": np.full(agents, self.task + 1),
            **self.ppo.measures(),
            "weight_change": self.weight_change.copy(),
            "replaced": self.ppo.replaced(),
        }


class Locomotion(AgentExperiment):
    """An experiment, as the laboratory runs it; those below say what the profiles run."""

    Config = Config
    columns = COLUMNS
    shares: ClassVar[Sequence[str]] = ("actor_dormant", "critic_dormant")
    weights: ClassVar[Mapping[str, str]] = {"return": "episodes", "length": "episodes"}
    devices: ClassVar[Sequence[str]] = ("cpu",)
    length: ClassVar[str] = "steps"

    def stack_key(self, config: Config, device: str) -> Hashable:
        return config if is_own(config) else config.model_copy(update={"seed": config.seed // SEEDS_PER_JOB})

    def start(self, configs: Sequence[Config], context: Context) -> Agents:
        return Agents(configs)

    def advance(self, state: Agents) -> dict[str, NDArray[Any]]:
        found = state.learn_a_while()
        alive = np.flatnonzero(state.ppo.diverged_at < 0)
        if found is None:
            return {"run": alive[:0], **{name: np.zeros(0) for name in COLUMNS}}
        return {"run": alive, **{name: found[name][alive] for name in COLUMNS}}

    def watch(self, state: Agents, run: int) -> Iterator[Scene]:
        """An episode under the friction at hand, by the likeliest actions."""
        bodies, returns = state.bodies, 0.0
        bodies.restart()
        camera = Camera(bodies, agent=run)
        while state.ppo.diverged_at[run] < 0:
            where = f"step {state.ppo.steps:,}   friction {bodies.frictions[run, 0]:.2f}   return {returns:.0f}"
            yield Scene(camera.picture(), where, bodies.seconds)
            led_to = bodies.step(state.ppo.greedy_actions())
            returns += float(led_to.rewards[run, 0])
            if led_to.terminated[run, 0] or led_to.truncated[run, 0]:
                break
        camera.close()

    def figure(self, rows: pandas.DataFrame) -> Figure:
        """Return over steps and by task, ranks, dormant units, weights, their largest change; two rows for each body."""
        from matplotlib.ticker import MaxNLocator

        table: Any = rows
        parts: list[Part] = []
        for body, rows_of_body in table.groupby("body", sort=False):
            cell = self.curves(rows_of_body, panel=["body"])
            period, *others = cell["friction_period"].unique()  # where there are several, the curves' names say them
            redrawn = f", friction redrawn every {period:,} steps" if period and not others else ""
            parts.append(Part(cell, PANELS, f"{body}{redrawn}", BINS))
        figure = figure_of(
            *(parts, self.look, LABELS),
            lines=2,
            weights=self.weights,
            interval="bootstrap",
            bounds=self.bounds(),
        )
        for panel in figure.axes:
            if panel.get_xlabel() == LABELS["task"]:
                panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        return figure


BINS = 50
PANELS = (
    ("step", "return"),
    ("task", "return"),
    ("step", "effective_rank"),
    ("step", "actor_dormant"),
    ("step", "actor_weight_magnitude"),
    ("step", "weight_change"),
)
LABELS = {
    "step": "environment steps",
    "task": "task",
    "return": "return of an episode",
    "effective_rank": "effective rank of the actor's last layer",
    "actor_dormant": "share of the actor's dormant units",
    "actor_weight_magnitude": "mean |weight|, actor's last hidden matrix",
    "weight_change": "largest change of an update",
}


# -- profiles ---------------------------------------------------------------------------------------------------------

_ANT: Cell = {"body": "ant", "padding": 84}
_CHEETAH: Cell = {"body": "half-cheetah"}
_TUNED: Cell = {"beta1": 0.99, "beta2": 0.99}
_STANDARD: Cell = {"method": "ppo"}
_CBP: Cell = {"method": "cbp", **_TUNED, "weight_decay": 1e-4, "replacement_rate": 1e-4}
_ARTICLE: tuple[Cell, ...] = (
    _STANDARD,
    {"method": "tuned-adam", **_TUNED},
    {"method": "l2", **_TUNED, "weight_decay": 1e-3},
    _CBP,
    {"method": "redo", **_TUNED, "weight_decay": 1e-4, "tau": 0.1},
)
_FRESH: Cell = {"method": "fresh"}
_CHANGING: Cell = {"friction_period": 2_000_000}
_FIVE_TASKS: Cell = {"steps": 5 * 204_800, "friction_period": 204_800}  # of ten rows each
_OFTEN: Cell = {"friction_period": 4096}
_QUICK: Cell = {"steps": 8 * 2048, "rollouts_per_row": 2, "hidden": (64, 64)}
_QUICK_METHODS: tuple[Cell, ...] = (_STANDARD, {**_CBP, "replacement_rate": 1e-2, "maturity_threshold": 200})
_DOES_IT_RUN = "16,384 steps, a small network, 2 seeds of standard PPO and continual backprop: does it run"


def _plan(words: str, common: Cell, cells: Sequence[Cell], seeds: Sequence[int]) -> Profile:
    return Profile(words, lambda: cells, seeds, common, seeds_first=True)


class SlipperyAnt(Locomotion):
    """The article's figure 3, and a part of it."""

    plans: ClassVar[Mapping[str, Profile]] = {
        "quick": _plan(_DOES_IT_RUN, {**_ANT, **_QUICK, **_OFTEN}, _QUICK_METHODS, range(2)),
        "small": _plan(
            "the first 6M steps of it, three tasks, 1 seed of standard PPO and continual backprop: 1.6 core-hours",
            {**_ANT, **_CHANGING, "steps": 6_000_000},
            (_STANDARD, _CBP),
            range(1),
        ),
        "paper": _plan(
            "20M steps, a change every 2M, 30 seeds of six methods: about 50 core-hours a method",
            {**_ANT, **_CHANGING},
            (*_ARTICLE, _FRESH),
            range(30),
        ),
    }


class SlipperyCheetah(Locomotion):
    """The cheaper body under the same kind of friction."""

    plans: ClassVar[Mapping[str, Profile]] = {
        "quick": _plan(_DOES_IT_RUN, {**_CHEETAH, **_QUICK, **_OFTEN}, _QUICK_METHODS, range(2)),
        "small": _plan(
            "1M steps, five tasks, 2 seeds of six methods: about an hour on two cores",
            {**_CHEETAH, **_FIVE_TASKS},
            (*_ARTICLE, _FRESH),
            range(2),
        ),
        "paper": _plan(
            "20M steps, a change every 2M, 30 seeds of six methods",
            {**_CHEETAH, **_CHANGING},
            (*_ARTICLE, _FRESH),
            range(30),
        ),
    }


def _where_nothing_changes(words: str, body: Cell, steps: int) -> dict[str, Profile]:
    return {
        "quick": _plan(_DOES_IT_RUN, {**body, **_QUICK}, _QUICK_METHODS, range(2)),
        "paper": _plan(words, {**body, "steps": steps}, _ARTICLE, range(30)),
    }


class Ant(Locomotion):
    """The article's figure 4: nothing changes but the agent itself."""

    Config = Stationary
    plans: ClassVar[Mapping[str, Profile]] = _where_nothing_changes(
        "50M steps, 30 seeds of five methods: about 130 core-hours a method", _ANT, 50_000_000
    )


class Hopper(Locomotion):
    """One leg, nothing changes."""

    Config = Stationary
    plans: ClassVar[Mapping[str, Profile]] = _where_nothing_changes(
        "100M steps, 30 seeds of five methods", {"body": "hopper"}, 100_000_000
    )


class Walker2d(Locomotion):
    """Two legs, nothing changes."""

    Config = Stationary
    plans: ClassVar[Mapping[str, Profile]] = _where_nothing_changes(
        "50M steps, 30 seeds of five methods", {"body": "walker2d"}, 50_000_000
    )
