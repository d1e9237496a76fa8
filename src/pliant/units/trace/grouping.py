"""From a record to the plan: units of one signature become a `UnitGroup`, or are left alone with a reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from pliant.base.initial import GAINS
from pliant.units.bound import BoundGroup, NamedModel
from pliant.units.groups import BN, AffineEntry, Index, Kind, PlanRow, RunningStatistic, Slice, Tap, UnitGroup
from pliant.units.map import UnitMap
from pliant.units.trace.labels import ints
from pliant.units.trace.lanes import Lane, Lanes
from pliant.units.trace.leftovers import left_alone
from pliant.units.trace.record import Activation, Product, TraceRecord
from pliant.units.trace.table import PartRole, Signature, UnitTable
from pliant.units.trace.taps import example_calls, returns_always
from pliant.units.trace.verdicts import Facts, Options, Verdicts

__all__ = ["Options", "unit_map"]

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def unit_map(record: TraceRecord, model: nn.Module, options: Options) -> UnitMap:
    """The plan of one forward's record."""
    table = UnitTable(record)
    verdicts = Verdicts(table, options)
    alike: dict[tuple[Signature, Facts], list[int]] = defaultdict(list)
    for unit, signature in table.signatures.items():
        alike[signature, verdicts.facts(unit)].append(unit)
    members: dict[tuple[Signature, Kind, str | None], list[int]] = defaultdict(list)
    for (signature, facts), units in alike.items():
        members[signature, verdicts.kind(signature, facts), verdicts.reason(signature, facts)] += units
    rows: list[PlanRow] = []
    refused: list[tuple[Signature, str, int]] = []
    names, taken = NamedModel(model), set[str]()
    for (signature, kind, reason), units in sorted(members.items(), key=lambda item: _first(table, item[0][0])):
        if reason is None:
            groups = _groups(_Builder(table, signature, units), kind, taken)
            if groups[0].taps or not options.activity:
                rows += [BoundGroup(group, names).plan_row(hand_over=True) for group in groups]
                taken.update(group.name for group in groups)
                continue
            reason = _unseen(groups[0])
        refused.append((signature, reason, len(units)))
    return UnitMap(rows, left_alone(table, rows, refused), unreached=record.unreached())


def _groups(builder: _Builder, kind: Kind, taken: set[str]) -> list[UnitGroup]:
    """One group; where no tap shows all of its units, one per set of products that read them, if there is a tap for each:
    experts of one parameter that are read one by one."""
    group = builder.group(kind, taken)
    if not group.taps:
        names, groups = set(taken), list[UnitGroup]()
        for part in builder.by_readers():
            groups.append(part.group(kind, names))
            names.add(groups[-1].name)
        if all(each.taps for each in groups):
            return groups
    return [group]


def _unseen(group: UnitGroup) -> str:
    read = ", ".join(dict.fromkeys(part.parameter for part in group.outgoing))
    return f"no module shows what {read} reads; utility='weight' would rank it without"


def _first(table: UnitTable, signature: Signature) -> int:
    """The number of the first incoming parameter."""
    lanes = [table.parts[part].lane for part in table.parts_of(signature, "incoming")]
    return min(lane.parameter for lane in lanes if lane is not None)


