"""How large the gradient of a unit is, beside those of its layer: the score of methods that reset units which learn nothing.

    s[i] = size of unit i's gradient / mean over the layer        size of 0 throughout a layer: 0; not finite: not known
    u[i] <- η u[i] + (1 - η) s[i],    1 when the unit is new      η is `decay_rate`; 0 is the share of the last step alone

Two readings of "the gradient of a unit" are published (`Size`):

    "activity"   mean |∂L/∂h[i]| over examples and positions, where the unit is consumed
    "weights"    mean |∂L/∂w| over its incoming weights: near 0 also where its inputs are near 0
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pliant.base.arguments import number
from pliant.base.choices import one_of
from pliant.base.saving import fill
from pliant.engine.activity import Reading
from pliant.engine.averaging import running_average
from pliant.engine.statistics import ActivityStatistics, Means, Span, home_of_groups
from pliant.engine.utility import dormancy
from pliant.units.bound import BoundGroup
from pliant.units.entries import SelectedUnits

Size = Literal["activity", "weights"]


class GradientShare:
    """The share u of each unit; no means are kept, so it goes with `Redraw(hand_over_mean=False)`.

    Gradients of weights are those that the optimizer's step left in `.grad`; one scale for all, as a GradScaler's, cancels out.
    A step in which the share is not known leaves a running average as it is.
    """

    keeps_means = False

    def __init__(self, of: Size = "weights", decay_rate: float = 0.0) -> None:
        self.of = one_of("of", of, get_args(Size))
        self.decay_rate = number("decay_rate", decay_rate, 0.0, 1.0, below=True)
        self.reads: Sequence[Reading] = ("gradient",) if of == "activity" else ()
        self._kept: dict[ActivityStatistics, Tensor] = {}

    @property
    def settings(self) -> dict[str, Any]:
        return {"of": self.of, "decay_rate": self.decay_rate}

    def bind(self, all_statistics: Sequence[ActivityStatistics]) -> None:
        """Raises `ValueError` where a gradient cannot be read: at a tap inside of a module."""
        self._home = home_of_groups(all_statistics)
        for statistics in all_statistics:
            for reader in statistics.readers if self.of == "activity" else ():
                if reader.tap.at not in ("input", "output"):
                    raise ValueError(
                        f"the gradient at the {reader.tap} cannot be read: use of='weights', or leave its group out with exclude="
                    )
            ones = torch.ones(statistics.runs, statistics.units, dtype=statistics.dtype, device=statistics.device)
            self._kept[statistics] = ones

    def update(
        self, statistics: ActivityStatistics, spans: Sequence[Span], means: Means, skipped: Tensor | None
    ) -> None:
        for group in statistics.groups:
            own = statistics.span(group)
            if not any(span.units.start <= own.units.start and own.units.stop <= span.units.stop for span in spans):
                continue
            held = own.of_units(self._kept[statistics])
            share = dormancy(self._size(statistics, group, means)).to(held.dtype)
            if self.decay_rate:
                share = torch.where(share.isnan(), held, running_average(held, share, self.decay_rate))
            if self.of == "activity" and means.masked and means.ran is not None:
                share = torch.where(means.ran[own.columns].view(-1, own.width).any(-1), share, held)
            held.copy_(share if skipped is None else torch.where(skipped > 0, held, share))

    def _size(self, statistics: ActivityStatistics, group: BoundGroup, means: Means) -> Tensor:
        """(runs, units)."""
        if self.of == "weights":
            return group.incoming_gradient()
        return statistics.by_unit(means.by_reading["gradient"], group).mean(-1)

    def value(self, group: BoundGroup, generators: Sequence[torch.Generator]) -> Tensor:
        statistics = self._home[group]
        return self._kept[statistics][:, statistics.span(group).units]

    def mean(self, group: BoundGroup) -> Tensor:
        raise ValueError("GradientShare keeps no means to hand over; use Redraw(hand_over_mean=False)")

    def forget(self, group: BoundGroup, chosen: SelectedUnits) -> None:
        """As of any unit of which nothing is known, u is 1, the mean of a layer; also of those replaced in part."""
        statistics = self._home[group]
        self._kept[statistics][:, statistics.span(group).units][chosen.where] = 1.0

    def move(self, statistics: ActivityStatistics, device: torch.device) -> None:
        self._kept[statistics] = self._kept[statistics].to(device)

    def state_dict(self) -> dict[str, Any]:
        return {"share": [kept.clone() for kept in self._kept.values()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for kept, held in zip(self._kept.values(), state["share"], strict=True):
            fill(kept, held, "share")
