"""A method of units takes over from another whose model has changed: what is known of units that stayed goes on.

A unit stayed where a group of its name has as many units and runs as before: a head that grew has other parameters, and the
layers below it the same units. Their ages, utilities, mean activity, schedules, entries' ages in the optimizer and the scale they
are drawn at go on; those of other groups begin. Where another consumer came behind those that read a group, its mean activity
there begins. What was recorded since the last step is dropped.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from torch import Tensor

from pliant.engine.statistics import ActivityStatistics
from pliant.units.bound import BoundGroup
from pliant.units.entries import BoundSlice


class Units(Protocol):
    """Of a method that resets units, what is needed here."""

    groups: list[BoundGroup]
    all_statistics: list[ActivityStatistics]


def state_of_successor(new: Units, begun: dict[str, Any], old: Units, state: dict[str, Any]) -> dict[str, Any]:
    """The state that `new`, which has begun with `begun`, goes on from, given the last one of `old`."""
    twins = {group: twin for group in new.groups for twin in old.groups if _alike(group, twin)}
    places = {group.name: _Place(new, group, old, twin) for group, twin in twins.items()}
    kept = {group.name for group in twins}
    for place in places.values():
        here, there = begun["panels"][place.panel], state["panels"][place.panel_before]
        here["steps"][place.position] = there["steps"][place.position_before]
        place.copy(there["born"], here["born"])
        for name, held in begun["score"].items():
            before = state["score"].get(name)
            if isinstance(held, list) and isinstance(before, list):
                place.copy(cast(Any, before)[place.panel_before], cast(Any, held)[place.panel])
    starts, before = begun["redraw"]["starts"], state["redraw"]["starts"]
    if starts is not None and before is not None:
        old_names = [group.name for group in old.groups]
        for number, group in enumerate(new.groups):
            if group in twins and len(before[old_names.index(group.name)]) == len(starts[number]):
                starts[number] = before[old_names.index(group.name)]
    for part in ("counts", "select"):
        begun[part] = {name: state[part][name] if name in kept else held for name, held in begun[part].items()}
    slices = {f"{group.name}|{number}" for group, twin in twins.items() for number in _same_slices(group, twin)}
    begun["forget"] = {
        key: state["forget"][key] if key in slices & state["forget"].keys() else held
        for key, held in begun["forget"].items()
    }
    begun["owed"] = [name for name in state["owed"] if name in kept]
    for name in ("seeds", "generators"):
        begun[name] = state[name] if len(state[name]) == len(begun[name]) else begun[name]
    return begun


class _Place:
    """Where a group's numbers lie in the tensors of a method, and where they lay in those of the one before."""

    def __init__(self, new: Units, group: BoundGroup, old: Units, twin: BoundGroup) -> None:
        self._units = group.units
        self.panel, self.position, self._here = _found(new, group)
        self.panel_before, self.position_before, self._there = _found(old, twin)

    def copy(self, before: Any, here: Any) -> None:
        """Numbers of units, (runs, units), or of columns, (runs, columns); others are left alone."""
        if not isinstance(before, Tensor) or not isinstance(here, Tensor) or here.dim() < 2 or before.dim() < 2:
            return
        for kind in ("units", "columns"):
            width, width_before = (getattr(each.statistics, kind) for each in (self._here, self._there))
            if here.shape[1] == width and before.shape[1] == width_before:
                ours = here[:, getattr(self._here.span, kind)].view(here.shape[0], self._units, -1)
                theirs = before[:, getattr(self._there.span, kind)].view(here.shape[0], self._units, -1)
                shared = min(ours.shape[2], theirs.shape[2])  # columns of a unit; those of a new consumer come last
                ours[:, :, :shared] = theirs[:, :, :shared].to(here.device)
                return


class _Found:
    def __init__(self, statistics: ActivityStatistics, group: BoundGroup) -> None:
        self.statistics, self.span = statistics, statistics.span(group)


def _found(method: Units, group: BoundGroup) -> tuple[int, int, _Found]:
    number = next(n for n, each in enumerate(method.all_statistics) if group in each.groups)
    statistics = method.all_statistics[number]
    return number, list(statistics.groups).index(group), _Found(statistics, group)


def _alike(one: BoundGroup, other: BoundGroup) -> bool:
    """Whether their units are the same: read where they were, and perhaps elsewhere too."""
    shared = min(len(one.spec.taps), len(other.spec.taps))
    same_taps = one.spec.taps[:shared] == other.spec.taps[:shared]
    same = all(getattr(one, name) == getattr(other, name) for name in ("name", "units", "runs"))
    return same and same_taps and (one.columns == other.columns or len(one.spec.taps) != len(other.spec.taps))


def _same_slices(group: BoundGroup, twin: BoundGroup) -> list[int]:
    """The numbers of slices that are of one parameter, along one axis, in both."""
    pairs = zip(group.slices(), twin.slices(), strict=False)
    return [number for number, (one, other) in enumerate(pairs) if _placed(one) == _placed(other)]


def _placed(part: BoundSlice) -> object:
    return part.part.parameter, part.part.axes, part.leading
