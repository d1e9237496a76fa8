"""What a part of a reset method must offer: the interfaces of a score and of a selection.

`pliant.engine.score` and `pliant.engine.select` hold those of this library; write your own to these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pliant.engine.activity import Reading
from pliant.engine.statistics import ActivityStatistics, Means, Span
from pliant.units.bound import BoundGroup
from pliant.units.entries import SelectedUnits


class Score(Protocol):
    """How useful units are. Remembers what it needs between steps, per group."""

    reads: Sequence[Reading]
    keeps_means: bool

    @property
    def settings(self) -> dict[str, Any]:
        """What a saved state is only good for: names, strings and numbers."""
        ...

    def bind(self, all_statistics: Sequence[ActivityStatistics]) -> None:
        """Start at zero for the groups of these statistics."""
        ...

    def update(
        self, statistics: ActivityStatistics, spans: Sequence[Span], means: Means, skipped: Tensor | None
    ) -> None:
        """Take in what the groups in `spans` did in this step; where `skipped` is 1 the optimizer left the step out."""
        ...

    def value(self, group: BoundGroup, generators: Sequence[torch.Generator]) -> Tensor:
        """Usefulness of each unit, (runs, units); less is replaced sooner."""
        ...

    def mean(self, group: BoundGroup) -> Tensor:
        """Mean activity of each column, (runs, units, columns), to hand over."""
        ...

    def forget(self, group: BoundGroup, chosen: SelectedUnits) -> None:
        """The chosen units are new."""
        ...

    def move(self, statistics: ActivityStatistics, device: torch.device) -> None:
        """What is kept beside these statistics goes to `device`."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Select(Protocol):
    """Which units go, and when."""

    @property
    def settings(self) -> dict[str, Any]:
        """What a saved state is only good for: names, strings and numbers."""
        ...

    def bind(self, groups: Sequence[BoundGroup], seeds: Sequence[int]) -> None:
        """Start the clocks of these groups; one seed a run."""
        ...

    def __call__(
        self, group: BoundGroup, age: Callable[[], Tensor], value: Callable[[], Tensor]
    ) -> SelectedUnits | None:
        """The units of one group to replace in this step; `age` and `value` compute theirs, (runs, units), if they are needed."""
        ...

    def stats(self, group: BoundGroup) -> dict[str, Any]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
