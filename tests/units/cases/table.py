"""Networks whose units were worked out by hand: what `pliant.units.trace` must find, element by element, and must leave alone.

A `Case` is data. By default unit i owns row i of everything incoming (entry i of a norm) and, where an outgoing weight has r
times as many columns as there are units, its columns i r .. i r + r - 1. Whatever differs is said in `Units.enter` and
`Units.leave`: the positions of each unit along an axis (`Along`) or, where no axis will do, its elements (`Elements`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Table = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Along:
    """Positions of each unit along an axis."""

    axis: int
    table: Table


@dataclass(frozen=True)
class Elements:
    """Flat numbers of the elements of each unit."""

    table: Table


@dataclass(frozen=True)
class Units:
    """One expected group. Names are separated by blanks: of a module for a batch norm, of a parameter for everything else."""

    count: int
    incoming: str
    outgoing: str
    kind: str = "exact"
    enter: Mapping[str, Along | Elements] = field(default_factory=dict)
    leave: Mapping[str, Along | Elements] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A network, its inputs, its groups by first incoming weight, and what must be skipped: pattern -> regular expression.

    `unread` groups can be reset, but no hook sees their activity.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    groups: Mapping[str, Units]
    skipped: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, bool] = field(default_factory=dict)
    unread: Sequence[str] = ()

    def make(self) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        return self.build(), self.inputs()


class Net(nn.Module):
    """Named parts and a forward pass that is a function of the net and its inputs."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, *inputs: Any) -> Any:
        return self.run(self, *inputs)


def inputs(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape)


def several(*shapes: tuple[int, ...]) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(torch.randn(shape) for shape in shapes)


def tokens(words: int, *shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(words, shape)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.5)


def columns(units: int, start: int = 0, repeat: int = 1) -> Along:
    """Unit i reads into `repeat` columns from start + i * repeat on (a concatenation)."""
    return Along(1, [range(start + i * repeat, start + (i + 1) * repeat) for i in range(units)])


def rows(units: int, start: int = 0, repeat: int = 1) -> Along:
    return Along(0, columns(units, start, repeat).table)


def gates(units: int, count: int) -> Along:
    """Row j of each gate."""
    return Along(0, [range(j, count * units, units) for j in range(units)])


PICTURE, VECTOR, STEPS, PATCHES, WORDS = (
    inputs(2, 3, 8, 8),
    inputs(4, 6),
    inputs(2, 3, 3),
    inputs(2, 5, 6),
    tokens(10, 2, 5),
)
