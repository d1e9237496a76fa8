"""The settings of an agent that learns by PPO, as the experiments in reinforcement learning offer them.

    ppo          standard PPO
    tuned-adam   with equal betas of Adam
    l2           with weight decay
    cbp, redo    continual backprop or ReDo, with a little weight decay
    fresh        new networks at every change of the environment: what there is to lose

Which numbers make a method stands in its fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator
from torch import nn
from torch.optim import Optimizer

from pliant.base.saving import all_or_nothing, load_part
from pliant.experiments.base import ShippedExperiment, is_own
from pliant.experiments.makers import Attached, Site
from pliant.experiments.methods import METHODS as ROWS
from pliant.experiments.methods import (
    UNIT_RESETS,
    Utility,
    check_fields,
    is_own_field,
    readers,
    replaced,
    rows_of,
)
from pliant.experiments.methods import Method as MethodRow
from pliant.lab import RunConfig, check_method
from pliant.rl.ppo import PPO
from pliant.rl.ppo.agents import Environments
from pliant.rl.ppo.settings import READ_BY, Settings

Method = Literal["ppo", "tuned-adam", "l2", "cbp", "redo", "fresh"]
METHODS: tuple[str, ...] = get_args(Method)

_FIELDS = {name: "redo_period" if name == "period" else name for name in READ_BY}  # a method's own setting -> our field
OF_PPO = ("cbp", "redo")  # which PPO makes itself


class AgentConfig(RunConfig, frozen=True):
    """Networks, PPO, Adam, and what acts on hidden units. The defaults are those of Dohare et al., Nature 632 (2024)."""

    renamed: ClassVar[Mapping[str, str]] = {"beta_1": "beta1", "beta_2": "beta2"}

    method: Method = "ppo"
    hidden: tuple[int, ...] = Field((256, 256), description="units of the actor's layers, and of the critic's")
    rollout_steps: int = Field(2048, gt=0, description="steps of each copy between updates")
    epochs: int = Field(10, gt=0, description="over a rollout")
    minibatch_size: int = Field(128, gt=0, description="states")
    step_size: float = Field(1e-4, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1, description="of Adam")
    beta2: float = Field(0.999, ge=0, lt=1, description="of Adam")
    weight_decay: float = Field(0.0, ge=0, description="coupled, of all parameters; method l2, cbp or redo")
    entropy_weight: float = Field(0.0, ge=0, description="of the entropy bonus")
    replacement_rate: float = Field(0.0, ge=0, le=1, description="share of mature units per gradient step; method cbp")
    maturity_threshold: int = Field(10_000, ge=0, description="gradient steps; method cbp")
    decay_rate: float = Field(0.99, ge=0, lt=1, description="of running averages; method cbp")
    utility: Utility = Field("contribution", description="method cbp")
    count: Literal["accumulate", "bernoulli"] = Field("bernoulli", description="how units are owed; method cbp")
    hand_over_mean: bool = Field(False, description="a replaced unit's mean goes to its consumers; method cbp")
    tau: float = Field(
        0.0, ge=0, description="share of the layer's mean activity that makes a unit dormant; method redo"
    )
    redo_period: int = Field(100, gt=0, description="gradient steps; method redo")
    optimizer_state: Literal["keep", "fresh"] = Field("keep", description="of replaced units; methods cbp and redo")

    @model_validator(mode="after")
    def _one_method(self) -> Self:
        check_fields(self, METHODS, weight_decay=("cbp", "redo"))
        for name in READ_BY:
            field = _FIELDS[name]
            methods = readers(rows_of(METHODS), field)
            if is_own_field(self, field):
                continue
            if self.method not in methods and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field} is read by method {' or '.join(methods)}, not {self.method}: leave it out")
        if self.method == "tuned-adam" and self.beta1 != self.beta2:
            raise ValueError(f"method tuned-adam has equal betas, not {self.beta1} and {self.beta2}")
        self.settings()  # what PPO refuses is refused here
        return self

    def settings(self) -> Settings:
        """As PPO takes them. Raises `LabError` for a method of a subclass, of which nothing here tells what PPO does by it."""
        if not is_own(self):
            check_method(self.method, METHODS, "settings() of the Config, which says what PPO does")
        method = self.method if self.method in OF_PPO else "none"
        own = {name: getattr(self, _FIELDS[name]) for name, methods in READ_BY.items() if method in methods}
        shared = ("hidden", "rollout_steps", "epochs", "minibatch_size", "step_size", "weight_decay", "entropy_weight")
        same = {name: getattr(self, name) for name in shared}
        return Settings(betas=(self.beta1, self.beta2), method=method, **same, **own)


class AgentExperiment(ShippedExperiment):
    """What the experiments on agents share."""

    rivals = UNIT_RESETS  # others know no stack
    methods = (*METHODS, *rivals)
    plain = "ppo"
    words = {"cbp": "cbp + L2", "redo": "ReDo + L2"}  # noqa: RUF012  (both with a little weight decay)


def agents(environments: Environments, config: AgentConfig, seeds: Sequence[int]) -> PPO:
    """Agents that learn by PPO and the method of `config`: PPO's own, or what the method's row makes."""
    row: MethodRow | None = getattr(type(config), "own_method", ROWS.get(config.method))
    if row is None or not row.acts or row.name in OF_PPO:
        return PPO(environments, config.settings(), seeds)
    return PPO(environments, config.settings(), seeds, method=partial(_beside_ppo, row, config))


def _beside_ppo(
    row: MethodRow, config: AgentConfig, networks: nn.Module, optimizer: Optimizer, groups: Any, seeds: list[int]
) -> HungOn:
    site = Site(
        networks, optimizer, config, seed=lambda purpose: seeds, units=lambda: {"groups": groups}, runs=len(seeds)
    )
    return HungOn(row.make(site), len(seeds))


class HungOn:
    """As PPO asks for a method, one that hangs on the optimizer: it acts by itself."""

    def __init__(self, method: Attached | None, agents: int) -> None:
        self.method, self.agents = method, agents

    def step(self) -> None:
        """Nothing: the optimizer's step was the method's."""

    def stats(self) -> dict[str, dict[str, Any]]:
        return {"all": {"replaced": replaced(self.method, self.agents)}}

    def restart(self) -> None:
        """Raises `TypeError` for a method that cannot begin anew, which would go on with what it knows of other networks."""
        begin = getattr(self.method, "restart", None)
        if self.method is not None and begin is None:
            raise TypeError(f"{type(self.method).__name__} has no restart(): networks beside it cannot be drawn anew")
        if begin is not None:
            begin()

    def state_dict(self) -> dict[str, Any]:
        return self.method.state_dict() if self.method else {}

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        load_part(self.method, {"method": state if self.method else state or None}, "method")
