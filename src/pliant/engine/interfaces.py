"""What the four parts of a reset of units must offer. Those of this library are in the modules of the same names
(`optimizer_state` forgets); write your own to these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from pliant.engine.activity import Reading
from pliant.engine.statistics import ActivityStatistics, Means, Span
from pliant.units.bound import BoundGroup, NamedModel
from pliant.units.entries import SelectedUnits
from pliant.units.forwards import Recorder


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
        """Start the clocks of these groups; one seed per run."""
        ...

    def __call__(
        self, group: BoundGroup, age: Callable[[], Tensor], value: Callable[[], Tensor]
    ) -> SelectedUnits | None:
        """The units of one group to replace in this step; `age` and `value` compute theirs, (runs, units), if they are needed."""
        ...

    def stats(self, group: BoundGroup) -> dict[str, Any]:
        """What `UnitReset.stats` adds for the group: integers of the host."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Redraw(Protocol):
    """What takes the place of replaced units, in three phases, each over all groups before the next."""

    hand_over_mean: bool  # whether `hand_over` is called, with the score's means

    @property
    def recorders(self) -> Sequence[Recorder]:
        """What reads tensors of the model in training, from `bind` on; none as a rule."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Lines for the plan."""
        ...

    def bind(
        self,
        names: NamedModel,
        groups: Sequence[BoundGroup],
        optimizers: Sequence[Optimizer],
        agree: Callable[[Sequence[Any]], list[Any]],
    ) -> None:
        """Find out what is to be drawn, once. `agree` gives all ranks of a data-parallel model what rank 0 found."""
        ...

    def fresh_std(self, group: BoundGroup) -> float | None:
        """Standard deviation of the fresh first incoming weight, for the plan; None where it is not known."""
        ...

    def hand_over(self, group: BoundGroup, chosen: SelectedUnits, mean: Tensor) -> None:
        """Move the chosen units' mean contribution, `mean` (runs, units, columns), into what they feed."""
        ...

    def incoming(self, group: BoundGroup, chosen: SelectedUnits, generators: Sequence[torch.Generator]) -> None:
        """Draw what computes the chosen units, by their strength; one generator per run."""
        ...

    def outgoing(self, group: BoundGroup, chosen: SelectedUnits) -> None:
        """Set what the chosen units feed, as a rule to zero."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """None is of a version that saved nothing."""
        ...


class Forget(Protocol):
    """What the optimizers keep of replaced units."""

    @property
    def policy(self) -> str:
        """The one that a saved state is only good for."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Lines for the plan."""
        ...

    def bind(self, optimizers: Sequence[Optimizer], groups: Sequence[BoundGroup]) -> None:
        """Look every parameter up in its optimizer. Raises `ValueError` for what cannot be forgotten, before any hook."""
        ...

    def forget(self, group: BoundGroup, chosen: SelectedUnits) -> None:
        """The chosen units' new weights are in place: forget what is remembered about their entries, by their strength."""
        ...

    def detach(self) -> None:
        """Leave the optimizers alone from here on; also if `bind` failed, or was never called."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
