"""What takes a replaced unit's place.

    hand over   bias of the consumer += V[:, unit] x mean activity of the unit
    incoming    W[unit, :] from `init`, its bias 0; its own batch norm entries scale 1, shift 0, mean 0, variance 1
    outgoing    V[:, unit] = 0

The hand-over keeps the consumer's mean input as it was: exact for Linear and unpadded Conv2d, right in the interior
for padded ones. A consumer without bias that feeds a batch norm has its running mean moved instead. A contribution
that is not finite is dropped, so a broken unit is not passed on.

Source: Dohare et al., Nature 632 (2024), algorithm 1; the hand-over is in the released code, where it has no
effect because the mean is cleared one phase too early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from math import prod, sqrt
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd  # pyright: ignore[reportPrivateUsage]

from pliant.initial import INITS, uniform_bound
from pliant.nn import StackedLinear
from pliant.process import random_state
from pliant.units.bound import BoundGroup
from pliant.units.entries import BoundSlice, Chosen

Init = str | Callable[[str, tuple[int, ...], torch.Generator], Tensor]
Draw = Callable[[str, tuple[int, ...], torch.Generator], Tensor]

# StackedConv2d has StackedLinear's
_LIKE_LINEAR = (nn.Linear.reset_parameters, _ConvNd.reset_parameters, StackedLinear.reset_parameters)


class Redraw:
    """Fresh incoming weights, zero outgoing weights, and the mean handed over.

    Args:
        init: "module" draws what a fresh `reset_parameters()` of the layer would (Linear and Conv: uniform
            +-1/sqrt(fan_in); RNN, LSTM, GRU: +-1/sqrt(hidden_size); any other layer: a copy of it is reset and read). A
            layer that has none (a raw parameter) starts like a Linear; the plan shows the standard deviation of
            what is drawn beside that of the weights as they are. Or "kaiming", "xavier", "lecun", "default" as in
            `pliant.initial`; or a callable (parameter name, (count, *row shape), CPU generator) -> tensor of that shape.
        hand_over_mean: move a replaced unit's mean contribution into its consumer.
    """

    def __init__(self, init: Init = "module", *, hand_over_mean: bool = True) -> None:
        if isinstance(init, str) and init not in ("module", *INITS):
            known = ", ".join(("module", *INITS))
            raise ValueError(f"unknown init '{init}'; known: {known}, or a callable (name, shape, generator)")
        self.init = init
        self.hand_over_mean = hand_over_mean

    def fresh_std(self, group: BoundGroup) -> float | None:
        """Standard deviation of the fresh first incoming weight; None for a callable `init`, which is not called to find out."""
        draw = self._rule(group, group.incoming_weights()[0])
        return draw.std() if isinstance(draw, _Uniform | _ModuleCopy) else None

    # -- the phases --------------------------------------------------------------------------------------------

    def hand_over(self, group: BoundGroup, chosen: Chosen, mean: Tensor) -> None:
        """Add the chosen units' mean contribution, `mean` (runs, units, columns), to what absorbs it."""
        for part, columns, absorber, sign in group.absorbers():
            weights = part.read(chosen)  # (count, columns, next units, ...)
            per_next = weights.flatten(3).sum(3) if weights.dim() > 3 else weights
            contribution = (per_next * mean[chosen.where][:, columns].to(per_next.dtype).unsqueeze(-1)).sum(1)
            finite = torch.where(contribution.isfinite(), contribution, 0.0)
            shares = sign * chosen.strength.to(finite.dtype).unsqueeze(-1) * finite
            _add_by_run(absorber, chosen, shares.to(absorber.dtype))

    def incoming(self, group: BoundGroup, chosen: Chosen, generators: Sequence[torch.Generator]) -> None:
        """Redraw what computes the chosen units."""
        for part in group.incoming_weights():
            part.write(chosen, self._fresh(group, part, chosen, generators))
        for part in group.incoming_biases():
            part.write(chosen, 0.0)
        for part, value in group.own:
            part.write(chosen, value)
        for part, vector, value in group.statistics():
            part.write(chosen, value, vector)

    def outgoing(self, group: BoundGroup, chosen: Chosen) -> None:
        """Cut the chosen units off, so that their arrival changes nothing."""
        for part in group.outgoing:
            part.write(chosen, 0.0)

    # -- fresh weights -----------------------------------------------------------------------------------------

    def _fresh(
        self, group: BoundGroup, part: BoundSlice, chosen: Chosen, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """(count, repeat, *row): every run draws its own from its generator, on the CPU, so that devices agree."""
        draw, name = self._rule(group, part), part.part.parameter
        drawn: list[Tensor] = []
        first = 0
        for count, generator in zip(chosen.counts, generators, strict=True):
            if not count:
                continue
            if isinstance(draw, _ModuleCopy):
                drawn.append(draw.of_units(chosen, slice(first, first + count), generator))
            else:
                shape = (count * part.repeat, *part.row)
                fresh = _of_shape(draw(name, shape, generator), shape, name)
                drawn.append(fresh.reshape(count, part.repeat, *part.row))
            first += count
        return torch.cat(drawn).to(part.parameter.dtype).to(part.parameter.device, non_blocking=True)

    def _rule(self, group: BoundGroup, part: BoundSlice) -> Draw | _Uniform | _ModuleCopy:
        if callable(self.init):
            return self.init
        dtype, init = part.parameter.dtype, self.init
        if init == "module":
            owner = group.owner(part.part)
            reset = getattr(type(owner), "reset_parameters", None)
            if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
                return _Uniform(1.0 / sqrt(owner.hidden_size), dtype)
            if reset not in (None, *_LIKE_LINEAR) or hasattr(type(owner), "_reset_parameters"):
                return _ModuleCopy(owner, part)
            init = "default"
        fan_in = prod(part.row)
        if self.init == "module" and isinstance(group.owner(part.part), _ConvTransposeNd):
            fan_in = prod(part.parameter.shape[1:])  # what torch takes for it: outputs times kernel
        fan_out = group.units * fan_in // part.row[0]
        return _Uniform(uniform_bound(init, fan_in, fan_out, gain=group.spec.gain), dtype)


class _Uniform:
    """Uniform in [-bound, bound]."""

    def __init__(self, bound: float, dtype: torch.dtype) -> None:
        self.bound, self.dtype = bound, dtype

    def std(self) -> float:
        return self.bound / sqrt(3.0)

    def __call__(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.empty(shape, dtype=self.dtype).uniform_(-self.bound, self.bound, generator=generator)


class _ModuleCopy:
    """What a module's own `reset_parameters()` draws, read off a copy on the CPU; the global random state stays as it was."""

    def __init__(self, owner: nn.Module, part: BoundSlice) -> None:
        self.owner, self.part = owner, part

    def of_units(self, chosen: Chosen, which: slice, generator: torch.Generator) -> Tensor:
        fresh = self._reset(int(torch.randint(2**62, (), generator=generator)))
        runs, units, strength = (each[which].cpu() for each in (chosen.runs, chosen.units, chosen.strength))
        return BoundSlice(self.part.part, fresh, stacked=self.part.stacked).read(Chosen(runs, units, strength, []))

    def std(self) -> float:
        return float(self._reset(0).double().std(correction=0))

    def _reset(self, seed: int) -> Tensor:
        copy = deepcopy(self.owner).cpu()
        with random_state(seed), torch.no_grad():
            (getattr(copy, "reset_parameters", None) or cast(Any, copy)._reset_parameters)()
        return copy.get_parameter(self.part.part.parameter.rpartition(".")[2]).detach()


def _add_by_run(absorber: Tensor, chosen: Chosen, shares: Tensor) -> None:
    """Row r of `absorber` (runs, next units) gains the shares of run r's units, in an order that does not vary."""
    first = 0
    for run, count in enumerate(chosen.counts):
        if count:
            absorber[run] += shares[first : first + count].sum(0)
        first += count


def _of_shape(fresh: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    if fresh.shape != shape:
        raise ValueError(f"init gave shape {tuple(fresh.shape)} for '{name}'; it was asked for {shape}")
    return fresh
