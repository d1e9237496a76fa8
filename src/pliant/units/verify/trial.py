"""The tests of a group of units.

First all units are permuted, with all their planned entries. Where that leaves the output unchanged to rounding, while a
permutation of any outgoing part alone changes it,

    minimal      each part consumes these units, position by position: another column would not have been permuted
    complete     no part of a unit is missing from the plan: it would not have been permuted
    taps         the activity that they show was permuted with the units

and two forwards test the rest: half of the units, outgoing weights zeroed, are redrawn, and the output stays the same to the last
bit. Units of a correct group may not be interchangeable (a constant per unit, grouped convolutions, rotations). Then they are
redrawn in sets:

    preserve   outgoing weights zeroed, a redraw leaves the model's output the same to the last bit
    mutation   with the next unit's outgoing weights zeroed instead, the redraw changes the output
    minimal    with any part of the outgoing weights left in place, the redraw changes the output
    complete   the input of an outgoing weight changes at a redraw exactly where the tap does; no parameter outside the plan
               belongs to one unit alone

Each unit lies in half of the sets, and for any two units some set holds the first without the second: log2(units) sets and a few
distinguish all units of a group. Minimality is then tested for every unit and entry at once: the gradient of an outgoing weight
is (backpropagated error) x (activity), and the error is the same as before the redraw, so the gradient changes exactly where the
weight consumes a redrawn unit. For every group

    alive      after a reset the gradient of outgoing weights is not zero
    activity   each tap shows the input of the weights, in mean and mean size, and nothing negative where it is `nonnegative`
    hand-over  with a product moved, and the vector that takes over its mean moved against it, the output stays

A group is "wrong" only if a test failed: a dead unit proves nothing, for or against.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import combinations, count
from math import comb, prod
from typing import Literal

import torch
from torch import Tensor, nn

from pliant.units.bound import BoundGroup, Consumer
from pliant.units.entries import BoundSlice
from pliant.units.groups import UnitGroup
from pliant.units.verify.bench import Absorber, Bench, Pass, chosen, covered, differ, entries
from pliant.units.verify.forgotten import forgotten
from pliant.units.verify.probe import Probe, close, distance, same
from pliant.units.verify.products import Sums

__all__ = ["Trial", "Verified", "covered", "separating_sets"]

SHOWS = 1e-5  # relative size of a change beside which the rounding of an exchange is nothing

Verdict = Literal["exact", "approximate", "vacuous", "wrong"]


@dataclass(frozen=True)
class Verified:
    """The verdict on one group.

    Args:
        moved: relative change of the output at a reset, which should be none (0 if exact; of one unit if approximate).
        shown: relative change of the output when other units' outgoing weights are zeroed instead, which must not be 0.
        alive: share of units whose outgoing weights receive a gradient after a reset, on the example inputs.
        why: the test that failed, or is undecided; empty for an exact group.
    """

    group: UnitGroup
    units: int
    verdict: Verdict
    moved: float
    shown: float
    alive: float
    why: str = ""

    def cells(self) -> tuple[str, ...]:
        sizes = [f"{size:.1e}" if size else "0" for size in (self.moved, self.shown)]
        return (self.group.name, self.verdict, str(self.units), *sizes, f"{self.alive:.0%}", self.why)


class Failed(Exception):
    """A test did not hold, or could not be made to fail."""

    def __init__(self, verdict: Verdict, why: str, moved: float = 0.0) -> None:
        super().__init__(why)
        self.verdict: Verdict = verdict
        self.why, self.moved = why, moved


class Trial:
    """The tests of one group, and their notes, each (units, positions): taps that were reached, outgoing weights that read it."""

    def __init__(
        self,
        probe: Probe,
        group: BoundGroup,
        ours: Mapping[int, Tensor],
        absorbers: Sequence[Absorber] = (),
        *,
        rounds: int | None = None,
        seed: int = 0,
    ) -> None:
        self.probe, self.group, self.rounds = probe, group, rounds
        self.generator = torch.Generator().manual_seed(seed)
        self.bench = Bench(probe, group, ours, self.generator, absorbers)
        self.everyone = torch.arange(group.units)
        self.tried = torch.zeros(group.units, dtype=torch.bool)
        self.reached = [torch.zeros_like(entries(each, group.units), dtype=torch.bool) for each in self.bench.watched]
        self.reads = [torch.zeros(group.units, part.repeat, dtype=torch.bool) for part in group.outgoing]
        self.receives = [torch.zeros(group.units, part.repeat, dtype=torch.bool) for part in group.outgoing]
        self.shown = 0.0
        self.active = False  # whether any redrawn unit was not zero throughout
        self.doubts: list[str] = []  # about taps

    def verified(self) -> Verified:
        approximate = self.group.spec.kind == "approximate"
        verdict: Verdict = "exact"
        moved, why = 0.0, ""
        try:
            moved = self._moved_by_one() if approximate else 0.0
            exchanged = self._exchange()
            with self.probe.held_norms() if approximate else nullcontext():
                if exchanged:
                    self._one_set(self._half())
                else:
                    self._in_sets()
                self._alive()
            if self.doubts:
                raise Failed("wrong", self.doubts[0])
            self._hand_over()
            if moved:
                verdict = "approximate"
                why = "through a norm over units; exact while its statistics are held"
        except Failed as failed:
            verdict, why, moved = failed.verdict, failed.why, failed.moved or moved
        finally:
            self.bench.restore()
        alive = torch.stack([each.any(1) for each in self.receives]).any(0)[self.tried].double().mean().nan_to_num()
        return Verified(self.group.spec, self.group.units, verdict, moved, self.shown, float(alive), why)

    def _moved_by_one(self) -> float:
        """The largest change of the output by the redraw of a single unit."""
        pairs = [
            self.bench.before_and_after(unit, zeroed=self.group.outgoing, spread=False)
            for unit in self.bench.some_units(4)
        ]
        return max(distance(after.outputs, before.outputs) for before, after in pairs)

    # -- units that are equals ---------------------------------------------------------------------------------

    def _exchange(self) -> bool:
        """Whether all parts of all units can be exchanged together, and no outgoing part without the rest."""
        bench, units = self.bench, self.group.units
        if units == 1:
            return False
        bench.restore()
        bench.redraw(self.everyone)
        order = _cycle(units, self.generator)
        base = bench.run()
        for turned in (False, True):
            if turned:
                bench.turn_around(self.everyone)
                base = bench.run()
            self._note_activity(base)
            bench.exchange(order)
            after = bench.run(exchanged=True)
            if not close(after.outputs, base.outputs):
                return False
            self._note_exchange(base, after, order)
        shown: list[float] = []
        for part in self.group.outgoing:
            bench.exchange(order, part)
            shown.append(distance(bench.run().outputs, base.outputs))
            bench.exchange(order.argsort(), part)
        self.shown = min(shown)
        return self.shown > SHOWS

    def _note_exchange(self, before: Pass, after: Pass, order: Tensor) -> None:
        """Doubts about taps that did not show the exchange."""
        for number, consumer in enumerate(self.bench.watched):
            place = entries(consumer, self.group.units)
            for old, new in zip(before.taps[number], after.taps[number], strict=False):
                if old.shape != new.shape or self.doubts:
                    continue
                expected = old.clone()
                expected[:, place] = old[:, place[order]]
                wrong = ((expected - new).abs() > 1e-9 * old.abs().amax().nan_to_num()).any(0)
                mine = wrong[place].nonzero()
                if len(mine):
                    unit, at = int(mine[0, 0]), int(mine[0, 1])
                    where = f"unit {unit} at entry {int(place[unit, at])}"
                    self.doubts.append(f"the {consumer.tap} does not show {where} alone, or not in each of its calls")
                elif wrong.any():
                    self.doubts.append(_not_listed(consumer, int(wrong.nonzero()[0])))

    def _one_set(self, units: Tensor) -> None:
        """Cut off and redrawn: only what takes all units for equals was left to find."""
        bench = self.bench
        for gradients in (False, True):  # kernels may differ between the two
            bench.restore()
            bench.cut(self.group.outgoing, units)
            before = bench.run(gradients=gradients)
            for spread in (True, True, False):  # of any size, then like fresh ones
                bench.redraw(units, spread=spread)
                bench.cut(self.group.outgoing, units)
                after = bench.run(gradients=gradients or not spread)
                if not same(before.outputs, after.outputs):
                    break
            else:
                self._note_gradients(units, after)
                return
        raise self._not_preserved(units, distance(after.outputs, before.outputs))

    def _note_gradients(self, units: Tensor, after: Pass) -> None:
        """Which outgoing weights of redrawn units receive a gradient, and whether they should."""
        self.tried[units] = True
        for number, part in enumerate(self.group.outgoing):
            gradient, reads = after.gradients[number], after.reads[number]
            if gradient is not None:
                self.receives[number][units] |= _by_position(part.read(chosen(units), gradient) != 0.0)
            if reads is not None and len(part.leading) == 1 and reads.entries == part.leading[0]:
                self.active |= bool(reads.means(part.index)[1, units].any())
        for consumer, passes in zip(self.bench.watched, after.taps, strict=True):
            place = entries(consumer, self.group.units)[units]
            self.active |= any(bool(each[:, place].any()) for each in passes)

    # -- units in sets -----------------------------------------------------------------------------------------

    def _in_sets(self) -> None:
        for units in _sets(self.group.units, self.rounds, self.generator):
            self._try_set(units)
        self.shown = self._mutation()
        self._minimal()
        self._complete()

    def _try_set(self, units: Tensor) -> None:
        """The output must stay; notes on taps and gradients are taken in the same passes."""
        unread = not all(reads[units].all() for reads in self.reads)  # a backward pass costs two forward ones
        before, after = self.bench.before_and_after(units, zeroed=self.group.outgoing, gradients=unread)
        if not same(before.outputs, after.outputs):
            raise self._not_preserved(units, distance(after.outputs, before.outputs))
        for number, part in enumerate(self.group.outgoing):
            old, new = before.gradients[number], after.gradients[number]
            if old is not None and new is not None:
                self.reads[number][units] |= _by_position(
                    part.read(chosen(units), new) != part.read(chosen(units), old)
                )
        self._note_gradients(units, after)
        for number, consumer in enumerate(self.bench.watched):
            self._note_tap(number, consumer, units, differ(before.taps[number], after.taps[number]))
        for each in (before, after):
            self._note_activity(each)

    def _not_preserved(self, units: Tensor, size: float) -> Failed:
        """What to say: the first unit that shows alone, and whether a norm is to blame."""
        guilty, name = units, f"{len(units)} units"
        for unit in units[:16].unsqueeze(1).unbind():
            before, after = self.bench.before_and_after(unit, zeroed=self.group.outgoing)
            if not same(before.outputs, after.outputs):
                guilty, name, size = unit, f"unit {int(unit)}", distance(after.outputs, before.outputs)
                break
        shows = f"with outgoing weights zeroed, redrawing {name} moves the output by {size:.1e}"
        if self.probe.norms is not None and self.probe.norms.strayed:
            return Failed("vacuous", f"{shows}, but other tensors are normalized then: nothing is proved")
        if self.probe.norms is None:
            self.bench.restore()
            with self.probe.held_norms():
                before, after = self.bench.before_and_after(guilty, zeroed=self.group.outgoing)
            if same(before.outputs, after.outputs):
                return Failed("wrong", f"{shows}, through a norm over units: its kind is 'approximate'", size)
        return Failed("wrong", f"{shows}: something else reads it", size)

    # -- mutation, minimal, alive ------------------------------------------------------------------------------

    def _mutation(self) -> float:
        """Size of the change; units that are dead on the whole batch show nothing, so several are tried."""
        for unit in self.bench.some_units():
            instead = (unit + 1) % self.group.units
            zeroed = self.group.outgoing if self.group.units > 1 else []
            before, after = self.bench.before_and_after(unit, zeroed=zeroed, of=instead)
            if not same(before.outputs, after.outputs):
                return distance(after.outputs, before.outputs)
        raise Failed("vacuous", "the output does not depend on these units at the example inputs: nothing is proved")

    def _minimal(self) -> None:
        for part, reads, receives in zip(self.group.outgoing, self.reads, self.receives, strict=True):
            foreign = (receives & ~reads).nonzero()
            if reads.any() and len(foreign):
                unit, place = int(foreign[0, 0]), int(foreign[0, 1])
                raise Failed("wrong", f"position {place} of {part.part} that unit {unit} owns reads something else")
            if reads.any() or self._shows_without(part):
                continue
            if receives.any():
                raise Failed(
                    "wrong", f"{part.part} does not read these units: its gradient stays when they are redrawn"
                )
            raise Failed("vacuous", f"what {part.part} feeds does not move the output at the example inputs")

    def _shows_without(self, left_out: BoundSlice) -> bool:
        others = [part for part in self.group.outgoing if part is not left_out]
        pairs = (self.bench.before_and_after(unit, zeroed=others) for unit in self.bench.some_units())
        return any(not same(before.outputs, after.outputs) for before, after in pairs)

    def _alive(self) -> None:
        """A few units may all be dead on the example inputs, and so may what they feed: others are tried, and single ones."""
        tries = (*(self._half() for _ in range(4)), *self.bench.some_units())
        for units in tries:
            if any(receives.any() for receives in self.receives):
                return
            self._one_set(units)
        if self.active:
            raise Failed(
                "wrong", "after a reset no gradient reaches outgoing weights: a fresh unit would never take part again"
            )

    def _half(self) -> Tensor:
        return torch.randperm(self.group.units, generator=self.generator)[: (self.group.units + 1) // 2]

    # -- complete ----------------------------------------------------------------------------------------------

    def _note_tap(self, number: int, consumer: Consumer, units: Tensor, moved: Tensor) -> None:
        self._check_width(consumer, len(moved))
        mine = entries(consumer, self.group.units)[units]
        self.reached[number][units] |= moved[mine]
        moved[mine] = False
        if moved.any():
            raise Failed("wrong", _not_listed(consumer, int(moved.nonzero()[0])))

    def _check_width(self, consumer: Consumer, width: int) -> None:
        wanted = entries(consumer, self.group.units)
        tap = consumer.tap
        assert tap is not None
        if not width:
            self.bench.restore()
            seen = self.bench.run().taps[self.bench.watched.index(consumer)]
            if seen:
                raise Failed(
                    "vacuous", f"the {tap} sees other examples once these units are redrawn: nothing is proved"
                )
            raise Failed("wrong", f"the {tap} never sees a tensor: the module is bypassed")
        if int(wanted.max()) >= width or (tap.index is None and wanted.numel() != width):
            raise Failed("wrong", f"the {tap} has {width} entries along axis {tap.axis}, not {wanted.numel()}")

    def _complete(self) -> None:
        if not self.bench.watched:
            return
        broken = self.bench.broken(self.everyone)  # redraws have told the units apart; NaN shows more of them
        for consumer, reached, passes in zip(self.bench.watched, self.reached, broken, strict=True):
            mine = entries(consumer, self.group.units)
            for each in passes:
                reached |= (~each.isfinite()).any(0)[mine]
            for part in consumer.slices:
                reads = self.reads[self.group.outgoing.index(part)]
                missing = (reads & ~reached if reads.shape == reached.shape else torch.zeros(0, 2)).nonzero()
                if len(missing):
                    unit, place = int(missing[0, 0]), int(missing[0, 1])
                    where = f"unit {unit} at entry {int(mine[unit, place])}, where it is read"
                    raise Failed("wrong", f"the {consumer.tap} does not show {where}")
        name = forgotten(self.bench)
        if name is not None:
            raise Failed("wrong", f"'{name}' has entries of one unit alone, which are neither incoming nor affine")

    # -- activity and means ------------------------------------------------------------------------------------

    def _note_activity(self, seen: Pass) -> None:
        """Doubts about taps that show something else than the weights read."""
        incoming = {id(part.parameter) for part in self.group.incoming}
        for consumer, passes in zip(self.bench.watched, seen.taps, strict=True):
            place, tap, sums = entries(consumer, self.group.units), consumer.tap, Sums()
            assert tap is not None
            for each in passes or [torch.empty(0, 0)]:
                self._check_width(consumer, each.shape[-1])
                sums.add(each)
            if not sums.rows or self.doubts:
                continue
            shows = sums.means(place)
            if tap.nonnegative and any(bool((each[:, place] < 0.0).any()) for each in passes):
                lowest = min(float(each[:, place].amin()) for each in passes if len(each))
                self.doubts.append(f"the {tap} is said to be nonnegative, but shows {lowest:.2g}")
            for part in consumer.slices:
                reads = seen.reads[self.group.outgoing.index(part)]
                recurs = id(part.parameter) in incoming or isinstance(self.group.owner(part.part), nn.RNNBase)
                plain = part.part.shape is None and not recurs  # a state lags one step behind what a layer returns
                if reads is None or not plain or reads.entries != prod(part.leading):
                    continue
                read = reads.means(part.index)
                if read.shape != shows.shape:
                    each = f"{place.shape[1]} entries for each unit"
                    self.doubts.append(f"the {tap} lists {each}, but {part.part} reads {part.repeat}")
                elif not close([shows], [read]):
                    unit = int((shows - read).abs().amax((0, 2)).argmax())
                    means = f"a mean of {float(shows[0, unit, 0]):.3g} and not {float(read[0, unit, 0]):.3g}"
                    self.doubts.append(f"the {tap} does not show what {part.part} reads: of unit {unit} {means}")

    def _hand_over(self) -> None:
        """A constant that is taken off what takes the mean over must make up for one added to the product, everywhere."""
        once = {id(part.parameter): each for each in self.bench.absorbers if len((part := each[0]).leading) == 1}
        for absorbers in ([*once.values()], *([each] for each in once.values())):
            outputs = self.bench.shifted(absorbers) if absorbers else []
            if len(absorbers) == len(once) and outputs and close(outputs, self.probe.start):
                return
            if len(absorbers) == 1 and outputs and not close(outputs, self.probe.start):
                part, _, vector, _ = absorbers[0]
                raise Failed(
                    "wrong",
                    f"'{self._name(vector)}' does not take over the mean of what {part.part} reads: moved against each other, "
                    f"they move the output by {distance(outputs, self.probe.start):.1e}",
                )

    def _name(self, vector: Tensor) -> str:
        model = self.probe.model
        named = [*model.named_parameters(), *model.named_buffers()]
        return next(name for name, each in named if each.data_ptr() == vector.data_ptr())


def _not_listed(consumer: Consumer, entry: int) -> str:
    return f"the {consumer.tap} shows these units at entry {entry} too, not listed"


def _cycle(units: int, generator: torch.Generator) -> Tensor:
    """An order in which every unit is another, and all of them lie on one cycle."""
    ring = torch.randperm(units, generator=generator)
    order = torch.empty_like(ring)
    order[ring] = ring.roll(1)
    return order


def separating_sets(units: int, generator: torch.Generator) -> Tensor:
    """(sets, units): for any two units some set holds the first and not the second.

    Each unit gets a word of `sets` bits, half of them ones: no such word covers another.

    >>> separating_sets(6, torch.Generator()).sum(0).tolist()
    [2, 2, 2, 2, 2, 2]
    """
    bits = next(bits for bits in count(2) if comb(bits, bits // 2) >= units)
    words = torch.zeros(comb(bits, bits // 2), bits, dtype=torch.bool)
    for word, ones in zip(words, combinations(range(bits), bits // 2), strict=True):
        word[list(ones)] = True
    return words[torch.randperm(len(words), generator=generator)[:units]].t()


def _sets(units: int, rounds: int | None, generator: torch.Generator) -> Iterator[Tensor]:
    """Sets that tell all units apart; at least ten, so that a unit that is dead in some lives in others."""
    done = 0
    while done < (rounds or 10):
        for members in separating_sets(units, generator):
            if members.any() and done != rounds:
                done += 1
                yield members.nonzero().flatten()


def _by_position(found: Tensor) -> Tensor:
    """Whether any entry of a position is true, (units, repeat, *row) -> (units, repeat)."""
    return found.flatten(2).any(2) if found.dim() > 2 else found
