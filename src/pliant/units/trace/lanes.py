"""Lanes: the rows of a block of addresses, as positions along an axis of a parameter.

A weight product sees a matrix of addresses, one row for each unit. Row i is a lane at position p of axis a if it
holds every element of the parameter whose index along a is p, and no other:

    {addresses of row i} = {x : index_a(x) = p_i}

or, for all i, the same part of these elements: some indices along each other axis. `weight[:m, k:]` adds to what other columns
of its m rows compute, or computes something else: whatever comes of row p is one unit, which owns the whole of it.

Several axes may be fixed at once (expert and channel), and a grouped convolution fixes axes of the filters seen
as (groups, channels of a group, ...). A row that is no lane has no `Slice`, and its unit is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from pliant.units.entries import unraveled
from pliant.units.trace.labels import NONE, broadcast, values
from pliant.units.trace.shadows import Memory


@dataclass(frozen=True)
class Lane:
    """Axes of a parameter (its number), counted in `shape`."""

    parameter: int
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def positions(self) -> int:
        return prod(self.shape[axis] for axis in self.axes)


@dataclass(eq=False)
class Lanes:
    """Rows of an operand, and the position of each along a lane."""

    lane: Lane
    rows: Tensor
    positions: Tensor


def lanes(memory: Memory, operand: Tensor, groups: int = 1, *, last: bool = False) -> list[Lanes] | None:
    """The rows (the first two of four axes) of an operand as lanes of each parameter in it; None where one is no lane.

    Where a single row is the whole parameter, the first axis of size 1 is taken, or with `last` the last.
    """
    if memory.is_plain(operand):
        blocks = [_plain_block(memory, operand)]
    else:
        addresses = memory.addresses(operand)
        blocks = [] if addresses is None else _blocks(memory, addresses.flatten(2).flatten(0, 1))
    found: list[Lanes] = []
    for parameter, rows, column, row in blocks:
        number = int(parameter)
        shape, first = tuple(memory.parameters[number].shape), memory.first[number]
        seen = [shape, (groups, shape[0] // groups, *shape[1:])] if groups > 1 else [shape]
        fits = [fit for view in seen if (fit := _fit(column - first, row - first, number, view, last)) is not None]
        if not fits:
            return None
        found.append(Lanes(fits[0][0], rows, fits[0][1]))
    return found or None


def _plain_block(memory: Memory, operand: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The one block of a view of a contiguous parameter, from its strides: nothing is as large as the parameter."""
    start = memory.first_of(operand) + operand.storage_offset()
    batch, k, m, kernel = (torch.arange(n).mul(step) for n, step in zip(operand.shape, operand.stride(), strict=True))
    column = batch.add(start)[:, None].add(k).flatten()
    row = m.add(start)[:, None].add(kernel).flatten()
    return _parameter(memory, column[:1]), torch.arange(len(column)), column, row


def _blocks(memory: Memory, addresses: Tensor) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """For each parameter in a matrix of addresses: its number, its rows, and the block's first column and row.

    Empty unless every block is the sum of its first column and row, and no element is a foreign one.
    """
    if addresses.numel() == 0 or int(addresses.min()) == NONE:
        return []
    down, across = _parameter(memory, addresses[:, 0]), _parameter(memory, addresses[0])
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for number in values(torch.cat([down, across])):
        by_row = bool((down != down[0]).any())
        rows = torch.nonzero(down == number).flatten() if by_row else torch.arange(len(down))
        block = addresses[rows] if by_row else addresses[:, across == number]
        column, row = block[:, 0], block[0]
        if not torch.equal(block, column[:, None] + (row - row[0])):
            return []
        found.append((number, rows, column, row))
    return found


def _parameter(memory: Memory, addresses: Tensor) -> Tensor:
    return torch.bucketize(addresses.contiguous(), memory.bounds, right=True) - 1


def _fit(rows: Tensor, row: Tensor, number: int, shape: tuple[int, ...], last: bool) -> tuple[Lane, Tensor] | None:
    """The lane, seen in `shape`, and the position of each row, given the first element of each and all of the first."""
    axes = _fixed_axes(row, shape, last)
    if axes is None or rows.max() >= prod(shape) or rows.min() < 0:
        return None
    where = unraveled(rows, shape)
    if any(bool((at != at[0]).any()) for axis, at in enumerate(where) if axis not in axes):
        return None
    return Lane(number, axes, shape), _ravel(rows, [where[axis] for axis in axes], [shape[axis] for axis in axes])


def _fixed_axes(row: Tensor, shape: tuple[int, ...], last: bool) -> tuple[int, ...] | None:
    """The axes along which a row does not move, if it is a box along all others; none of a vector that is one row."""
    if row.max() >= prod(shape) or row.min() < 0:
        return None
    moves = [bool((at != at[0]).any()) for at in unraveled(row, shape)] if shape else []
    fixed = tuple(axis for axis, size in enumerate(shape) if size > 1 and not moves[axis])
    single = tuple(axis for axis, size in enumerate(shape) if size == 1)
    if not _is_box(row, shape, fixed):
        return None
    return fixed or (single[-1:] if last else single[:1])


def _is_box(row: Tensor, shape: tuple[int, ...], fixed: tuple[int, ...]) -> bool:
    """Whether a row holds every combination of some positions along each axis that is not fixed."""
    where = unraveled(row, shape) if shape else ()
    return len(values(row)) == prod(len(values(at)) for axis, at in enumerate(where) if axis not in fixed)


def _ravel(rows: Tensor, where: list[Tensor], sizes: list[int]) -> Tensor:
    position = torch.zeros_like(rows)
    for at, size in zip(where, sizes, strict=True):
        position = position * size + at
    return position


def own_lanes(
    memory: Memory, number: int, axes: tuple[int, ...], positions: Tensor, labels: Tensor
) -> tuple[Lanes, Tensor] | None:
    """Positions of a parameter along some axes and the one label that each meets; None where one meets several.

    `positions` (NONE where there is none) and `labels` broadcast; rows of the lanes are not used.
    """
    positions, labels = broadcast(positions, labels)
    inside = (positions != NONE) & (labels != NONE)
    base = int(labels.max()) + 1
    pairs = values(positions[inside] * base + labels[inside])
    found, label = pairs // base, pairs % base
    if len(found) == 0 or len(values(found)) < len(found):
        return None
    return Lanes(Lane(number, axes, tuple(memory.parameters[number].shape)), found, found), label


def all_elements(lanes: Lanes) -> Lanes:
    """The same lanes element by element; row i of theirs was row `rows[i]` of those given."""
    lane, axes = lanes.lane, lanes.lane.axes
    index = torch.arange(prod(lane.shape)).view(lane.shape).movedim(axes, tuple(range(len(axes))))
    found = index.reshape(lane.positions, -1)[lanes.positions]
    rows = torch.arange(len(found))[:, None].expand_as(found)
    return Lanes(Lane(lane.parameter, tuple(range(len(lane.shape))), lane.shape), rows.flatten(), found.flatten())
