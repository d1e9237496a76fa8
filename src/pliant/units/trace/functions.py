"""Where activation functions and norms are applied to hidden units, in the order in which one forward applies them.

Each is a module of the kinds asked for, or an operation outside of these: a function that nobody sees among the modules. What it
is applied to is known by `labels`: the layers that compute these units, the axis along which they lie, and whether a weight
reads them later.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

from torch import nn

from pliant.units.trace.labels import NONE, compress
from pliant.units.trace.record import Applied, TraceRecord
from pliant.units.trace.tracing import recorded


@dataclass(frozen=True)
class Function:
    """One application.

    Args:
        module: its name, or that of the module in which the operation runs.
        operation: as ATen calls it; None for a module of the kinds asked for.
        layers: names of the weights of which the units are rows, in the model's order; empty where none can be followed to it.
        axis: where they lie, counted from the end; None where not every position along one axis is such a unit.
        dims: axes of the tensor.
        units: positions along the axis.
        hidden: whether it lies between weights: what it is applied to depends on parameters, and a weight reads what comes of it.
    """

    module: str
    operation: str | None
    layers: tuple[str, ...]
    axis: int | None
    dims: int
    units: int
    hidden: bool


def functions(model: nn.Module, example_inputs: Any, kinds: tuple[type[nn.Module], ...]) -> list[Function]:
    """All applications in a forward with each of the examples, each once; `kinds` of modules are seen as a whole.

    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2), nn.Tanh())
    >>> import torch
    >>> [(each.module, each.layers, each.hidden) for each in functions(net, torch.zeros(2, 3), (nn.ReLU, nn.Tanh))]
    [('1', ('0.weight',), True), ('3', ('2.weight',), False)]
    """
    records, _ = recorded(model, example_inputs, kinds)
    return list(dict.fromkeys(_function(record, each) for record in records for each in record.applied))


def _function(record: TraceRecord, applied: Applied) -> Function:
    families = _united(record, set(applied.labels))
    names = record.memory.names
    layers = sorted({lane.parameter for lane, family in record.families.items() if family in families})
    axis = _axis(record, applied)
    return Function(
        module=applied.module,
        operation=applied.operation,
        layers=tuple(names[number] for number in layers),
        axis=axis,
        dims=len(applied.shape),
        units=1 if axis is None else applied.shape[axis],
        hidden=applied.computed and any(record.weighed_steps >> step & 1 for step in applied.steps),
    )


def _united(record: TraceRecord, families: set[int]) -> set[int]:
    """With those whose rows are the same units, since they were added up."""
    by_atom = dict(zip(record.atoms, range(len(record.atoms)), strict=True))
    pairs = [(by_atom[first], by_atom[second]) for first, second, _ in record.same]
    while more := {each for pair in pairs if not families.isdisjoint(pair) for each in pair} - families:
        families = families | more
    return families


def _axis(record: TraceRecord, applied: Applied) -> int | None:
    if not applied.labels:
        return None
    labels = compress(reduce(record.labels.join, applied.labels.values()).expand(applied.shape))
    axes = [axis for axis, size in enumerate(labels.shape) if size > 1]
    return axes[0] - len(applied.shape) if len(axes) == 1 and not bool((labels == NONE).any()) else None
