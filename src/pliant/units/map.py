"""The plan: every resettable unit of a model, and the parameters that were left alone, with the reason.

It is printed, edited by name, checked against a model, and proved on a copy of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Self

from torch import nn

from pliant.base.arguments import is_a, shown
from pliant.base.arguments import patterns as patterns_of
from pliant.base.deprecation import renamed
from pliant.base.tables import Cells, Table, bars
from pliant.units.bound import BoundGroup
from pliant.units.groups import PlanRow, Skipped, UnitGroup, some
from pliant.units.models import plain_name
from pliant.units.verify import Tried, Verification, verify


@dataclass(frozen=True)
class UnitMap(Table):
    """The plan: every resettable unit with its incoming and outgoing weights, where its mean contribution goes, and what was left
    out.

    Prints as a table. `include`, `exclude` and `add` return an edited copy; `verify` proves the plan.
    """

    rows: Sequence[PlanRow] = field(default=())
    skipped: Sequence[Skipped] = field(default=())
    notes: Sequence[str] = field(default=())  # such as optimizer state that cannot be forgotten exactly
    unreached: Sequence[str] = field(default=())  # parameters that never ran with the example inputs

    @property
    def groups(self) -> list[UnitGroup]:
        """The groups, as every reset method takes them."""
        return [row.group for row in self.rows]

    def include(self, *patterns: str) -> Self:
        """Only the groups whose name, or one of whose parameters, matches a pattern (`fnmatch`).

        Raises `ValueError` for a pattern that matches nothing, or only skipped parameters, with the reason.
        """
        if not patterns_of("include", patterns):
            return self
        for pattern in patterns:
            if not any(_matches(row.group, pattern) for row in self.rows):
                raise ValueError(self._no_match("include", pattern))
        kept = [any(_matches(row.group, pattern) for pattern in patterns) for row in self.rows]
        return self._only(kept, "not included")

    def exclude(self, *patterns: str) -> Self:
        """Without the groups whose name, or one of whose incoming parameters, matches a pattern (`fnmatch`).

        Raises `ValueError` for a pattern that matches nothing.
        """
        for pattern in patterns_of("exclude", patterns):
            names = [name for each in self.skipped for name in each.parameters]
            known = any(_matches(row.group, pattern) for row in self.rows)
            if not known and not any(_name_matches(name, pattern) for name in names):
                raise ValueError(self._no_match("exclude", pattern))
        kept = [not any(_matches(row.group, pattern) for pattern in patterns) for row in self.rows]
        return self._only(kept, "excluded")

    def add(self, model: nn.Module, *groups: UnitGroup) -> Self:
        """A plan with groups given by hand, each checked against the model; one with an existing name replaces the old one."""
        for group in groups:
            if not is_a(group, UnitGroup):
                raise TypeError(f"add takes UnitGroups, got {shown(group)}")
        by_hand = {group.name: BoundGroup(group, model).plan_row(hand_over=True) for group in groups}
        return replace(self, rows=[*(row for row in self.rows if row.group.name not in by_hand), *by_hand.values()])

    def verify(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        groups: Sequence[str] | None = None,
        rounds: int | None = None,
        seed: int = 0,
    ) -> Verification:
        """Prove on a copy, in float64, that resets of these units change nothing else: see `pliant.units.verify`."""
        return verify(self.groups, model, example_inputs, only=groups, rounds=rounds, seed=seed)

    def without(self, found: Tried) -> Self:
        """A plan without the groups that a trial found wrong, which are left alone."""
        names = {row.group.name: tuple(part.parameter for part in row.group.incoming) for row in self.rows}
        refused = [
            Skipped(names[row.group.name], f"failed its trial: {found.wrong[row.group.name]}", row.units)
            for row in self.rows
            if row.group.name in found.wrong
        ]
        rows = [row for row in self.rows if row.group.name not in found.wrong]
        notes = [*self.notes, *([found.note] if found.note else [])]
        return replace(self, rows=rows, skipped=[*self.skipped, *refused], notes=notes)

    def _only(self, kept: Sequence[bool], reason: str) -> Self:
        rows = [row for row, keep in zip(self.rows, kept, strict=True) if keep]
        gone = [
            Skipped(tuple(part.parameter for part in row.group.incoming), reason, row.units)
            for row, keep in zip(self.rows, kept, strict=True)
            if not keep
        ]
        return replace(self, rows=rows, skipped=[*self.skipped, *gone])

    def _no_match(self, what: str, pattern: str) -> str:
        reasons = [
            f"{', '.join(each.parameters)}: {each.reason}"
            for each in self.skipped
            if any(_name_matches(name, pattern) for name in each.parameters)
        ]
        if reasons:
            return f"{what}={shown(pattern)} names what cannot be reset: {'; '.join(reasons)}"
        names = ", ".join(row.group.name for row in self.rows)
        return f"{what}={shown(pattern)} matches no group and no parameter; groups: {names}"

    def fingerprint(self) -> list[str]:
        """One line per group, without the prefixes of DistributedDataParallel and `torch.compile`."""
        return [plain_name(row.fingerprint()) for row in self.rows]

    def check_fingerprint(self, saved: Sequence[str]) -> None:
        """Raise `ValueError` unless something was saved for the units of this plan."""
        ours = self.fingerprint()
        # as states of before have them, which took `module.` out of `my_module.` too
        before = [row.fingerprint().replace("_orig_mod.", "").replace("module.", "") for row in self.rows]
        if list(saved) not in (ours, before):
            theirs = [f"saved: {line}" for line in saved if line not in ours]
            here = [f"here: {line}" for line in ours if line not in saved]
            raise ValueError(
                f"this state was saved for other units; {'; '.join(theirs + here) or 'their order differs'}"
            )

    def to_dict(self) -> dict[str, Any]:
        skipped = [
            {"parameters": list(each.parameters), "reason": each.reason, "units": each.units} for each in self.skipped
        ]
        return {"groups": self.records(), "skipped": skipped, "notes": list(self.notes)}

    def records(self) -> list[dict[str, Any]]:
        return [row.record() for row in self.rows]

    def plot(self) -> Any:
        """A figure of how many units each group has, and how large their incoming weights are beside fresh ones."""
        stds = {"now": [row.current_std for row in self.rows], "fresh": [row.fresh_std for row in self.rows]}
        panels = {"units": {"now": [row.units for row in self.rows]}, "std of incoming weights": stds}
        return bars([row.group.name for row in self.rows], panels)

    def table(self) -> tuple[Cells, Sequence[str]]:
        head = ("group", "kind", "units", "incoming", "outgoing", "activity", "hand-over", "init std / now")
        notes: list[str] = []
        if self.skipped:
            names = [some(each.parameters) for each in self.skipped]
            width = min(max(map(len, names)), 60)
            left = [f"  {name.ljust(width)}  {each.reason}" for name, each in zip(names, self.skipped, strict=True)]
            notes += ["left alone", *left]
        if self.notes:
            notes += [*([""] if notes else []), *self.notes]
        return [head, *(row.cells() for row in self.rows)], notes


__getattr__ = renamed(
    "pliant.units.map",
    {
        **{name: f"pliant.units.groups.{name}" for name in ("BN", "Slice", "Tap", "UnitGroup", "PlanRow", "Skipped")},
        "Own": "pliant.units.groups.AffineEntry",
    },
)


def _name_matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)


def _matches(group: UnitGroup, pattern: str) -> bool:
    return _name_matches(group.name, pattern) or any(_name_matches(part.parameter, pattern) for part in group.incoming)
