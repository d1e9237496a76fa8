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

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from pliant.initial import INITS, uniform_bound
from pliant.replacement import blend
from pliant.units.bound import BoundGroup, Chosen
from pliant.units.map import Slice

Init = str | Callable[[str, tuple[int, ...], torch.Generator], Tensor]

_LAYER_RESETS = (nn.Linear.reset_parameters, _ConvNd.reset_parameters)


class Redraw:
    """Fresh incoming weights, zero outgoing weights, and the mean handed over.

    Args:
        init: "module" draws what a fresh `reset_parameters()` of the layer would (Linear and Conv: uniform
            +-1/sqrt(fan_in)); "kaiming", "xavier", "lecun", "default" as in `pliant.initial`; or a callable
            (parameter name, (count, *row shape), CPU generator) -> tensor of that shape.
        hand_over_mean: move a replaced unit's mean contribution into its consumer.
    """

    def __init__(self, init: Init = "module", *, hand_over_mean: bool = True) -> None:
        if isinstance(init, str) and init not in ("module", *INITS):
            known = ", ".join(("module", *INITS))
            raise ValueError(f"unknown init '{init}'; known: {known}, or a callable (name, shape, generator)")
        self.init = init
        self.hand_over_mean = hand_over_mean

    def bind(self, groups: Sequence[BoundGroup]) -> None:
        """Check that every layer's fresh weights are known. Raises `TypeError` naming the layer if not."""
        for group in groups:
            for part in group.incoming_weights():
                self._rule(group, part)

    # -- the phases --------------------------------------------------------------------------------------------

    def hand_over(self, group: BoundGroup, chosen: Chosen, mean: Tensor) -> None:
        """Add the chosen units' mean contribution, `mean` (runs, units, columns), to what absorbs it."""
        for part, (absorber, sign) in group.absorbers().items():
            weights = group.view(part)[chosen.where]  # (count, columns, next units, ...)
            per_next = weights.flatten(3).sum(3) if weights.dim() > 3 else weights
            contribution = (per_next * mean[chosen.where].to(per_next.dtype).unsqueeze(-1)).sum(1)
            finite = torch.where(contribution.isfinite(), contribution, 0.0)
            shares = sign * chosen.strength.to(finite.dtype).unsqueeze(-1) * finite
            absorber.index_add_(0, chosen.runs, shares.to(absorber.dtype))

    def incoming(self, group: BoundGroup, chosen: Chosen, generators: Sequence[torch.Generator]) -> None:
        """Redraw what computes the chosen units."""
        for part in group.incoming_weights():
            _write(group.view(part), chosen, self._fresh(group, part, chosen, generators))
        for part in group.incoming_biases():
            _write(group.view(part), chosen, 0.0)
        for norm, module in group.norms():
            for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
                vector: Tensor | None = getattr(module, name)
                if vector is not None:
                    _write(group.view(Slice(norm.module, 0, norm.repeat), vector.detach()), chosen, value)

    def outgoing(self, group: BoundGroup, chosen: Chosen) -> None:
        """Cut the chosen units off, so that their arrival changes nothing."""
        for part in group.spec.outgoing:
            _write(group.view(part), chosen, 0.0)

    # -- fresh weights -----------------------------------------------------------------------------------------

    def _fresh(self, group: BoundGroup, part: Slice, chosen: Chosen, generators: Sequence[torch.Generator]) -> Tensor:
        """(count, repeat, *row): every run draws its own from its generator, on the CPU, so that devices agree."""
        draw, view = self._rule(group, part), group.view(part)
        repeat, row = view.shape[2], tuple(view.shape[3:])
        drawn = [
            _of_shape(draw(part.parameter, (count * repeat, *row), generator), (count * repeat, *row), part.parameter)
            .to(view.dtype)
            .reshape(count, repeat, *row)
            for count, generator in zip(chosen.counts, generators, strict=True)
            if count
        ]
        return torch.cat(drawn).to(view.device, non_blocking=True)

    def _rule(self, group: BoundGroup, part: Slice) -> Callable[[str, tuple[int, ...], torch.Generator], Tensor]:
        if callable(self.init):
            return self.init
        init = self.init
        if init == "module":
            owner = group.owner(part)
            if getattr(type(owner), "reset_parameters", None) not in _LAYER_RESETS:
                raise TypeError(
                    f"group '{group.name}': init='module' knows how Linear and Conv layers start, not "
                    f"{type(owner).__name__} ('{part.parameter}'). Give init='kaiming', 'xavier', 'lecun', 'default' "
                    f"or a callable"
                )
            init = "default"
        row = group.view(part).shape[3:]
        fan_in = row.numel()
        bound = uniform_bound(init, fan_in, fan_out=group.units * fan_in // row[0], gain=group.spec.gain)
        dtype = group.parameter(part.parameter).dtype

        def uniform(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
            return torch.empty(shape, dtype=dtype).uniform_(-bound, bound, generator=generator)

        return uniform


def _of_shape(fresh: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    if fresh.shape != shape:
        raise ValueError(f"init gave shape {tuple(fresh.shape)} for '{name}'; it was asked for {shape}")
    return fresh


def _write(view: Tensor, chosen: Chosen, fresh: Tensor | float) -> None:
    view[chosen.where] = blend(view[chosen.where], fresh, chosen.strength)
