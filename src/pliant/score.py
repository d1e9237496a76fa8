"""Scores: how useful units have been, as the engine remembers it between steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import nan
from typing import Any

import torch
from torch import Tensor

from pliant.units.activity import Reading
from pliant.units.bound import BoundGroup, Chosen
from pliant.utility import Seen, Utility, corrected, dormancy, named_utility, running_average


class RunningUtility:
    """A running average of a utility, and of each column's mean activity, both corrected for their start at 0.

    Args:
        utility: a name of `pliant.utility.UTILITIES`, or a `Utility`.
        decay_rate: of both averages, in [0, 1); 0 makes them instantaneous.
    """

    keeps_means = True

    @property
    def settings(self) -> dict[str, Any]:
        return {"utility": self.rule.name, "decay_rate": self.decay_rate}

    def __init__(self, utility: str | Utility = "contribution", decay_rate: float = 0.99) -> None:
        if not 0.0 <= decay_rate < 1.0:
            raise ValueError(f"decay_rate must lie in [0, 1), got {decay_rate}")
        self.rule = named_utility(utility)
        self.decay_rate = decay_rate
        self.reads: Sequence[Reading] = self.rule.reads
        self._utility: dict[str, Tensor] = {}
        self._mean: dict[str, Tensor] = {}

    def bind(self, groups: Sequence[BoundGroup]) -> None:
        for group in groups:
            self._utility[group.name] = torch.zeros_like(group.age, dtype=group.dtype)
            self._mean[group.name] = self._utility[group.name].unsqueeze(-1).repeat(1, 1, group.columns)
            group.activity.centre = partial(self._centre, group)

    def update(self, group: BoundGroup) -> None:
        """Average in this step's activity with the weights as the optimizer left them."""
        mean = self._mean[group.name]
        activity = {
            name: _broken_as_nan(value.to(mean.dtype)).view_as(mean) for name, value in group.activity.take().items()
        }
        mean.copy_(running_average(mean, activity["mean"], self.decay_rate))
        seen = Seen(
            magnitude=activity.get("magnitude", mean),
            centred=activity.get("centred", mean),
            outgoing=group.outgoing_magnitude(),
            incoming=group.incoming_magnitude(),
        )
        utility = self._utility[group.name]
        utility.copy_(running_average(utility, self.rule(seen), self.decay_rate))

    def _centre(self, group: BoundGroup, mean_so_far: Tensor) -> Tensor:
        """The running mean that the coming step will have, for centred utilities; (runs, columns)."""
        mean = self._mean[group.name].flatten(1).to(mean_so_far.device)
        age = (group.age + 1).repeat_interleave(group.columns, dim=1).to(mean_so_far.device)
        return corrected(running_average(mean, mean_so_far, self.decay_rate), age, self.decay_rate)

    def value(self, group: BoundGroup, generators: Sequence[torch.Generator]) -> Tensor:
        """Corrected utility, (runs, units); for `utility="random"` a fresh uniform number each."""
        if self.rule.name == "random":
            drawn = torch.stack([torch.rand(group.units, generator=each) for each in generators])
            return drawn.to(group.age.device, group.dtype)
        return corrected(self._utility[group.name], group.age, self.decay_rate)

    def mean(self, group: BoundGroup) -> Tensor:
        """Corrected mean activity, (runs, units, columns)."""
        return corrected(self._mean[group.name], group.age.unsqueeze(-1), self.decay_rate)

    def forget(self, group: BoundGroup, chosen: Chosen) -> None:
        for held in (self._utility[group.name], self._mean[group.name]):
            old = held[chosen.where]
            keep = (chosen.strength < 1.0).reshape(-1, *[1] * (old.dim() - 1))
            held[chosen.where] = torch.where(keep, old, 0.0)

    def move(self, group: BoundGroup, device: torch.device) -> None:
        self._utility[group.name] = self._utility[group.name].to(device)
        self._mean[group.name] = self._mean[group.name].to(device)

    def state_dict(self) -> dict[str, Any]:
        return {
            "utility": {name: held.clone() for name, held in self._utility.items()},
            "mean": {name: held.clone() for name, held in self._mean.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, held in self._utility.items():
            held.copy_(state["utility"][name])
            self._mean[name].copy_(state["mean"][name])


def _broken_as_nan(activity: Tensor) -> Tensor:
    """Infinite activity, which an average would keep for ever as the highest of utilities, becomes NaN, the least."""
    return torch.where(activity.isfinite(), activity, nan)


class Dormancy:
    """Mean |activity| of a unit in this step, as a share of its layer's mean. Source: Sokar et al., ICML 2023 (ReDo), eq. 1.

    Nothing is averaged over steps and no means are kept, so it goes with `Redraw(hand_over_mean=False)`.
    """

    keeps_means = False

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def __init__(self) -> None:
        self.reads: Sequence[Reading] = ("magnitude",)
        self._magnitude: dict[str, Tensor] = {}

    def bind(self, groups: Sequence[BoundGroup]) -> None:
        for group in groups:
            self._magnitude[group.name] = torch.zeros_like(group.age, dtype=group.dtype)

    def update(self, group: BoundGroup) -> None:
        by_column = group.activity.take()["magnitude"].reshape(group.runs, group.units, group.columns)
        self._magnitude[group.name].copy_(by_column.mean(-1))

    def value(self, group: BoundGroup, generators: Sequence[torch.Generator]) -> Tensor:
        return dormancy(self._magnitude[group.name])

    def mean(self, group: BoundGroup) -> Tensor:
        raise ValueError("Dormancy keeps no means to hand over; use Redraw(hand_over_mean=False)")

    def forget(self, group: BoundGroup, chosen: Chosen) -> None:
        """Nothing is remembered from step to step."""

    def move(self, group: BoundGroup, device: torch.device) -> None:
        self._magnitude[group.name] = self._magnitude[group.name].to(device)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is remembered from step to step."""
