"""Entries of an averaging optimizer (Adam and its kin) that were reset while the others went on: each counts its own steps.

Adam's m / (1 - β^t) and v / (1 - β^t) are averages of g and g²: its t-th step moves them towards the new value by

    w(t) = (1 - β) / (1 - β^t)

with t shared by a whole parameter. An entry reset τ - 1 steps ago must move by w(τ) > w(t), and before each step we add
what the shared one leaves out, on moments that are kept in such a scale that the shared correction is the right one:

    m <- m + W ((1 - β1^(t-1)) g - m),    v <- v + W ((1 - β2^(t-1)) g² - v),    W = (w(τ) - w(t)) / (1 - w(t))

The optimizer then takes exactly a freshly built one's step (to rounding), by its own code: plain, foreach, fused or
capturable. W is exactly 0 for entries that were never reset and once w(τ) rounds to w(t), after 16,629 steps at
β2 = 0.999 and float32. AMSGrad's maximum is of v before correction, so it shrinks with the scale: x <- (1 - W) x.
The moments always fit the shared counter: nothing is to be undone on detaching.

An entry lies between two units and is as young as the younger one: W is the larger of theirs.

Departures: while `betas` are changed from outside, what was averaged so far keeps its weight. A pre-hook that changes
gradients must be registered before the method. A gradient whose square overflows, which makes Adam stall, gives NaN.

Source: Kingma and Ba, ICLR 2015, algorithm 1, entry by entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, expm1, log, prod
from typing import Any, ClassVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from pliant.units.entries import BoundSlice, Chosen
from pliant.utility import weight_seen

_foreach_lerp_, _foreach_addcmul_, _foreach_mul = (
    getattr(cast(Any, torch), name) for name in ("_foreach_lerp_", "_foreach_addcmul_", "_foreach_mul")
)

NEVER = 2**40  # steps since a reset that did not happen
MANY = 2**14  # entries from which on it pays to look for the young ones
FEW = 0.4  # share of entries up to which it pays to move only those


@dataclass(frozen=True)
class Averages:
    """What a kind of optimizer averages and corrects by a shared count: state keys, and where the count is."""

    first: str | None  # average of gradients, by betas[0]
    second: str | None  # average of their squares, by betas[1]
    maximum: str | None = None  # of `second`
    count: str = "step"  # key of the state, or of the settings
    decay_in_gradient: bool | None = None  # whether weight decay is; None: unless `decoupled_weight_decay`

    def count_of(self, settings: dict[str, Any], state: dict[str, Any]) -> float | Tensor:
        """Steps so far: a number if the host knows it, else a scalar on the device."""
        held: Any = state[self.count] if self.count in state else settings[self.count]
        return float(held) if not isinstance(held, Tensor) or held.device.type == "cpu" else held.detach()

    def decay(self, settings: dict[str, Any]) -> float:
        """The weight decay that is part of the gradient."""
        inside = self.decay_in_gradient
        inside = not settings.get("decoupled_weight_decay", False) if inside is None else inside
        return float(settings["weight_decay"]) if inside else 0.0


def weight_of_newest(steps: Tensor, beta: float, dtype: torch.dtype) -> Tensor:
    """w: what the newest of `steps` values counts for in their average, (1 - β) / (1 - β^steps).

    >>> weight_of_newest(torch.tensor([1, 2, 100]), beta=0.5, dtype=torch.float64)
    tensor([1.0000, 0.6667, 0.5000], dtype=torch.float64)
    """
    return (1.0 - beta) / weight_seen(steps, beta, dtype)


def steps_of_youth(beta: float, dtype: torch.dtype) -> int:
    """Steps until 1 - β^τ rounds to 1, 16,629 for β = 0.999 in float32; 0 if nothing is averaged."""
    return 0 if beta == 0.0 else ceil(log(torch.finfo(_wide(dtype)).eps / 2) / log(beta)) + 1


class YoungEntries:
    """The young entries of one optimizer, and the hook that makes up for what its shared count leaves out.

    One for each optimizer, shared by all methods attached to it; its hook runs before any method's own.
    """

    _of: ClassVar[WeakKeyDictionary[Optimizer, YoungEntries]] = WeakKeyDictionary()

    def __init__(self, averages: Averages) -> None:
        self.averages = averages
        self.users = 0
        self._members: dict[nn.Parameter, _Member] = {}
        self._batches: list[_Batch] = []
        self._settings: list[dict[str, Any]] | None = None  # the optimizer's, when the batches were made
        self._handles: list[RemovableHandle] = []

    @classmethod
    def of(cls, optimizer: Optimizer, averages: Averages) -> YoungEntries:
        """The one of this optimizer."""
        return cls._of.setdefault(optimizer, cls(averages))

    def join(self, optimizer: Optimizer, parts: Iterable[BoundSlice]) -> None:
        """One more method relies on it, for these slices."""
        self.users += 1
        for part in parts:
            parameter = cast(nn.Parameter, part.parameter)
            self._members.setdefault(parameter, _Member(parameter)).add(part)
        self._settings = None
        if self.users == 1:
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))

    def leave(self, optimizer: Optimizer) -> None:
        """One method less; after the last, the shared counter serves all entries."""
        self.users -= 1
        if self.users == 0:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            self._members.clear()
            self._batches.clear()

    def rejuvenate(self, optimizer: Optimizer, part: BoundSlice, chosen: Chosen) -> None:
        """The chosen units' entries begin anew; their moments are 0."""
        self._lay_out(optimizer)
        member = self._members[cast(nn.Parameter, part.parameter)]
        age = member.age_of(part)
        where = chosen.runs.unsqueeze(1), part.index.to(age.device)[chosen.units]
        age[where] = torch.where(chosen.strength.unsqueeze(1) >= 1.0, 0, age[where])
        betas = self._betas(optimizer, member)
        member.left = [steps_of_youth(beta, part.parameter.dtype) for beta in betas]
        self._look(member, betas)

    def state_of(self, optimizer: Optimizer, part: BoundSlice) -> dict[str, Any]:
        """Steps since the reset of each position, (runs, units, repeat), and how long there are young ones."""
        self._lay_out(optimizer)
        member = self._members[cast(nn.Parameter, part.parameter)]
        age = member.age_of(part)
        return {"age": age[:, part.index.to(age.device)], "left": list(member.left)}

    def load(self, optimizer: Optimizer, part: BoundSlice, held: dict[str, Any] | None) -> None:
        """Go on from `state_of`; None: none of these entries was ever reset."""
        self._lay_out(optimizer)
        member = self._members[cast(nn.Parameter, part.parameter)]
        age = member.age_of(part)
        where = slice(None), part.index.to(age.device)
        age[where] = NEVER if held is None else held["age"].to(age.device)
        if held is not None:
            member.left = [max(pair) for pair in zip(member.left, map(int, held["left"]), strict=True)]
        self._look(member, self._betas(optimizer, member))

    def _look(self, member: _Member, betas: Sequence[float]) -> None:
        member.look(betas)
        for batch in self._batches:
            batch.forget_plans()

    # -- before each step -----------------------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """Make up for the shared count, at once or when the closure that finds the gradients has run."""
        closure: Callable[[], Any] | None = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._make_up(optimizer)
            return None

        def then_make_up() -> Any:
            loss = closure()
            self._make_up(optimizer)
            return loss

        return (args[0], then_make_up, *args[2:]), {k: v for k, v in kwargs.items() if k != "closure"}

    @torch.no_grad()
    def _make_up(self, optimizer: Optimizer) -> None:
        if any(max(member.left) for member in self._members.values()):
            self._lay_out(optimizer)
            for batch in self._batches:
                batch.make_up(optimizer)

    def _lay_out(self, optimizer: Optimizer) -> None:
        """Batches of parameters with common settings. Loading a state replaces these, moving a model moves entries."""
        if self._settings is optimizer.param_groups and all(batch.in_place() for batch in self._batches):
            return
        self._settings = optimizer.param_groups
        self._batches = []
        for settings in optimizer.param_groups:
            alike: dict[tuple[torch.device, torch.dtype], list[_Member]] = {}
            for parameter in settings["params"]:
                if parameter in self._members:
                    alike.setdefault((parameter.device, parameter.dtype), []).append(self._members[parameter])
            self._batches += [_Batch(self.averages, settings, members) for members in alike.values()]

    def _betas(self, optimizer: Optimizer, member: _Member) -> tuple[float, float]:
        settings = next(batch.settings for batch in self._batches if member in batch.members)
        return _betas(self.averages, settings)


