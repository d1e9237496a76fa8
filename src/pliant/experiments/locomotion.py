"""Walking on ground that changes: does an agent go on improving, on ice as on rubber, after nine changes of friction?

Stream  one body for each agent; with `friction_period`, the friction of every contact is redrawn, log-uniform in [0.02, 2], as
        the first episode begins after every so many steps; the agent is not told
Curve   mean return of the episodes that end in each stretch of `stretch` rollouts, over environment steps; dormant units,
        ranks, weight magnitudes, largest weight change of an update
Source  Dohare et al., Nature 632 (2024), figures 3 and 4; departures: docs/experiments/slippery-ant.md

All methods of a seed meet the same frictions and start from the same weights. The seeds of a setting learn as a stack of at
most `SEEDS_A_JOB`; a run gives the same, to rounding, alone and in it.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas and matplotlib are typed in part)

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pliant.experiments.agent_config import COLOURS, METHODS, NAMES, WORDS, AgentConfig
from pliant.lab import DONE, RUNNING, Context, RunStatus, diverged, shared_config
from pliant.lab.curves import with_curves
from pliant.lab.figures import band, looks, panels
from pliant.lab.film import Scene
from pliant.rl.environments import FrictionSchedule, MujocoBatch
from pliant.rl.environments.rendering import Camera
from pliant.rl.ppo import MEASURES, PPO, Episodes

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

SEEDS_A_JOB = 8  # more gain little, and leave cores idle
STEPS = 8192  # environment steps of all agents in an advance, a few seconds

Cell = dict[str, Any]


class Config(AgentConfig, frozen=True):
    """One agent in one body. The defaults are the article's slippery ant."""

    body: Literal["ant", "half-cheetah", "hopper", "walker2d"] = "ant"
    steps: int = Field(20_000_000, gt=0, description="environment steps, of which those of whole rows are taken")
    friction_period: int = Field(0, ge=0, description="environment steps between changes of friction; 0: it stays")
    lowest_friction: float = Field(0.02, gt=0, description="of what is drawn")
    highest_friction: float = Field(2.0, gt=0, description="of what is drawn")
    stretch: int = Field(10, gt=0, description="rollouts that a row is the mean of")
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
                f"steps ({self.steps}) are fewer than a row's: {self.stretch} rollouts of {self.rollout_steps}"
            )
        FrictionSchedule(self.lowest_friction, self.highest_friction)  # what it refuses is refused here
        if not self.friction_period and (self.lowest_friction, self.highest_friction) != (0.02, 2.0):
            raise ValueError("lowest_friction and highest_friction need a friction_period")
        return self

    @property
    def rollouts(self) -> int:
        """Those of whole stretches."""
        return self.steps // (self.rollout_steps * self.stretch) * self.stretch


class OneGround(Config, frozen=True):
    """The same where nothing changes."""

    method: Literal["ppo", "tuned-adam", "l2", "cbp", "redo"] = "ppo"  # pyright: ignore[reportIncompatibleVariableOverride]
    friction_period: Literal[0] = Field(0, description="the ground stays")  # pyright: ignore[reportIncompatibleVariableOverride]


