"""The settings of continual backpropagation, as an experiment on a PyTorch network offers them, and the method they make."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from pliant.lab import RunConfig
from pliant.methods import ContinualBackprop

Utility = Literal[
    "contribution", "adaptable_contribution", "zero_contribution", "weight", "adaptation", "feature_by_input", "random"
]


class ReplacementConfig(RunConfig, frozen=True):
    """The fields that method cbp reads; the article's experiments differ in `maturity_threshold`."""

    replacement_rate: float = Field(0.0, ge=0, le=1, description="share of mature units per step; method cbp")
    maturity_threshold: int = Field(100, ge=0, description="steps; method cbp")
    decay_rate: float = Field(0.99, ge=0, lt=1, description="of running averages; method cbp")
    utility: Utility = Field("contribution", description="method cbp")
    eligible: Literal["mature", "all"] = Field("mature", description="of which units the rate is a share; method cbp")
    hand_over_mean: bool = Field(True, description="a replaced unit's mean goes to its consumers; method cbp")
    optimizer_state: Literal["fresh", "keep"] = Field("fresh", description="of replaced units; method cbp")

    def continual_backprop(self, network: nn.Module, optimizer: Optimizer, **where: Any) -> ContinualBackprop:
        """The method with these settings; `where`: its other arguments (`groups` or `example_inputs`, `seed`, ...)."""
        return ContinualBackprop(
            network,
            optimizer,
            replacement_rate=self.replacement_rate,
            maturity_threshold=self.maturity_threshold,
            decay_rate=self.decay_rate,
            utility=self.utility,
            eligible=self.eligible,
            hand_over_mean=self.hand_over_mean,
            optimizer_state=self.optimizer_state,
            **where,
        )


def replaced(method: object, runs: int = 1) -> list[int]:
    """Units that a method has replaced so far, of each run; 0 where it is no continual backpropagation."""
    if not isinstance(method, ContinualBackprop):
        return [0] * runs
    return [sum(of_run) for of_run in zip(*(group["replaced"] for group in method.stats().values()), strict=True)]
