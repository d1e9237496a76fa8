"""One group of a probed model, and the operations on its units: zero outgoing weights, redraw, exchange, record.

Units are redrawn with arbitrary values, not those of a reset, because errors may cancel with zeros and ones. Sizes are spread
over three decades from unit to unit, and each draw is also negated, so that each side of a ReLU, each branch of a threshold and
both a linear and a saturated tanh occur for any inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from pliant.units.bound import BoundGroup, Consumer
from pliant.units.entries import BoundSlice, SelectedUnits
from pliant.units.verify.probe import Probe
from pliant.units.verify.products import Product, Products, Sums, by_entry

Absorber = tuple[BoundSlice, slice, Tensor, float]


@dataclass
class Pass:
    """A forward (and backward) pass.

    Args:
        taps: the tensors at each tap, call by call.
        gradients: of each outgoing slice.
        reads: the input of each outgoing weight in its products; None where it is unknown.
    """

    outputs: list[Tensor]
    taps: list[list[Tensor]]
    gradients: Sequence[Tensor | None]
    reads: Sequence[Sums | None]


class Bench:
    """A group, ready to be tried. `ours` says, by identity of a parameter, which entries compute units of the plan."""

    def __init__(
        self,
        probe: Probe,
        group: BoundGroup,
        ours: Mapping[int, Tensor],
        generator: torch.Generator,
        absorbers: Sequence[Absorber] = (),
    ) -> None:
        self.probe, self.group, self.ours, self.generator = probe, group, ours, generator
        self.absorbers = absorbers
        vectors = [*(vector for _, vector, _ in group.statistics()), *(vector for _, _, vector, _ in absorbers)]
        touched = [*(part.parameter for part in group.slices()), *vectors]
        self.originals = [(tensor, tensor.detach().clone()) for tensor in dict.fromkeys(touched)]
        self.watched = [consumer for consumer in group.consumers if consumer.tap is not None]

    # -- passes ------------------------------------------------------------------------------------------------

    def before_and_after(
        self,
        units: Tensor,
        *,
        zeroed: Sequence[BoundSlice],
        of: Tensor | None = None,
        gradients: bool = False,
        spread: bool = True,
    ) -> tuple[Pass, Pass]:
        """Passes with the outgoing slices `zeroed`, of `units` or of others, before and after a redraw of `units`."""
        self.restore()
        self.cut(zeroed, units if of is None else of)
        before = self.run(gradients=gradients)
        self.redraw(units, spread=spread)
        self.cut(zeroed, units if of is None else of)  # again: a recurrent weight is incoming and outgoing
        return before, self.run(gradients=gradients)

    def run(self, *, gradients: bool = False, exchanged: bool = False) -> Pass:
        weights = [part.parameter for part in self.group.outgoing]
        found: Sequence[Tensor | None] = [None] * len(weights)
        sums = [Sums() for _ in weights]

        def read(product: Product) -> Tensor:
            if self.probe.shows:
                sums[product.weight].add(by_entry(product.operand, product.contracted, batched=product.batched))
            return product.result

        with ExitStack() as stack:
            taps = [stack.enter_context(self._watching(consumer)) for consumer in self.watched]
            stack.enter_context(self.probe.under(Products(weights, read), forgives=exchanged))
            if gradients:
                outputs, found = self.probe.outputs_and_gradients(weights)
            else:
                outputs = [each.detach() for each in self.probe.outputs()]
        reads = [each if each.rows else None for each in sums]
        return Pass(outputs, [[each.detach() for each in passes] for passes in taps], found, reads)

    def shifted(self, absorbers: Sequence[Absorber]) -> list[Tensor]:
        """Outputs with the results of outgoing weights moved, and what takes their means over moved against it."""
        self.restore()
        weights = [part.parameter for part, *_ in absorbers]
        by = [self._noise((vector.shape[-1],), None) for _, _, vector, _ in absorbers]
        met = [False] * len(absorbers)

        def move(product: Product) -> Tensor:
            size = product.result.shape[product.computed]
            if size != len(by[product.weight]):
                return product.result
            met[product.weight] = True
            shape = [1] * product.result.dim()
            shape[product.computed] = size
            return product.result + by[product.weight].view(shape)

        for (_, _, vector, sign), shift in zip(absorbers, by, strict=True):
            vector[0] -= sign * shift
        with self.probe.under(Products(weights, move), forgives=True):
            outputs = [each.detach() for each in self.probe.outputs()]
        self.restore()
        return outputs if all(met) else []

    def broken(self, units: Tensor) -> list[list[Tensor]]:
        """What passes the taps with NaN in incoming weights. A model may refuse NaN; what it did before that still counts."""
        self.restore()
        for part in self.group.incoming:
            part.write(chosen(units), torch.nan)
        with ExitStack() as stack:
            taps = [stack.enter_context(self._watching(consumer)) for consumer in self.watched]
            with suppress(RuntimeError):
                self.probe.outputs()
        return taps

    def moved_units(self, start: Pass, parameter: Tensor, where: Tensor) -> Tensor:
        """Units whose taps move when the entries `where` of a parameter are redrawn, (units,)."""
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.copy_(torch.where(where, 3.0 * self._noise(tuple(kept.shape), kept), kept))
            taps = self.run().taps
            parameter.copy_(kept)
        moved = torch.zeros(self.group.units, dtype=torch.bool)
        for consumer, old, new in zip(self.watched, start.taps, taps, strict=True):
            found = differ(old, new)
            if len(found):  # else other examples are sent there, which proves nothing
                moved |= found[entries(consumer, self.group.units)].any(1)
        return moved

    def influences(self, parameters: Sequence[Tensor], most: int = 4) -> list[Sequence[Tensor | None]]:
        """For some active units, the gradient of a random function of a unit's activity with respect to each parameter.

        None are found where a tap sees numbers without their history, inside a module or a reentrant checkpoint.
        """
        for parameter in parameters:
            parameter.requires_grad_(True)
        with ExitStack() as stack:
            taps = [stack.enter_context(self._watching(consumer)) for consumer in self.watched]
            self.probe.outputs()
        found: list[Sequence[Tensor | None]] = []
        for unit in self.some_units(self.group.units):
            mine = [entries(consumer, self.group.units)[unit].flatten() for consumer in self.watched]
            seen = [each[:, where] for where, passes in zip(mine, taps, strict=True) for each in passes]
            if len(found) < most and any(each.requires_grad and bool((each != each[:1]).any()) for each in seen):
                with suppress(RuntimeError):  # from a reentrant checkpoint
                    found.append(_gradients(seen, parameters))
        for parameter in parameters:
            parameter.requires_grad_(False)
        return found

    def candidates(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Parameters with entries that compute no unit of the plan, and which those are."""
        for name, parameter in self.probe.model.named_parameters():
            taken = self.ours.get(id(parameter))
            free = torch.ones_like(parameter, dtype=torch.bool) if taken is None else ~taken
            if free.any() and parameter.is_floating_point() and name not in self.probe.frozen:  # a constant is nobody's
                yield name, parameter, free

    def some_units(self, most: int = 8) -> Iterator[Tensor]:
        yield from torch.randperm(self.group.units, generator=self.generator)[:most].unsqueeze(1).unbind()

    # -- what is done to units ---------------------------------------------------------------------------------

    def cut(self, outgoing: Sequence[BoundSlice], units: Tensor) -> None:
        for part in outgoing:
            part.write(chosen(units), 0.0)

    def redraw(self, units: Tensor, *, spread: bool = True) -> None:
        """Arbitrary incoming weights and affine; with `spread` of many sizes, else like fresh ones with small biases."""
        weights, biases = (
            self._sizes(len(units)) if spread else (torch.ones(len(units)), torch.full((len(units),), 0.1))
        )
        for part in self.group.incoming:
            noise = self._noise((len(units), part.repeat, *part.row), part.parameter)
            size = weights if part.row else biases
            part.write(chosen(units), noise * size.view(-1, *[1] * (noise.dim() - 1)))
        for part, _ in self.group.own:
            part.write(chosen(units), self._noise((len(units), part.repeat, *part.row), None))
        for part, vector, start in self.group.statistics():
            noise = self._noise((len(units), part.repeat), None)
            part.write(chosen(units), noise.exp() if start else noise, vector)  # a variance is positive

    def turn_around(self, units: Tensor) -> None:
        """Negate incoming weights and biases: what was below a threshold may lie above it."""
        for part in self.group.incoming:
            part.write(chosen(units), -part.read(chosen(units)))

    def exchange(self, order: Tensor, only: BoundSlice | None = None) -> None:
        """Unit `order[i]` takes the place of unit i, with all that is said to be its own, or with one slice alone."""
        every, first = chosen(torch.arange(len(order))), chosen(order)
        statistics = [(part, vector) for part, vector, _ in self.group.statistics()]
        for part, vector in [*((part, None) for part in self.group.slices()), *statistics]:
            if only in (None, part):
                part.write(every, part.read(first, vector), vector)

    def restore(self) -> None:
        with torch.no_grad():
            for tensor, original in self.originals:
                tensor.copy_(original)

    def _sizes(self, count: int) -> tuple[Tensor, Tensor]:
        """Of weights, a thirtieth to thirty, and of biases, a thirtieth to one of that: evenly in the logarithm, (count,)."""
        steps = torch.linspace(-1.5, 1.5, count + 1, dtype=torch.float64)[1:]
        weights, ratios = (steps[torch.randperm(count, generator=self.generator)] for _ in range(2))
        return 10.0**weights, 10.0 ** (weights + 0.5 * (ratios - 1.5))

    def _noise(self, shape: tuple[int, ...], like: Tensor | None) -> Tensor:
        """As large as the weights of `like`; a bias of size 1 lets dead units live."""
        size = 1.0 if like is None or like.dim() < 2 else float(like.detach().square().mean().sqrt())
        return torch.randn(shape, generator=self.generator, dtype=torch.float64) * (size or 1.0)

    def _watching(self, consumer: Consumer) -> AbstractContextManager[list[Tensor]]:
        tap = consumer.tap
        assert tap is not None
        weight = None if tap.parameter is None else self.group.parameter(tap.parameter)
        return self.probe.watching(tap, self.group.module(tap.module), weight)


