"""Whether a model is still the one that was planned, and is read: looked at after steps, and before anything is written."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pliant.engine.statistics import ActivityStatistics
from pliant.units.bound import BoundGroup, NamedModel

log = logging.getLogger("pliant")

PATIENCE = 100  # steps after which a group that was never read is worth a word


class SameModel:
    """The model of one method as it was when the method was attached.

    Args:
        unreached: names of parameters that never ran with the example inputs.
    """

    def __init__(
        self, model: nn.Module, names: NamedModel, groups: Sequence[BoundGroup], unreached: Sequence[str]
    ) -> None:
        self._model, self._groups = model, groups
        self._places = [place for group in groups for place in group.places()]
        self._tapped = {tap.module: names.modules[tap.module] for group in groups for tap in group.spec.taps}
        self._unreached = {name: names.parameters[name] for name in unreached}
        self._heard: set[ActivityStatistics] = set()  # of which anything ran
        self._unread = Counter[ActivityStatistics]()  # steps in which some group was not read

    def check_parameters(self) -> None:
        """Raise `RuntimeError` if a parameter is no longer the model's, or is frozen."""
        for home, leaf, parameter in self._places:
            if home.get(leaf) is not parameter or not parameter.requires_grad:
                raise RuntimeError(self._changed(home.get(leaf), parameter))

    def check_read(self, statistics: ActivityStatistics, ran: Sequence[BoundGroup]) -> None:
        """Raise `RuntimeError` if none of the groups was ever read, or modules are no longer those that were planned."""
        if not ran and statistics not in self._heard:
            names = ", ".join(sorted({f"'{tap.module}'" for group in statistics.groups for tap in group.spec.taps}))
            raise RuntimeError(
                f"the optimizer stepped, but none of the tapped modules ({names}) ran in training mode with gradients before "
                f"it. Call model.train(), and attach before the first call of a compiled model"
            )
        self._heard.add(statistics)
        if len(ran) < len(statistics.groups):
            self._check_modules(statistics)
            self._unread[statistics] += 1
            never = [f"'{group.name}'" for group in statistics.groups if not statistics.steps[group]]
            if self._unread[statistics] == PATIENCE and never:
                names = ", ".join(never)
                log.warning("never read in %d steps, so never replaced: %s (evaluation mode?)", PATIENCE, names)
        for name, parameter in self._unreached.items():
            if parameter.grad is not None:
                raise RuntimeError(
                    f"'{name}' never ran with the example inputs but has a gradient now: it may consume units that the plan does "
                    f"not know. Give example inputs that reach it, or a list of several"
                )

    def _check_modules(self, statistics: ActivityStatistics) -> None:
        """A group that did not run may sit in a module that was taken out of the model."""
        for tap in (tap for group in statistics.groups for tap in group.spec.taps):
            try:
                there = self._model.get_submodule(tap.module)
            except AttributeError:
                there = None
            if there is not self._tapped[tap.module]:
                raise RuntimeError(
                    f"'{tap.module}' was replaced by another module after attaching. detach(), and attach to the model as it is"
                )

    def _changed(self, held: Any, parameter: Tensor) -> str:
        parts = (part for group in self._groups for part in group.slices())
        name = next(part.part.parameter for part in parts if part.parameter is parameter)
        if held is parameter:
            return f"'{name}' was frozen after attaching. detach(), and attach to what still trains"
        return (
            f"'{name}' was replaced by another tensor after attaching (load_state_dict(assign=True), a conversion, a "
            f"parametrization?). detach(), and attach to the model as it is now"
        )
