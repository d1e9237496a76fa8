"""The settings of an agent that learns by PPO, as the experiments in reinforcement learning offer them.

    ppo          standard PPO
    tuned-adam   with equal betas of Adam
    l2           with weight decay
    cbp, redo    continual backprop or ReDo, with a little weight decay
    fresh        new networks at every change of the world: what there is to lose

Which numbers make a method stands in its fields.
"""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from pliant.experiments.continual_backprop import Utility
from pliant.lab import RunConfig, check_method, check_owners
from pliant.rl.ppo.settings import READ_BY, Settings

Method = Literal["ppo", "tuned-adam", "l2", "cbp", "redo", "fresh"]
METHODS: tuple[str, ...] = get_args(Method)

_FIELDS = {name: "redo_period" if name == "period" else name for name in READ_BY}  # a method's own setting -> our field
_MAKES = {"replacement_rate": ("cbp",), "tau": ("redo",)}  # 0 but for the method that cannot do without


class AgentConfig(RunConfig, frozen=True):
    """Networks, PPO, Adam, and what acts on hidden units. The defaults are those of Dohare et al., Nature 632 (2024)."""

    method: Method = "ppo"
    hidden: tuple[int, ...] = Field((256, 256), description="units of the actor's layers, and of the critic's")
    rollout_steps: int = Field(2048, gt=0, description="steps of each copy between updates")
    epochs: int = Field(10, gt=0, description="passes over a rollout")
    minibatch_size: int = Field(128, gt=0, description="states")
    step_size: float = Field(1e-4, gt=0)
    beta_1: float = Field(0.9, ge=0, lt=1, description="of Adam")
    beta_2: float = Field(0.999, ge=0, lt=1, description="of Adam")
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
        check_owners(self, {"weight_decay": ("l2", "cbp", "redo"), **_MAKES})
        for name, methods in READ_BY.items():
            field = _FIELDS[name]
            if self.method not in methods and getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"{field} is read by method {' or '.join(methods)}, not {self.method}: leave it out")
        if self.method == "tuned-adam" and self.beta_1 != self.beta_2:
            raise ValueError(f"method tuned-adam has equal betas, not {self.beta_1} and {self.beta_2}")
        self.settings()  # what PPO refuses is refused here
        return self

    def settings(self) -> Settings:
        """As PPO takes them. Raises `LabError` for a method of a subclass, of which nothing here tells what PPO does by it."""
        check_method(self.method, METHODS, "settings() of the Config, which says what PPO does")
        method = self.method if self.method in ("cbp", "redo") else "none"
        own = {name: getattr(self, _FIELDS[name]) for name, methods in READ_BY.items() if method in methods}
        shared = ("hidden", "rollout_steps", "epochs", "minibatch_size", "step_size", "weight_decay", "entropy_weight")
        same = {name: getattr(self, name) for name in shared}
        return Settings(betas=(self.beta_1, self.beta_2), method=method, **same, **own)


# how figures call and draw them

NAMES = {
    "ppo": "standard PPO",
    "tuned-adam": "tuned Adam",
    "l2": "L2",
    "cbp": "cbp + L2",
    "redo": "ReDo + L2",
    "fresh": "fresh network",
}
WORDS = {"step_size": "", "weight_decay": "decay", "replacement_rate": "rate", "tau": "tau"}
COLOURS = {
    "ppo": "#D55E00",
    "tuned-adam": "#CC79A7",
    "l2": "#E69F00",
    "cbp": "#0072B2",
    "redo": "#009E73",
    "fresh": "#555555",
}
