"""What hidden units did since the last optimizer step, read while the network trains.

A hook on the consumer of a group sees its units after activation, pooling, dropout and flatten, however the
model computes them. For every column (one unit may own several after a flatten) it keeps, over all
examples and positions of all forward passes since the last step,

    mean h,  mean |h|  and, where a utility asks for it,  mean |h - m|,

m being the running mean with the passes so far taken in. With one forward pass a step this is the released
code's definition; with gradient accumulation each pass is centred on the passes up to it.

Nothing is read in evaluation mode or without gradients, nor from a copy of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pliant.units.map import Tap

Reading = Literal["mean", "magnitude", "centred"]


@dataclass
class Activity:
    """Sums of one group's activity since the last step, each (runs, columns); `examples` is how many were summed."""

    tap: Tap
    stacked: bool
    reads: Collection[Reading]
    centre: Callable[[Tensor], Tensor] | None = None  # mean of the passes so far -> what `centred` subtracts
    columns: int = 0
    examples: int = 0

    def __post_init__(self) -> None:
        self.sums: dict[Reading, Tensor] = {}

    def observe(self, module: nn.Module, values: Tensor) -> None:
        """Add one forward pass."""
        if not module.training or not torch.is_grad_enabled():
            return
        with torch.no_grad():
            by_column = self._by_column(values.detach())
            self.examples += by_column.shape[1]
            self._add("mean", by_column.sum(1))
            if "magnitude" in self.reads:
                self._add("magnitude", by_column.abs().sum(1))
            if self.centre is not None and "centred" in self.reads:
                centre = self.centre(self.sums["mean"] / self.examples)
                self._add("centred", (by_column - centre.unsqueeze(1)).abs_().sum(1))

    def _by_column(self, values: Tensor) -> Tensor:
        """(runs, examples and positions, columns), at least float32."""
        runs_first = values if self.stacked else values.unsqueeze(0)
        axis = self.tap.axis if self.tap.axis < 0 else self.tap.axis + 1
        columns_last = runs_first.movedim(axis, -1)
        if columns_last.shape[-1] != self.columns:
            raise ValueError(
                f"the {self.tap.at} of '{self.tap.module}' has {columns_last.shape[-1]} entries along axis {self.tap.axis}, "
                f"but its group has {self.columns} (units times repeat): correct the group's Tap"
            )
        wide = columns_last if columns_last.dtype.itemsize >= 4 else columns_last.float()
        return wide.flatten(1, -2) if wide.dim() > 2 else wide.unsqueeze(1)

    def _add(self, reading: Reading, total: Tensor) -> None:
        held = self.sums.get(reading)
        self.sums[reading] = total if held is None else held.add_(total)

    def take(self) -> dict[Reading, Tensor]:
        """The means, each (runs, columns), and start afresh."""
        means: dict[Reading, Tensor] = {reading: total / self.examples for reading, total in self.sums.items()}
        self.sums, self.examples = {}, 0
        return means

    def to(self, device: torch.device) -> None:
        self.sums = {reading: total.to(device) for reading, total in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"examples": self.examples, **{reading: total.clone() for reading, total in self.sums.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.examples = int(state["examples"])
        self.sums = {
            reading: state[reading].clone() for reading in ("mean", "magnitude", "centred") if reading in state
        }


class ActivityHook:
    """The hook itself. A copy or a pickle of a model carries an `InertHook` instead, which feeds nothing and holds nothing."""

    def __init__(self, activity: Activity) -> None:
        self.activity = activity

    def attach(self, module: nn.Module) -> RemovableHandle:
        if self.activity.tap.at == "input":
            return module.register_forward_pre_hook(self)
        return module.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
        if output is None and not args:
            raise ValueError(
                f"'{self.activity.tap.module}' was called by keyword only; activity is read from the first positional argument"
            )
        self.activity.observe(module, args[0] if output is None else output)

    def __reduce__(self) -> tuple[type[InertHook], tuple[()]]:
        return InertHook, ()


class InertHook:
    """What is left of an `ActivityHook` in a copy of a model: nothing is read."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None: ...
