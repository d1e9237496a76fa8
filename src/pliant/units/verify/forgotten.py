"""Parameters of a unit that a plan lacks: a bias, the scale of a norm, a gate.

Zeroed outgoing weights hide such a parameter, but a reset would not redraw it. It is found because it changes one unit alone,
while a parameter that units share, or of a layer before them, changes many. Gradients of single units give the candidates, and
redraws of single positions decide. Nothing is found for groups without a tap.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from math import prod

import torch
from torch import Tensor

from pliant.units.verify.bench import Bench, Pass

Axes = tuple[int, ...]


def forgotten(bench: Bench) -> str | None:
    """The name of a parameter with entries of one unit alone that compute no unit of the plan."""
    units = bench.group.units
    if units == 1 or not bench.watched:
        return None
    everyone = torch.arange(units)
    bench.restore()
    bench.redraw(everyone)  # many may be dead as they are
    for _ in range(2):
        bench.turn_around(everyone)  # what was below a threshold may lie above it
        bench.cut(bench.group.outgoing, everyone)  # or units move others by feedback
        start = bench.run()
        for name, parameter, free, axes in _suspects(bench, start):
            if _is_by_unit(bench, start, parameter, free, axes):
                return name
    return None


def _suspects(bench: Bench, start: Pass) -> Iterator[tuple[str, Tensor, Tensor, Axes]]:
    """Parameters along axes of which units may lie: by gradients where they tell, else all that move the taps.

    They do not tell of a threshold, at which the activity jumps: its gradient is zero.
    """
    units = bench.group.units
    candidates = [each for each in bench.candidates() if _fitting_axes(each[1], units)]
    influences = bench.influences([parameter for _, parameter, _ in candidates])
    by_gradient = influences and bench.probe.norms is None  # a norm's gradient is not that of a held one
    for number, (name, parameter, free) in enumerate(candidates):
        gradients = [each[number] for each in influences]
        known = [each.abs() * free for each in gradients if each is not None]
        if by_gradient and any(each.any() for each in known):
            found = dict.fromkeys(axes for each in known for axes in _narrow_axes(each, units))
        else:
            moves = bench.moved_units(start, parameter, free).any()
            found = dict.fromkeys(_fitting_axes(parameter, units) if moves else [])
        yield from ((name, parameter, free, axes) for axes in found)


def _fitting_axes(parameter: Tensor, units: int) -> list[Axes]:
    """One axis, or two that are read as one (experts and their units), with at least as many positions as there are units."""
    every = range(min(parameter.dim(), 3))
    choices = [*combinations(every, 1), *combinations(every, 2)]
    return [axes for axes in choices if prod(parameter.shape[axis] for axis in axes) >= units]


def _narrow_axes(gradient: Tensor, units: int) -> list[Axes]:
    """Those along which no more positions have a gradient than one unit may own."""
    rows = {axes: _by_axes(gradient, axes) for axes in _fitting_axes(gradient, units)}
    return [axes for axes, row in rows.items() if 0 < int(row.any(1).sum()) <= len(row) // units]


def _is_by_unit(bench: Bench, start: Pass, parameter: Tensor, free: Tensor, axes: Axes) -> bool:
    """Whether positions along the axes move one unit each; a redraw may leave a dead unit as it is, so several are made."""
    number = _by_axes(torch.arange(parameter.numel()).view(parameter.shape), axes)  # of each entry, by position
    vacant = _by_axes(free, axes).any(1).nonzero().flatten()
    some = False
    for position in vacant[torch.randperm(len(vacant), generator=bench.generator)[:4]]:
        here = torch.zeros(parameter.numel(), dtype=torch.bool)
        here[number[position]] = True
        moved = torch.zeros(bench.group.units, dtype=torch.bool)
        for _ in range(4):
            moved |= bench.moved_units(start, parameter, free & here.view(parameter.shape))
            if int(moved.sum()) > 1:
                return False
        some |= bool(moved.any())
    return some


def _by_axes(tensor: Tensor, axes: Axes) -> Tensor:
    """(positions along `axes`, everything else)."""
    front = tensor.movedim(axes, tuple(range(len(axes))))
    return front.reshape(prod(front.shape[: len(axes)]), -1)
