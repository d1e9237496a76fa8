"""Laws that the incoming weights of fresh units are drawn from: (count, repeat, *row) for `count` units of a slice.

    Uniform      in [-bound, bound]
    Reset        what a module's own `reset_parameters()` draws, times a factor
    Initializer  what the model's own initializer draws
    Given        a function of the user's
    Borrowed     what another unit had when the method was attached: of entries that are a unit's own

Draws are made on the CPU, so that devices agree, and leave the global random state as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from math import prod, sqrt
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd  # pyright: ignore[reportPrivateUsage]

from pliant.base.process import random_state
from pliant.engine.fresh_weights.initializer import Initializers, required_arguments
from pliant.nn import StackedLinear
from pliant.units.entries import BoundSlice, SelectedUnits
from pliant.units.models import copied

Draw = Callable[[str, tuple[int, ...], torch.Generator], Tensor]
Init = str | Draw

SAMPLE = 4096  # weights of which a standard deviation is taken
# StackedConv2d has StackedLinear's
_LIKE_LINEAR = (nn.Linear.reset_parameters, _ConvNd.reset_parameters, StackedLinear.reset_parameters)


class Law(Protocol):
    """A distribution of fresh weights."""

    def std(self) -> float | None:
        """Its standard deviation; None where nothing may be drawn to find out."""
        ...

    def draw(self, chosen: SelectedUnits, which: slice, generator: torch.Generator) -> Tensor:
        """Weights of the units `which` of the chosen, (count, repeat, *row)."""
        ...


class Uniform:
    """Uniform in [-bound, bound]."""

    def __init__(self, part: BoundSlice, bound: float) -> None:
        self.part, self.bound = part, bound

    def std(self) -> float:
        return self.bound / sqrt(3.0)

    def at(self, std: float) -> Uniform:
        """The same law at another standard deviation."""
        return Uniform(self.part, std * sqrt(3.0))

    def draw(self, chosen: SelectedUnits, which: slice, generator: torch.Generator) -> Tensor:
        count = len(chosen.units[which])
        fresh = torch.empty(count * self.part.repeat, *self.part.row, dtype=self.part.parameter.dtype)
        fresh.uniform_(-self.bound, self.bound, generator=generator)
        return fresh.view(count, self.part.repeat, *self.part.row)


class Reset:
    """What `reset_parameters()` of the layer that holds the slice draws, times `factor`; a copy of it is reset and read."""

    def __init__(self, part: BoundSlice, owner: nn.Module, factor: float = 1.0) -> None:
        self.part, self.owner, self.factor = part, owner, factor

    def std(self) -> float:
        return self._std

    @cached_property
    def _std(self) -> float:
        return self._drawn(0).std()

    def at(self, std: float) -> Reset:
        """The same law at another standard deviation."""
        return Reset(self.part, self.owner, self.factor * std / self.std())

    def draw(self, chosen: SelectedUnits, which: slice, generator: torch.Generator) -> Tensor:
        return _units_of(self._drawn(_seed_from(generator)), chosen, which)

    def _drawn(self, seed: int) -> BoundSlice:
        fresh = reset_copy(self.owner, seed).get_parameter(self.part.part.parameter.rpartition(".")[2]).detach()
        return _like(self.part, fresh if self.factor == 1.0 else fresh * self.factor)


class Initializer:
    """What the model's own initializer draws. `by_unit`: for as many units as are needed, where the law does not depend on
    how many there are; else for all of them, of which some are taken.
    """

    def __init__(self, part: BoundSlice, initializers: Initializers, *, by_unit: bool) -> None:
        self.part, self.initializers, self.by_unit = part, initializers, by_unit

    def std(self) -> float:
        return self.measured[0]

    @cached_property
    def measured(self) -> tuple[float, int]:
        """`std`, and of how many weights it was taken: of all units, or of single ones, one draw each."""
        if self.by_unit:
            draws = min(max(SAMPLE // (self.part.repeat * prod(self.part.row)), 4), 64)
            sample = torch.stack([self._few(1, seed) for seed in range(draws)])
        else:
            sample = self._whole(0).entries()
        return float(sample.double().std(correction=0)), sample.numel()

    def draw(self, chosen: SelectedUnits, which: slice, generator: torch.Generator) -> Tensor:
        seed = _seed_from(generator)
        return (
            self._few(len(chosen.units[which]), seed) if self.by_unit else _units_of(self._whole(seed), chosen, which)
        )

    def _whole(self, seed: int) -> BoundSlice:
        return _like(self.part, self._drawn(tuple(self.part.parameter.shape), seed))

    def _few(self, units: int, seed: int) -> Tensor:
        """A parameter that holds so many units only, (units, repeat, *row)."""
        shape, axis = list(self.part.parameter.shape), self.part.part.axes[0]
        shape[axis] = units * self.part.repeat
        return self._drawn(tuple(shape), seed).movedim(axis, 0).reshape(units, self.part.repeat, *self.part.row)

    def _drawn(self, shape: tuple[int, ...], seed: int) -> Tensor:
        return self.initializers.draw(self.part.part.parameter, shape, self.part.parameter.dtype, seed)


class Given:
    """A function (parameter name, (count, *row shape), CPU generator) -> tensor of that shape."""

    def __init__(self, part: BoundSlice, function: Draw) -> None:
        self.part, self.function = part, function

    def std(self) -> None:
        return None

    def draw(self, chosen: SelectedUnits, which: slice, generator: torch.Generator) -> Tensor:
        name, count = self.part.part.parameter, len(chosen.units[which])
        shape = (count * self.part.repeat, *self.part.row)
        fresh = self.function(name, shape, generator)
        if fresh.shape != shape:
            raise ValueError(f"init gave shape {tuple(fresh.shape)} for '{name}'; it was asked for {shape}")
        return fresh.reshape(count, self.part.repeat, *self.part.row)


class Borrowed:
    """The entries of each unit as they are now, (runs, units, repeat, *row); a fresh unit gets those of another one, by chance.

    So their law is that by which the group began, and a unit that its own entries had silenced does not get them back.
    Nothing is drawn where all units are alike.
    """

    def __init__(self, part: BoundSlice) -> None:
        self.entries = part.entries().view(-1, part.units, part.repeat, *part.row).cpu().clone()

    def std(self) -> float:
        return float(self.entries.double().std(correction=0))

    def draw(self, chosen: SelectedUnits, which: slice, generator: torch.Generator) -> Tensor:
        runs, own = chosen.runs[which].cpu(), chosen.units[which].cpu()
        units = self.entries.shape[1]
        if bool((self.entries == self.entries[:, :1]).all()):
            return self.entries[runs, own]
        return self.entries[runs, (own + torch.randint(1, units, own.shape, generator=generator)) % units]


def like_linear(module: nn.Module) -> int | None:
    """The fan-in of a layer that is reset as torch's Linear and Conv are, uniform in +-1/sqrt(fan_in); None for others."""
    if getattr(type(module), "reset_parameters", None) not in _LIKE_LINEAR:
        return None
    if isinstance(module, nn.Linear):
        return module.in_features
    if isinstance(module, _ConvNd):
        channels = module.out_channels if isinstance(module, _ConvTransposeNd) else module.in_channels
        return channels // module.groups * prod(module.kernel_size)
    return prod(cast(Tensor, module.weight).shape[2:])


