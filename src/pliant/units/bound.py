"""A `UnitGroup` found in a live model: its parameters, its clock and its hook.

Every view has the units up front, (runs, units, columns, ...), so that the engine never knows whether a unit is
a row, a filter or a block of columns; one network is a stack of one run.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pliant.units.activity import Activity, ActivityHook, Reading
from pliant.units.map import BN, PlanRow, Slice, UnitGroup

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(eq=False)
class Chosen:
    """The units that are replaced in one step, as three (count,) tensors; `counts` says how many in each run."""

    runs: Tensor
    units: Tensor
    strength: Tensor  # 1 = full replacement
    counts: list[int]

    @property
    def where(self) -> tuple[Tensor, Tensor]:
        """Index of the first two axes of any (runs, units, ...) view."""
        return self.runs, self.units


class BoundGroup:
    """The units of one group in a model. Raises `ValueError` or `TypeError`, naming the group, if they are not there."""

    def __init__(self, spec: UnitGroup, model: nn.Module) -> None:
        self.spec = spec
        self.name = spec.name
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))  # pyright: ignore[reportUnknownArgumentType]
        self.runs = 1 if spec.runs is None else spec.runs
        self.units, self.columns = self._measure()
        self._check_absorbers()
        self.age = torch.zeros(self.runs, self.units, dtype=torch.int64, device=self.first.device)
        self.activity = Activity(spec.tap, spec.stacked, (), columns=self.units * self.columns)
        self.consumer = self._module(spec.tap.module)

    # -- what the group is made of ------------------------------------------------------------------------------

    @property
    def first(self) -> nn.Parameter:
        """The first incoming parameter: its optimizer is the group's clock, its device the group's device."""
        return self.parameter(self.spec.incoming[0].parameter)

    @property
    def dtype(self) -> torch.dtype:
        """Of statistics: the parameters', at least float32."""
        return self.first.dtype if self.first.dtype.itemsize >= 4 else torch.float32

    def parameter(self, name: str) -> nn.Parameter:
        if name not in self._parameters:
            near = get_close_matches(name, self._parameters, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ValueError(f"group '{self.name}': the model has no parameter '{name}'{hint}")
        return self._parameters[name]

    def slices(self) -> list[Slice]:
        """Incoming, then outgoing, then the batch norms' own."""
        affine = [
            Slice(f"{norm.module}.{name}", 0, norm.repeat) for norm in self.spec.affine for name in ("weight", "bias")
        ]
        owned = [part for part in affine if part.parameter in self._parameters]
        return [*self.spec.incoming, *self.spec.outgoing, *owned]

    def view(self, part: Slice, tensor: Tensor | None = None) -> Tensor:
        """A slice by unit, (runs, units, repeat, ...): of its parameter, or of `tensor` of the parameter's shape."""
        source = self.parameter(part.parameter).detach() if tensor is None else tensor
        return part.view(source, stacked=self.spec.stacked)

    def incoming_weights(self) -> list[Slice]:
        """The incoming slices that are weights: a bias has nothing left once its unit is fixed."""
        return [part for part in self.spec.incoming if self.view(part).dim() > 3]

    def incoming_biases(self) -> list[Slice]:
        return [part for part in self.spec.incoming if self.view(part).dim() == 3]

    def norms(self) -> list[tuple[BN, nn.Module]]:
        return [(norm, self._module(norm.module)) for norm in self.spec.affine]

    def _module(self, name: str) -> nn.Module:
        if name not in self._modules:
            near = get_close_matches(name, self._modules, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ValueError(f"group '{self.name}': the model has no module '{name}'{hint}")
        return self._modules[name]

    def owner(self, part: Slice) -> nn.Module:
        """The module that holds a slice's parameter."""
        return self._module(part.parameter.rpartition(".")[0])

    # -- weights as the utilities see them ----------------------------------------------------------------------

    def outgoing_magnitude(self) -> Tensor:
        """Mean |w| over all weights that leave each column, (runs, units, columns)."""
        views = [self.view(part).flatten(3) for part in self.spec.outgoing]
        total = torch.stack([view.abs().sum(-1, dtype=self.dtype) for view in views]).sum(0)
        return total / sum(view.shape[-1] for view in views)

    def incoming_magnitude(self) -> Tensor:
        """Mean |w| over all weights that enter each unit, (runs, units, 1)."""
        views = [self.view(part).flatten(2) for part in self.incoming_weights()]
        total = torch.stack([view.abs().sum(-1, keepdim=True, dtype=self.dtype) for view in views]).sum(0)
        return total / sum(view.shape[-1] for view in views)

    # -- where the mean goes -----------------------------------------------------------------------------------

    def absorbers(self) -> dict[Slice, tuple[Tensor, float]]:
        """What takes over a replaced unit's mean contribution, by outgoing slice: (runs, next units) and its sign."""
        found: dict[Slice, tuple[Tensor, float]] = {}
        for part in self.spec.outgoing:
            target = self._absorber_name(part)
            if isinstance(target, BN):
                mean = cast(Tensor | None, getattr(self._module(target.module), "running_mean", None))
                if mean is None:
                    raise ValueError(
                        f"group '{self.name}': '{target.module}' keeps no running mean to hand a mean over to"
                    )
                found[part] = mean, -1.0
            elif target is not None:
                found[part] = self.parameter(target).detach(), 1.0
        return {part: (vector if self.spec.stacked else vector[None], sign) for part, (vector, sign) in found.items()}

    def _absorber_name(self, part: Slice) -> str | BN | None:
        if self.spec.hand_over is not None:
            target = self.spec.hand_over.get(part.parameter)
            if isinstance(target, str) and not self.parameter(target).requires_grad:
                raise ValueError(f"group '{self.name}': hand_over to '{target}', which is frozen")
            return target
        stem, _, leaf = part.parameter.rpartition(".")
        bias = self._parameters.get(f"{stem}.bias")
        return f"{stem}.bias" if leaf == "weight" and bias is not None and bias.requires_grad else None

    def plan_row(self, *, hand_over: bool) -> PlanRow:
        """This group's line of the plan."""
        return PlanRow(self.spec, self.units, self._hand_over_kind() if hand_over else "off")

    def _hand_over_kind(self) -> Literal["exact", "interior", "none"]:
        if set(self.absorbers()) != set(self.spec.outgoing):
            return "none"
        padded = any(
            getattr(self.owner(part), "padding", 0) not in (0, (0,), (0, 0), "valid") for part in self.spec.outgoing
        )
        return "interior" if padded else "exact"

    # -- construction checks -----------------------------------------------------------------------------------

    def _measure(self) -> tuple[int, int]:
        """Units, and columns of each; raises where shapes disagree."""
        spec = self.spec
        if not (spec.incoming and spec.outgoing):
            raise ValueError(f"group '{self.name}' needs at least one incoming and one outgoing slice")
        if spec.runs is not None and spec.runs < 1:
            raise ValueError(f"group '{self.name}': runs must be at least 1, got {spec.runs}")
        sizes = {part: self._units_along(part) for part in self.slices()}
        units = sizes[spec.incoming[0]]
        wrong = [f"{part} gives {size}" for part, size in sizes.items() if size != units]
        if wrong:
            raise ValueError(f"group '{self.name}': {spec.incoming[0]} gives {units} units but {'; '.join(wrong)}")
        if not self.incoming_weights():
            raise ValueError(f"group '{self.name}': no incoming slice is a weight, so there is nothing to redraw")
        repeats = {part.repeat for part in spec.outgoing}
        if len(repeats) > 1:
            raise ValueError(
                f"group '{self.name}': its outgoing slices have different repeats {sorted(repeats)}; give one group each"
            )
        self._check_norms(units)
        return units, repeats.pop()

    def _check_norms(self, units: int) -> None:
        for norm, module in self.norms():
            if not isinstance(module, _BATCH_NORMS):
                raise TypeError(
                    f"group '{self.name}': BN('{norm.module}') names a {type(module).__name__}, not a batch norm"
                )
            if module.num_features != units * norm.repeat:
                raise ValueError(
                    f"group '{self.name}': batch norm '{norm.module}' has {module.num_features} channels, "
                    f"not {units} units x {norm.repeat}"
                )

    def _check_absorbers(self) -> None:
        """Means are handed to vectors that exist and fit."""
        outgoing = [part.parameter for part in self.spec.outgoing]
        for name in self.spec.hand_over or {}:
            if name not in outgoing:
                raise ValueError(
                    f"group '{self.name}': hand_over names '{name}', which is not outgoing ({', '.join(outgoing)})"
                )
        for part, (vector, _) in self.absorbers().items():
            wanted = (self.runs, self.view(part).shape[3])
            if vector.shape != wanted:
                raise ValueError(
                    f"group '{self.name}': what takes the mean of '{part.parameter}' has shape {tuple(vector.shape)}, "
                    f"not {wanted}, (runs, next units)"
                )

    def _units_along(self, part: Slice) -> int:
        parameter = self.parameter(part.parameter)
        if not parameter.requires_grad:
            raise ValueError(
                f"group '{self.name}': '{part.parameter}' is frozen (requires_grad=False); leave the group out"
            )
        shape = parameter.shape[1:] if self.spec.stacked else parameter.shape
        if self.spec.stacked and parameter.shape[0] != self.runs:
            raise ValueError(
                f"group '{self.name}': axis 0 of '{part.parameter}' is {parameter.shape[0]}, but runs={self.runs}"
            )
        if not 0 <= part.axis < len(shape):
            raise ValueError(f"group '{self.name}': '{part.parameter}' of shape {tuple(shape)} has no axis {part.axis}")
        units, rest = divmod(shape[part.axis], part.repeat)
        if rest:
            raise ValueError(
                f"group '{self.name}': {shape[part.axis]} entries of {part} do not divide by repeat={part.repeat}"
            )
        return units

    # -- living with the model ----------------------------------------------------------------------------------

    def listen(self, reads: Collection[Reading]) -> RemovableHandle:
        """Start to read activity."""
        self.activity.reads = reads
        return ActivityHook(self.activity).attach(self.consumer)

    def to(self, device: torch.device) -> None:
        self.age = self.age.to(device)
        self.activity.to(device)

    def state_dict(self) -> dict[str, Any]:
        return {"age": self.age.clone(), "activity": self.activity.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.age.copy_(state["age"])
        self.activity.load_state_dict(state["activity"])
        self.activity.to(self.age.device)

    def __repr__(self) -> str:
        return f"BoundGroup('{self.name}', units={self.units}, runs={self.runs})"
