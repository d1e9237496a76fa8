"""Whether a model is still the one that was planned, and is read: looked at after the steps of a group's own optimizer, and
before anything is written to it.

A group of which a parameter is frozen (`requires_grad=False`) when its optimizer steps is held back: it makes no step, and
nothing of it is written until it trains again. Codes freeze one network while another trains (a discriminator while the
generator steps, alternating fine-tuning), or layers late in training.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from pliant.engine.data_parallel import Ranks
from pliant.engine.newcomers import Newcomers
from pliant.engine.statistics import ActivityStatistics
from pliant.units.bound import BoundGroup, NamedModel
from pliant.units.models import unwrapped

log = logging.getLogger("pliant")

CHECK_EVERY = 64  # steps between looks at whether the parameters are still the model's; and before each replacement
PATIENCE = 100  # steps after which a group that was never read is worth a word


class _Held(NamedTuple):
    """A parameter that a replacement writes, and where the model held it when the method was attached."""

    name: str
    parameter: Tensor
    home: dict[str, Any]
    leaf: str


class SameModel:
    """The model of one method as it was when the method was attached.

    Args:
        unreached: names of parameters that never ran with the example inputs.
        ranks: that share the model.
        hand_over: whether means are handed over, so that what takes them is written too.
    """

    def __init__(
        self,
        model: nn.Module,
        names: NamedModel,
        groups: Sequence[BoundGroup],
        unreached: Sequence[str],
        ranks: Ranks,
        *,
        hand_over: bool,
    ) -> None:
        self._model = model
        self._held = {
            group: [
                _Held(name, names.parameter(name, group.name), *group.place(name))
                for name in group.written(hand_over=hand_over)
            ]
            for group in groups
        }
        self._all_held = [held.parameter for of_group in self._held.values() for held in of_group]
        self._tapped = {tap.module: names.modules[tap.module] for group in groups for tap in group.spec.taps}
        never_ran = {name: names.parameters[name] for name in unreached}
        self.newcomers = Newcomers(unwrapped(model), never_ran, groups, ranks)
        self._steps = Counter[ActivityStatistics]()
        self._heard: set[ActivityStatistics] = set()  # of which anything ran
        self._unread = Counter[ActivityStatistics]()  # steps in which some group was not read
        self._told: set[BoundGroup] = set()  # that they are held back

    def check(self, statistics: ActivityStatistics, ran: Sequence[BoundGroup]) -> None:
        """After a step of these groups' optimizer. Raises `RuntimeError` if the model is another one or was never read."""
        self._steps[statistics] += 1
        if self._steps[statistics] % CHECK_EVERY == 1:
            self.check_parameters(statistics.groups)
        if len(ran) < len(statistics.groups) or statistics not in self._heard:
            self._check_read(statistics, ran)
        self.newcomers.look()

    def check_parameters(self, groups: Iterable[BoundGroup]) -> None:
        """Raise `RuntimeError` if a parameter of these groups is no longer the model's."""
        for name, parameter, home, leaf in (held for group in groups for held in self._held[group]):
            if home.get(leaf) is not parameter:
                raise RuntimeError(
                    f"'{name}' was replaced by another tensor after attaching (load_state_dict(assign=True), a conversion, a "
                    f"parametrization?). detach(), and attach to the model as it is now"
                )

    def training(self, groups: Sequence[BoundGroup]) -> Sequence[BoundGroup]:
        """Those of which nothing is frozen now, and whose units nobody meets that the plan does not know."""
        groups = self.newcomers.apart(groups)
        if all([parameter.requires_grad for parameter in self._all_held]):  # noqa: C419  (a list is quicker)
            return groups
        free = [all(held.parameter.requires_grad for held in self._held[group]) for group in groups]
        for group in (group for group, trains in zip(groups, free, strict=True) if not trains):
            if group not in self._told:
                self._told.add(group)
                frozen = next(held.name for held in self._held[group] if not held.parameter.requires_grad)
                log.warning("'%s' is held back while '%s' is frozen: no unit of it is replaced", group.name, frozen)
        return [group for group, trains in zip(groups, free, strict=True) if trains]

    def _check_read(self, statistics: ActivityStatistics, ran: Sequence[BoundGroup]) -> None:
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