class _Builder:
    """Puts one group together from its units."""

    def __init__(self, table: UnitTable, signature: Signature, units: list[int]) -> None:
        self.table, self.record = table, table.record
        self.signature = signature
        first = table.positions(units, self._of("incoming")[0])[:, 0]
        self.units = ints(torch.tensor(units)[first.argsort()])

    def by_readers(self) -> list[_Builder]:
        """The same units, apart by the products that read them."""
        read_by: dict[int, list[int]] = {unit: [] for unit in self.units}
        units = torch.tensor(self.units)
        for part in self._of("outgoing"):
            positions = self.table.positions(self.units, part)
            for product, lanes in self._readers(part):
                for unit in ints(units[torch.isin(positions, lanes.positions).any(1)]):
                    read_by[unit].append(id(product))
        apart: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for unit, products in read_by.items():
            apart[tuple(products)].append(unit)
        return [_Builder(self.table, self.signature, units) for units in apart.values()]

    def _of(self, *roles: PartRole) -> list[int]:
        return self.table.parts_of(self.signature, *roles)

    def _lane(self, part: int) -> Lane:
        lane = self.table.parts[part].lane
        assert lane is not None
        return lane

    def group(self, kind: Kind, taken: set[str]) -> UnitGroup:
        weights, outgoing = self._of("incoming"), self._of("outgoing")
        return UnitGroup(
            name=_unique(self._name(weights[0]), taken),
            incoming=[self._slice(part) for part in [*weights, *self._of("shift")]],
            outgoing=[self._slice(part) for part in outgoing],
            tap=self._taps(outgoing),
            affine=[
                *(BN(self.table.parts[part].module, *self._places(part)) for part in self._of("norm")),
                *(AffineEntry(self._slice(part), self._start(part)) for part in self._of("scale", "slope", "own")),
                *(self._statistic(part) for part in self._of("statistic")),
            ],
            hand_over=self._hand_over(outgoing),
            gain=self._gain(),
            kind=kind,
            activation=self._activation(),
        )

    def _parameter(self, part: int) -> str:
        return self.record.memory.names[self._lane(part).parameter]

    # -- places ---------------------------------------------------------------------------------------------------

    def _start(self, part: int) -> float | None:
        """The initial value of entries, where the module is torch's own."""
        owner = self.record.owner(self._parameter(part))
        if isinstance(owner, nn.PReLU):
            return owner.init
        return 1.0 if isinstance(owner, _NORMS) and self.table.parts[part].role == "scale" else None

    def _places(self, part: int) -> tuple[int, Index | None]:
        """`repeat` and `index` of a slice."""
        positions = self.table.positions(self.units, part)
        lane = self.table.parts[part].lane
        return positions.shape[1], _index(positions, lane.positions if lane else self._channels(part))

    def _statistic(self, part: int) -> RunningStatistic:
        """Entries of a buffer: they start at its value, if it is the same everywhere, else as those of a batch norm."""
        name = self.table.parts[part].module
        module, _, leaf = name.rpartition(".")
        buffer = cast(Tensor, getattr(self.record.modules[module], leaf))
        first = float(buffer.flatten()[0])
        start = first if bool((buffer == first).all()) else 0.0
        positive = self.record.kept[name].positive and start <= 0.0
        axis = 0 if buffer.dim() == 1 else tuple(range(buffer.dim()))
        return RunningStatistic(Slice(name, axis, *self._places(part)), 1.0 if positive else start)

    def _channels(self, part: int) -> int:
        module = self.table.parts[part].module
        if self.table.parts[part].role == "statistic":
            return self.record.kept[module].labels.numel()
        return next(len(normed.labels) for normed in self.record.normed if normed.module == module)

    def _slice(self, part: int) -> Slice:
        lane = self._lane(part)
        shape = None if lane.shape == tuple(self.record.memory.parameters[lane.parameter].shape) else lane.shape
        axis = lane.axes[0] if len(lane.axes) == 1 else lane.axes
        return Slice(self._parameter(part), axis, *self._places(part), shape=shape)

    def _name(self, part: int) -> str:
        """The module that holds the weight, without what wrappers put in front."""
        name = self._parameter(part).removeprefix(self.record.prefix).replace("_orig_mod.", "")
        return name.removesuffix(".weight")

    # -- activity and means ---------------------------------------------------------------------------------------

    def _taps(self, outgoing: list[int]) -> Tap | tuple[Tap, ...]:
        """One for all where they agree, none where one is missing."""
        found = [self._tap(part) for part in outgoing]
        taps = tuple(tap for tap in found if tap is not None)
        if len(taps) < len(found):
            return ()
        return taps[0] if len(set(taps)) == 1 else taps

    def _tap(self, part: int) -> Tap | None:
        """The taps at which every product with these weights gets its input, and nothing else is shown."""
        users = list(self._readers(part))
        readers = [(product, lanes) for product, lanes in users if product.reads]
        taps = {replace(product.tap, nonnegative=False) if product.tap else None for product, _ in readers}
        recurrent = {product.recurrent for product, _ in readers}
        if taps == {None} and len(recurrent) == 1:
            module = next(iter(recurrent))
            carried = self._carried(module) if module is not None else None
            return self._of_examples(carried, users)
        tap = taps.pop() if len(taps) == 1 else None
        if tap is None:
            return None
        product, lanes = readers[0]
        calls = {each.during.get(tap.module) for each, _ in users} - {None}
        if tap.at == "input" and len(calls) < self.record.calls[tap.module]:
            return None  # the module is also called with what these weights do not read
        if tap.at == "output" and not returns_always(self.record, product, tap):
            return None
        row_at = torch.full((lanes.lane.positions,), -1)
        row_at[lanes.positions] = lanes.rows
        rows = row_at[self.table.positions(self.units, part)]
        if int(rows.min()) < 0:
            return None
        return self._of_examples(
            replace(tap, index=_index(rows, product.width), nonnegative=self._nonnegative(tap)), users
        )

    def _of_examples(self, tap: Tap | None, users: Iterable[tuple[Product, Lanes]]) -> Tap | None:
        """The tap, told which calls of its module are auxiliary; None where they cannot be told apart."""
        try:
            return tap and replace(tap, calls=example_calls(self.record, tap, [product for product, _ in users]))
        except LookupError:
            return None

    def _nonnegative(self, tap: Tap) -> bool:
        """Whether no number shown at the tap can be below zero."""
        return all(
            product.tap.nonnegative
            for product in self.record.products
            if product.tap is not None and replace(product.tap, nonnegative=tap.nonnegative) == tap
        )

    def _carried(self, module: str) -> Tap | None:
        """The output of a recurrent module, if every unit is seen there equally often."""
        if module not in self.record.carried:
            return None
        tap, by_family = self.record.carried[module]
        for labels in by_family.values():
            units = self.table.unit_of(labels)
            at = [torch.nonzero(units == unit).flatten() for unit in self.units]
            if len({len(positions) for positions in at}) == 1 and len(at[0]) > 0:
                return replace(tap, index=_index(torch.stack(at), len(units)))
        return None

    def _hand_over(self, outgoing: list[int]) -> dict[str, str | BN]:
        """Where every product with a weight agrees on what takes over a mean."""
        found: dict[str, str | BN] = {}
        for part in outgoing:
            takers = {self._taker(product) for product, _ in self._readers(part)}
            (taker,) = takers if len(takers) == 1 else (None,)
            if taker is not None and len(self._lane(part).axes) == 1:
                found[self._parameter(part)] = taker
        return found

    def _taker(self, product: Product) -> str | BN | None:
        """The vector that takes over a mean for the product, unless the product's bare result is used elsewhere too."""
        alone = product.result is None or self.record.read_by[product.result] == 1
        return product.takes_mean if alone else None

    def _readers(self, part: int) -> Iterable[tuple[Product, Lanes]]:
        """The products in which these units meet the weight."""
        positions = self.table.positions(self.units, part)
        for product in self.record.products:
            for lanes in product.inputs or []:
                if lanes.lane == self._lane(part) and bool(torch.isin(lanes.positions, positions).any()):
                    yield product, lanes

    def _activations(self) -> set[Activation]:
        families = set[int]().union(*(self.table.families[unit] for unit in self.units))
        return set[Activation]().union(*(self.record.activations.get(family, ()) for family in families))

    def _activation(self) -> str | None:
        found = self._activations()
        return found.pop().name if len(found) == 1 else None

    def _gain(self) -> float:
        gains = {each.gain for each in self._activations()}
        if not gains:
            return GAINS["linear"]
        return gains.pop() if len(gains) == 1 else GAINS["relu"]


def _index(positions: Tensor, size: int) -> Index | None:
    """None where the units own all positions in order."""
    if positions.numel() == size and torch.equal(positions.flatten(), torch.arange(size)):
        return None
    return tuple(tuple(ints(row)) for row in positions)


def _unique(name: str, taken: set[str]) -> str:
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}#{number}"
    return unique
