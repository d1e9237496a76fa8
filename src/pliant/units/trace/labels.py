"""Labels: the units that a number depends on, element by element.

    -1      none
    label   the id of a set of atoms; an atom is one row of one weight, before any two rows turn out to be one unit

A sum or a product of two numbers depends on the units of both, so labels join as sets do:

    join(a, b)       elementwise union            h * gate, x + y
    reduce(a, dims)  union along axes             a mean, a pooling, a softmax
    uniform(a, dims) the one label along axes     whether a weight has one column per unit

Sets are interned, so that equal sets have equal ids and comparing tensors compares sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import cast

import torch
from torch import Tensor

NONE = -1


class Labels:
    """The table of label ids. The id of an atom is its own; ids of larger sets are given as they are met."""

    def __init__(self) -> None:
        self.count = 0
        self.sets: dict[int, frozenset[int]] = {}  # label -> atoms, where there are several
        self.made_by: dict[int, str] = {}
        self.now = ""  # the operation that runs
        self._ids: dict[frozenset[int], int] = {}

    def atoms(self, count: int) -> int:
        """The first of `count` new labels in a row, each of one new atom."""
        first, self.count = self.count, self.count + count
        return first

    def members(self, label: int) -> frozenset[int]:
        return self.sets.get(label) or frozenset((label,))

    def union(self, labels: Iterable[int]) -> int:
        """The label of all atoms in any of `labels`."""
        atoms = frozenset[int]().union(*(self.members(label) for label in labels if label != NONE))
        if len(atoms) < 2:
            return next(iter(atoms), NONE)
        label = self._ids.setdefault(atoms, self.count)
        if label == self.count:
            self.count += 1
            self.sets[label] = atoms
            self.made_by[label] = self.now
        return label

    def join(self, a: Tensor, b: Tensor) -> Tensor:
        """Elementwise union of two label tensors, broadcast."""
        a, b = broadcast(a, b)
        joined = torch.where(a == NONE, b, a)
        differ = (a != NONE) & (b != NONE) & (a != b)
        if bool(differ.any()):
            base = self.count
            pairs, which = _positions(a[differ] * base + b[differ])
            joined[differ] = torch.tensor([self.union(divmod(pair, base)) for pair in ints(pairs)])[which]
        return joined

    def reduce(self, labels: Tensor, dims: Sequence[int]) -> Tensor:
        """Union along `dims`, which keep size 1."""
        labels = compress(labels)
        only = uniform(labels, dims)
        if only is not None:
            return only
        along = sorted(dim % labels.dim() for dim in dims)
        rest = [dim for dim in range(labels.dim()) if dim not in along]
        cells = labels.permute(*rest, *along).reshape(-1, prod(labels.shape[dim] for dim in along))
        cells, which = _positions(cells, dim=0)
        unions = torch.tensor([self.union(set(ints(cell))) for cell in cells])
        return unions[which].view([1 if dim in along else size for dim, size in enumerate(labels.shape)])

    def smallest(self) -> Tensor:
        """For every label its smallest atom."""
        found = torch.arange(self.count)
        if self.sets:
            found[torch.tensor(list(self.sets))] = torch.tensor([min(atoms) for atoms in self.sets.values()])
        return found


def distinct(labels: Tensor) -> list[int]:
    """The different labels, without NONE."""
    return [label for label in ints(values(labels)) if label != NONE]


def by_group(labels: Tensor, channels: int, groups: int) -> Tensor:
    """Axis 1 split into groups and the channels of each."""
    batch, _, *space = labels.shape
    return labels.expand(batch, channels, *space).reshape(batch, groups, channels // groups, *space)


def broadcast(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in their common shape."""
    return cast(tuple[Tensor, Tensor], torch.broadcast_tensors(a, b))


def ints(numbers: Tensor) -> list[int]:
    """A vector as a list."""
    return cast(list[int], numbers.tolist())  # pyright: ignore[reportUnknownMemberType]


def values(numbers: Tensor) -> Tensor:
    """The different values, in order."""
    return cast(Tensor, torch.unique(numbers))


def runs(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The values of runs of equal numbers, and the length of each run."""
    return cast(tuple[Tensor, Tensor], torch.unique_consecutive(numbers, return_counts=True))


def uniform(labels: Tensor, dims: Sequence[int]) -> Tensor | None:
    """The label that every labeled element along `dims` has (sizes 1 there), or None where two differ."""
    if not dims:
        return labels
    one = labels.amax(tuple(dims), keepdim=True)
    return one if bool(((labels == one) | (labels == NONE)).all()) else None


def compress(labels: Tensor) -> Tensor:
    """The same labels, with size 1 along every axis that does not matter: broadcasting gives them back."""
    for dim, size in enumerate(labels.shape):
        if size > 1:
            first = labels.narrow(dim, 0, 1)
            if labels.stride(dim) == 0 or torch.equal(labels, first.expand_as(labels)):
                labels = first
    return labels


def by_position(labels: Tensor, axis: int) -> Tensor | None:
    """The label of each position along `axis`, the same at every other; None where it is not."""
    axis %= labels.dim()
    only = uniform(labels, [dim for dim in range(labels.dim()) if dim != axis])
    return None if only is None else only.reshape(-1)


def _positions(numbers: Tensor, dim: int | None = None) -> tuple[Tensor, Tensor]:
    """The different values (or rows), and which of them each is."""
    if dim is not None and len(numbers) == 1:
        return numbers, torch.zeros(1, dtype=torch.int64)  # sorting one long row is slow
    return cast(tuple[Tensor, Tensor], torch.unique(numbers, return_inverse=True, dim=dim))
