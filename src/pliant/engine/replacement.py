"""How many units are replaced, which ones, and what takes their place.

    eligible unit-steps   E_t = sum over steps s <= t of (number of mature units at s)
    due                   floor(ρ E_t) - (replaced so far),  at most the number of mature units;  ρ is `replacement_rate`

How many are due never depends on data: which units are mature follows from when units were replaced. So the
host knows every step's count ahead of the device, in integers that do not drift, and what a small layer
cannot give today stays owed.

Source: Dohare et al., Nature 632 (2024), algorithm 1. It keeps a fractional counter that is reduced by 1 for each
replacement; ours is the same count without the rounding of a running sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, inf
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pliant.base.deprecation import renamed
from pliant.base.saving import count_in, counts_in, entry
from pliant.streams import uniform


def due_units(rate: float, eligible_unit_steps: int, replaced: int, mature: int) -> int:
    """Units due now, at most `mature`. The product is a float, so a unit may come one step late (0.7 * 90 is below 63).

    >>> due_units(rate=0.2, eligible_unit_steps=6, replaced=0, mature=3)
    1
    """
    return min(floor(rate * eligible_unit_steps) - replaced, mature)


def bernoulli_units(rate: float, mature: int, draw: float) -> int:
    """floor(x) + Bernoulli(x - floor(x)) units with x = rate * mature, `draw` uniform in [0, 1).

    >>> bernoulli_units(rate=0.5, mature=3, draw=0.49), bernoulli_units(rate=0.5, mature=3, draw=0.5)
    (2, 1)
    """
    whole = floor(rate * mature)
    return whole + int(draw < rate * mature - whole)


@dataclass
class Schedule:
    """When units of one group of one run are due, by integers on the host.

    `draws` is the key of the stream that `count="bernoulli"` looks its draws up in; None accumulates.
    """

    units: int
    replacement_rate: float  # share of eligible units per optimizer step
    maturity_threshold: int  # optimizer steps; a unit is mature when its age is greater
    every_unit_counts: bool = False  # eligible="all": the released conv engine's count, once any unit is mature
    draws: int | None = None
    step: int = 0
    mature: int = 0
    replaced: int = 0
    eligible_unit_steps: int = 0
    arriving: dict[int, int] = field(default_factory=dict[int, int])  # step -> units that are mature from then on

    def __post_init__(self) -> None:
        if not self.step:
            self.arriving = {self.maturity_threshold + 1: self.units}

    def tick(self) -> int:
        """Count one step and return how many units are due in it."""
        self.step += 1
        self.mature += self.arriving.pop(self.step, 0)
        eligible = self.units if self.every_unit_counts and self.mature else self.mature
        self.eligible_unit_steps += eligible
        if self.draws is None:
            due = due_units(self.replacement_rate, self.eligible_unit_steps, self.replaced, self.mature)
        else:
            draw = float(uniform(self.draws, self.step - 1, 1)[0])
            due = min(bernoulli_units(self.replacement_rate, eligible, draw), self.mature)
        self._replace(due)
        return due

    def _replace(self, due: int) -> None:
        if due:
            self.mature -= due
            self.replaced += due
            again = self.step + self.maturity_threshold + 1
            self.arriving[again] = self.arriving.get(again, 0) + due

    def state_dict(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in ("step", "mature", "replaced", "eligible_unit_steps")}
        return {
            **counts,
            "replacement_rate": self.replacement_rate,
            "arriving": [[step, count] for step, count in self.arriving.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("step", "mature", "replaced", "eligible_unit_steps"):
            setattr(self, name, count_in(state, name))
        if entry(state, "replacement_rate", self.replacement_rate) != self.replacement_rate:
            # what the old rate owed is settled, and the new one starts now: it must not claim the past at once
            self.replaced = self.eligible_unit_steps = 0
        pairs = (counts_in({"arriving": pair}, "arriving", 2) for pair in entry(state, "arriving", []))
        self.arriving = {step: count for step, count in pairs}  # noqa: C416  (a list of two is no pair to a type checker)


class Replacement(NamedTuple):
    """Units of a group that a step replaced, as `on_replace` is told of them: tensors where the model is, (count,) each."""

    group: str
    step: int  # of the group
    runs: Tensor  # of each unit; 0 but in a stack
    units: Tensor


class Replaced:
    """How many units of each group were replaced, by run, and at which step of the group the last of them."""

    def __init__(self, runs_of_groups: Mapping[str, int]) -> None:
        self.counts = {name: [0] * runs for name, runs in runs_of_groups.items()}
        self.last: dict[str, int | None] = dict.fromkeys(runs_of_groups)

    def add(self, name: str, counts: Sequence[int], step: int) -> None:
        self.counts[name] = [before + count for before, count in zip(self.counts[name], counts, strict=True)]
        self.last[name] = step

    def state_dict(self) -> dict[str, Any]:
        return {name: {"replaced": list(counts), "last": self.last[name]} for name, counts in self.counts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.counts:
            held = state[name]
            self.counts[name] = counts_in(held, "replaced", len(self.counts[name]))
            self.last[name] = None if held["last"] is None else count_in(held, "last")


def least_useful(utility: Tensor, age: Tensor, count: int, maturity_threshold: int) -> Tensor:
    """Indices of the `count` mature units of lowest utility, least first, (..., count).

    Ties go to the lowest index and NaN counts as least. `count` must not exceed the number of mature units.

    >>> least_useful(torch.tensor([0.0, 9.0, 5.0]), torch.tensor([3, 200, 200]), count=1, maturity_threshold=100)
    tensor([2])
    """
    finite = torch.nan_to_num(utility, nan=-inf, posinf=torch.finfo(utility.dtype).max, neginf=-inf)
    candidates = torch.where(age > maturity_threshold, finite, inf)
    return candidates.sort(dim=-1, stable=True).indices[..., :count]


__getattr__ = renamed(__name__, {"blend": "pliant.units.entries.blend"})
