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
from math import inf
from numbers import Integral
from typing import Any, Literal
from zlib import crc32

from torch import nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from pliant.base.arguments import flag, integer, is_a, listed, number, shown, whole
from pliant.base.choices import one_of
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
        where = f"Slice({shown(self.parameter)})"
        _name(f"{where}: parameter", self.parameter)
        repeat = whole(f"{where}: repeat", self.repeat, 1, of="positions")
        one = isinstance(self.axis, int) and not isinstance(self.axis, bool)
        axis = self.axis if one else _integers(f"{where}: axis", self.axis, "an integer or several")
        shape = None if self.shape is None else _integers(f"{where}: shape", self.shape, "the size of each axis")
        _set(self, axis=axis, repeat=repeat, index=_index(where, self.index, repeat), shape=shape)

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
        where = f"Tap({shown(self.module)})"
        _name(f"{where}: module", self.module, empty=True)
        if is_a(self.argument, bool) or not is_a(self.argument, (int, str)):
            raise TypeError(f"{where}: argument is a position or a name, got {shown(self.argument)}")
        if self.parameter is not None:
            _name(f"{where}: parameter", self.parameter)
        flag(f"{where}: nonnegative", self.nonnegative)
        axis, calls = integer(f"{where}: axis", self.axis), None
        if self.calls is not None:
            calls = tuple(flag(f"{where}: calls", each) for each in _listed(f"{where}: calls", self.calls, "bools"))
        dims = None if self.dims is None else whole(f"{where}: dims", self.dims, 1, of="axes")
        part = None if self.part is None else _integers(f"{where}: part", self.part, "first element and number of them")
        _set(self, axis=axis, calls=calls, dims=dims, part=part, index=_index(where, self.index, None))
        if self.at not in ("input", "output", "operand"):
            raise ValueError(f"{where}: at must be 'input', 'output' or 'operand', got {shown(self.at)}")
        if (self.at == "operand") != (self.parameter is not None):
            raise ValueError(f"{where}: at='operand' and parameter=... go together")
        if self.part is not None and self.parameter is None:
            raise ValueError(f"{where}: part=... is that of a parameter; give at='operand' and parameter=... too")

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

    def __post_init__(self) -> None:
        where = f"BN({shown(self.module)})"
        _name(f"{where}: module", self.module)
        repeat = whole(f"{where}: repeat", self.repeat, 1, of="channels")
        _set(self, repeat=repeat, index=_index(where, self.index, repeat))

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

    def __post_init__(self) -> None:
        if not is_a(self.part, Slice):
            raise TypeError(f"AffineEntry: part must be a Slice, got {shown(self.part)}")
        if self.value is not None:
            number(f"AffineEntry('{self.part}'): value", self.value, -inf)

    def __str__(self) -> str:
        return str(self.part)


@dataclass(frozen=True)
class RunningStatistic:
    """Entries of a buffer in which the model keeps a statistic of one unit alone: a batch norm of its own. Reset: `value`."""

    part: Slice
    value: float

    def __post_init__(self) -> None:
        if not is_a(self.part, Slice):
            raise TypeError(f"RunningStatistic: part must be a Slice, got {shown(self.part)}")
        number(f"RunningStatistic('{self.part}'): value", self.value, -inf)

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

    `activation` is the function of torch between incoming weights and tap, by name ("relu", "gelu"), where there is one alone and
    it is known; it is read by `ContinualBackprop(candidates=...)`.

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
    activation: str | None = None

    def __post_init__(self) -> None:
        where = f"UnitGroup({shown(self.name)})"
        _name(f"{where}: name", self.name)
        for field, kinds, said in (
            ("incoming", Slice, "Slices"),
            ("outgoing", Slice, "Slices"),
            ("affine", (BN, AffineEntry, RunningStatistic), "BN, AffineEntry and RunningStatistic"),
            ("tap", Tap, "a Tap, or one for each outgoing slice"),
        ):
            value = getattr(self, field)
            if field == "tap" and is_a(value, Tap):
                continue
            several = _listed(f"{where}: {field}", value, said)
            if not all(is_a(each, kinds) for each in several):
                raise TypeError(f"{where}: {field} takes {said}, got {shown(value)}")
        if not self.incoming:
            raise ValueError(f"{where}: incoming is empty; name the weights that compute the units")
        if self.hand_over is not None and not (
            is_a(self.hand_over, Mapping) and all(is_a(each, (str, BN)) for each in self.hand_over.values())
        ):
            raise TypeError(
                f"{where}: hand_over maps outgoing parameters to a bias's name or a BN, got {shown(self.hand_over)}"
            )
        number(f"{where}: gain", self.gain)
        if self.activation is not None:
            _name(f"{where}: activation", self.activation)
        if self.runs is not None:
            whole(f"{where}: runs", self.runs, 1)
        one_of(f"kind of {where}", self.kind, ("exact", "approximate", "recurrent"))

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

    def record(self) -> dict[str, Any]:
        """The row as plain values."""
        return {
            "group": self.group.name,
            "kind": self.group.kind,
            "units": self.units,
            "incoming": [*map(str, self.group.incoming), *map(str, self.group.affine)],
            "outgoing": [*map(str, self.group.outgoing)],
            "activity": [*dict.fromkeys(map(str, self.group.taps))],
            "hand_over": self.hand_over,
            "fresh_std": self.fresh_std,
            "current_std": self.current_std,
        }

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


def _name(what: str, value: object, *, empty: bool = False) -> None:
    if not is_a(value, str) or not (value or empty):
        raise TypeError(f"{what} is a name in the model, got {shown(value)}")


def _listed(what: str, value: object, said: str) -> list[Any]:
    found = listed(value)
    if found is None:
        raise TypeError(f"{what} takes {said}, got {shown(value)}")
    return found


def _integers(what: str, value: object, said: str) -> tuple[int, ...]:
    found = tuple(_listed(what, value, said))
    if not found or not all(is_a(each, Integral) and not is_a(each, bool) for each in found):
        raise TypeError(f"{what} takes {said}, got {shown(value)}")
    return tuple(map(int, found))


def _index(where: str, index: object, repeat: int | None) -> Index | None:
    """Positions of each unit, as tuples."""
    if index is None:
        return None
    rows = _listed(f"{where}: index", index, "the positions of each unit")
    if not rows:
        raise ValueError(f"{where}: index is empty; give the positions of each unit")
    found = tuple(_integers(f"{where}: index", row, "the positions of each unit") for row in rows)
    widths = {len(row) for row in found}
    if len(widths) != 1 or (repeat is not None and widths != {repeat}):
        raise ValueError(
            f"{where}: every row of index must have {repeat or 'the same number of'} positions, got {sorted(widths)}"
        )
    return found


def _set(record: object, **fields: object) -> None:
    """Fields of a frozen record, in the form in which they are compared: tuples for lists."""
    for name, value in fields.items():
        object.__setattr__(record, name, value)


def _brief(index: Index) -> str:
    """The positions of the first unit, and dots."""
    first = ", ".join(map(str, index[0][:4]))
    return f"({first}{', ..' if len(index[0]) > 4 else ''}), .."


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
