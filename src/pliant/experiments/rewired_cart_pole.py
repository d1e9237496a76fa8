"""Re-wired cart-pole: does an agent learn its 50th task as well as its first, when its sensors are re-wired again and again?

Stream  a task every 8,192 steps of an agent (16 copies of 512): another mixing of the pole's state into 16 inputs, another
        offset of these, another order of the two actions; the agent is not told
Curve   mean return of the episodes that end in the last quarter of each task, by task; mean and 95% interval over seeds;
        dormant units and effective rank of the actor
Source  this project's; the question is that of Dohare et al., Nature 632 (2024), figure 3: docs/experiments/rewired-cart-pole.md

All methods of a seed meet the same tasks and start from the same weights. The seeds of a setting learn as a stack; a run
gives the same, to rounding, alone and in it.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas and matplotlib are typed in part)

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import count, product
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pliant.base.saving import all_or_nothing, count_in, load_part
from pliant.experiments.agent_config import AgentConfig, AgentExperiment, agents
from pliant.experiments.base import Cell, Profile, is_own
from pliant.lab import DONE, RUNNING, Context, RunStatus, diverged, shared_config
from pliant.lab.figures import Part, figure_of
from pliant.lab.film import Scene
from pliant.rl import environments
from pliant.rl.environments.cart_picture import cart_picture

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


class Config(AgentConfig, frozen=True):
    """One agent on one sequence of tasks."""

    tasks: int = Field(50, gt=0, description="tasks, one after the other")
    updates: int = Field(16, gt=3, description="rollouts a task, of `rollout_steps` steps of each copy")
    copies: int = Field(16, gt=0, description="carts that an agent balances at a time")
    inputs: int = Field(16, ge=4, description="numbers that the sensors give")
    time_limit: int = Field(200, gt=0, description="steps, after which an episode ends like a fall")
    hidden: tuple[int, ...] = Field((64, 64), description="units of the actor's layers, and of the critic's")
    rollout_steps: int = Field(32, gt=0, description="steps of each copy between updates")
    minibatch_size: int = Field(64, gt=0, description="states")
    step_size: float = Field(2e-3, gt=0)
    entropy_weight: float = Field(0.01, ge=0, description="of the entropy bonus")
    maturity_threshold: int = Field(300, ge=0, description="gradient steps; method cbp")
    count: Literal["accumulate", "bernoulli"] = Field("accumulate", description="how units are owed; method cbp")
    hand_over_mean: bool = Field(True, description="a replaced unit's mean goes to its consumers; method cbp")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        states = self.rollout_steps * self.copies
        if states % self.minibatch_size:
            raise ValueError(
                f"a rollout has {states} states, which minibatch_size ({self.minibatch_size}) does not divide"
            )
        task = self.updates * self.rollout_steps
        if self.time_limit > task:
            raise ValueError(
                f"an episode may last time_limit ({self.time_limit}) steps, and a task has {task} of each copy"
            )
        return self


COLUMNS = {
    "task": "number of the task, from 1",
    "late_return": "mean return of the episodes that end in the last quarter of the task, or in all of it where none does",
    "step": "environment steps of the agent at the end of the task, all copies counted",
    "whole_return": "mean return of the episodes that end in an update, mean over those of the task in which any does",
    "failed": "1 where late_return is below 60, else 0",
    "actor_dormant": "share of the actor's hidden units above 0 on less than 1% of the task's last 512 states",
    "critic_dormant": "the same of the critic",
    "effective_rank": "of the actor's last hidden layer on these states; 0 where none of its units fires",
    "actor_weight_magnitude": "mean |weight| of the matrix that enters the actor's last hidden layer",
    "entropy": "of the policy on these states, nats",
    "weight_change": "the largest change of an update: sum of |new - old| over the actor's matrices",
    "replaced": "hidden units replaced so far",
}
MEASURED = ("actor_dormant", "critic_dormant", "effective_rank", "actor_weight_magnitude", "entropy")
FAILURE = 60.0  # of 200; who acts at random earns 22


class Agents:
    """The runs of a job: one setting, several seeds, as a stack that goes through its tasks together."""

    def __init__(self, configs: Sequence[Config]) -> None:
        self.config = config = shared_config(configs)
        seeds = [each.seed for each in configs]
        self.carts = environments.RewiredCartPole(
            seeds=seeds, copies=config.copies, inputs=config.inputs, time_limit=config.time_limit
        )
        self.ppo = agents(self.carts, config, seeds)
        self.task = 0  # the one at hand

    @property
    def steps_done(self) -> int:
        """In tasks, as `steps_total`."""
        return self.task

    @property
    def steps_total(self) -> int:
        return self.config.tasks

    def statuses(self) -> list[RunStatus]:
        alive = DONE if self.task >= self.config.tasks else RUNNING
        return [alive if step < 0 else diverged(int(step)) for step in self.ppo.diverged_at]

    def state_dict(self) -> dict[str, Any]:
        return {"task": self.task, "ppo": self.ppo.state_dict()}

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.task = count_in(state, "task")
        load_part(self.ppo, state, "ppo")

    def learn_a_task(self) -> dict[str, NDArray[Any]]:
        """All of it; what it was like, each (agents,)."""
        self.begin_task()
        agents = self.carts.agents
        sums, ended = np.zeros((self.config.updates, agents)), np.zeros((self.config.updates, agents), np.int64)
        weight_change = np.zeros(agents)
        for number in range(self.config.updates):
            episodes, update = self.ppo.iterate()
            np.add.at(sums[number], episodes.agent, episodes.returns)
            np.add.at(ended[number], episodes.agent, 1)
            np.maximum(weight_change, update.weight_change, out=weight_change)
        self.task += 1
        return {**self.measures(sums, ended), "weight_change": weight_change}

    def begin_task(self) -> None:
        """Re-wire the sensors; for method fresh everything starts over."""
        if self.task:
            self.carts.begin_task(self.task)
            self.ppo.forget_episodes()
            if self.config.method == "fresh":
                self.ppo.restart()

    def measures(self, sums: NDArray[np.float64], ended: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """From the returns of the episodes that ended, and how many did, (updates, agents)."""
        agents, late = self.carts.agents, slice(-(self.config.updates // 4), None)
        late_return = np.where(ended[late].any(0), _mean(sums[late], ended[late]), _mean(sums, ended))
        measures = self.ppo.measures(self.config.rollout_steps * self.config.copies)
        return {
            "task": np.full(agents, self.task),
            "late_return": late_return,
            "step": np.full(agents, self.ppo.steps),
            "whole_return": _mean(sums / np.maximum(ended, 1), ended > 0),
            "failed": (late_return < FAILURE).astype(np.int64),
            **{name: measures[name] for name in MEASURED},
            "replaced": self.ppo.replaced(),
        }


def _mean(sums: NDArray[np.float64], counts: NDArray[Any]) -> NDArray[np.float64]:
    """Over axis 0; 0 where nothing was counted."""
    return sums.sum(0) / np.maximum(counts.sum(0), 1)


class RewiredCartPole(AgentExperiment):
    """The experiment, as the laboratory runs it."""

    Config = Config
    columns = COLUMNS
    shares: ClassVar[Sequence[str]] = ("failed", "actor_dormant", "critic_dormant")
    devices: ClassVar[Sequence[str]] = ("cpu",)
    length: ClassVar[str] = "tasks"

    def stack_key(self, config: Config, device: str) -> Hashable:
        return config if is_own(config) else config.model_copy(update={"seed": 0})

    def start(self, configs: Sequence[Config], context: Context) -> Agents:
        return Agents(configs)

    def advance(self, state: Agents) -> dict[str, NDArray[Any]]:
        found = state.learn_a_task()
        alive = np.flatnonzero(state.ppo.diverged_at < 0)
        return {"run": alive, **{name: found[name][alive] for name in COLUMNS}}

    def watch(self, state: Agents, run: int) -> Iterator[Scene]:
        """An episode of the task at hand, by the likeliest actions."""
        carts = state.carts
        carts.restart()
        for step in count():
            if state.ppo.diverged_at[run] >= 0:
                break
            yield Scene(cart_picture(carts.states[run, 0]), f"task {carts.tasks[run] + 1}   step {step}", carts.seconds)
            led_to = carts.step(state.ppo.greedy_actions())
            if led_to.terminated[run, 0] or led_to.truncated[run, 0]:
                break

    def figure(self, rows: pandas.DataFrame) -> Figure:
        """Return late in each task, share of failed tasks, effective rank, dormant units."""
        table = self.curves(rows)
        bins = max(1, table["task"].nunique() // TASKS_PER_BIN)
        part = Part(table, [("task", y) for y in list(LABELS)[1:]], bins=bins)
        return figure_of([part], self.look, LABELS, interval="bootstrap", bounds=self.bounds())


TASKS_PER_BIN = 5
LABELS = {
    "task": "task",
    "late_return": "return late in a task",
    "failed": "share of failed tasks",
    "effective_rank": "effective rank of the actor's last layer",
    "actor_dormant": "share of the actor's dormant units",
}


# -- profiles ---------------------------------------------------------------------------------------------------------

_TUNED: Cell = {"beta1": 0.99, "beta2": 0.99}
_OWN: dict[str, Cell] = {  # chosen by profile tuning
    "ppo": {"step_size": 2e-3},
    "tuned-adam": {"step_size": 1e-3, **_TUNED},
    "l2": {"step_size": 1e-3, "weight_decay": 1e-3},
    "cbp": {"step_size": 2e-3, "weight_decay": 1e-4, "replacement_rate": 1e-3},
    "redo": {"step_size": 2e-3, "weight_decay": 1e-4, "tau": 0.1},
    "fresh": {"step_size": 1e-3},
}
_STEP_SIZES = (5e-4, 1e-3, 2e-3, 4e-3)
_LARGER = (8e-3, 1.6e-2)


def _small() -> list[Cell]:
    return [{"method": method, **own} for method, own in _OWN.items()]


def _quick() -> list[Cell]:
    return [{"method": method, **_OWN[method]} for method in ("ppo", "l2", "cbp", "fresh")]


def _tuning() -> list[Cell]:
    """Four step sizes for all methods, by three values of what is a method's own; two larger ones where there is nothing."""
    cells: list[Cell] = []
    for method, step_size in product(("ppo", "tuned-adam", "fresh"), (*_STEP_SIZES, *_LARGER)):
        cells.append({"method": method, "step_size": step_size, **(_TUNED if method == "tuned-adam" else {})})
    own: tuple[tuple[str, str, tuple[float, ...], Cell], ...] = (
        ("l2", "weight_decay", (1e-4, 1e-3, 1e-2), {}),
        ("cbp", "replacement_rate", (3e-4, 1e-3, 3e-3), {"weight_decay": 1e-4}),
        ("redo", "tau", (0.025, 0.1, 0.3), {"weight_decay": 1e-4}),
    )
    for method, name, values, others in own:
        for step_size, value in product(_STEP_SIZES, values):
            cells.append({"method": method, "step_size": step_size, name: value, **others})
    return cells


RewiredCartPole.plans = {
    "quick": Profile(
        "30 tasks, 2 seeds of standard PPO, L2, continual backprop and a fresh network: 100 s on two cores",
        _quick,
        range(2),
        {"tasks": 30},
        seeds_first=True,
    ),
    "small": Profile(
        "50 tasks, 5 seeds, all methods: 9 core-minutes", _small, range(5), {"tasks": 50}, seeds_first=True
    ),
    "tuning": Profile(
        "what the settings of small are chosen from: 54, 30 tasks, seeds 1000-1002: 55 core-minutes",
        _tuning,
        range(1000, 1003),
        {"tasks": 30},
        seeds_first=True,
    ),
}
