"""Which units may be reset, and why others are left alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pliant.units.groups import Kind
from pliant.units.trace.labels import distinct
from pliant.units.trace.lanes import Lane
from pliant.units.trace.record import TraceRecord
from pliant.units.trace.table import PartRole, Signature, UnitTable


@dataclass(frozen=True)
class Options:
    """The options of `trace`."""

    residual: bool = False
    heads: bool = False
    strict: bool = False
    activity: bool = False


@dataclass(frozen=True)
class Facts:
    """Facts about a unit beside its signature."""

    families: frozenset[int]
    escaped: str | None  # where it leaves the model
    mixed: str | None  # where it shares a statistic with other units
    shared: str | None  # an outgoing weight that reads something else too


class Verdicts:
    """Kind of each unit, and the first reason against it. Units of equal signature and facts are alike."""

    def __init__(self, table: UnitTable, options: Options) -> None:
        self.table, self.record, self.options = table, table.record, options
        self._escaped = {unit: why for why, labels in self.record.escaped for unit in table.units_in(labels)}
        self._mixed = self._find_mixed()
        self._shared_readers = self._find_shared()
        self._read = {number for product in self.record.products if product.reads for number in product.parameters}
        self._readers, self._writers = _lanes_of_parameters(self.record)

    def facts(self, unit: int) -> Facts:
        families = frozenset(self.table.families[unit])
        return Facts(families, self._escaped.get(unit), self._mixed.get(unit), self._shared_readers.get(unit))

    def _find_mixed(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for label, where in self.record.mixed.items():
            units = self.table.units_in(torch.tensor([label]))
            if len(units) > 1:
                found.update(dict.fromkeys(units, where))
        return found

    def _find_shared(self) -> dict[int, str]:
        """Units of which an outgoing position also meets numbers without a label."""
        unexplained = _unexplained(self.record)
        found: dict[int, str] = {}
        for product in self.record.products:
            for labels in product.reads.values():
                units = self.table.unit_of(labels)
                for lanes in product.inputs or []:
                    also = units[lanes.rows][unexplained[lanes.lane][lanes.positions]]
                    found.update(dict.fromkeys(distinct(also), self._name(lanes.lane)))
        return found

    # -- the verdict ----------------------------------------------------------------------------------------------

    def kind(self, signature: Signature, facts: Facts) -> Kind:
        if facts.mixed:
            return "approximate"
        return (
            "recurrent"
            if self._parameters(signature, "incoming") & self._parameters(signature, "outgoing")
            else "exact"
        )

    def reason(self, signature: Signature, facts: Facts) -> str | None:
        """The reason why units are left alone, None where they are not."""
        return next(self._reasons(signature, facts), None)

    def _reasons(self, signature: Signature, facts: Facts) -> Iterator[str]:
        yield from self._unread_state(signature)
        yield from self._not_asked_for(signature, facts)
        yield from (self.record.dead[family] for family in sorted(facts.families) if family in self.record.dead)
        if facts.escaped:
            yield facts.escaped
        if not self._parameters(signature, "outgoing"):
            yield "read by no weight"
        if not all(lane.axes for lane in self._lanes(signature, "incoming")):
            yield "the only unit of a vector"
        collapsed = facts.families & self.table.collapsed
        if collapsed:
            yield f"all units mixed by {self._mixer(collapsed, facts.families)}"
        yield from self._tied(signature)
        both = self._parameters(signature, "incoming") & self._parameters(signature, "outgoing")
        state = facts.shared is not None and self._keeps_state(facts.shared)
        if facts.shared and not state and facts.shared not in {self.record.memory.names[number] for number in both}:
            yield f"its outgoing weight '{facts.shared}' is also used elsewhere"
        yield from self._embedded(signature)
        yield from self._scripted(signature)
        yield from self._frozen(signature)

    def _not_asked_for(self, signature: Signature, facts: Facts) -> Iterator[str]:
        if not self._recurs(signature) and facts.families & self.record.residual:
            if facts.mixed:
                yield "residual stream through a norm over its units"
            elif not self.options.residual:
                yield "residual stream (residual=True)"
        merged = facts.families & self.table.collapsed or facts.escaped
        if facts.families & self.record.multiplied and not merged and not self.options.heads:
            yield "attention heads (heads=True)"
        if self.options.strict and self.kind(signature, facts) == "approximate":
            yield f"a norm over units lies between, {facts.mixed} (strict=False)"

    def _recurs(self, signature: Signature) -> bool:
        """Whether a weight feeds its own units again and again; a residual block closes the loop only once."""
        incoming = self._parameters(signature, "incoming")
        both = incoming & self._parameters(signature, "outgoing")
        projected = {number for number in incoming if self._keeps_state(self.record.memory.names[number])}
        return any(
            sum(number in product.parameters for product in self.record.products) > 1 for number in both | projected
        )

    def _mixer(self, *families: frozenset[int]) -> str:
        """The operation that made the largest set of rows of the first families that have one."""
        labels = self.record.labels
        for several in families:
            firsts = [(self.record.atoms[family], self.record.sizes[family]) for family in several]
            atoms = {first + row for first, size in firsts for row in range(size)}
            sets = [label for label, members in labels.sets.items() if members & atoms]
            if sets:
                return labels.made_by[max(sets, key=lambda label: len(labels.sets[label]))]
        return "weights that read them in turn"

    def _tied(self, signature: Signature) -> Iterator[str]:
        """Weights that the unit does not own along one axis alone, or that something without a rule uses too."""
        incoming, outgoing = self._lanes(signature, "incoming"), self._lanes(signature, "outgoing")
        for lane in incoming:
            reads = any(lane in use for use in self._readers[lane.parameter].values())
            if lane in outgoing or reads or self._writers[lane.parameter] != {lane}:
                yield f"tied: '{self._name(lane)}' is used in two ways"
        for lane in outgoing:
            every = all(lane in use for use in self._readers[lane.parameter].values())
            if not every or lane in self._writers[lane.parameter]:
                yield f"tied: '{self._name(lane)}' is used in two ways"
        for lane in (*incoming, *outgoing):
            functions = self.record.mingled if lane.parameter in self.record.weighed else self.record.functions
            if lane.parameter in (used := {**functions, **self.record.elsewhere}):
                yield f"'{self._name(lane)}' is also used elsewhere, by {used[lane.parameter]}"
        for lane in self._lanes(signature, "shift", "scale", "slope", "own"):
            if lane.parameter in self.record.elsewhere:
                yield f"'{self._name(lane)}' is also used elsewhere, by {self.record.elsewhere[lane.parameter]}"

    def _embedded(self, signature: Signature) -> Iterator[str]:
        for product in self.record.products:
            if product.embedding and product.parameters & self._parameters(signature, "incoming"):
                yield f"columns of the embedding {self._names(product.parameters)}"

    def _scripted(self, signature: Signature) -> Iterator[str]:
        """Units that a scripted module computes: it cannot be asked how it draws its weights."""
        for lane in self._lanes(signature, "incoming"):
            if isinstance(self.record.owner(self._name(lane)), torch.jit.ScriptModule):
                yield f"'{self._name(lane)}' is in a part made by torch.jit"

    def _frozen(self, signature: Signature) -> Iterator[str]:
        lanes = [self.table.parts[number].lane for number, _ in signature]
        numbers = {lane.parameter for lane in lanes if lane is not None}
        norms = [self.table.parts[number].module for number in self.table.parts_of(signature, "norm")]
        affine = {f"{norm}.{leaf}" for norm in norms for leaf in ("weight", "bias")}
        numbers |= {number for number, name in enumerate(self.record.memory.names) if name in affine}
        frozen = [number for number in numbers if not self.record.memory.parameters[number].requires_grad]
        for number in sorted(numbers):
            kind = self.record.memory.parameters[number].dtype
            if not kind.is_floating_point:
                held = "units are written in real parameters (held as pairs, seen through torch.view_as_complex)"
                yield f"'{self.record.memory.names[number]}' is {kind}: {held}"
        if frozen:
            yield f"frozen (requires_grad=False): {self._names(frozen)}"

    def _unread_state(self, signature: Signature) -> Iterator[str]:
        """Recurrent weights whose consumers a single time step does not show."""
        names = self.record.memory.names
        for number in self._parameters(signature, "incoming") - self._parameters(signature, "outgoing"):
            state = names[number].replace("weight_hr", "weight_hh")  # what a projection gives is the state
            if self._keeps_state(state) and state in names and names.index(state) not in self._read:
                yield f"'{state}' reads no unit in one time step; give example inputs of two or more"

    def _keeps_state(self, name: str) -> bool:
        """Whether a weight reads what its recurrent layer gave one step before: at first a given state, or zeros."""
        return isinstance(self.record.owner(name), nn.RNNBase | nn.RNNCellBase) and "weight_hh" in name

    # -- short forms ----------------------------------------------------------------------------------------------

    def _lanes(self, signature: Signature, *roles: PartRole) -> list[Lane]:
        lanes = [self.table.parts[part].lane for part in self.table.parts_of(signature, *roles)]
        return [lane for lane in lanes if lane is not None]

    def _parameters(self, signature: Signature, role: PartRole) -> set[int]:
        return {lane.parameter for lane in self._lanes(signature, role)}

    def _name(self, lane: Lane) -> str:
        return self.record.memory.names[lane.parameter]

    def _names(self, numbers: Iterable[int]) -> str:
        return ", ".join(f"'{self.record.memory.names[number]}'" for number in sorted(numbers))


def _lanes_of_parameters(
    record: TraceRecord,
) -> tuple[dict[int, dict[int, set[Lane | None]]], dict[int, set[Lane | None]]]:
    """For each parameter the lanes along which operations read it, by operation, and along which they compute; None for a use
    that is no lane."""
    readers: dict[int, dict[int, set[Lane | None]]] = defaultdict(lambda: defaultdict(set))
    writers: dict[int, set[Lane | None]] = defaultdict(set)
    for product in record.products:
        for number in product.parameters:
            for uses, found in ((readers[number][product.step], product.inputs), (writers[number], product.outputs)):
                uses |= {each.lane for each in found or [] if each.lane.parameter == number} or {None}
    return readers, writers


def _unexplained(record: TraceRecord) -> dict[Lane, Tensor]:
    """Positions that some product reads with something that is no unit's."""
    found: dict[Lane, Tensor] = {}
    for product in record.products:
        if product.inputs is not None:
            known = product.explained()
            for lanes in product.inputs:
                at = found.setdefault(lanes.lane, torch.zeros(lanes.lane.positions, dtype=torch.bool))
                at[lanes.positions[~known[lanes.rows]]] = True
    return found
