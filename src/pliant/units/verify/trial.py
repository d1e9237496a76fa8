"""The tests a group of units must stand.

    preserve   outgoing weights zeroed, a redraw leaves the model's output the same to the last bit
    mutation   with the next unit's outgoing weights zeroed instead, the redraw shows
    minimal    with any part of outgoing left in place, the redraw shows
    complete   NaN in incoming reaches the unit's entries of each tap, and a redraw no others; no parameter that the plan leaves
               out belongs to one unit alone
    alive      after a reset the gradient of outgoing is not zero

Units are redrawn in sets. Each unit lies in half of the sets, and for any two units some set holds the first without the second:
log2(units) sets and a few tell all units of a group apart. Minimality is then settled for every unit and entry at once: the
gradient of an outgoing weight is (signal from above) x (activity), and the signal is what it was before the redraw, so the
gradient moves exactly where the weight reads a redrawn unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import combinations, count
from math import comb
from typing import Literal

import torch
from torch import Tensor

from pliant.units.bound import BoundGroup, Consumer
from pliant.units.entries import BoundSlice
from pliant.units.map import UnitGroup
from pliant.units.verify.bench import Bench, chosen, covered, differ, entries
from pliant.units.verify.forgotten import forgotten
from pliant.units.verify.probe import Probe, distance, same

__all__ = ["Trial", "Verified", "covered", "separating_sets"]

Verdict = Literal["exact", "approximate", "vacuous", "wrong"]


@dataclass(frozen=True)
class Verified:
    """What was found about one group.

    Args:
        moved: relative size of the output's change on a reset that should not show (0 if exact; one unit's if approximate).
        shown: relative size of its change when the wrong unit is cut off, where it must show.
        alive: share of units whose outgoing weights receive a gradient after a reset, on the example inputs.
        why: what failed, or is unproved; empty for an exact group.
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
        self, probe: Probe, group: BoundGroup, ours: Mapping[int, Tensor], *, rounds: int | None = None, seed: int = 0
    ) -> None:
        self.probe, self.group, self.rounds = probe, group, rounds
        self.generator = torch.Generator().manual_seed(seed)
        self.bench = Bench(probe, group, ours, self.generator)
        self.tried = torch.zeros(group.units, dtype=torch.bool)
        self.reached = [torch.zeros_like(entries(each, group.units), dtype=torch.bool) for each in self.bench.watched]
        self.reads = [torch.zeros(group.units, part.repeat, dtype=torch.bool) for part in group.outgoing]
        self.receives = [torch.zeros(group.units, part.repeat, dtype=torch.bool) for part in group.outgoing]

    def verified(self) -> Verified:
        approximate = self.group.spec.kind == "approximate"
        verdict: Verdict = "exact"
        moved, shown, why = 0.0, 0.0, ""
        try:
            moved = self._moved_by_one() if approximate else 0.0
            with self.probe.held_norms() if approximate else nullcontext():
                for units in _sets(self.group.units, self.rounds, self.generator):
                    self._try_set(units)
                shown = self._mutation()
                self._minimal()
                self._complete()
                self._alive()
            if moved:
                verdict = "approximate"
                why = "through a norm over units; exact while its statistics are held"
        except Failed as failed:
            verdict, why, moved = failed.verdict, failed.why, failed.moved or moved
        finally:
            self.bench.restore()
        alive = torch.stack([each.any(1) for each in self.receives]).any(0)[self.tried].double().mean().nan_to_num()
        return Verified(self.group.spec, self.group.units, verdict, moved, shown, float(alive), why)

    def _moved_by_one(self) -> float:
        """The largest change of the output by the redraw of a single unit."""
        pairs = [self.bench.before_and_after(unit, zeroed=self.group.outgoing) for unit in self.bench.some_units(4)]
        return max(distance(after.outputs, before.outputs) for before, after in pairs)

    # -- preserve ----------------------------------------------------------------------------------------------

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
                self.receives[number][units] |= _by_position(part.read(chosen(units), new) != 0.0)
        for number, consumer in enumerate(self.bench.watched):
            self._note_tap(number, consumer, units, differ(before.taps[number], after.taps[number]))
        self.tried[units] = True

    def _not_preserved(self, units: Tensor, size: float) -> Failed:
        """What to say: the first unit that shows alone, and whether a norm is to blame."""
        guilty, name = units, f"{len(units)} units"
        for unit in units[:16].unsqueeze(1).unbind():
            before, after = self.bench.before_and_after(unit, zeroed=self.group.outgoing)
            if not same(before.outputs, after.outputs):
                guilty, name, size = unit, f"unit {int(unit)}", distance(after.outputs, before.outputs)
                break
        shows = f"with outgoing weights zeroed, redrawing {name} moves the output by {size:.1e}"
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
        if not any(receives.any() for receives in self.receives):
            raise Failed(
                "wrong", "after a reset no gradient reaches outgoing weights: a fresh unit would never take part again"
            )

    # -- complete ----------------------------------------------------------------------------------------------

    def _note_tap(self, number: int, consumer: Consumer, units: Tensor, moved: Tensor) -> None:
        self._check_width(consumer, len(moved))
        mine = entries(consumer, self.group.units)[units]
        self.reached[number][units] |= moved[mine]
        moved[mine] = False
        if moved.any():
            raise Failed(
                "wrong", f"the {consumer.tap} shows these units at entry {int(moved.nonzero()[0])} too, not listed"
            )

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
        broken = self.bench.broken(
            torch.arange(self.group.units)
        )  # redraws have told the units apart; NaN shows the dead ones too
        for consumer, reached, passes in zip(self.bench.watched, self.reached, broken, strict=True):
            mine = entries(consumer, self.group.units)
            for each in passes:
                reached |= (~each.isfinite()).any(0)[mine]
            missing = (~reached & self.tried[:, None]).nonzero()
            if len(missing):
                unit, place = int(missing[0, 0]), int(missing[0, 1])
                where = f"unit {unit} at entry {int(mine[unit, place])}, where it is read"
                raise Failed("wrong", f"the {consumer.tap} does not show {where}")
        name = forgotten(self.bench)
        if name is not None:
            raise Failed("wrong", f"'{name}' has entries of one unit alone, which are neither incoming nor affine")


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