def _gradients(outputs: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor | None]:
    """Of a fixed random linear function of `outputs`."""
    generator = torch.Generator().manual_seed(0)
    ends = [each for each in outputs if each.requires_grad]
    signals = [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in ends]
    found = cast(
        Sequence[Tensor | None], torch.autograd.grad(ends, weights, signals, retain_graph=True, allow_unused=True)
    )
    return [None if each is None else each.contiguous() for each in found]


def chosen(units: Tensor) -> SelectedUnits:
    return SelectedUnits(
        torch.zeros_like(units),
        units,
        torch.ones(len(units), dtype=torch.float64),
        [len(units)],
        all_at_full_strength=True,
    )


def covered(groups: Sequence[BoundGroup]) -> dict[int, Tensor]:
    """By identity of the parameter, which entries compute some unit."""
    found: dict[int, Tensor] = {}
    for group in groups:
        for part in (*group.incoming, *(part for part, _ in group.own)):
            mask = found.setdefault(id(part.parameter), torch.zeros_like(part.parameter, dtype=torch.bool))
            front = part.front(mask)
            front |= part.spread(torch.ones(1, group.units), 0.0).bool()
    return found


def entries(consumer: Consumer, units: int) -> Tensor:
    """Entries of the tapped tensor by unit, (units, repeat)."""
    assert consumer.tap is not None
    index = consumer.tap.index
    return torch.arange(units * consumer.repeat).view(units, -1) if index is None else torch.tensor(index)


def differ(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Entries that differ in any example of any call, (entries,)."""
    both = [(a != b).any(0) for a, b in zip(first, second, strict=False) if a.shape == b.shape]
    return torch.stack(both).any(0) if both else torch.zeros(0, dtype=torch.bool)
