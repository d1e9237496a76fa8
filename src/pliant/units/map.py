"""Which weights enter a hidden unit, and which leave it.

A unit is the smallest set of weights that can be redrawn together without any other unit noticing:

    incoming   slices that compute it (weight row, filter, bias)
    affine     what scales and shifts it alone (its entry in a batch norm)
    outgoing   slices that read it (weight column, input channel, a block of columns after a flatten)

Units with the same incoming and outgoing parameters form a `UnitGroup`, within which they compete. A
group is plain data that names parameters and modules of a model; `BoundGroup` finds them in a live one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from pliant.initial import GAINS


@dataclass(frozen=True)
class Slice:
    """The part of a parameter that belongs to each unit: unit `i` owns `repeat` indices from `i * repeat` along `axis`.

    `axis` counts in the parameter of one network, so a run axis in front (`UnitGroup.runs`) does not shift it.
    """

    parameter: str
    axis: int
    repeat: int = 1

    def __post_init__(self) -> None:
        if self.repeat < 1:
            raise ValueError(f"Slice('{self.parameter}'): repeat must be at least 1, got {self.repeat}")

    def view(self, tensor: Tensor, *, stacked: bool) -> Tensor:
        """`tensor` (the parameter, or state of its shape) by unit: (runs, units, repeat, ...), a view, never a copy."""
        runs_first = tensor if stacked else tensor.unsqueeze(0)
        units_second = runs_first.movedim(self.axis + 1, 1)
        runs, entries, *rest = units_second.shape
        return units_second.view(runs, entries // self.repeat, self.repeat, *rest)

    def __str__(self) -> str:
        repeat = f" x{self.repeat}" if self.repeat > 1 else ""
        return f"{self.parameter}[{':, ' * self.axis}i{repeat}]"


@dataclass(frozen=True)
class Tap:
    """Where activity is read: at the `input` or `output` of a module, units (times `repeat`) along `axis`."""

    module: str
    at: Literal["input", "output"] = "input"
    axis: int = -1

    def __post_init__(self) -> None:
        if self.at not in ("input", "output"):
            raise ValueError(f"Tap('{self.module}'): at must be 'input' or 'output', got '{self.at}'")


@dataclass(frozen=True)
class BN:
    """A batch norm between weights and tap, `repeat` channels a unit. Reset: scale 1, shift 0, mean 0, variance 1."""

    module: str
    repeat: int = 1


@dataclass(frozen=True)
class UnitGroup:
    """Hidden units that share their incoming and outgoing parameters.

    `hand_over` says where the mean contribution of a replaced unit goes: outgoing parameter -> bias (a
    parameter's name), or `BN` when a consumer without bias feeds a batch norm. None means the `bias` beside
    each outgoing `weight`, where there is one.

    `gain` is that of the activation, for `init="kaiming"` and `"xavier"`; ReLU's by default.

    `runs` says that axis 0 of every parameter, statistic and tapped tensor is the run: networks that train side by side.

    >>> UnitGroup("fc1", incoming=[Slice("fc1.weight", 0), Slice("fc1.bias", 0)],
    ...           outgoing=[Slice("fc2.weight", 1)], tap=Tap("fc2")).name
    'fc1'
    """

    name: str
    incoming: Sequence[Slice]
    outgoing: Sequence[Slice]
    tap: Tap
    affine: Sequence[BN] = ()
    hand_over: Mapping[str, str | BN] | None = None
    gain: float = GAINS["relu"]
    runs: int | None = None

    @property
    def stacked(self) -> bool:
        """Whether axis 0 of each parameter is the run."""
        return self.runs is not None


@dataclass(frozen=True)
class PlanRow:
    """One line of the printed plan."""

    group: UnitGroup
    units: int
    hand_over: Literal["exact", "interior", "none", "off"]

    def cells(self) -> tuple[str, ...]:
        incoming = [*map(str, self.group.incoming), *(norm.module for norm in self.group.affine)]
        outgoing = ", ".join(map(str, self.group.outgoing))
        tap = f"{self.group.tap.at} of {self.group.tap.module}"
        return self.group.name, str(self.units), ", ".join(incoming), outgoing, tap, self.hand_over


@dataclass(frozen=True)
class UnitMap:
    """The plan: every resettable unit, what feeds it, what it feeds, and where its mean contribution goes. Prints as a table."""

    rows: Sequence[PlanRow] = field(default=())

    def fingerprint(self) -> list[str]:
        """One line a group, blind to the prefixes that DistributedDataParallel and `torch.compile` add to names."""
        return [" | ".join(row.cells()[:4]).replace("_orig_mod.", "").replace("module.", "") for row in self.rows]

    def __str__(self) -> str:
        head = ("group", "units", "incoming", "outgoing", "activity", "hand-over")
        table = [head, *(row.cells() for row in self.rows)]
        widths = [max(len(cells[column]) for cells in table) for column in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) for cells in table]
        return "\n".join(line.rstrip() for line in lines)