COLUMNS = {
    "step": "environment steps so far",
    "return": "undiscounted, mean of the episodes that ended in the stretch (NaN: none did)",
    "episodes": "that ended in the stretch",
    "length": "their mean length, steps (NaN: none ended)",
    "friction": "of the ground at the end of the stretch",
    "task": "number of the friction that was due as the stretch began, from 1",
    **{name: f"{meaning}; the last 1000 states of the stretch" for name, meaning in MEASURES.items()},
    "weight_change": "largest change of an update of the stretch: sum of |new - old| over the actor's matrices, redrawn ones too",
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
        self.ppo = PPO(self.bodies, config.settings(), seeds)
        self.ground = self.bodies.frictions[:, 0]  # that each agent's networks were last renewed for
        self.task = 0  # friction that was due as the stretch began
        # of the stretch at hand: sums over its episodes, and the largest change
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
        return {"task": self.task, "ground": self.ground.copy(), **sums, "ppo": self.ppo.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.task, self.ground = state["task"], state["ground"].copy()
        for name in ("returns", "lengths", "weight_change", "ended"):
            setattr(self, name, state[name].copy())
        self.ppo.load_state_dict(state["ppo"])

    def learn_a_while(self) -> dict[str, NDArray[Any]] | None:
        """A part of a rollout, and the update where it is full; what the stretch was like if it ended, each (agents,)."""
        self._note(self.ppo.collect(max(1, STEPS // self.bodies.agents)))
        if not self.ppo.full:
            return None
        np.maximum(self.weight_change, self.ppo.update().weight_change, out=self.weight_change)
        found = None
        if self.ppo.updates % self.config.stretch == 0:
            found = self._measures()
            self.task = self._due
            for sums in (self.returns, self.lengths, self.weight_change, self.ended):
                sums[:] = 0
        if self.config.method == "fresh":
            self._renew()
        return found

    def _renew(self) -> None:
        """New networks for the agents that came to other ground in the rollout just learned from."""
        ground = self.bodies.frictions[:, 0]
        moved = np.flatnonzero(ground != self.ground)
        if len(moved):
            self.ppo.restart(moved.tolist())
        self.ground = ground

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


class Locomotion(ABC):
    """An experiment, as the laboratory runs it; those below say which body, and what the profiles run."""

    Config: ClassVar[type[Config]] = Config
    columns: ClassVar[Mapping[str, str]] = COLUMNS
    weights: ClassVar[Mapping[str, str]] = {"return": "episodes", "length": "episodes"}
    methods: ClassVar[Sequence[str]] = METHODS
    devices: ClassVar[Sequence[str]] = ("cpu",)
    length: ClassVar[str] = "steps"
    profiles: ClassVar[Mapping[str, str]]

    @abstractmethod
    def cells(self, profile: str) -> tuple[Cell, Sequence[Cell], Sequence[int]]:
        """What all runs of a profile share, what each method adds, and the seeds."""

    def runs(self, profile: str) -> list[Config]:
        common, methods, seeds = self.cells(profile)
        return [self.Config(**common, **cell, seed=seed) for cell in methods for seed in seeds]

    def stack_key(self, config: Config, device: str) -> Hashable:
        return config.model_copy(update={"seed": config.seed // SEEDS_A_JOB})

    def start(self, configs: Sequence[Config], context: Context) -> Agents:
        return Agents(configs)

    def advance(self, state: Agents) -> dict[str, NDArray[Any]]:
        found = state.learn_a_while()
        alive = np.flatnonzero(state.ppo.diverged_at < 0)
        if found is None:
            return {"run": alive[:0], **{name: np.zeros(0) for name in COLUMNS}}
        return {"run": alive, **{name: found[name][alive] for name in COLUMNS}}

    def watch(self, state: Agents, run: int) -> Iterator[Scene]:
        """An episode on the ground of the day, by the likeliest actions."""
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
        """Return over steps and by ground, ranks, dormant units, weights, their largest change; two rows for each body."""
        from matplotlib.ticker import MaxNLocator

        table: Any = rows
        figure, axes = panels(2 * table["body"].nunique(), len(PANELS) // 2)
        by_body = [axes[first] + axes[first + 1] for first in range(0, len(axes), 2)]
        for (body, rows_of_body), row in zip(table.groupby("body", sort=False), by_body, strict=True):
            cell: Any = with_curves(rows_of_body, COLUMNS, NAMES, WORDS, panel=["body"])
            look = looks(cell, COLOURS)
            period, *others = cell["friction_period"].unique()  # where there are several, the curves' names say them
            redrawn = f", friction redrawn every {period:,} steps" if period and not others else ""
            row[0].set_title(f"{body}{redrawn}", loc="left")
            for panel, (x, y) in zip(row, PANELS, strict=True):
                if x == "task":
                    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
                band(
                    *(panel, cell, x, y),
                    by="curve",
                    weight=self.weights.get(y),
                    bins=BINS,
                    look=look,
                    labels=LABELS,
                    interval="bootstrap",
                )
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
    "task": "number of the ground",
    "return": "return of an episode",
    "effective_rank": "effective rank of the actor's last layer",
    "actor_dormant": "share of the actor's dormant units",
    "actor_weight_magnitude": "mean |weight|, actor's last hidden matrix",
    "weight_change": "largest change of an update",
}


# -- profiles ---------------------------------------------------------------------------------------------------------

_TUNED: Cell = {"beta_1": 0.99, "beta_2": 0.99}
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
_FIVE_GROUNDS: Cell = {"steps": 5 * 204_800, "friction_period": 204_800}  # of ten rows each
_QUICK: Cell = {"steps": 8 * 2048, "stretch": 2, "hidden": (64, 64)}
_QUICK_METHODS: tuple[Cell, ...] = (_STANDARD, {**_CBP, "replacement_rate": 1e-2, "maturity_threshold": 200})
_DOES_IT_RUN = "16,384 steps, a small network, 2 seeds of standard PPO and continual backprop: does it run"


class SlipperyAnt(Locomotion):
    """The article's figure 3, and a part of it."""

    profiles: ClassVar[Mapping[str, str]] = {
        "quick": _DOES_IT_RUN,
        "small": "the first 6M steps of it, three grounds, 1 seed of standard PPO and continual backprop: 1.6 core-hours",
        "paper": "20M steps, a change every 2M, 30 seeds of six methods: about 50 core-hours a method",
    }

    def cells(self, profile: str) -> tuple[Cell, Sequence[Cell], Sequence[int]]:
        ant: Cell = {"body": "ant", "padding": 84}
        return {
            "quick": ({**ant, **_QUICK, "friction_period": 4096}, _QUICK_METHODS, range(2)),
            "small": ({**ant, **_CHANGING, "steps": 6_000_000}, (_STANDARD, _CBP), range(1)),
            "paper": ({**ant, **_CHANGING}, (*_ARTICLE, _FRESH), range(30)),
        }[profile]


class SlipperyCheetah(Locomotion):
    """The cheaper body on the same kind of ground."""

    profiles: ClassVar[Mapping[str, str]] = {
        "quick": _DOES_IT_RUN,
        "small": "1M steps, five grounds, 2 seeds of six methods: about an hour on two cores",
        "paper": "20M steps, a change every 2M, 30 seeds of six methods",
    }

    def cells(self, profile: str) -> tuple[Cell, Sequence[Cell], Sequence[int]]:
        cheetah: Cell = {"body": "half-cheetah"}
        return {
            "quick": ({**cheetah, **_QUICK, "friction_period": 4096}, _QUICK_METHODS, range(2)),
            "small": ({**cheetah, **_FIVE_GROUNDS}, (*_ARTICLE, _FRESH), range(2)),
            "paper": ({**cheetah, **_CHANGING}, (*_ARTICLE, _FRESH), range(30)),
        }[profile]


def _stationary(body: Cell, steps: int, profile: str) -> tuple[Cell, Sequence[Cell], Sequence[int]]:
    return {
        "quick": ({**body, **_QUICK}, _QUICK_METHODS, range(2)),
        "paper": ({**body, "steps": steps}, _ARTICLE, range(30)),
    }[profile]


class Ant(Locomotion):
    """The article's figure 4: nothing changes but the agent itself."""

    Config = OneGround
    profiles: ClassVar[Mapping[str, str]] = {
        "quick": _DOES_IT_RUN,
        "paper": "50M steps, 30 seeds of five methods: about 130 core-hours a method",
    }

    def cells(self, profile: str) -> tuple[Cell, Sequence[Cell], Sequence[int]]:
        return _stationary({"body": "ant", "padding": 84}, 50_000_000, profile)


class Hopper(Locomotion):
    """One leg, nothing changes."""

    Config = OneGround
    profiles: ClassVar[Mapping[str, str]] = {"quick": _DOES_IT_RUN, "paper": "100M steps, 30 seeds of five methods"}

    def cells(self, profile: str) -> tuple[Cell, Sequence[Cell], Sequence[int]]:
        return _stationary({"body": "hopper"}, 100_000_000, profile)


class Walker2d(Locomotion):
    """Two legs, nothing changes."""

    Config = OneGround
    profiles: ClassVar[Mapping[str, str]] = {"quick": _DOES_IT_RUN, "paper": "50M steps, 30 seeds of five methods"}

    def cells(self, profile: str) -> tuple[Cell, Sequence[Cell], Sequence[int]]:
        return _stationary({"body": "walker2d"}, 50_000_000, profile)
