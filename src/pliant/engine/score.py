"""Scores: how useful units have been, as the engine remembers it between steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import nan
from typing import Any

import torch
from torch import Tensor

from pliant.base.arguments import number, whole
from pliant.base.saving import fill
from pliant.engine.activity import Reading
from pliant.engine.averaging import corrected, running_average
from pliant.engine.statistics import ActivityStatistics, Means, Span, home_of_groups
from pliant.engine.utility import Seen, Utility, dormancy, named_utility
from pliant.units.bound import BoundGroup
from pliant.units.entries import SelectedUnits


class RunningUtility:
    """A running average of a utility, and of each column's mean activity, both corrected for their start at 0.

    Args:
        utility: a name of `pliant.engine.utility.UTILITIES`, or a `Utility`.
        decay_rate: of both averages, in [0, 1); 0 makes them instantaneous.
        observe_every: optimizer steps of a group, of which the last alone is averaged in, at η to their number. Of the others no
            activity is read. Each average is corrected by the steps that it has averaged.
    """

    keeps_means = True

    @property
    def settings(self) -> dict[str, Any]:
        resting = {"observe_every": self.observe_every} if self.observe_every > 1 else {}  # states of before have none
        return {"utility": self.rule.name, "decay_rate": self.decay_rate, **resting}

    def __init__(
        self, utility: str | Utility = "contribution", decay_rate: float = 0.99, observe_every: int = 1
    ) -> None:
        self.rule = named_utility(utility)
        self.decay_rate = number("decay_rate", decay_rate, 0.0, 1.0, below=True)
        self.observe_every = whole("observe_every", observe_every, 1, of="optimizer steps")
        self.decay = self.decay_rate**self.observe_every  # per step that is averaged in
        self.reads: Sequence[Reading] = self.rule.reads
        self._kept: dict[ActivityStatistics, Averages] = {}

    def bind(self, all_statistics: Sequence[ActivityStatistics]) -> None:
        self._home = home_of_groups(all_statistics)
        for statistics in all_statistics:
            statistics.observe(self.observe_every)
            self._kept[statistics] = Averages(statistics)
            if "centred" in self.reads:
                for reader in statistics.readers:
                    reader.centre = partial(
                        self._centre, statistics, *statistics.columns_of(reader), statistics.unit_of_column()
                    )

    def kept(self, statistics: ActivityStatistics) -> Averages:
        """What is remembered of these groups."""
        return self._kept[statistics]

    def update(
        self, statistics: ActivityStatistics, spans: Sequence[Span], means: Means, skipped: Tensor | None
    ) -> None:
        """Average in this step's activity with the weights as the optimizer left them."""
        kept = self._kept[statistics]
        now = means.by_reading
        mean = now.get("mean", kept.mean)
        utility = self.rule(
            Seen(
                magnitude=now.get("magnitude", mean),
                centred=now.get("centred", mean),
                outgoing=statistics.outgoing_magnitude() if "outgoing" in self.rule.weights else mean,
                incoming=statistics.incoming_magnitude() if "incoming" in self.rule.weights else mean,
            )
        )
        if kept.shares is not None:
            utility = utility * kept.shares
        for span in spans:
            of_units = span.of_columns(utility)
            if span.width > 1:
                of_units = of_units.view(statistics.runs, -1, span.width).sum(-1)
            averages = [span.of_units(kept.utility), span.of_columns(kept.mean)]
            values = [of_units, span.of_columns(mean)]
            if means.masked and means.ran is not None:
                averaged = statistics.observations() - int(skipped is None)  # a step that may be none is counted later
                known = corrected(kept.utility, averaged, self.decay)  # moves by nothing: what is corrected stays
                unseen = ~means.ran[span.columns].view(-1, span.width).any(-1)
                values[0] = torch.where(unseen, span.of_units(known), of_units)
            if skipped is None and means.ran is None:
                for average, value in zip(averages, values, strict=True):  # `running_average`, in place
                    average.mul_(self.decay).add_(value, alpha=1.0 - self.decay)
                if spans is not statistics.all_spans:
                    span.of_columns(kept.seen).add_(1)
            else:
                self._take_in_part(averages, values, span.of_columns(kept.seen), means.ran, span, skipped)
        if spans is statistics.all_spans and skipped is None and means.ran is None:
            kept.count_step()

    def _take_in_part(
        self,
        averages: Sequence[Tensor],
        values: Sequence[Tensor],
        seen: Tensor,
        ran: Tensor | None,
        span: Span,
        skipped: Tensor | None,
    ) -> None:
        """The averages move, except of columns that did not run, and not at all in a step that the optimizer skipped."""
        left_out = torch.zeros((), dtype=torch.bool, device=seen.device) if skipped is None else skipped > 0
        silent = left_out if ran is None else left_out | ~ran[span.columns]
        for average, value, stays in zip(averages, values, (left_out, silent), strict=True):
            average.copy_(torch.where(stays, average, running_average(average, value, self.decay)))
        seen.add_((~silent).to(seen.dtype))

    def _centre(
        self,
        statistics: ActivityStatistics,
        columns: Tensor,
        entries: Tensor,
        unit_of_column: Tensor,
        mean_so_far: Tensor,
    ) -> Tensor:
        """The running mean that the coming step will have, for centred utilities; of the shape of `mean_so_far`."""
        kept = self._kept[statistics]
        coming = running_average(kept.mean[:, columns], mean_so_far.view(statistics.runs, -1)[:, entries], self.decay)
        centre = torch.zeros_like(mean_so_far)
        centre.view(statistics.runs, -1)[:, entries] = corrected(coming, kept.seen[:, columns] + 1, self.decay)
        return centre

    def value(self, group: BoundGroup, generators: Sequence[torch.Generator]) -> Tensor:
        """Corrected utility, (runs, units); for `utility="random"` a fresh uniform number each."""
        statistics = self._home[group]
        if self.rule.name == "random":
            drawn = torch.stack([torch.rand(group.units, generator=each) for each in generators])
            return drawn.to(statistics.device, group.dtype)
        held = self._kept[statistics].utility[:, statistics.span(group).units]
        if "incoming" not in self.rule.weights:
            # activity was infinite once: broken, not most useful of all
            held = held.nan_to_num(nan=nan, posinf=nan, neginf=nan)
        return corrected(held, statistics.observations_of(group), self.decay)

    def mean(self, group: BoundGroup) -> Tensor:
        """Corrected mean activity, (runs, units, columns)."""
        statistics = self._home[group]
        kept = self._kept[statistics]
        held, seen = (statistics.by_unit(each, group) for each in (kept.mean, kept.seen))
        return corrected(held, seen, self.decay)

    def forget(self, group: BoundGroup, chosen: SelectedUnits) -> None:
        statistics = self._home[group]
        kept = self._kept[statistics]
        utility = kept.utility[:, statistics.span(group).units]
        for held in (utility, *(statistics.by_unit(each, group) for each in (kept.mean, kept.seen))):
            if chosen.all_at_full_strength:
                chosen.fill(held, 0.0)
                continue
            old = held[chosen.where]
            keep = (chosen.strength < 1.0).reshape(-1, *[1] * (old.dim() - 1))
            held[chosen.where] = torch.where(keep, old, 0.0)

    def move(self, statistics: ActivityStatistics, device: torch.device) -> None:
        self._kept[statistics].to(device)

    def state_dict(self) -> dict[str, Any]:
        return {name: [getattr(kept, name).clone() for kept in self._kept.values()] for name in Averages.names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in Averages.names:
            for kept, held in zip(self._kept.values(), state[name], strict=True):
                fill(getattr(kept, name), held, name)


class Averages:
    """Running averages of utility (runs, units) and of mean activity (runs, columns); the steps that a column was seen.

    Steps in which every column was seen are counted on the host until they are asked for, which saves an operation per step.
    """

    names = ("utility", "mean", "seen")

    def __init__(self, statistics: ActivityStatistics) -> None:
        self.utility = torch.zeros(statistics.runs, statistics.units, dtype=statistics.dtype, device=statistics.device)
        self.mean = torch.zeros(statistics.runs, statistics.columns, dtype=statistics.dtype, device=statistics.device)
        self._seen, self._ahead = torch.zeros_like(self.mean), 0
        self.shares = statistics.shares()

    @property
    def seen(self) -> Tensor:
        if self._ahead:
            self._seen.add_(self._ahead)
            self._ahead = 0
        return self._seen

    def count_step(self) -> None:
        """Every column was seen in one more step."""
        self._ahead += 1

    def to(self, device: torch.device) -> None:
        for name in ("utility", "mean", "_seen", *(() if self.shares is None else ("shares",))):
            setattr(self, name, getattr(self, name).to(device))


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
        self._magnitude: dict[ActivityStatistics, Tensor] = {}

    def bind(self, all_statistics: Sequence[ActivityStatistics]) -> None:
        self._home = home_of_groups(all_statistics)
        for statistics in all_statistics:
            self._magnitude[statistics] = torch.zeros(
                statistics.runs, statistics.units, dtype=statistics.dtype, device=statistics.device
            )

    def update(
        self, statistics: ActivityStatistics, spans: Sequence[Span], means: Means, skipped: Tensor | None
    ) -> None:
        for span in spans:
            held = span.of_units(self._magnitude[statistics])
            by_column = span.of_columns(means.by_reading["magnitude"]).view(statistics.runs, -1, span.width)
            now = by_column.mean(-1)
            if means.masked and means.ran is not None:
                now = torch.where(means.ran[span.columns].view(-1, span.width).any(-1), now, held)
            held.copy_(now if skipped is None else torch.where(skipped > 0, held, now))

    def value(self, group: BoundGroup, generators: Sequence[torch.Generator]) -> Tensor:
        statistics = self._home[group]
        return dormancy(self._magnitude[statistics][:, statistics.span(group).units])

    def mean(self, group: BoundGroup) -> Tensor:
        raise ValueError("Dormancy keeps no means to hand over; use Redraw(hand_over_mean=False)")

    def forget(self, group: BoundGroup, chosen: SelectedUnits) -> None:
        """Nothing is remembered from step to step."""

    def move(self, statistics: ActivityStatistics, device: torch.device) -> None:
        self._magnitude[statistics] = self._magnitude[statistics].to(device)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is remembered from step to step."""
