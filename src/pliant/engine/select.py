"""Selection: which units go, and when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pliant.base.arguments import number, whole
from pliant.base.choices import one_of
from pliant.base.saving import count_in
from pliant.engine.replacement import Schedule, least_useful
from pliant.streams import stream_key
from pliant.units.bound import BoundGroup
from pliant.units.entries import SelectedUnits

Count = Literal["accumulate", "bernoulli"]
Eligible = Literal["mature", "all"]


class ReplacementRate:
    """A share of the mature units at every step, least useful first. The host knows each count ahead of the device.

    Args:
        replacement_rate: share of eligible units per optimizer step, in [0, 1].
        maturity_threshold: optimizer steps; a unit may go when its age is greater.
        count: "accumulate" owes fractions until they make a unit; "bernoulli" draws them.
        eligible: "all" counts immature units too, once one is mature, as the released conv engine does; only
            mature ones ever go.
    """

    def __init__(
        self,
        replacement_rate: float = 1e-4,
        maturity_threshold: int = 1000,
        count: Count = "accumulate",
        eligible: Eligible = "mature",
    ) -> None:
        self.replacement_rate = number("replacement_rate", replacement_rate, 0.0, 1.0)
        self.maturity_threshold = whole("maturity_threshold", maturity_threshold, of="optimizer steps")
        self.count = one_of("count", count, get_args(Count))
        self.eligible = one_of("eligible", eligible, get_args(Eligible))
        self.schedules: dict[str, list[Schedule]] = {}

    @property
    def settings(self) -> dict[str, Any]:
        return {"maturity_threshold": self.maturity_threshold, "eligible": self.eligible}

    def bind(self, groups: Sequence[BoundGroup], seeds: Sequence[int]) -> None:
        for index, group in enumerate(groups):
            self.schedules[group.name] = [
                Schedule(
                    group.units,
                    self.replacement_rate,
                    self.maturity_threshold,
                    every_unit_counts=self.eligible == "all",
                    draws=stream_key(seed, "replacement count", index) if self.count == "bernoulli" else None,
                )
                for seed in seeds
            ]

    def __call__(
        self, group: BoundGroup, age: Callable[[], Tensor], value: Callable[[], Tensor]
    ) -> SelectedUnits | None:
        due = [schedule.tick() for schedule in self.schedules[group.name]]
        if not any(due):
            return None
        least = least_useful(value(), age(), max(due), self.maturity_threshold)
        return _first_of_each_run(least, due)

    def stats(self, group: BoundGroup) -> dict[str, Any]:
        schedules = self.schedules[group.name]
        return {
            "mature": [each.mature for each in schedules],
            "eligible_unit_steps": [each.eligible_unit_steps for each in schedules],
        }

    def state_dict(self) -> dict[str, Any]:
        return {name: [each.state_dict() for each in schedules] for name, schedules in self.schedules.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, schedules in self.schedules.items():
            for schedule, held in zip(schedules, state[name], strict=True):
                schedule.load_state_dict(held)


def _first_of_each_run(least: Tensor, due: list[int]) -> SelectedUnits:
    """The first `due[run]` columns of every row of `least`, run after run."""
    if len(due) == 1:
        runs, units = torch.zeros_like(least[0]), least[0]
    else:
        pairs = [(run, rank) for run, count in enumerate(due) for rank in range(count)]
        runs, ranks = torch.tensor(pairs).to(least.device, non_blocking=True).unbind(1)
        units = least[runs, ranks]
    return SelectedUnits(runs, units, torch.ones(len(units), device=least.device), due, all_at_full_strength=True)


class _Periodic:
    """Acts at every `period`-th step of a group; nothing else is remembered."""

    def __init__(self, period: int) -> None:
        self.period = whole("period", period, 1, of="optimizer steps")
        self._steps: dict[str, int] = {}

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def bind(self, groups: Sequence[BoundGroup], seeds: Sequence[int]) -> None:
        self._steps = {group.name: 0 for group in groups}

    def _is_due(self, group: BoundGroup) -> bool:
        self._steps[group.name] += 1
        return self._steps[group.name] % self.period == 0

    def stats(self, group: BoundGroup) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._steps)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps = {name: count_in(state, name) for name in self._steps}


class Threshold(_Periodic):
    """Every unit whose score is at most `tau`, each `period` steps. Reads the device at those steps, and only then.

    NaN is below no threshold: a layer of which a score says nothing is left alone.
    """

    def __init__(self, tau: float, period: int) -> None:
        self.tau = number("tau", tau)
        super().__init__(period)

    def __call__(
        self, group: BoundGroup, age: Callable[[], Tensor], value: Callable[[], Tensor]
    ) -> SelectedUnits | None:
        if not self._is_due(group):
            return None
        low = value() <= self.tau
        runs, units = low.nonzero(as_tuple=True)
        if not len(units):
            return None
        counts = [int(count) for count in low.sum(1)]
        return SelectedUnits(runs, units, torch.ones(len(units), device=low.device), counts, all_at_full_strength=True)


Transform = Literal["exponential", "sigmoid"]


class Partial(_Periodic):
    """Every unit, each `period` steps, at a strength that falls as its score rises: `strength`. NaN has none."""

    def __init__(
        self, replacement_rate: float, sharpness: float, threshold: float, transform: Transform, period: int
    ) -> None:
        self.replacement_rate = number("replacement_rate", replacement_rate, 0.0, 1.0, below=True)
        self.sharpness, self.threshold = number("sharpness", sharpness), number("threshold", threshold)
        self.transform: Transform = one_of("transform", transform, get_args(Transform))
        super().__init__(period)

    def __call__(
        self, group: BoundGroup, age: Callable[[], Tensor], value: Callable[[], Tensor]
    ) -> SelectedUnits | None:
        if not self._is_due(group) or not self.replacement_rate:
            return None
        strengths = strength(value(), self.replacement_rate, self.sharpness, self.threshold, self.transform)
        runs, units = torch.cartesian_prod(*(torch.arange(size, device=strengths.device) for size in strengths.shape)).T
        counts = [group.units] * group.runs
        return SelectedUnits(runs, units, strengths.flatten(), counts, none_at_full_strength=True)


def strength(
    score: Tensor, replacement_rate: float, sharpness: float, threshold: float, transform: Transform
) -> Tensor:
    """ρ f(u): ρ for units of score u up to the threshold τ, and less the farther u is above it, by sharpness κ.

    f(u) = min(exp(-κ (u - τ)), 1), or min(2 sigmoid(-κ (u - τ)), 1). Both are 1 up to τ; far above it the second is twice the
    first.

    >>> strength(torch.tensor([0.0, 1.0, 2.0]), 0.5, sharpness=1.0, threshold=1.0, transform="exponential")
    tensor([0.5000, 0.5000, 0.1839])
    """
    above = sharpness * (score - threshold)
    f = torch.exp(-above) if transform == "exponential" else 2.0 * torch.sigmoid(-above)
    return replacement_rate * f.clamp(max=1.0).nan_to_num(nan=0.0)