class _Piece:
    """Entries at `places` along `axis` of a parameter, or all of them, and their W from each set of units they lie between."""

    def __init__(self, member: _Member, shares: Sequence[Tensor], axis: int = 0, places: Tensor | None = None) -> None:
        self.member, self.parameter, self._shares = member, member.parameter, shares
        self._axis, self._places = axis, places
        self._splits = list(member.parts.values()) if member.reshaped else None
        self.share = shares[0]
        self.is_view = places is None and len(shares) == 1 and self._splits is None
        self._room: Tensor | None = None  # kept: fresh memory costs more than the comparison

    def renew(self) -> None:
        """Look W up in what it comes from."""
        shares = self._shares
        if self._splits is not None:
            shares = [_unsplit(part, share) for part, share in zip(self._splits, shares, strict=True)]
        share = self.of(shares[0])
        for other in shares[1:]:
            if self._room is None or len(shares) > 2:
                self._room = torch.maximum(share, other)
            else:
                torch.maximum(share, other, out=self._room)
            share = self._room
        self.share = share

    def of(self, tensor: Tensor) -> Tensor:
        return tensor if self._places is None else tensor.index_select(self._axis, self._places)

    def put(self, tensor: Tensor, entries: Tensor) -> None:
        if self._places is not None:
            tensor.index_copy_(self._axis, self._places, entries)


