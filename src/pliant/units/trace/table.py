"""The table of units: one line per position of a parameter that a unit owns.

    unit    part (role, lane)             position
    17      incoming, fc1.weight rows     3
    17      outgoing, fc2.weight columns  3

A unit is a connected set of atoms. Two atoms are connected if one number that a weight reads depends on both, or if they are
read by the same place of a weight: attention heads, gates, the channels of a residual stream.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from pliant.units.trace.labels import NONE, distinct, ints, runs, values
from pliant.units.trace.lanes import Lane, all_elements
from pliant.units.trace.record import Owned, Role, TraceRecord

PartRole = Literal["incoming", "outgoing", "norm", "statistic"] | Role


@dataclass(frozen=True)
class Part:
    """A kind of place that units own: lanes of a parameter, channels of a batch norm, or entries of a buffer."""

    role: PartRole
    lane: Lane | None
    module: str = ""


Signature = tuple[tuple[int, int], ...]  # numbers of a unit's parts, and how many positions it owns in each


class UnitTable:
    """Units of a record, by the number of their smallest atom."""

    def __init__(self, record: TraceRecord) -> None:
        self.record = record
        self._smallest = record.labels.smallest()  # atom of each label
        self.unit_of_atom = _components(len(self._smallest), self._edges())
        self.families: dict[int, set[int]] = defaultdict(set)  # of each unit
        self.collapsed: set[int] = set()  # families whose many rows are all one unit
        self.parts: list[Part] = []
        self._owners: dict[Part, list[tuple[Tensor, Tensor]]] = defaultdict(list)  # unit, position
        self._note_incoming()
        self._note_outgoing()
        self._note_owned()
        self._note_kept()
        self.signatures: dict[int, Signature] = {}
        self._starts: dict[tuple[int, int], int] = {}  # (unit, part) -> where its positions start
        self._positions = self._sort()

    def unit_of(self, labels: Tensor) -> Tensor:
        """The unit that each label belongs to, NONE for none."""
        known = labels != NONE
        return torch.where(known, self.unit_of_atom[self._smallest[labels.clamp(min=0)]], NONE)

    def units_in(self, labels: Tensor) -> list[int]:
        """Every unit in any of the sets."""
        known = distinct(labels)
        atoms = frozenset[int]().union(*(self.record.labels.sets.get(label, ()) for label in known))
        single = [label for label in known if label not in self.record.labels.sets]
        return ints(values(self.unit_of_atom[torch.tensor([*single, *atoms], dtype=torch.int64)]))

    # -- which atoms are one unit ---------------------------------------------------------------------------------

    def _edges(self) -> Tensor:
        """Pairs of atoms, (2, n)."""
        sets: set[int] = set()
        readers: dict[Lane, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for product in self.record.products:
            for labels in product.reads.values():
                sets.update(distinct(labels))
                for lanes in product.inputs or []:
                    readers[lanes.lane].append((lanes.positions, labels[lanes.rows]))
        together = [pair for label in sets for pair in pairwise(sorted(self.record.labels.sets.get(label, ())))]
        edges = [torch.tensor(together, dtype=torch.int64).view(-1, 2).t()]
        edges += [torch.stack([torch.arange(a, a + n), torch.arange(b, b + n)]) for a, b, n in set(self.record.same)]
        for reads in readers.values():
            positions, labels = (torch.cat(column) for column in zip(*reads, strict=True))
            known = labels != NONE
            order = positions[known].argsort(stable=True)
            at, atoms = positions[known][order], self._smallest[labels[known][order]]
            same = at[1:] == at[:-1]
            edges.append(torch.stack([atoms[1:][same], atoms[:-1][same]]))
        return torch.cat(edges, dim=1)

    # -- what each unit owns --------------------------------------------------------------------------------------

    def _note(self, part: Part, units: Tensor, positions: Tensor) -> None:
        known = units != NONE
        self._owners[part].append((units[known], positions[known]))

    def _note_incoming(self) -> None:
        for lane, family in self.record.families.items():
            positions = torch.arange(lane.positions)
            units = self.unit_of_atom[self.record.atoms[family] + positions]
            self._note(Part("incoming", lane), units, positions)
            owners = distinct(units)
            for unit in owners:
                self.families[unit].add(family)
            if len(owners) == 1 < lane.positions:
                self.collapsed.add(family)

    def _note_outgoing(self) -> None:
        for product in self.record.products:
            for labels in product.reads.values():
                units = self.unit_of(labels)
                for lanes in product.inputs or []:
                    self._note(Part("outgoing", lanes.lane), units[lanes.rows], lanes.positions)

    def _note_owned(self) -> None:
        """Entries that meet one unit alone; others belong to no unit, and are never reset."""
        weights = {number for product in self.record.products for number in product.parameters}
        meets: dict[Part, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        roles: dict[Lane, set[Role]] = defaultdict(set)
        known = _told_apart(
            [each for each in self.record.owned if each.computes or each.lanes.lane.parameter not in weights]
        )
        for owned in known:
            roles[owned.lanes.lane].add(owned.role)
        for owned in known:
            lane = owned.lanes.lane
            role = owned.role if len(roles[lane]) == 1 else "own"
            meets[Part(role, lane)].append((owned.lanes.positions, self.unit_of(owned.labels)))
        for normed in self.record.normed:
            channels = torch.arange(len(normed.labels))
            meets[Part("norm", None, normed.module)].append((channels, self.unit_of(normed.labels)))
        for part, found in meets.items():
            positions, units = (torch.cat(column) for column in zip(*found, strict=True))
            pairs = values((positions * len(self._smallest) + units)[units != NONE])
            places, owners = pairs // len(self._smallest), pairs % len(self._smallest)
            found_at, count = runs(places)
            alone = torch.isin(places, found_at[count == 1])
            self._note(part, owners[alone], places[alone])

    def _note_kept(self) -> None:
        """Entries of buffers that hold one unit's numbers each: a statistic, if it is one entry per unit, or a state of each
        example. Where an entry holds those of several units, these leave the model there.
        """
        for name, kept in self.record.kept.items():
            labels = kept.labels.flatten()
            if all(len(self.units_in(labels[labels == label])) == 1 for label in distinct(labels)):
                units = self.unit_of(labels)
                if len(values(units[units != NONE])) == int((units != NONE).sum()):
                    self._note(Part("statistic", None, name), units, torch.arange(len(labels)))
            else:
                self.record.escaped.append((f"is kept in the buffer '{name}'", kept.labels))

    def _sort(self) -> Tensor:
        """Positions by unit, then by part, then in order; fills `parts`, `signatures` and `_starts`."""
        self.parts = sorted(self._owners, key=_order)
        merged = [[torch.cat(column) for column in zip(*self._owners[part], strict=True)] for part in self.parts]
        size = 1 + max((int(positions.max()) for _, positions in merged if len(positions)), default=0)
        codes = [(units * len(merged) + i) * size + positions for i, (units, positions) in enumerate(merged)]
        code = values(torch.cat([torch.empty(0, dtype=torch.int64), *codes]))
        owner, counts = runs(code // size)
        starts = counts.cumsum(0) - counts
        signatures: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for key, count, start in zip(ints(owner), ints(counts), ints(starts), strict=True):
            unit, part = divmod(key, len(self.parts))
            signatures[unit].append((part, count))
            self._starts[unit, part] = start
        self.signatures = {unit: tuple(parts) for unit, parts in signatures.items()}
        return code % size

    def positions(self, units: list[int], part: int) -> Tensor:
        """(units, repeat) positions in one part, of units of one signature."""
        repeat = next(count for number, count in self.signatures[units[0]] if number == part)
        starts = torch.tensor([self._starts[unit, part] for unit in units])
        return self._positions[starts[:, None] + torch.arange(repeat)]

    def parts_of(self, signature: Signature, *roles: PartRole) -> list[int]:
        return [number for number, _ in signature if self.parts[number].role in roles]


def _told_apart(every: Sequence[Owned]) -> list[Owned]:
    """Rows where all that is owned of a parameter are rows along the same axes; element by element where they are not."""
    seen: dict[int, set[Lane]] = defaultdict(set)
    for owned in every:
        seen[owned.lanes.lane.parameter].add(owned.lanes.lane)
    found: list[Owned] = []
    for owned in every:
        if len(seen[owned.lanes.lane.parameter]) > 1:
            lanes = all_elements(owned.lanes)
            owned = Owned(owned.role, lanes, owned.labels[lanes.rows], owned.computes)
        found.append(owned)
    return found


def _order(part: Part) -> tuple[str, int, tuple[int, ...], str]:
    return (part.role, part.lane.parameter, part.lane.axes, "") if part.lane else (part.role, -1, (), part.module)


def _components(count: int, edges: Tensor) -> Tensor:
    """The smallest member of the connected component of each of `count` nodes."""
    root = torch.arange(count)
    while True:
        a, b = root[edges[0]], root[edges[1]]
        if torch.equal(a, b):
            return root
        root.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        while not torch.equal(root, root[root]):
            root = root[root]
