"""Blocks: the part of a parameter on which a number depends, as one integer.

    element    w[3, 7]      both indices known
    row        w[3, :]      a mean over the row
    all        w[:, :]      a softmax, a norm

Each axis has a digit of as many bits as it takes: index p is digit p + 1, and 0 says that nothing is known along it. So a
block moves with its number as a label does, and what two numbers have in common is found digit by digit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pliant.units.trace.labels import NONE, broadcast, ints, values

MANY = 0  # no digit is known: all of the parameter

Shape = tuple[int, ...]


def _places(shape: Shape) -> list[tuple[int, int]]:
    """For each axis the first bit of its digit, and a mask as wide as the digit."""
    places: list[tuple[int, int]] = []
    first = 0
    for size in reversed(shape or (1,)):
        bits = size.bit_length()
        places.append((first, (1 << bits) - 1))
        first += bits
    return places[::-1]


def elements(shape: Shape, index: Tensor) -> Tensor:
    """The blocks of single elements, given by their flat index; NONE where there is none."""
    every = torch.zeros((), dtype=torch.int64)
    for size, (first, _) in zip(shape or (1,), _places(shape), strict=True):
        every = every[..., None] + (torch.arange(1, size + 1) << first)
    return torch.where(index == NONE, NONE, every.flatten()[index.clamp(min=0)])


def digits(shape: Shape, blocks: Tensor) -> list[Tensor]:
    """The digit along each axis."""
    known = blocks.clamp(min=0)
    return [known >> first & mask for first, mask in _places(shape)]


def join(shape: Shape, digits: Sequence[Tensor]) -> Tensor:
    """The blocks with these digits."""
    blocks = torch.zeros_like(digits[0])
    for digit, (first, _) in zip(digits, _places(shape), strict=True):
        blocks |= digit << first
    return blocks


def both(shape: Shape, a: Tensor, b: Tensor) -> Tensor:
    """The smallest blocks that hold those of `a` and `b`, element by element."""
    a, b = broadcast(a, b)
    if bool(((a == b) | (a == NONE) | (b == NONE)).all()):
        return torch.where(a == NONE, b, a)
    pairs = zip(digits(shape, a), digits(shape, b), strict=True)
    shared = join(shape, [torch.where(one == other, one, 0) for one, other in pairs])
    return torch.where(a == NONE, b, torch.where(b == NONE, a, shared))


def along(shape: Shape, blocks: Tensor, dims: Sequence[int]) -> Tensor:
    """The smallest blocks that hold all of those along `dims`, which keep size 1."""
    if not dims:
        return blocks
    known = blocks != NONE
    shared: list[Tensor] = []
    for size, digit in zip(shape or (1,), digits(shape, blocks), strict=True):
        least = torch.where(known, digit, size + 1).amin(tuple(dims), keepdim=True)
        most = torch.where(known, digit, 0).amax(tuple(dims), keepdim=True)
        shared.append(torch.where(least == most, most, 0))
    return torch.where(known.amax(tuple(dims), keepdim=True), join(shape, shared), NONE)


def by_axes(shape: Shape, blocks: Tensor) -> dict[tuple[int, ...], Tensor]:
    """For each set of axes along which some block is known: the position of these blocks along them in C order, NONE elsewhere.

    Blocks of which nothing is known have the key ().
    """
    found = digits(shape, blocks)
    pattern = torch.zeros_like(blocks)
    for digit in found:
        pattern = pattern * 2 + (digit > 0)
    positions: dict[tuple[int, ...], Tensor] = {}
    sizes = shape or (1,)
    for number in ints(values(pattern[blocks != NONE])):
        axes = tuple(axis for axis in range(len(sizes)) if number >> (len(sizes) - 1 - axis) & 1)
        at = torch.zeros_like(blocks)
        for axis in axes:
            at = at * sizes[axis] + found[axis] - 1
        here = (blocks != NONE) & (pattern == number)
        positions[axes] = torch.where(here, at, NONE)
    return positions
