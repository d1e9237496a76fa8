"""Which of the planned units a method may reset: those given by hand, or found and stepped by its optimizers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch.optim import Optimizer

from pliant.units.bound import BoundGroup, NamedModel
from pliant.units.groups import Skipped, UnitGroup
from pliant.units.map import UnitMap
from pliant.units.verify.whole_plan import Tried

log = logging.getLogger("pliant")


def given_units(names: NamedModel, groups: Sequence[UnitGroup] | UnitMap, kinds: Mapping[str, bool]) -> UnitMap:
    """By hand. Raises `ValueError` if kinds are asked for that only tracing can tell."""
    named = [name for name, wanted in kinds.items() if wanted]
    if named:
        raise ValueError(f"{', '.join(named)}: only with example_inputs; groups given by hand are taken as they are")
    if isinstance(groups, UnitMap):
        return groups
    return UnitMap([BoundGroup(spec, names).plan_row(hand_over=True) for spec in groups])


def stepped_units(units: UnitMap, names: NamedModel, optimizers: Sequence[Optimizer]) -> UnitMap:
    """Without the groups of which no optimizer steps a parameter. Raises `ValueError` if that leaves none."""
    known = {id(p) for each in optimizers for settings in each.param_groups for p in settings["params"]}
    missing = {
        row.group.name: [name for name in row.group.parameters() if id(names.parameters[name]) not in known]
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
    return [f"never ran with the example inputs: {names}. Should it train, the first step raises: it may read units"]
