"""Detects a copy of the weights that is fed back into the model and undoes half of a replacement.

Lookahead's slow weights, a weight average that was swapped in and not back, averaging over workers, an earlier `load_state_dict`
have this in common: after them, the weights of a unit that was just replaced have moved back towards the old unit's, while its
optimizer state and its age are those of a new one.

    b   outgoing weights of the replaced units, before      a   right after the replacement
    l   as the last optimizer step left them                e   as they are when the next step begins

    fed back if  cos(e - l, b - a) >= min(0.98, 5 / sqrt(n))  and  |e - l| >= |b - a| / 100,  of n >= 6 entries

over the parameters in which anything moved; where fewer than `MANY` weights leave the units, their incoming weights count too.
Changes that have nothing to do with it (noise that a user adds, a head drawn anew) have a cosine of 0 +- 1 / sqrt(n);
five times that does not happen by chance, and where entries are few they must point nearly the same way. What methods of this
library write is known to them (`written`) and is no change.

Only entries of replaced units are read, when the next step begins. Lookahead feeds back every k-th step, so for the first
`LOOKS` steps with anything to read, replaced units are followed for `HORIZON` steps, afterwards for one. On CUDA the
answer comes one step late, so that the host need not wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from threading import Lock
from typing import NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer

from pliant.engine.taken_steps import Pending, known_at_once
from pliant.units.bound import BoundGroup
from pliant.units.entries import BoundSlice, SelectedUnits

MANY = 26  # entries from which on a cosine of less than 0.98 is no chance
HORIZON = 20  # steps after a replacement
LOOKS = 200  # steps in which there was anything to look at, after which the next step is looked at and no more


class _Before(NamedTuple):
    """Weights of units that are about to be replaced, in one parameter."""

    group: str
    part: BoundSlice
    chosen: SelectedUnits
    entries: Tensor
    cut: bool  # nothing will be left of them


@dataclass
class _Entries:
    """Weights of units that were replaced in one step, in one parameter."""

    group: str
    part: BoundSlice
    chosen: SelectedUnits
    before: Tensor
    after: Tensor
    left: Tensor
    steps: int = 0  # that began since

    def now(self) -> Tensor:
        return self.part.read(self.chosen)


class Feedback:
    """The units that one method has just replaced. `look` is called when a step begins, `leave` when the method has written."""

    def __init__(self) -> None:
        self.entries: list[_Entries] = []
        self._pending: tuple[Pending, str] | None = None
        self._looks = 0
        with _LOCK:
            _ALL.add(self)

    def clear(self) -> None:
        """The model has other weights, and the method knows."""
        self.entries, self._pending = [], None

    def before(self, chosen: Mapping[BoundGroup, SelectedUnits]) -> list[_Before]:
        """What is about to be replaced: weights out of the units and, where these are few, into them."""
        found: list[_Before] = []
        for group, units in chosen.items():
            leaving = sum(part.repeat * prod(part.row) for part in group.outgoing) * len(units.units)
            parts = group.outgoing if leaving >= MANY else [*group.incoming_weights(), *group.outgoing]
            for part in parts:
                cut = units.all_at_full_strength and part in group.outgoing
                found.append(_Before(group.name, part, units, part.read(units), cut))
        return found

    def replaced(self, found: Iterable[_Before]) -> None:
        """They have been."""
        for each in self.entries:
            if not each.steps:
                each.left = each.now()
        for group, part, units, before, cut in found:
            after = torch.zeros_like(before) if cut else part.read(units)
            self.entries.append(_Entries(group, part, units, before, after, after))

    def leave(self) -> None:
        """So they are left, until the next step begins: these units, and those replaced a few steps ago."""
        if not self.entries:
            return
        horizon = HORIZON if self._looks < LOOKS else 1
        self.entries = [each for each in self.entries if each.steps < horizon]
        for each in self.entries:
            if each.steps:
                each.left = each.now()

    def look(self, optimizer: Optimizer) -> None:
        """Raise `RuntimeError` if something was fed back since."""
        if self._pending is not None:
            (fed_back, names), self._pending = self._pending, None
            if fed_back.wait():
                raise RuntimeError(_said(names, optimizer))
        if not self.entries:
            return
        self._looks += 1
        for each in self.entries:
            each.steps += 1
        now = [each.now() for each in self.entries]
        at_once = known_at_once(now[0])
        if at_once and all(torch.equal(values, each.left) for values, each in zip(now, self.entries, strict=True)):
            return
        of_age = list(zip(self.entries, now, strict=True))
        young = [pair for pair in of_age if pair[0].steps == 1]
        old = [pair for pair in of_age if pair[0].steps > 1]
        (fed_back, *others) = [_fed_back(pairs) for pairs in (young, old) if pairs]
        for other in others:
            fed_back = fed_back | other.to(fed_back.device)
        names = ", ".join(dict.fromkeys(f"'{each.group}'" for each in self.entries))
        if not at_once:
            self._pending = Pending(fed_back), names
        elif fed_back:
            raise RuntimeError(_said(names, optimizer))


_ALL: WeakSet[Feedback] = WeakSet()
_LOCK = Lock()


def written(parameters: Iterable[Tensor], by: Feedback | None = None) -> None:
    """A method of this library wrote to these on purpose: what it left is no feedback."""
    with _LOCK:
        others = [each for each in _ALL if each is not by and each.entries]
    if others:
        known = {id(parameter) for parameter in parameters}
        for each in (each for other in others for each in other.entries):
            if id(each.part.parameter) in known:
                each.left = each.now()


def _fed_back(entries: Sequence[tuple[_Entries, Tensor]]) -> Tensor:
    """A boolean scalar, on the device of the first. Entries of a parameter in which nothing moved do not count."""
    like = entries[0][1]
    moves: list[Tensor] = []
    ways: list[Tensor] = []
    for each, now in entries:
        move, back = now - each.left, each.before - each.after
        known = back.isfinite() & move.any()  # nothing leads back to a broken unit
        moves.append(torch.where(known, move, 0.0).flatten().to(like))
        ways.append(torch.where(known, back, 0.0).flatten().to(like))
    move, back = torch.cat(moves), torch.cat(ways)
    n = (back != 0.0).sum()
    least = (5.0 / n.clamp(min=1).to(like.dtype).sqrt()).clamp(max=0.98)
    along, size, way = move @ back, (move @ move).sqrt(), (back @ back).sqrt()
    return (n >= 6) & (along >= least * size * way) & (size >= 0.01 * way) & (size > 0.0)


def _said(names: str, optimizer: Optimizer) -> str:
    return (
        f"weights of units just replaced, in {names}, have moved back towards what they were since {type(optimizer).__name__} "
        f"stepped: a copy of the weights is fed back (Lookahead, an average that was swapped in, averaging over workers, "
        f"load_state_dict) and undoes half of each replacement. Leave it out, or copy the weights into it after steps in which "
        f"units were replaced (stats() tells); for an earlier model, load the method's state of that moment or call restart()"
    )
