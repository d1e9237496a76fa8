"""A `UnitGroup` found in a live model: its parameters, and its consumers.

Outgoing slices with the same tap form a `Consumer`. The group's columns are those of its consumers, one after another: activity
is recorded, and its mean handed over, per column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from pliant.base.choices import did_you_mean
from pliant.base.deprecation import renamed
from pliant.units.entries import BoundSlice, SelectedUnits
from pliant.units.groups import BN, AffineEntry, PlanRow, RunningStatistic, Slice, Tap, UnitGroup
from pliant.units.models import checked

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(eq=False)
class Consumer:
    """The consumer of a group at one tap: outgoing slices, and the columns of the group at that tap."""

    tap: Tap | None
    slices: list[BoundSlice]
    first: int  # columns [first, first + repeat) of every unit

    @property
    def repeat(self) -> int:
        return self.slices[0].repeat

    @property
    def rows(self) -> int:
        """Outgoing weights per column."""
        return sum(prod(part.row) for part in self.slices)

    @property
    def columns(self) -> slice:
        return slice(self.first, self.first + self.repeat)


class BoundGroup:
    """The units of one group in a model. Raises `ValueError` or `TypeError`, naming the group, if they are not there."""

    def __init__(self, spec: UnitGroup, model: nn.Module | NamedModel) -> None:
        self.spec = spec
        self.name = spec.name
        self._model = model if isinstance(model, NamedModel) else NamedModel(model)
        if not (spec.incoming and spec.outgoing):
            raise ValueError(f"group '{self.name}' needs at least one incoming and one outgoing slice")
        if spec.runs is not None and spec.runs < 1:
            raise ValueError(f"group '{self.name}': runs must be at least 1, got {spec.runs}")
        self.runs = 1 if spec.runs is None else spec.runs
        self.incoming = [self._bind(part) for part in spec.incoming]
        self.outgoing = [self._bind(part) for part in spec.outgoing]
        self.norms = [(norm, self._batch_norm(norm)) for norm in spec.affine if isinstance(norm, BN)]
        self.own = self._own()
        self.units = self._count_units()
        self.consumers = self._consumers()
        self.columns = sum(consumer.repeat for consumer in self.consumers)  # per unit, over all taps
        self.statistics()  # raises where there are none
        self._check_absorbers()

    # -- what the group is made of ------------------------------------------------------------------------------

    @property
    def first(self) -> nn.Parameter:
        """The first incoming parameter: its optimizer is the group's clock, its device the group's device."""
        return cast(nn.Parameter, self.incoming[0].parameter)

    @property
    def dtype(self) -> torch.dtype:
        """Of statistics: the parameters', at least float32."""
        return self.first.dtype if self.first.dtype.itemsize >= 4 else torch.float32

    def slices(self) -> list[BoundSlice]:
        """Every slice of a unit: incoming, outgoing, affine."""
        return [*self.incoming, *self.outgoing, *(part for part, _ in self.own)]

    def incoming_weights(self) -> list[BoundSlice]:
        """The incoming slices that are weights, not biases (a bias is a vector: one entry per unit)."""
        return [part for part in self.incoming if part.row]

    def incoming_biases(self) -> list[BoundSlice]:
        return [part for part in self.incoming if not part.row]

    def statistics(self) -> list[tuple[BoundSlice, Tensor, float]]:
        """Running statistics, of batch norms and of the model's own, with their initial values."""
        found: list[tuple[BoundSlice, Tensor, float]] = []
        for each in self.spec.affine:
            if isinstance(each, RunningStatistic):
                buffer = self._buffer(each.part)
                found.append((BoundSlice(each.part, buffer, stacked=self.spec.stacked), buffer, each.value))
        for norm, module in self.norms:
            for name, start in (("running_mean", 0.0), ("running_var", 1.0)):
                vector = cast(Tensor | None, getattr(module, name, None))
                if vector is not None:
                    part = Slice(f"{norm.module}.{name}", 0, norm.repeat, norm.index)
                    found.append((BoundSlice(part, vector, stacked=self.spec.stacked), vector, start))
        return found

    def _buffer(self, part: Slice) -> Tensor:
        buffer = getattr(self.owner(part), part.parameter.rpartition(".")[2], None)
        if not isinstance(buffer, Tensor):
            raise ValueError(f"group '{self.name}': the model has no buffer '{part.parameter}'")
        return buffer

    def owner(self, part: Slice) -> nn.Module:
        """The module that holds a slice's parameter."""
        return self._model.module(part.parameter.rpartition(".")[0], self.name)

    def module(self, name: str) -> nn.Module:
        return self._model.module(name, self.name)

    def parameter(self, name: str) -> nn.Parameter:
        return self._model.parameter(name, self.name)

    def written(self, *, hand_over: bool) -> list[str]:
        """The parameters that a replacement writes, with those that take over means if it hands them over."""
        absorbers = [self._absorber_name(part.part) for part in self.outgoing] if hand_over and self.spec.taps else []
        names = [part.part.parameter for part in self.slices()] + [each for each in absorbers if isinstance(each, str)]
        return list(dict.fromkeys(names))

    def place(self, name: str) -> tuple[dict[str, Any], str]:
        """Where the model holds a parameter: its module's dictionary, and the name in it."""
        stem, _, leaf = name.rpartition(".")
        return _parameters_of(self._model.modules[stem]), leaf

    def clear_gradients(self, chosen: SelectedUnits) -> None:
        """What the chosen units' entries have in `.grad` becomes zero, by their strength."""
        for part in self.slices():
            if part.parameter.grad is not None:
                part.write(chosen, 0.0, part.parameter.grad)

    # -- weights as the utilities see them ----------------------------------------------------------------------

    def outgoing_magnitude(self) -> Tensor:
        """Mean |w| over the outgoing weights of each column, (runs, units, columns)."""
        return torch.cat(
            [
                torch.stack([part.magnitude(self.dtype) for part in each.slices]).sum(0) / each.rows
                for each in self.consumers
            ],
            dim=2,
        )

    def incoming_magnitude(self) -> Tensor:
        """Mean |w| over the incoming weights of each unit, (runs, units)."""
        parts = self.incoming_weights()
        total = torch.stack([part.magnitude(self.dtype).sum(2) for part in parts]).sum(0)
        return total / sum(part.repeat * prod(part.row) for part in parts)

    def incoming_gradient(self) -> Tensor:
        """Mean |gradient| over the incoming weights of each unit, (runs, units); NaN where there is none."""
        parts = [part for part in self.incoming_weights() if part.parameter.grad is not None]
        if not parts:
            return torch.full((self.runs, self.units), torch.nan, dtype=self.dtype, device=self.first.device)
        total = torch.stack([part.magnitude(self.dtype, part.parameter.grad).sum(2) for part in parts]).sum(0)
        return total / sum(part.repeat * prod(part.row) for part in parts)

    # -- where the mean goes -----------------------------------------------------------------------------------

    def absorbers(self) -> list[tuple[BoundSlice, slice, Tensor, float]]:
        """The vectors that take over mean contributions: outgoing slice, its columns, (runs, next units), sign."""
        found: list[tuple[BoundSlice, slice, Tensor, float]] = []
        for consumer in self.consumers:
            for part in consumer.slices if consumer.tap is not None else ():
                target = self._absorber_name(part.part)
                if isinstance(target, BN):
                    vector, sign = self._running_mean(target), -1.0
                elif target is not None:
                    vector, sign = self.parameter(target).detach(), 1.0
                else:
                    continue
                found.append((part, consumer.columns, vector if self.spec.stacked else vector[None], sign))
        return found

    def _running_mean(self, norm: BN) -> Tensor:
        mean = cast(Tensor | None, getattr(self.module(norm.module), "running_mean", None))
        if mean is None:
            raise ValueError(f"group '{self.name}': '{norm.module}' keeps no running mean to hand a mean over to")
        return mean

    def _absorber_name(self, part: Slice) -> str | BN | None:
        if self.spec.hand_over is not None:
            target = self.spec.hand_over.get(part.parameter)
            if isinstance(target, str) and not self.parameter(target).requires_grad:
                raise ValueError(f"group '{self.name}': hand_over to '{target}', which is frozen")
            return target
        stem, _, leaf = part.parameter.rpartition(".")
        bias = self._model.parameters.get(f"{stem}.bias")
        return f"{stem}.bias" if leaf == "weight" and bias is not None and bias.requires_grad else None

    def plan_row(self, *, hand_over: bool, fresh_std: float | None = None) -> PlanRow:
        """This group's line of the plan."""
        kind = self._hand_over_kind() if hand_over else "off"
        first = self.incoming_weights()[0]
        return PlanRow(self.spec, self.units, kind, fresh_std, None if first.parameter.is_meta else first.std())

    def _hand_over_kind(self) -> Literal["exact", "interior", "none"]:
        absorbed = [part for part, *_ in self.absorbers()]
        if len(absorbed) != len(self.outgoing):
            return "none"
        padded = any(
            getattr(self.owner(part.part), "padding", 0) not in (0, (0,), (0, 0), (0, 0, 0), "valid")
            for part in self.outgoing
        )
        return "interior" if padded else "exact"

    # -- construction -------------------------------------------------------------------------------------------

    def _bind(self, part: Slice) -> BoundSlice:
        parameter = self.parameter(part.parameter)
        if not parameter.requires_grad:
            raise ValueError(
                f"group '{self.name}': '{part.parameter}' is frozen (requires_grad=False); leave the group out"
            )
        if not parameter.is_floating_point() or parameter.layout is not torch.strided:
            raise TypeError(
                f"group '{self.name}': '{part.parameter}' is {parameter.dtype}, {parameter.layout}; units live in dense "
                f"floating-point parameters"
            )
        if type(parameter).__name__ == "DTensor" or type(parameter.data).__name__ == "DTensor":
            raise TypeError(
                f"group '{self.name}': '{part.parameter}' is a DTensor (FSDP, tensor parallel): not supported"
            )
        shape = tuple(parameter.shape[1:] if self.spec.stacked else parameter.shape)
        if self.spec.stacked and parameter.shape[0] != self.runs:
            raise ValueError(
                f"group '{self.name}': axis 0 of '{part.parameter}' is {parameter.shape[0]}, but runs={self.runs}"
            )
        if part.shape is not None and prod(part.shape) != prod(shape):
            raise ValueError(f"group '{self.name}': '{part.parameter}' of shape {shape} cannot be seen as {part.shape}")
        seen = part.shape or shape
        for axis in part.axes:
            if not 0 <= axis < len(seen):
                raise ValueError(f"group '{self.name}': '{part.parameter}' of shape {seen} has no axis {axis}")
        positions = prod(seen[axis] for axis in part.axes)
        if part.index is None and positions % part.repeat:
            raise ValueError(
                f"group '{self.name}': {positions} entries of {part} do not divide by repeat={part.repeat}"
            )
        return BoundSlice(part, parameter, stacked=self.spec.stacked)

    def _own(self) -> list[tuple[BoundSlice, float | None]]:
        """Affine parameters of single units, with their initial values where those are known."""
        found: list[tuple[BoundSlice, float | None]] = []
        for each in self.spec.affine:
            if isinstance(each, AffineEntry):
                found.append((self._bind(each.part), each.value))
            elif isinstance(each, BN):
                for name, start in (("weight", 1.0), ("bias", 0.0)):
                    if f"{each.module}.{name}" in self._model.parameters:
                        found.append((self._bind(Slice(f"{each.module}.{name}", 0, each.repeat, each.index)), start))
        return found

    def _batch_norm(self, norm: BN) -> nn.Module:
        module = self.module(norm.module)
        if not isinstance(module, _BATCH_NORMS):
            raise TypeError(
                f"group '{self.name}': BN('{norm.module}') names a {type(module).__name__}, not a batch norm"
            )
        units = self.incoming[0].units
        if norm.index is None and module.num_features != units * norm.repeat:
            raise ValueError(
                f"group '{self.name}': batch norm '{norm.module}' has {module.num_features} channels, "
                f"not {units} units x {norm.repeat}"
            )
        return module

    def _count_units(self) -> int:
        first = self.incoming[0]
        wrong = [f"{part.part} gives {part.units}" for part in self.slices() if part.units != first.units]
        if wrong:
            raise ValueError(f"group '{self.name}': {first.part} gives {first.units} units but {'; '.join(wrong)}")
        if not self.incoming_weights():
            raise ValueError(f"group '{self.name}': no incoming slice is a weight, so there is nothing to redraw")
        return first.units

    def _consumers(self) -> list[Consumer]:
        """Outgoing slices by tap. A tap shared by several of them must have the same columns for each."""
        taps: tuple[Tap | None, ...] = self.spec.taps or (None,) * len(self.outgoing)
        if len(taps) != len(self.outgoing):
            raise ValueError(f"group '{self.name}': {len(taps)} taps for {len(self.outgoing)} outgoing slices")
        by_tap: dict[tuple[Tap | None, int], list[BoundSlice]] = {}
        for part, tap in zip(self.outgoing, taps, strict=True):
            by_tap.setdefault((tap, part.repeat if tap is None else 0), []).append(
                part
            )  # no tap, no columns to agree on
        consumers: list[Consumer] = []
        for (tap, _), parts in by_tap.items():
            repeats = {part.repeat for part in parts}
            if len(repeats) > 1:
                raise ValueError(
                    f"group '{self.name}': outgoing slices with repeats {sorted(repeats)} share the tap at the {tap}; "
                    f"give one Tap each"
                )
            if tap is not None:
                self.module(tap.module)
            if tap is not None and tap.index is not None and len(tap.index) != self.units:
                raise ValueError(
                    f"group '{self.name}': the tap at the {tap} has {len(tap.index)} units, not {self.units}"
                )
            consumers.append(Consumer(tap, parts, sum(each.repeat for each in consumers)))
        return consumers

    def _check_absorbers(self) -> None:
        """Raise `ValueError` unless the vectors that take over means exist and fit."""
        outgoing = [part.parameter for part in self.spec.outgoing]
        for name in self.spec.hand_over or {}:
            if name not in outgoing:
                raise ValueError(
                    f"group '{self.name}': hand_over names '{name}', which is not outgoing ({', '.join(outgoing)})"
                )
        for part, _, vector, _ in self.absorbers():
            wanted = (self.runs, part.row[0])
            if vector.shape != wanted:
                raise ValueError(
                    f"group '{self.name}': what takes the mean of '{part.part.parameter}' has shape {tuple(vector.shape)}, "
                    f"not {wanted}, (runs, next units)"
                )

    def __repr__(self) -> str:
        return f"BoundGroup('{self.name}', units={self.units}, runs={self.runs})"


