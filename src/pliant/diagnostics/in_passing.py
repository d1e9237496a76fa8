"""The activity of hidden units in the forwards of a training step, recorded as they happen: a few rows of each tap.

    rows   at most so many examples x positions of each call, spread evenly over all that are real; kept on the CPU

While it records, there are hooks at the taps, as those of a reset method, and around every module, of which the outermost that
runs has a dispatch mode around it that notes activation functions. Otherwise there is no hook: a training step costs nothing.

A compiled model runs eagerly while it is recorded, because its graph shows no activity.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore[reportMissingImports, reportUnknownVariableType]
from torch.utils.hooks import RemovableHandle

from pliant.diagnostics.activations import Activations
from pliant.diagnostics.watch import TapRecord
from pliant.units.bound import NamedModel
from pliant.units.entries import unraveled
from pliant.units.forwards import Forwards, Mask, told
from pliant.units.groups import Tap
from pliant.units.hooks import InertHook, attach, follow, while_training
from pliant.units.models import unwrapped

_GOLDEN = 0.6180339887498949


class Passing:
    """Records at the taps of a model between `start()` and `stop()`.

    Args:
        model: the network that trains.
        names: its modules and parameters.
        taps: where to record.
        runs: of a stack; None: one network.
        mask: which positions are real, as a method takes it.
        most: rows of each call.
    """

    def __init__(
        self, model: nn.Module, names: NamedModel, taps: Iterable[Tap], runs: int | None, mask: Mask | None, most: int
    ) -> None:
        self.root, self.names, self.mask, self.most = unwrapped(model), names, mask, most
        self.leading = 0 if runs is None else 1
        self.taps = list(dict.fromkeys(taps))
        self.records: dict[Tap, TapRecord] = {}
        self._handles: list[RemovableHandle] = []
        self._around: _AroundForward | None = None
        self._stance: Any = None
        Forwards(self.root, mask)  # raises where there is no such argument

    @property
    def on(self) -> bool:
        return bool(self._handles)

    @property
    def seen(self) -> bool:
        """Whether anything was recorded."""
        return any(record.tensors for record in self.records.values())

    def start(self) -> None:
        """From here on forwards are recorded."""
        if self.on:
            return
        activations = Activations()
        self.clear()
        recorders = [_RowRecorder(self, tap, activations) for tap in self.taps]
        try:
            self._handles.extend(attach(recorder, while_training) for recorder in recorders)
            forwards = told(self.root, self.mask, recorders)
            self._handles.extend(() if forwards is None else follow(forwards))
            around = self._around = _AroundForward(activations)
            for module in self.root.modules():  # a loop may call parts of the model alone, as a training_step does
                if not isinstance(module, torch.jit.ScriptModule):
                    self._handles.append(module.register_forward_pre_hook(around, prepend=True))
                    self._handles.append(module.register_forward_hook(around.leave, always_call=True))
            if "torch._dynamo" in sys.modules:
                self._stance = torch.compiler.set_stance("force_eager")
        except BaseException:
            self.stop()
            raise

    def clear(self) -> None:
        """Forget what was recorded."""
        self.records = {tap: TapRecord(tap, -1) for tap in self.taps}

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._around is not None:
            self._around.close()
            self._around = None
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None


class _RowRecorder:
    """Records some rows of what passes a tap."""

    def __init__(self, passing: Passing, tap: Tap, activations: Activations) -> None:
        self.passing, self.tap, self.activations = passing, tap, activations
        self.module = passing.names.module(tap.module, "Monitor")
        self.parameter: Tensor | None = (
            None if tap.parameter is None else passing.names.parameter(tap.parameter, "Monitor")
        )
        axis = tap.axis_at(self.module)
        self.axis = axis if axis < 0 else axis + passing.leading
        self.forwards: Forwards | None = None
        self.calls = self.read = 0

    @torch.no_grad()
    def observe(self, values: Tensor, *, packed: bool = False) -> None:
        if torch.compiler.is_compiling() or is_functorch_wrapped_tensor(values):
            return  # no rows to keep: what is traced holds no numbers
        if values.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        self.tap.check_dims(values.shape)
        moved = values.detach().movedim(self.axis, -1)
        positions = moved.shape[self.passing.leading : -1]
        real = None if packed or self.forwards is None else self.forwards.real(self, moved.shape[:-1])
        record = self.passing.records[self.tap]
        record.activations.add(self.activations.of(values))
        entered = [record.of_real(each, real, self.forwards) for each in self.activations.before(values)]
        record.entered.extend(None if each is None else each.cpu() for each in entered)
        rows = _some_rows(moved, positions, real, self.passing)
        if rows is not None:
            record.tensors.append((rows.cpu(), None))


def _some_rows(moved: Tensor, positions: torch.Size, real: Tensor | None, passing: Passing) -> Tensor | None:
    """(rows, entries), or (runs, rows, entries), a copy; None without any."""
    held = None if real is None else real.flatten().nonzero().flatten()
    count = prod(positions) if held is None else len(held)
    if count == 0:
        return None
    places = evenly(count, passing.most).to(moved.device)
    where = unraveled(places if held is None else held.to(moved.device)[places], tuple(positions))
    return moved[(slice(None), *where)] if passing.leading else moved[where]


def evenly(count: int, most: int) -> Tensor:
    """At most `most` of `count` places, one in each of as many equal parts, not all at the same place within them.

    >>> evenly(3, 5).tolist(), evenly(100, 4).tolist()
    ([0, 1, 2], [0, 40, 55, 96])
    """
    if count <= most:
        return torch.arange(count)
    parts = torch.arange(most, dtype=torch.float64)
    return ((parts + (parts * _GOLDEN) % 1.0) * (count / most)).long().clamp(max=count - 1)


class _AroundForward:
    """Enters a dispatch mode when the outermost forward begins; `leave` ends it."""

    def __init__(self, activations: Activations) -> None:
        self.activations, self._depth = activations, 0
        self.leave = _Leave(self)

    def __reduce__(self) -> tuple[type[InertHook], tuple[()]]:
        return InertHook, ()

    def __call__(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or not while_training(module):
            return
        self._depth += 1
        if self._depth == 1:
            self.activations.__enter__()

    def end(self) -> None:
        if self._depth:
            self._depth -= 1
            if not self._depth:
                self.activations.__exit__(None, None, None)

    def close(self) -> None:
        """Also where a forward never ended."""
        self._depth = min(self._depth, 1)
        self.end()


class _Leave:
    def __init__(self, around: _AroundForward) -> None:
        self.around = around

    def __reduce__(self) -> tuple[type[InertHook], tuple[()]]:
        return InertHook, ()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self.around.end()