class _Member:
    """A parameter, and for each set of axes along which units lie in it the age of every position, (runs, positions)."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.left = [0, 0]  # host: steps until no entry is young, by average
        self.parts: dict[object, BoundSlice] = {}
        self.ages: dict[object, Tensor] = {}

    def add(self, part: BoundSlice) -> None:
        if _axes(part) not in self.parts:
            runs = part.front().shape[0]
            self.parts[_axes(part)] = part
            self.ages[_axes(part)] = torch.full((runs, prod(part.leading)), NEVER, device=part.parameter.device)

    def age_of(self, part: BoundSlice) -> Tensor:
        return self.ages[_axes(part)]

    @property
    def size(self) -> int:
        return sum(age.numel() for age in self.ages.values())

    def place(self, ages: Tensor, shares: Tensor) -> None:
        """Keep the ages in `ages` (size,), and read shares from `shares` (2, size)."""
        self._shares: tuple[list[Tensor], list[Tensor]] = [], []
        self._few: list[list[tuple[int, Tensor]] | None] = [None, None]
        first = 0
        for key, part in self.parts.items():
            held = self.ages[key]
            where = slice(first, first + held.numel())
            ages[where] = held.flatten()
            self.ages[key] = ages[where].view_as(held)
            for row in (0, 1):
                self._shares[row].append(_facing(part, shares[row, where].view_as(held)))
            first = where.stop
        self.reshaped = any(part.part.shape is not None for part in self.parts.values())

    def pieces(self, row: int) -> list[_Piece]:
        """What is to be moved: all entries, or the few young ones by axis.

        Pieces cross where units of two axes meet. The first has the right W there, so it must be put back last.
        """
        shares, few = self._shares[row], self._few[row]
        if few is None:
            return [_Piece(self, shares)]
        return [_Piece(self, shares[number:], axis, places) for number, (axis, places) in enumerate(few) if len(places)]

    def look(self, betas: Sequence[float]) -> None:
        """Find the young positions. On the CPU that costs nothing; elsewhere it would make the host wait."""
        self._few = [None, None]
        simple = (
            all(len(part.part.axes) == 1 and not part.stacked for part in self.parts.values()) and not self.reshaped
        )
        if self.parameter.numel() < MANY or self.parameter.device.type != "cpu" or not simple:
            return
        for row, beta in enumerate(betas):
            ripe = steps_of_youth(beta, self.parameter.dtype)
            few = [
                (part.part.axes[0], (age[0] < ripe).nonzero().flatten())
                for part, age in zip(self.parts.values(), self.ages.values(), strict=True)
            ]
            if sum(len(places) / self.parameter.shape[axis] for axis, places in few) <= FEW:
                self._few[row] = few

    def grow(self, steps: int | Tensor) -> None:
        for age in self.ages.values():
            age += steps


class _Shares:
    """W of every position for one of the averages. w is looked up by age."""

    def __init__(self, ages: Tensor, shares: Tensor) -> None:
        self._ages, self._shares = ages, shares
        self._index = torch.empty_like(ages)
        self._beta: float | None = None

    def _tabulate(self, beta: float) -> None:
        self._beta = beta
        dtype = _wide(self._shares.dtype)
        self.ripe = steps_of_youth(beta, dtype)
        self._newest = weight_of_newest(torch.arange(1, self.ripe + 2, device=self._ages.device), beta, dtype)
        self._newest[self.ripe] = 1.0 - beta  # of age, or never young
        of_age = ((self._newest - (1.0 - beta)) / beta).clamp_(min=0.0)  # W beside a shared average that is of age
        self._of_age = of_age.to(self._shares.dtype)

    def find(self, beta: float, count: float | Tensor, kept: Tensor | None) -> None:
        """For the step after `count`, a number or one for each position; 0 if the step is not `kept`."""
        if beta != self._beta:
            self._tabulate(beta)
        torch.clamp(self._ages, max=self.ripe, out=self._index)
        if isinstance(count, float) and count >= self.ripe:
            torch.index_select(self._of_age, 0, self._index, out=self._shares)
        else:
            self._shares.copy_(self._beside(beta, count))
        if kept is not None:
            self._shares *= kept

    def _beside(self, beta: float, count: float | Tensor) -> Tensor:
        """W beside a shared average that is not of age."""
        scale: float | Tensor
        own = self._newest.index_select(0, self._index)
        if isinstance(count, Tensor):
            shared = weight_of_newest(count + 1.0, beta, own.dtype)
            scale = torch.where(count > 0, 1.0 / (1.0 - shared), 0.0)
        else:
            shared = (1.0 - beta) / -expm1((count + 1.0) * log(beta))
            scale = 1.0 / (1.0 - shared) if count else 0.0
        return own.sub_(shared).clamp_(min=0.0).mul_(scale)

    def scale(self, beta: float, count: float | Tensor) -> float | Tensor:
        """1 - β^count, the shared correction."""
        return 1.0 if isinstance(count, float) and count >= self.ripe else 1.0 - beta**count


class _Batch:
    """Parameters that are stepped with the same settings; their ages lie in one tensor, and so do their W."""

    def __init__(self, averages: Averages, settings: dict[str, Any], members: list[_Member]) -> None:
        self.averages, self.settings, self.members = averages, settings, members
        like = members[0].parameter
        sizes = [member.size for member in members]
        self.ages = torch.empty(sum(sizes), dtype=torch.int64, device=like.device)
        shares = torch.zeros(2, sum(sizes), dtype=like.dtype, device=like.device)
        self._dtype, self._shares = like.dtype, [_Shares(self.ages, shares[0]), _Shares(self.ages, shares[1])]
        self._owner = torch.arange(len(members)).repeat_interleave(torch.tensor(sizes)).to(like.device)
        self._agree = False
        self._plans: list[tuple[list[_Member], list[_Piece]]] = [([], []), ([], [])]  # who is young, and where
        first = 0
        for member, size in zip(members, sizes, strict=True):
            member.place(self.ages[first : first + size], shares[:, first : first + size])
            first += size

    def in_place(self) -> bool:
        """Whether parameters are still where and what they were."""
        like = self.members[0].parameter
        return like.device == self.ages.device and like.dtype == self._dtype

    def make_up(self, optimizer: Optimizer) -> None:
        """Move moments of young entries by the shares that the coming step leaves out, and count the step."""
        known = cast(dict[nn.Parameter, dict[str, Any]], optimizer.state)
        held = {each: known.get(each.parameter) for each in self.members if each.parameter.grad is not None}
        states = {member: state for member, state in held.items() if state}
        young = [[member for member in states if member.left[row]] for row in (0, 1)]
        if young[0] or young[1]:
            counts = self._counts(states)
            kept = _kept(optimizer, self.ages.device)
            for row, beta in enumerate(_betas(self.averages, self.settings)):
                if young[row]:
                    shares = self._shares[row]
                    shares.find(beta, self._count(counts), kept)
                    scales = {member: shares.scale(beta, counts[member]) for member in young[row]}
                    self._move(row, self._pieces(row, young[row]), states, scales, optimizer)
            self._grow(list(states), 1 if kept is None else kept.to(torch.int64))

    def _pieces(self, row: int, young: list[_Member]) -> list[_Piece]:
        """Laid out anew when other parameters or other units are young."""
        if self._plans[row][0] != young:
            self._plans[row] = young, [piece for member in young for piece in member.pieces(row)]
        pieces = self._plans[row][1]
        for piece in pieces:
            if not piece.is_view:
                piece.renew()
        return pieces

    def forget_plans(self) -> None:
        self._plans = [([], []), ([], [])]

    def _counts(self, states: dict[_Member, dict[str, Any]]) -> dict[_Member, float | Tensor]:
        """Steps so far. Parameters that were found to agree, and are always stepped together, go on to agree."""
        together = len(states) == len(self.members)
        first = self.averages.count_of(self.settings, next(iter(states.values())))
        if together and self._agree:
            return dict.fromkeys(states, first)
        found = {member: self.averages.count_of(self.settings, state) for member, state in states.items()}
        self._agree = together and all(isinstance(each, float) and each == first for each in found.values())
        return found

    def _count(self, counts: dict[_Member, float | Tensor]) -> float | Tensor:
        """One number if the host knows it and parameters agree, else one for each position."""
        if self._agree:
            return next(iter(counts.values()))
        each = [counts.get(member, 0.0) for member in self.members]
        on_device = [torch.as_tensor(count, dtype=torch.float32, device=self.ages.device).reshape(()) for count in each]
        return torch.stack(on_device)[self._owner]

    def _move(
        self,
        row: int,
        pieces: list[_Piece],
        states_of: dict[_Member, dict[str, Any]],
        scales: dict[_Member, float | Tensor],
        optimizer: Optimizer,
    ) -> None:
        """m or v moves by W towards the scaled g or g²; the maximum of v shrinks."""
        gradients = self._gradients(pieces, optimizer)
        targets = _foreach_mul(gradients, gradients) if row else gradients
        if any(isinstance(scale, Tensor) or scale != 1.0 for scale in scales.values()):
            targets = _foreach_mul(targets, [scales[piece.member] for piece in pieces])
        shares = [piece.share for piece in pieces]
        states = [states_of[piece.member] for piece in pieces]
        moment = self.averages.second if row else self.averages.first
        for key in (moment, self.averages.maximum) if row else (moment,):
            if key is not None and key in states[0]:
                entries = [piece.of(state[key]) for piece, state in zip(pieces, states, strict=True)]
                if key == moment:
                    _foreach_lerp_(entries, targets, shares)
                else:
                    _foreach_addcmul_(entries, entries, shares, value=-1.0)
                for number in reversed(range(len(pieces))):
                    pieces[number].put(states[number][key], entries[number])

    def _gradients(self, pieces: Sequence[_Piece], optimizer: Optimizer) -> list[Tensor]:
        """What the optimizer averages: sign and weight decay are in it, a GradScaler's factor is not."""
        gradients = [piece.of(cast(Tensor, piece.parameter.grad)) for piece in pieces]
        kept = _kept(optimizer, self.ages.device)
        if kept is not None:
            scale: Tensor | None = getattr(optimizer, "grad_scale", None)
            factor = torch.ones((), device=kept.device) if scale is None else scale.to(kept.device)
            gradients = [torch.where(kept, gradient / factor, 0.0) for gradient in gradients]
        if self.settings.get("maximize", False):
            gradients = [-gradient for gradient in gradients]
        decay = self.averages.decay(self.settings)
        if decay:
            parameters = [piece.of(piece.parameter) for piece in pieces]
            gradients = [g.add(p, alpha=decay) for g, p in zip(gradients, parameters, strict=True)]
        return gradients

    def _grow(self, stepped: list[_Member], steps: int | Tensor) -> None:
        if stepped == self.members:
            self.ages += steps
        for member in stepped:
            if stepped != self.members:
                member.grow(steps)
            member.left[:] = max(member.left[0] - 1, 0), max(member.left[1] - 1, 0)


