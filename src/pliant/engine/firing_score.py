"""How long a unit has been silent, beside how long it was silent before: the score of self-normalized resets.

    a[i] += 1 at each step in which unit i fires for no example; at one in which it does, gap a[i] + 1 is counted and a[i] = 0
    P[i](gap >= a) = share of unit i's counted gaps that were so long
    limit[i] = least a with P[i](gap >= a) <= η,    at least `shortest` and at most `longest` steps

A unit fires where its activity is above 0. The score is limit[i] - a[i], the steps of silence that are left to it: at 0 or below
it is as silent as it was in a share η of its gaps. With fewer than 1 / η gaps counted, that share is not known, and the limit is
`longest`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pliant.base.arguments import number, whole
from pliant.base.choices import one_of
from pliant.base.saving import fill
from pliant.engine.activity import Reading
from pliant.engine.statistics import ActivityStatistics, Means, Span, home_of_groups
from pliant.units.bound import BoundGroup
from pliant.units.entries import SelectedUnits

Gaps = Literal["all", "silent"]


class SilenceLeft:
    """limit - a of each unit, from its own history, which starts over when the unit does. No means are kept.

    `gaps`: "all", or "silent", those of which at least one step was silent. Counts take `longest` + 1 numbers for each unit.
    """

    reads: Sequence[Reading] = ("active",)
    keeps_means = False

    def __init__(self, rejection: float, shortest: int, longest: int, gaps: Gaps) -> None:
        self.rejection = number("rejection", rejection, 0.0, 1.0)
        self.longest = whole("longest", longest, 1, of="optimizer steps")
        self.shortest = whole("shortest", shortest, of="optimizer steps")
        if self.shortest > self.longest:
            raise ValueError(f"shortest must be at most longest, {self.longest}, got {self.shortest}")
        self.gaps = one_of("gaps", gaps, get_args(Gaps))
        self._silent: dict[ActivityStatistics, Tensor] = {}  # (runs, units)
        self._counts: dict[
            ActivityStatistics, Tensor
        ] = {}  # (runs, units, longest + 1): of gaps by length, the last and longer

    @property
    def settings(self) -> dict[str, Any]:
        return {"longest": self.longest, "gaps": self.gaps}

    def bind(self, all_statistics: Sequence[ActivityStatistics]) -> None:
        self._home = home_of_groups(all_statistics)
        for each in all_statistics:
            self._silent[each] = torch.zeros(each.runs, each.units, dtype=torch.int32, device=each.device)
            self._counts[each] = self._silent[each].new_zeros(each.runs, each.units, self.longest + 1)

    def update(
        self, statistics: ActivityStatistics, spans: Sequence[Span], means: Means, skipped: Tensor | None
    ) -> None:
        above_0 = means.by_reading["active"] > 0
        for span in spans:
            fires = span.of_columns(above_0).view(statistics.runs, -1, span.width).any(-1)
            seen = torch.ones_like(fires) if skipped is None else (skipped <= 0).expand_as(fires)
            if means.ran is not None:
                seen = seen & means.ran[span.columns].view(-1, span.width).any(-1)
            silent, fires = span.of_units(self._silent[statistics]), fires & seen
            counted = fires if self.gaps == "all" else fires & (silent > 0)
            gap = (silent + 1).clamp(max=self.longest).to(torch.int64)
            counts = span.of_units(self._counts[statistics])
            counts.scatter_add_(2, gap.unsqueeze(2), counted.unsqueeze(2).to(counts.dtype))
            silent.copy_(torch.where(fires, 0, silent + seen.to(silent.dtype)))

    def value(self, group: BoundGroup, generators: Sequence[torch.Generator]) -> Tensor:
        statistics = self._home[group]
        own = statistics.span(group)
        limit = limits(own.of_units(self._counts[statistics]), self.rejection, self.shortest)
        return (limit - own.of_units(self._silent[statistics])).to(group.dtype)

    def mean(self, group: BoundGroup) -> Tensor:
        raise ValueError("SilenceLeft keeps no means to hand over; use Redraw(hand_over_mean=False)")

    def forget(self, group: BoundGroup, chosen: SelectedUnits) -> None:
        statistics = self._home[group]
        for held in (self._silent[statistics], self._counts[statistics]):
            statistics.span(group).of_units(held)[chosen.where] = 0

    def move(self, statistics: ActivityStatistics, device: torch.device) -> None:
        for kept in (self._silent, self._counts):
            kept[statistics] = kept[statistics].to(device)

    def state_dict(self) -> dict[str, Any]:
        kept = {"silent": self._silent, "gaps": self._counts}
        return {name: [held.clone() for held in by_statistics.values()] for name, by_statistics in kept.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, by_statistics in (("silent", self._silent), ("gaps", self._counts)):
            for kept, held in zip(by_statistics.values(), state[name], strict=True):
                fill(kept, held, name)
                if kept.numel() and int(kept.min()) < 0:
                    raise ValueError(f"'{name}' of this state holds counts below 0")


def limits(counts: Tensor, rejection: float, shortest: int) -> Tensor:
    """The steps of silence that make each unit an outlier of its own history, from `counts` (..., longest + 1) of its gaps.

    >>> limits(torch.tensor([[0, 7, 2, 0, 1, 0, 0]]), rejection=0.1, shortest=0)  # of 10 gaps, 1 in 10 was 3 or longer
    tensor([3])
    """
    longest = counts.shape[-1] - 1
    total = counts.sum(-1).double()
    shorter = counts[..., :-1].cumsum(-1, dtype=counts.dtype)  # column a - 1: gaps shorter than a
    least = 0 if rejection == 1.0 else 1  # P(gap >= 0) = 1
    limit = least + (shorter < ((1.0 - rejection) * total).unsqueeze(-1)).sum(-1)
    return torch.where(rejection * total >= 1.0, limit.clamp(shortest, longest), longest)