def has_reset(module: nn.Module) -> bool:
    """Whether a layer draws its parameters itself, asked without arguments."""
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    return callable(reset) and not required_arguments(reset)


def resets(owner: nn.Module, leaf: str) -> bool:
    """Whether a layer's own reset writes all of the parameter `leaf`: tried on a copy that holds NaN there."""
    return has_reset(owner) and bool(reset_copy(owner, 0, broken=leaf).get_parameter(leaf).isfinite().all())


def reset_copy(owner: nn.Module, seed: int, *, broken: str | None = None) -> nn.Module:
    """A copy of a layer on the CPU, its parameters drawn by its own reset under `seed`; the parameter `broken` was NaN before."""
    copy = copied(owner).cpu()
    if broken is not None:
        copy.get_parameter(broken).data.fill_(torch.nan)
    with random_state(seed), torch.no_grad():
        (getattr(copy, "reset_parameters", None) or cast(Any, copy)._reset_parameters)()
    return copy


def _like(part: BoundSlice, fresh: Tensor) -> BoundSlice:
    return BoundSlice(part.part, fresh, stacked=part.stacked)


def _units_of(fresh: BoundSlice, chosen: SelectedUnits, which: slice) -> Tensor:
    runs, units, strength = (each[which].cpu() for each in (chosen.runs, chosen.units, chosen.strength))
    return fresh.read(SelectedUnits(runs, units, strength, []))


def _seed_from(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))
