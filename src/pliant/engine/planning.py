"""Where a method that resets units attaches: which units of a model it may reset, and whether it may be there at all."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from pliant.base.arguments import flag, is_a, patterns, shown
from pliant.engine.attached import home_of_parameters
from pliant.engine.data_parallel import Ranks
from pliant.engine.replacement import Replacement
from pliant.units.bound import BoundGroup, NamedModel
from pliant.units.entries import BoundSlice
from pliant.units.forwards import Mask, check_mask
from pliant.units.groups import Skipped, UnitGroup
from pliant.units.map import UnitMap
from pliant.units.models import check_examples
from pliant.units.trace import trace
from pliant.units.verify import Tried, tried

log = logging.getLogger("pliant")


class Where(TypedDict, total=False):
    """Where a method attaches: what `UnitReset` takes beside the four parts, and every method passes on.

    example_inputs: what one forward takes (a tensor, a tuple of positional or a mapping of keyword arguments, or a list of
        those): the units are found by `pliant.units.trace`. Or
    groups: the units by hand, from `chain_groups`, or an edited `UnitMap`.
    include, exclude: patterns of group or parameter names (`fnmatch`), see `UnitMap`.
    strict, residual, heads: which kinds of units are found, see `pliant.units.trace`; False each.
    trial: try the units that were found on a float64 copy, in a few forwards, and leave alone what is wrong; True. Rank 0 does
        it for all. See `pliant.units.verify.whole_plan`.
    seed: of all draws, or one for each run of a stack; None takes `torch.initial_seed()`, under data parallelism that of
        rank 0. Two methods with the same seed draw the same random numbers: give an actor and a critic seeds of their own.
    attach: True resets by itself after `optimizer.step()`; False waits for you to call `step()` there, and takes a call that no
        step of the optimizer came before for none (a GradScaler left it out), unless steps are replayed.
    process_group: "auto" shares statistics over the ranks of a DistributedDataParallel model; a process group does so for any
        model that is the same on all its ranks; None leaves every rank to itself.
    mask: which positions of a batch are real, where some are padding: the name of an argument of the model's forward
        (`mask="attention_mask"`, True or 1 at real positions), or a function of all its arguments that gives such a tensor
        (`mask=lambda ids: ids != 0`) of shape (batch, positions). Activity, utilities and the means handed over are then those
        of real positions, see `pliant.units.forwards`. A step without any leaves averages as they are.
    on_replace: a function that is told of each replacement when it is done, a `pliant.engine.replacement.Replacement` for each
        group: to log it, or to reset what else belongs to these units.
    """

    groups: Sequence[UnitGroup] | UnitMap | None
    example_inputs: Any
    include: str | Sequence[str]
    exclude: str | Sequence[str]
    strict: bool
    residual: bool
    heads: bool
    trial: bool
    seed: int | Sequence[int] | None
    attach: bool
    process_group: dist.ProcessGroup | Literal["auto"] | None
    mask: Mask | None
    on_replace: Callable[[Replacement], object] | None


def planned(
    model: nn.Module, names: NamedModel, optimizers: Sequence[Optimizer], ranks: Ranks, where: Where, *, activity: bool
) -> UnitMap:
    """The units to reset: given by hand, or found by running the model, stepped by an optimizer and passed by a trial.

    `activity`: they must be such that their activity can be read. Raises `ValueError` for what does not fit.
    """
    groups, example_inputs = where.get("groups"), where.get("example_inputs")
    if (groups is None) == (example_inputs is None):
        raise ValueError(
            "give either example_inputs=x (the units are found by running the model on it) or groups=[UnitGroup(...), ...]"
        )
    strict, residual, heads = (flag(kind, where.get(kind, False)) for kind in ("strict", "residual", "heads"))
    trial, include = flag("trial", where.get("trial", True)), patterns("include", where.get("include", ()))
    exclude = patterns("exclude", where.get("exclude", ()))
    if groups is None:
        check_examples("example_inputs", example_inputs)
        check_mask(
            where.get("mask"),
            example_inputs[0] if isinstance(example_inputs, list) and example_inputs else example_inputs,
        )
        units = trace(
            model, example_inputs, activity=activity, trial=False, strict=strict, residual=residual, heads=heads
        )
    else:
        units = given_units(names, groups, {"strict": strict, "residual": residual, "heads": heads})
    units = units.include(*include).exclude(*exclude)
    if groups is not None:
        return units
    units = stepped_units(units, names, optimizers)
    if not trial:
        return units
    found = tried(units.groups, model, example_inputs) if ranks.leads else Tried()
    return passed_units(units, *ranks.agree_on([found]))


def given_units(names: NamedModel, groups: Sequence[UnitGroup] | UnitMap, kinds: Mapping[str, bool]) -> UnitMap:
    """By hand. Raises `ValueError` if kinds are asked for that only tracing can tell."""
    named = [name for name, wanted in kinds.items() if wanted]
    if named:
        raise ValueError(f"{', '.join(named)}: only with example_inputs; groups given by hand are taken as they are")
    if isinstance(groups, UnitMap):
        return groups
    if not is_a(groups, Sequence) or is_a(groups, str):
        raise TypeError(f"groups takes a plan or a list of UnitGroup, got {shown(groups)}")
    other = next((each for each in groups if not is_a(each, UnitGroup)), None)
    if other is not None:
        raise TypeError(f"groups takes a plan or a list of UnitGroup, got one with {shown(other)}")
    return UnitMap([BoundGroup(spec, names).plan_row(hand_over=True) for spec in groups])


def stepped_units(units: UnitMap, names: NamedModel, optimizers: Sequence[Optimizer]) -> UnitMap:
    """Without the groups of which no optimizer steps a parameter. Raises `ValueError` if that leaves none."""
    known = home_of_parameters(optimizers)
    missing = {
        row.group.name: [name for name in row.group.parameters() if names.parameters[name] not in known]
        for row in units.rows
    }
    if units.rows and all(missing.values()):
        first = ", ".join(f"'{name}'" for name in next(iter(missing.values())))
        raise ValueError(
            f"no group has all of its parameters in the optimizer given ({first} are not, for a start). Pass the optimizer that "
            f"was built from this model's parameters, or all of them if there are several"
        )
    skipped = [
        Skipped(tuple(gone), "not in the optimizer", row.units)
        for row, gone in zip(units.rows, missing.values(), strict=True)
        if gone
    ]
    rows = [row for row in units.rows if not missing[row.group.name]]
    return replace(units, rows=rows, skipped=[*units.skipped, *skipped])


def passed_units(units: UnitMap, found: Tried) -> UnitMap:
    """Without the groups that a trial found wrong. Raises `ValueError`, with the plan, if that leaves none."""
    kept = units.without(found)
    for name, why in found.wrong.items():
        log.warning("'%s' is left alone: it failed its trial (%s)", name, why)
    if units.rows and not kept.rows:
        raise ValueError(f"no group passed its trial (trial=False leaves it out)\n{kept}")
    return kept


def warnings_of(units: UnitMap) -> list[str]:
    """Lines of the plan on what it cannot know."""
    if not units.unreached:
        return []
    names = ", ".join(units.unreached)
    return [
        f"never ran with the example inputs: {names}. If one receives a gradient, the groups whose units it meets are held back, "
        f"because the plan does not know what it does with them"
    ]


# -- whether a method may be there ------------------------------------------------------------------------------------


def check_groups(groups: Sequence[BoundGroup], *, activity: bool) -> None:
    """Raise `ValueError` unless no group is named twice, no slice is in two groups, all have as many runs, and, where `activity`
    is needed, each has a tap."""
    if not groups:
        raise ValueError("no groups are left, so no unit could ever be replaced: none were given, or all are excluded")
    twice = [name for name, count in Counter(group.name for group in groups).items() if count > 1]
    if twice:
        raise ValueError(f"the same group is given more than once: {'; '.join(twice)}")
    sides = {
        "incoming": [place for group in groups for part in group.incoming for place in _places(part)],
        "outgoing": [place for group in groups for part in group.outgoing for place in _places(part)],
    }
    for kind, found in sides.items():
        claims = Counter(place for place, _ in found)
        twice = sorted({name for place, name in found if claims[place] > 1})
        if twice:
            raise ValueError(f"the same {kind} slice is given more than once: {'; '.join(twice)}")
    if len({group.spec.runs for group in groups}) > 1:
        raise ValueError("all groups must have the same number of runs")
    for group in groups:
        if activity and not group.spec.taps:
            raise ValueError(
                f"group '{group.name}' has no tap to read its activity from; give one, or use utility='weight'"
            )


def check_alone(kind: str, groups: Iterable[BoundGroup], taken: Iterable[BoundGroup]) -> None:
    """Raise `ValueError` where a unit is among those `taken` by another method of the same `kind`, each at its own rate.

    Units are the same if a weight that enters them is, whatever model they were found in and whatever their names.
    """
    theirs = {place for group in taken for place in _entered(group)}
    shared = [group.name for group in groups if not theirs.isdisjoint(_entered(group))]
    if shared:
        raise ValueError(
            f"units of '{shared[0]}' are already reset by a {kind} that is attached to this optimizer: detach() that one first, "
            "or exclude its units here"
        )


def _places(part: BoundSlice) -> list[tuple[object, str]]:
    """Which entries a slice owns, whatever name they go by, and that name."""
    spec = part.part
    name = f"{spec.parameter}, axis {spec.axis}"
    if spec.index is None:
        return [((id(part.parameter), spec.axis, spec.shape, position), name) for position in range(part.index.numel())]
    return [((id(part.parameter), spec.axis, spec.shape, position), name) for row in spec.index for position in row]


def _entered(group: BoundGroup) -> set[object]:
    """What tells a group's units from all others: the entries through which numbers enter them."""
    return {place for part in group.incoming for place, _ in _places(part)}