def _kept(optimizer: Optimizer, device: torch.device) -> Tensor | None:
    """Whether a fused step under a GradScaler will be taken; None: no one asks."""
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    return None if found_inf is None else found_inf.to(device).reshape(()) == 0


def _betas(averages: Averages, settings: dict[str, Any]) -> tuple[float, float]:
    first, second = settings["betas"]
    return float(first) if averages.first else 0.0, float(second) if averages.second else 0.0


def _axes(part: BoundSlice) -> object:
    return part.part.axes, part.part.shape, part.stacked


def _facing(part: BoundSlice, values: Tensor) -> Tensor:
    """`values` (runs, positions) as a view that broadcasts against the parameter, in `part.shape` if it has one."""
    front = values.view(-1, *part.leading, *[1] * len(part.row))
    axes = [axis + 1 for axis in part.part.axes]
    facing = front.movedim(list(range(1, len(axes) + 1)), axes)
    return facing if part.stacked else facing[0]


def _unsplit(part: BoundSlice, values: Tensor) -> Tensor:
    """The same against the parameter as it is, where the slice sees it in another shape."""
    if part.part.shape is None:
        return values
    runs = values.shape[:1] if part.stacked else ()
    return values.expand(*runs, *part.part.shape).reshape(part.parameter.shape)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