class NamedModel:
    """Parameters and modules of a model by every name they have."""

    def __init__(self, model: nn.Module, *, prefix: str = "") -> None:
        parameters, modules = (
            checked(model).named_parameters(remove_duplicate=False),
            cast(Iterable[tuple[str, nn.Module]], cast(Any, model.named_modules(remove_duplicate=False))),
        )
        self.parameters: Mapping[str, nn.Parameter] = {prefix + name: each for name, each in parameters}
        self.modules: Mapping[str, nn.Module] = {(prefix + name).removesuffix("."): each for name, each in modules}

    def parameter(self, name: str, group: str) -> nn.Parameter:
        return _looked_up(self.parameters, name, group, "parameter")

    def module(self, name: str, group: str) -> nn.Module:
        return _looked_up(self.modules, name, group, "module")


_T = TypeVar("_T")


def _looked_up(names: Mapping[str, _T], name: str, group: str, what: str) -> _T:
    if name not in names:
        raise ValueError(f"group '{group}': the model has no {what} '{name}'{did_you_mean(name, names)}")
    return names[name]


__getattr__ = renamed(__name__, {"Names": "NamedModel"})


def _parameters_of(module: nn.Module) -> dict[str, Any]:
    """The module's own dictionary; a scripted module has none, and keeps the parameters that it was made with."""
    held = module._parameters  # pyright: ignore[reportPrivateUsage]
    return dict(held.items()) if isinstance(module, torch.jit.ScriptModule) else cast(dict[str, Any], held)
