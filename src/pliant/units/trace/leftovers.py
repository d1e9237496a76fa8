"""The parameters that were left alone: every trainable one that is in no group, with the reason."""

from __future__ import annotations

from collections.abc import Sequence

from pliant.units.groups import BN, PlanRow, Skipped
from pliant.units.trace.record import TraceRecord
from pliant.units.trace.table import Signature, UnitTable


def left_alone(
    table: UnitTable, rows: Sequence[PlanRow], refused: Sequence[tuple[Signature, str, int]]
) -> list[Skipped]:
    """Refused units, then parameters that are no unit's; one line for each reason and module."""
    memory = table.record.memory
    lines: list[Skipped] = []
    for signature, reason, units in refused:
        lines.append(Skipped(_parameters(table, signature), reason, units))
    mentioned = _held(rows).union(*(line.parameters for line in lines))
    for number, name in enumerate(memory.names):
        if name not in mentioned and memory.parameters[number].requires_grad:
            lines.append(Skipped((name,), _why_nobody_owns(table.record, number)))
    return _merged(lines, memory.names)


def _parameters(table: UnitTable, signature: Signature) -> tuple[str, ...]:
    """Of units of this signature, in the model's order."""
    names = table.record.memory.names
    found = [
        table.parts[part] for part in table.parts_of(signature, "incoming", "norm", "scale", "shift", "slope", "own")
    ]
    own = [names[part.lane.parameter] for part in found if part.lane is not None]
    norms = [f"{part.module}.{leaf}" for part in found if part.role == "norm" for leaf in ("weight", "bias")]
    return tuple(sorted({*own, *norms} & set(names), key=names.index))


def _held(rows: Sequence[PlanRow]) -> set[str]:
    norms = [norm.module for row in rows for norm in row.group.affine if isinstance(norm, BN)]
    held = {name for row in rows for name in row.group.parameters()}
    return held | {f"{norm}.{leaf}" for norm in norms for leaf in ("weight", "bias")}


def _why_nobody_owns(record: TraceRecord, number: int) -> str:
    if not record.memory.parameters[number].numel():
        return "has no entries"
    owner = record.memory.names[number].rpartition(".")[0]
    computed = [why for why in record.elsewhere.values() if why.endswith(f"in '{owner}')")]
    if number in record.elsewhere or number in record.functions:
        why = record.elsewhere.get(number) or record.functions[number]
        return why if "computed weight" in why else computed[0] if computed else f"meets no unit alone in {why}"
    met = record.met | {n for p in record.products for n in p.parameters}
    if number not in record.reached:
        return "never ran with the example inputs"
    return "no unit owns it alone" if number in met else "meets no unit in this forward"


def _merged(lines: Sequence[Skipped], order: Sequence[str]) -> list[Skipped]:
    """Lines of one reason and one module as one."""
    found: dict[tuple[str, str], Skipped] = {}
    for line in lines:
        key = line.parameters[0].rpartition(".")[0], line.reason
        other = found.get(key, Skipped((), line.reason))
        counts = [units for units in (other.units, line.units) if units is not None]
        names = tuple(sorted({*other.parameters, *line.parameters}, key=order.index))
        found[key] = Skipped(names, line.reason, sum(counts) if counts else None)
    return list(found.values())
