"""The young entries of one optimizer: its pre-hook, and what methods that reset units say to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from pliant.engine.attached import before_step, when_gradients_are_there
from pliant.engine.compiled import kernels, lies_plainly
from pliant.engine.optimizer_state.young.ages import Ages
from pliant.engine.optimizer_state.young.averages import Averages, steps_of_youth
from pliant.engine.optimizer_state.young.batch import Batch
from pliant.units.entries import BoundSlice, SelectedUnits


class YoungEntries:
    """The young entries of one optimizer, and the hook that makes up for what its shared count leaves out.

    One for each optimizer, shared by all methods attached to it; its hook runs before any method's own.
    """

    _of: ClassVar[WeakKeyDictionary[Optimizer, YoungEntries]] = WeakKeyDictionary()

    def __init__(self, averages: Averages) -> None:
        self.averages = averages
        self.users = 0
        self._members: dict[nn.Parameter, Ages] = {}
        self._batches: list[Batch] = []
        self._settings: list[dict[str, Any]] | None = None  # the optimizer's, when the batches were made
        self._handles: list[RemovableHandle] = []
        self._compiled: Any = None

    @classmethod
    def of(cls, optimizer: Optimizer, averages: Averages) -> YoungEntries:
        """The one of this optimizer."""
        return cls._of.setdefault(optimizer, cls(averages))

    def join(self, optimizer: Optimizer, parts: Iterable[BoundSlice]) -> None:
        """One more method relies on it, for these slices."""
        self.users += 1
        self._settle()
        for part in parts:
            parameter = cast(nn.Parameter, part.parameter)
            self._members.setdefault(parameter, Ages(parameter)).add(part)
        if self.users == 1 and any(map(lies_plainly, self._members)):
            self._compiled = kernels()
        self._settings = None
        if self.users == 1:
            self._handles.append(before_step(optimizer, self._before_step))

    def leave(self, optimizer: Optimizer) -> None:
        """One method less; after the last, the shared counter serves all entries."""
        self.users -= 1
        if self.users == 0:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            self._members.clear()
            self._batches.clear()

    # -- events -------------------------------------------------------------------------------------------------------

    def rejuvenate(self, optimizer: Optimizer, part: BoundSlice, chosen: SelectedUnits) -> None:
        """The chosen units' entries begin anew; their moments are 0. Those at less than full strength go on."""
        if chosen.none_at_full_strength:
            return
        batch, ages = self._find(optimizer, part)
        ages.renew(part, chosen, self._converged_after(batch, part))

    def state_of(self, optimizer: Optimizer, part: BoundSlice) -> dict[str, Any]:
        """Steps since the reset of each position, (runs, units, repeat)."""
        return self._find(optimizer, part)[1].state_of(part)

    def load(self, optimizer: Optimizer, part: BoundSlice, held: dict[str, Any] | None) -> None:
        """Go on from `state_of`; None: none of these entries was ever reset."""
        batch, ages = self._find(optimizer, part)
        ages.load(part, held, self._converged_after(batch, part))

    def _converged_after(self, batch: Batch, part: BoundSlice) -> list[int]:
        """For both averages, the steps after which an entry is young no more."""
        return [steps_of_youth(beta, part.parameter.dtype) for beta in self.averages.betas(batch.settings)]

    def _find(self, optimizer: Optimizer, part: BoundSlice) -> tuple[Batch, Ages]:
        """The ages of a parameter, ready to be read or changed."""
        self._lay_out(optimizer)
        ages = self._members[cast(nn.Parameter, part.parameter)]
        batch = next(batch for batch in self._batches if ages in batch.members)
        batch.flush()
        return batch, ages

    # -- before each step ---------------------------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """Make up for the shared count, at once or when the closure that finds the gradients has run."""
        return when_gradients_are_there(args, kwargs, lambda: self._make_up(optimizer))

    @torch.no_grad()
    def _make_up(self, optimizer: Optimizer) -> None:
        self._lay_out(optimizer)
        for batch in self._batches:
            batch.make_up(optimizer)

    def _lay_out(self, optimizer: Optimizer) -> None:
        """Batches of parameters with common settings. Loading a state replaces these, moving a model moves entries."""
        if self._settings is optimizer.param_groups and all(batch.in_place() for batch in self._batches):
            return
        self._settle()
        self._settings = optimizer.param_groups
        self._batches = []
        for settings in optimizer.param_groups:
            alike: dict[tuple[torch.device, torch.dtype], list[Ages]] = {}
            for parameter in settings["params"]:
                if parameter in self._members:
                    alike.setdefault((parameter.device, parameter.dtype), []).append(self._members[parameter])
            self._batches += [Batch(self.averages, settings, members, self._compiled) for members in alike.values()]

    def _settle(self) -> None:
        for batch in self._batches:
            batch.flush()
