"""What hidden units did since the last optimizer step, read while the network trains.

A hook on the consumer of a group sees its units after activation, pooling, dropout and flatten, however the
model computes them. For every entry along the unit axis (one unit may own several after a flatten) a reader sums, over
all examples and positions of all forward passes since the last step,

    h,  |h|  and, where they are asked for,  |h - m|,  |g|  and  1 where h > 0 ("active"),

m being the running mean with the passes so far taken in, g the loss's gradient at h, read in the backward. With one forward pass
a step this is the released code's definition; with gradient accumulation each pass is centred on the passes up to it. Sums are
kept in float32 at least, in place, so that a compiled model is still one graph (but for g). Dividing by the number of summed
examples makes a pass that activation checkpointing runs twice count once.

Nothing is read in evaluation mode or without gradients, nor from a copy of the model. Of steps that a score does not take in
(`observe_every`), only that there was anything to read is noted. With a mask the sums go over real
positions alone, and how many there were is known to the device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor  # pyright: ignore[reportMissingImports, reportUnknownVariableType]

from pliant.base.saving import count_in, entry, fill
from pliant.units.forwards import Forwards
from pliant.units.groups import Tap

log = logging.getLogger("pliant")

PATIENCE = 1000  # training passes without a step, after which something is probably amiss

Reading = Literal["mean", "magnitude", "centred", "gradient", "active"]


class Reader:
    """Sums of what passed one place in the model since the last step, each (runs, entries).

    `ran` and, in eager mode, `examples` (how many were summed) are known to the host: no step asks the device whether
    there is anything to read. A compiled model counts on the device, in `counted`: a number of Python's that grows with every
    step would compile it anew.
    """

    def __init__(self, tap: Tap, module: nn.Module, parameter: Tensor | None, *, runs: int | None) -> None:
        self.tap, self.module, self.parameter = tap, module, parameter
        self.runs = runs
        axis = tap.axis_at(module)
        self.axis = axis if axis < 0 or runs is None else axis + 1  # of the recorded activity, run axis included
        self.entries = 0
        self.ran = False
        self.captured = False  # a CUDA graph holds the reading: replaying it runs no Python
        self.rests = False  # no score takes in the coming step
        self.examples = 0
        self.passes = 0
        self.compiled = False  # `counted` holds something
        self.forwards: Forwards | None = None  # where positions are masked, or calls auxiliary
        self.calls = self.read = 0  # of the module in the forward that runs: all, and those that were read
        self.centre: Callable[[Tensor], Tensor] | None = None  # mean of the passes so far -> what `centred` subtracts
        self.sums: dict[Reading, Tensor] = {}
        self.sum_rows: Callable[[Tensor], int] | None = None  # `RowSums` of `pliant.engine.compiled`

    def allocate(self, sums: dict[Reading, Tensor]) -> None:
        """Where to sum the activity, by reading: (entries,), or (runs, entries) for a stack. Views of the group statistics'."""
        self.sums = sums
        self.reads_magnitude = "magnitude" in sums and not self.tap.nonnegative  # else |h| = h
        like = sums["mean"]
        self.counted, self._ones = like.new_zeros(()), like.new_ones(0)

    def observe(self, values: Tensor, *, packed: bool = False) -> None:
        """Add one forward pass; a packed sequence holds no padding."""
        compiling = torch.compiler.is_compiling()
        if self.rests and (compiling or not _is_captured(values)):  # a graph is replayed in any step
            self.ran = self.ran or values.numel() > 0
            return
        if self.sum_rows is not None and not compiling and (examples := self.sum_rows(values)):
            self.ran = True
            self._count(examples, on_device=False)
            return
        shown, values = values, values.detach()
        if not compiling:
            self._refuse_what_cannot_be_read(values)
        by_entry = self._entries_last(values)
        mean = self.sums["mean"]
        examples = by_entry.numel() // mean.numel()
        if examples == 0:
            return  # an expert that no example is sent to did not run
        self.ran = True
        real = None if self.forwards is None or packed else self.forwards.real(self, by_entry.shape[:-1])
        if real is not None:
            real = real.to(by_entry.device, non_blocking=True).unsqueeze(-1)
            by_entry = torch.where(real, by_entry, 0.0)
            examples = real.sum()
        self._count(examples, on_device=compiling or self.captured or real is not None)
        if by_entry.dim() == 2 and mean.dim() == 1 and by_entry.dtype == mean.dtype and not compiling:
            self._add_rows(by_entry)
        else:
            self._add("mean", by_entry)
            if self.reads_magnitude:
                self._add("magnitude", by_entry.abs())
        if "active" in self.sums:
            self._add("active", (by_entry > 0).to(self.sums["active"].dtype))
        if self.centre is not None and "centred" in self.sums:
            centre = self.centre(self.sums["mean"] / self.count()).to(by_entry.dtype)
            between = [1] * (by_entry.dim() - centre.dim())
            apart = (by_entry - centre.view(*centre.shape[:-1], *between, self.entries)).abs_()
            self._add("centred", apart if real is None else torch.where(real, apart, 0.0))
        if "gradient" in self.sums and shown.requires_grad:

            def add(gradient: Tensor) -> None:
                size = self._entries_last(gradient.detach()).abs()
                self._add("gradient", size if real is None else torch.where(real, size, 0.0))

            shown.register_hook(add)

    def _entries_last(self, values: Tensor) -> Tensor:
        """`values` as (..., entries), or (runs, ..., entries): a view."""
        if self.tap.dims is not None:
            self.tap.check_dims(values.shape)
        by_entry = values if self.axis in (-1, values.dim() - 1) else values.movedim(self.axis, -1)
        width = by_entry.shape[-1]
        if width == self.entries:
            return by_entry
        if width < self.entries or self.tap.index is None:
            raise ValueError(
                f"the {self.tap} has {width} entries along axis {self.tap.axis}, but its groups have "
                f"{self.entries} (units times repeat): correct the group's Tap"
            )
        return by_entry[..., : self.entries]

    def _count(self, examples: int | Tensor, *, on_device: bool) -> None:
        if on_device or isinstance(examples, Tensor):
            self.counted += examples
            self.compiled = True
        else:
            self.examples += examples
            self.passes += 1
            if self.passes == PATIENCE:
                log.warning(
                    "the %s was read in %d training passes without a step of the optimizer that its method is attached to; "
                    "a new optimizer needs a new method",
                    self.tap,
                    PATIENCE,
                )

    def count(self) -> Tensor | int:
        """How many examples and positions were summed."""
        return self.counted + self.examples if self.compiled else self.examples

    def _add(self, reading: Reading, values: Tensor) -> None:
        total = self.sums[reading]
        axes = tuple(range(total.dim() - 1, values.dim() - 1))
        total += values.sum(axes, dtype=total.dtype) if axes else values

    def _add_rows(self, values: Tensor) -> None:
        """`_add` for (examples, entries): a sum over rows is a product with ones, at a third of its cost."""
        examples = values.shape[0]
        if self._ones.shape[0] != examples:
            self._ones = values.new_ones(examples)
        self.sums["mean"].addmv_(values.t(), self._ones)
        if self.reads_magnitude:
            self.sums["magnitude"].addmv_(values.abs().t(), self._ones)

    def _refuse_what_cannot_be_read(self, values: Tensor) -> None:
        if is_functorch_wrapped_tensor(values):
            raise RuntimeError(
                f"the {self.tap} runs under torch.func (vmap, grad, ...), whose tensors cannot be read from a hook. Call "
                f"detach(), or give the stack of networks as groups with runs=..."
            )
        if _is_captured(values):
            self.captured = True

    def clear(self) -> None:
        """What is summed from here on belongs to the next step. `ActivityStatistics` zeroes the sums themselves, all at once."""
        if self.compiled:
            self.counted.zero_()
        self.ran, self.examples, self.passes, self.compiled = False, 0, 0, self.captured

    def state_dict(self) -> dict[str, Any]:
        host = {name: getattr(self, name) for name in ("ran", "examples", "compiled")}
        return {**host, "counted": self.counted.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ran, self.compiled = entry(state, "ran", True), entry(state, "compiled", True)
        self.examples = count_in(state, "examples")
        fill(self.counted, state["counted"], "counted")


def _is_captured(values: Tensor) -> bool:
    """Whether what happens now is recorded in a CUDA graph."""
    return values.is_cuda and torch.cuda.is_current_stream_capturing()
