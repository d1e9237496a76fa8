"""Of N draws of a fresh unit, the one that will learn fastest.

    w_c from `init`,   b_c = -median(w_c'x),   a_c = φ(w_c'x + b_c),   c = 1 .. N
    the fresh unit is the c of largest  |mean(δ a_c)| / std(a_c)

    x  inputs of the layer       φ  its activation       δ  loss's gradient at the outputs of the layers that the unit feeds

Outgoing weights of a fresh unit start at 0, so mean(δ a_c), a vector, is their gradient: N draws are compared by how far the
unit moves on its first step, per size of its activity. The bias lets it be active (ReLU: above 0) for half of the examples.
Means, median and standard deviation are over the last `EXAMPLES` examples and positions that were trained on; of a larger batch
positions at equal distances are kept. N = 1 matches the bias and chooses nothing. Where nothing was seen yet, a unit is drawn
plainly.

Between ranks those of rank 0 choose. Examples of a step that a GradScaler skips are not compared, and take the places of
older ones. In a compiled model each of these layers breaks the graph. To choose, the host waits for the device.

Source: ours; what was measured, with ReLU only, is in docs/inventions.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pliant.base.saving import count_in, fill
from pliant.engine.attached import uncompiled
from pliant.units.bound import BoundGroup
from pliant.units.forwards import Forwards, Recorder
from pliant.units.groups import Tap

log = logging.getLogger("pliant")

EXAMPLES = 256

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "mish": functional.mish,
    "gelu": functional.gelu,
}


def obstacle(group: BoundGroup) -> str | None:
    """Why candidates for units of this group cannot be compared; None if they can: Linear, activation, Linear."""
    weights = group.incoming_weights()
    if group.spec.stacked:
        return "its runs train side by side"
    if group.spec.kind != "exact":
        return f"its units are {group.spec.kind}"
    if len(weights) > 1 or not isinstance(group.owner(weights[0].part), nn.Linear):
        return "what computes its units is not one Linear"
    if not all(isinstance(group.owner(part.part), nn.Linear) and part.repeat == 1 for part in group.outgoing):
        return "what it feeds is not a Linear with one column per unit"
    if group.own or group.norms:
        return "its units are scaled or shifted by parameters of their own"
    if group.spec.activation not in FUNCTIONS:
        return f"its activation is not one of {', '.join(FUNCTIONS)}"
    if any(tap.calls is not None for tap in group.spec.taps):
        return "some calls of what it feeds are auxiliary"
    return None


class Candidates:
    """The last examples that a group was shown, (`EXAMPLES`, ...), and the choice among draws of fresh units on them."""

    def __init__(self, group: BoundGroup, draws: int, agree: Callable[[Sequence[Any]], list[Any]]) -> None:
        self.draws, self._group, self._agree = draws, group, agree
        self._phi = FUNCTIONS[cast(str, group.spec.activation)]
        (weight,) = group.incoming_weights()
        inputs = _Inputs(_module_of(weight.part.parameter), group.owner(weight.part), self)
        self.recorders: list[Recorder] = [inputs]
        width = 0
        for part in group.outgoing:
            layer = cast(nn.Linear, group.owner(part.part))
            columns = slice(width, width := width + layer.out_features)
            self.recorders.append(_Gradients(_module_of(part.part.parameter), layer, inputs, columns))
        like = torch.zeros(0, dtype=group.dtype, device=group.first.device)
        self.inputs, self.gradients = like.new_zeros(EXAMPLES, *weight.row), like.new_zeros(EXAMPLES, width)
        self.real = torch.zeros(EXAMPLES, dtype=torch.bool, device=like.device)  # which rows hold an example
        self.seen = 0  # rows written so far
        self._warned = False

    def take_in(self, inputs: Tensor, real: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Keep inputs (rows, in) of as many examples as fit: which of the rows (None: all), and where they are now."""
        if self.inputs.device != inputs.device:
            self.to(inputs.device)
        rows, which = len(inputs), None
        if rows > EXAMPLES:
            which = torch.arange(EXAMPLES, device=inputs.device) * rows // EXAMPLES
            inputs, rows = inputs[which], EXAMPLES
            real = None if real is None else real[which]
        places = (torch.arange(rows, device=inputs.device) + self.seen) % EXAMPLES
        self.seen += rows
        self.inputs[places] = inputs.to(self.inputs.dtype)
        self.gradients[places] = 0.0
        self.real[places] = True if real is None else real
        return which, places

    def best(self, draw: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Incoming weights (count, 1, in) and biases (count, 1) of fresh units; `draw` gives weights of a candidate for each."""
        drawn = torch.stack([draw() for _ in range(self.draws)])
        index, biases = self._agree([each.cpu() for each in self._choice(drawn)])
        units = torch.arange(drawn.shape[1], device=drawn.device)
        return drawn[index.to(drawn.device), units], biases.to(drawn).unsqueeze(1)

    def _choice(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Of `drawn` (draws, count, 1, in), the best of each unit's and its bias, (count,) both."""
        kept = self.real & self.inputs.isfinite().all(1) & self.gradients.isfinite().all(1)
        inputs, gradients = self.inputs[kept], self.gradients[kept]
        if not len(inputs):
            self._warn()
            return torch.zeros(drawn.shape[1], dtype=torch.int64), inputs.new_zeros(drawn.shape[1])
        before = inputs @ drawn.flatten(0, 2).to(inputs).t()  # (rows, draws x count)
        biases = -before.median(0).values if self._group.incoming_biases() else torch.zeros_like(before[0])
        active = self._phi(before + biases)
        spread = active.std(0, correction=0)
        outgoing = gradients.t() @ active / len(inputs)  # their gradient, (next units, draws x count)
        speed = outgoing.square().sum(0).sqrt() / spread
        speed = torch.where((spread > 0) & speed.isfinite(), speed, -torch.inf).view(self.draws, -1)
        top = speed.max(0)
        chosen = biases.view(self.draws, -1).gather(0, top.indices.unsqueeze(0))[0]
        return top.indices, torch.where(top.values.isfinite(), chosen, 0.0)

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "candidates: no example of '%s' was seen from its inputs to its gradients; until one is, its fresh units are "
                "drawn plainly",
                self._group.name,
            )

    def to(self, device: torch.device) -> None:
        for name in ("inputs", "gradients", "real"):
            setattr(self, name, getattr(self, name).to(device))

    def state_dict(self) -> dict[str, Any]:
        tensors = {name: getattr(self, name).clone() for name in ("inputs", "gradients", "real")}
        return {**tensors, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = count_in(state, "seen")
        for name in ("inputs", "gradients", "real"):
            fill(getattr(self, name), state[name], f"candidates.{name}")


class _Recorder:
    """A tap of its own, see `pliant.units.forwards.Recorder`."""

    def __init__(self, tap: Tap, module: nn.Module) -> None:
        self.tap, self.module = tap, module
        self.parameter: Tensor | None = None
        self.forwards: Forwards | None = None
        self.calls = self.read = 0


class _Pass:
    """One call of the layer that computes the units: its inputs, until their gradients arrive."""

    def __init__(self, inputs: Tensor, real: Tensor | None) -> None:
        self.inputs, self.real = inputs, real
        self.fed = False  # a layer that the units feed was called after it
        self.which: Tensor | None = None  # of the rows, those that are kept
        self.places: Tensor | None = None  # where; None until the first gradient arrives
        self.until = 0  # rows seen by then


class _Inputs(_Recorder):
    """What goes into the layer that computes the units. Autograd keeps the same tensor, so it is not copied before its gradients
    arrive.
    """

    def __init__(self, name: str, module: nn.Module, of: Candidates) -> None:
        super().__init__(Tap(name), module)
        self.of = of
        self.last: _Pass | None = None

    @uncompiled
    def observe(self, values: Tensor, *, packed: bool = False) -> None:
        if self.last is not None and not self.last.fed:
            self.last = None  # called twice in a row: what follows may belong to either
            return
        real = None if self.forwards is None or packed else self.forwards.real(self, values.shape[:-1])
        self.last = _Pass(values.detach(), real)


class _Gradients(_Recorder):
    """The gradient at the outputs of a layer that the units feed."""

    def __init__(self, name: str, module: nn.Module, inputs: _Inputs, columns: slice) -> None:
        super().__init__(Tap(name, at="output"), module)
        self.inputs, self.columns = inputs, columns

    @uncompiled
    def observe(self, values: Tensor, *, packed: bool = False) -> None:
        seen = self.inputs.last
        if seen is None or not values.requires_grad:
            return
        if values.shape[:-1] != seen.inputs.shape[:-1]:
            raise RuntimeError(
                f"candidates: '{self.inputs.tap.module}' is given examples of shape {tuple(seen.inputs.shape[:-1])}, and "
                f"'{self.tap.module}', which its units feed, {tuple(values.shape[:-1])}: which belong together is not known. "
                f"Take candidates=0, or leave the group out with exclude"
            )
        seen.fed = True
        values.register_hook(partial(self._take_in, seen))

    def _take_in(self, seen: _Pass, gradient: Tensor) -> None:
        ring = self.inputs.of
        if seen.places is None:
            real = None if seen.real is None else seen.real.flatten().to(seen.inputs.device)
            seen.which, seen.places = ring.take_in(seen.inputs.flatten(0, -2), real)
            seen.until = ring.seen
        if ring.seen - seen.until + len(seen.places) > EXAMPLES:
            return  # others have taken their places
        rows = gradient.detach().flatten(0, -2)
        rows = rows if seen.which is None else rows[seen.which]
        ring.gradients[seen.places, self.columns] = rows.to(ring.gradients.dtype)


def _module_of(parameter: str) -> str:
    return parameter.rpartition(".")[0]
