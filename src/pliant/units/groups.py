"""The incoming and outgoing weights of hidden units, as plain data.

A unit is the smallest set of weights that can be redrawn together without a change of any other unit:

    incoming   slices that compute it (weight row, filter, the gate rows of an LSTM, bias)
    affine     parameters that scale and shift it alone (its entry in a norm)
    outgoing   slices that consume it (weight column, input channel, a block of columns after a flatten)

Units with the same incoming and outgoing parameters form a `UnitGroup`, within which they compete. A
group is plain data that names parameters and modules of a model; `BoundGroup` finds them in a live one.
`pliant.units.trace` finds groups in any model, `chain_groups` in a plain chain; `UnitMap` is a plan of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

from torch import nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from pliant.base.initial import GAINS

Index = tuple[tuple[int, ...], ...]
Kind = Literal["exact", "approximate", "recurrent"]


@dataclass(frozen=True)
class Slice:
    """The part of a parameter that belongs to each unit.

    Unit `i` owns the `repeat` positions `index[i]` along `axis`, or, without an `index`, `repeat` positions from `i * repeat` on.

    Args:
        parameter: its name in the model.
        axis: where units lie, counted in the parameter of one network: a run axis in front (`UnitGroup.runs`) does not
            shift it. Several axes count as one, in C order (the experts and units of a stack of experts; the groups and
            channels of a grouped convolution).
        repeat: positions per unit.
        index: (units, repeat) positions along `axis`, for gates, fused projections, concatenations and shuffles.
        shape: the shape in which axes are counted, with an axis split (filters of a grouped convolution by group).
    """

    parameter: str
    axis: int | tuple[int, ...]
    repeat: int = 1
    index: Index | None = None
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.repeat < 1:
            raise ValueError(f"Slice('{self.parameter}'): repeat must be at least 1, got {self.repeat}")
        _check_index(f"Slice('{self.parameter}')", self.index, self.repeat)

    @property
    def axes(self) -> tuple[int, ...]:
        return (self.axis,) if isinstance(self.axis, int) else self.axis

    def __str__(self) -> str:
        repeat = f" x{self.repeat}" if self.repeat > 1 else ""
        which = f"i{repeat}" if self.index is None else f"{_brief(self.index)}"
        where = [
            which if axis == self.axes[-1] else "g" if axis in self.axes else ":" for axis in range(self.axes[-1] + 1)
        ]
        return f"{self.parameter}[{', '.join(where)}]"


@dataclass(frozen=True)
class Tap:
    """Where activity is recorded: units (times repeat) along `axis` of a floating-point tensor.

    Args:
        module: its name in the model, "" for the model itself.
        at: "input" or "output" of the module; "operand": the other factor of `parameter` in a matrix product inside the module
            (for tensors that are no module's input; eager mode only), of a batch of products as (examples, batch x units).
        axis: of that tensor; every other axis is averaged over. Count from the end (-3 for the channels of images) where an
            input may lack the batch axis; at a convolution a positive axis counts in a batch.
        index: (units, repeat) positions along `axis`; without it, all of them in order.
        argument: which of several positional inputs or outputs, or the name of a keyword argument.
        parameter: of `at="operand"`.
        nonnegative: the activity is never below zero (behind a ReLU), so that |activity| need not be recorded separately.
        dims: number of axes of that tensor, where `axis` depends on it; None: any.
        calls: for each of the module's calls in one forward of the model, whether it shows examples or is auxiliary (an
            identity matrix sent through it); a forward with another number of calls is then an error. None: all show examples.
        part: first element and number of elements of the view of `parameter` in that product, where it is not all of it (one
            expert of several).
    """

    module: str
    at: Literal["input", "output", "operand"] = "input"
    axis: int = -1
    index: Index | None = None
    argument: int | str = 0
    parameter: str | None = None
    nonnegative: bool = False
    dims: int | None = None
    calls: tuple[bool, ...] | None = None
    part: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.at not in ("input", "output", "operand"):
            raise ValueError(f"Tap('{self.module}'): at must be 'input', 'output' or 'operand', got '{self.at}'")
        if (self.at == "operand") != (self.parameter is not None):
            raise ValueError(f"Tap('{self.module}'): at='operand' and parameter=... go together")
        if self.part is not None and self.parameter is None:
            raise ValueError(
                f"Tap('{self.module}'): part=... is that of a parameter; give at='operand' and parameter=... too"
            )
        _check_index(f"Tap('{self.module}')", self.index, None)

    def axis_at(self, module: nn.Module) -> int:
        """`axis`, counted from the end where the tapped module has a known number of axes: a convolution."""
        if self.axis < 0 or not isinstance(module, _ConvNd):
            return self.axis
        return self.axis - len(module.kernel_size) - 2

    def check_dims(self, shape: Sequence[int]) -> None:
        """Raises `ValueError` for a tensor with another number of axes than `dims`."""
        if self.dims is not None and len(shape) != self.dims:
            raise ValueError(
                f"the {self} has units along axis {self.axis} of {self.dims} axes, and is given {len(shape)}, shape "
                f"{tuple(shape)}: give inputs with as many axes as the example inputs had"
            )

    def __str__(self) -> str:
        place = f"{self.at} of '{self.module}'" if self.module else f"{self.at} of the model"
        if self.parameter is not None:
            which = "" if self.part is None else f", from element {self.part[0]}"
            place = f"operand of '{self.parameter}'{which}"
        if self.calls is None:
            return place
        shown = " and ".join(str(number + 1) for number, shows in enumerate(self.calls) if shows)
        return f"{place}, call {shown} of {len(self.calls)}"


@dataclass(frozen=True)
class BN:
    """A batch norm between weights and tap, `repeat` channels per unit. Reset: scale 1, shift 0, mean 0, variance 1."""

    module: str
    repeat: int = 1
    index: Index | None = None

    def __str__(self) -> str:
        return self.module


@dataclass(frozen=True)
class AffineEntry:
    """Entries of a parameter that belong to one unit alone (the scale of a layer norm, a learned slope, a decay).

    A fresh unit's entries start at `value`; without a value, at those of their module's `reset_parameters`, or, where it has
    none, at those that another unit, chosen at random, had when the method was attached.
    """

    part: Slice
    value: float | None = None

    def __str__(self) -> str:
        return str(self.part)


@dataclass(frozen=True)
class RunningStatistic:
    """Entries of a buffer in which the model keeps a statistic of one unit alone: a batch norm of its own. Reset: `value`."""

    part: Slice
    value: float

    def __str__(self) -> str:
        return str(self.part)


@dataclass(frozen=True)
class UnitGroup:
    """Hidden units that share their incoming and outgoing parameters.

    `tap` is one for all outgoing slices, or a tuple with one per slice, in their order. A group without taps (`()`) can be
    ranked by its weights (`utility="weight"`).

    `hand_over` says where the mean contribution of a replaced unit goes: outgoing parameter -> bias (a
    parameter's name), or `BN` when a consumer without bias feeds a batch norm. None means the `bias` beside
    each outgoing `weight`, where there is one.

    `kind` is "exact" if a redraw of incoming weights and affine cannot change the output once outgoing weights are zero,
    "approximate" if a norm over units lies between, "recurrent" if the units also feed themselves.

    `gain` is that of the activation, for `init="kaiming"` and `"xavier"`; ReLU's by default.

    `runs` says that axis 0 of every parameter, statistic and tapped tensor is the run: networks that train side by side.

    >>> UnitGroup("fc1", incoming=[Slice("fc1.weight", 0), Slice("fc1.bias", 0)],
    ...           outgoing=[Slice("fc2.weight", 1)], tap=Tap("fc2")).name
    'fc1'
    """

    name: str
    incoming: Sequence[Slice]
    outgoing: Sequence[Slice]
    tap: Tap | Sequence[Tap]
    affine: Sequence[BN | AffineEntry | RunningStatistic] = ()
    hand_over: Mapping[str, str | BN] | None = None
    gain: float = GAINS["relu"]
    runs: int | None = None
    kind: Kind = "exact"

    @property
    def stacked(self) -> bool:
        """Whether axis 0 of each parameter is the run."""
        return self.runs is not None

    @property
    def taps(self) -> tuple[Tap, ...]:
        """One tap per outgoing slice, in order; a single tap is that of all slices."""
        return (self.tap,) * len(self.outgoing) if isinstance(self.tap, Tap) else tuple(self.tap)

    def parameters(self) -> list[str]:
        """Names of every parameter of which a unit owns a part."""
        own = [each.part for each in self.affine if isinstance(each, AffineEntry)]
        return [part.parameter for part in (*self.incoming, *self.outgoing, *own)]


@dataclass(frozen=True)
class PlanRow:
    """One line of the printed plan."""

    group: UnitGroup
    units: int
    hand_over: Literal["exact", "interior", "none", "off"]
    fresh_std: float | None = None  # standard deviation of the weights that `init` draws
    current_std: float | None = None  # of the incoming weights when the plan was made

    def fingerprint(self) -> str:
        """The text in which a saved state must agree with this group."""
        incoming = [*map(str, self.group.incoming), *map(str, self.group.affine)]
        parts = [self.group.name, str(self.units), ", ".join(incoming), ", ".join(map(str, self.group.outgoing))]
        own = [each if isinstance(each, BN) else each.part for each in self.group.affine]
        indices = [part.index for part in (*self.group.incoming, *own, *self.group.outgoing) if part.index is not None]
        return " | ".join([*parts, f"index {crc32(repr(indices).encode()):08x}"] if indices else parts)

    def cells(self) -> tuple[str, ...]:
        incoming = some([*map(str, self.group.incoming), *map(str, self.group.affine)])
        outgoing = some([*map(str, self.group.outgoing)])
        taps = some([*dict.fromkeys(map(str, self.group.taps))]) or "none"
        stds = [f"{std:.3g}" if std is not None else "-" for std in (self.fresh_std, self.current_std)]
        return (
            *(self.group.name, self.group.kind, str(self.units), incoming, outgoing, taps, self.hand_over),
            " / ".join(stds),
        )


@dataclass(frozen=True)
class Skipped:
    """Parameters that are left alone, and why. `units` is the number of their units, where that is known."""

    parameters: tuple[str, ...]
    reason: str
    units: int | None = None


def _check_index(where: str, index: Index | None, repeat: int | None) -> None:
    if index is None:
        return
    widths = {len(row) for row in index}
    if len(widths) != 1 or (repeat is not None and widths != {repeat}):
        raise ValueError(
            f"{where}: every row of index must have {repeat or 'the same number of'} positions, got {widths}"
        )


def _brief(index: Index) -> str:
    """The positions of the first unit, and dots."""
    first = ", ".join(map(str, index[0][:4]))
    return f"({first}{', ..' if len(index[0]) > 4 else ''}), .."


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table]


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
