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

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd  # pyright: ignore[reportPrivateUsage]
from torch.optim import Optimizer

from pliant.base.arguments import called_with, flag, is_a, shown, whole
from pliant.base.choices import did_you_mean
from pliant.base.initial import INITS, uniform_bound
from pliant.base.saving import entry, fill
from pliant.engine.candidates import Candidates, obstacle
from pliant.engine.fresh_weights.initializer import Initializers
from pliant.engine.fresh_weights.laws import (
    Borrowed,
    Given,
    Init,
    Initializer,
    Law,
    Reset,
    Uniform,
    like_linear,
    resets,
)
from pliant.engine.fresh_weights.start import INITIALIZER, INITIALIZER_BY_UNIT, RESET, Start, Started, started
from pliant.units.bound import BoundGroup, NamedModel
from pliant.units.entries import BoundSlice, SelectedUnits
from pliant.units.forwards import Recorder

log = logging.getLogger("pliant")

_STATE_FOLLOWS = ContextVar("_STATE_FOLLOWS", default=False)


@contextmanager
def state_follows() -> Generator[None]:
    """Inside, a method may be built on a network that has trained without a warning: its state, loaded next, knows the scale."""
    token = _STATE_FOLLOWS.set(True)
    try:
        yield
    finally:
        _STATE_FOLLOWS.reset(token)


KNOWN = ("module", "reset", *INITS)  # names of `init`


class Redraw:
    """Fresh incoming weights, zero outgoing weights, and the mean handed over.

    Args:
        init: "module" draws what a fresh `reset_parameters()` of the layer would (Linear and Conv: uniform
            +-1/sqrt(fan_in); RNN, LSTM, GRU: +-1/sqrt(hidden_size); any other layer: a copy of it is reset and read); a
            layer that has none (a raw parameter) starts like a Linear. A weight of a fresh network that started at another scale
            than its reset's is drawn by the model's own initializer, or at the scale found: see `fresh_weights.start`. The
            plan says so, and shows the standard deviation of what is drawn beside that of the weights as they are.
            Or "reset", by the resets whatever the weights look like; "kaiming", "xavier", "lecun", "default" as in
            `pliant.base.initial`; or a callable (parameter name, (count, *row shape), CPU generator) -> tensor of that shape.
        hand_over_mean: move a replaced unit's mean contribution into its consumer.
        biases: False leaves the biases of replaced units as they are.
        candidates: 0 draws each fresh unit once and gives it the bias 0; N takes the best of N draws and matches its bias, see
            `pliant.engine.candidates`, in groups where it can: the plan names the others.
    """

    def __init__(
        self, init: Init = "module", *, hand_over_mean: bool = True, biases: bool = True, candidates: int = 0
    ) -> None:
        if callable(init):
            called_with("init", init, "parameter name", "shape", "generator")
        elif not is_a(init, str) or init not in KNOWN:
            known = ", ".join(KNOWN)
            hint = did_you_mean(init, KNOWN)
            raise ValueError(
                f"unknown init {shown(init)}{hint}; known: {known}, or a callable (name, shape, generator)"
            )
        self.init = init
        self.hand_over_mean, self.biases = flag("hand_over_mean", hand_over_mean), flag("biases", biases)
        self.candidates = whole("candidates", candidates, 0)
        if self.candidates and not self.biases:
            raise ValueError("candidates come with biases of their own; not with biases=False")
        self._candidates: dict[BoundGroup, Candidates] = {}
        self.notes: list[str] = []  # for the plan: where a module's own reset is not what it started from

    def bind(
        self,
        names: NamedModel,
        groups: Sequence[BoundGroup],
        optimizers: Sequence[Optimizer],
        agree: Callable[[Sequence[Any]], list[Any]] = list,
    ) -> None:
        """Find out how the weights started: they are read here, once. `agree` makes the ranks of a model agree.

        A warning says which groups look as if they had started at another scale, if the network is no longer fresh.
        """
        self._groups = list(groups)
        self._parts = {part: group for group in groups for part in group.incoming_weights()}
        self._own = {part: _own(group, part) for group in groups for part, value in group.own if value is None}
        self._initializers = Initializers(names)
        self._compared = self._compare(agree) if self.candidates else []
        self.notes = self._compared
        if self.init not in ("module", "reset"):
            self._laws: dict[BoundSlice, Law] = {part: self._named(group, part) for part, group in self._parts.items()}
            return
        self._resets = {part: _reset(group, part) for part, group in self._parts.items()}
        if self.init == "reset":
            self._laws = {**self._resets}
            return
        found = started(names, groups, optimizers, self._resets, self._initializers)
        self._begin(agree([found.starts.get(part, RESET) for part in self._parts]))
        if found.trained is not None:
            doubt = self._doubt(found)
            self.notes = [doubt, *self._compared]
            if not _STATE_FOLLOWS.get():
                log.warning(doubt)

    def fresh_std(self, group: BoundGroup) -> float | None:
        """Standard deviation of the fresh first incoming weight; None for a callable `init`, which is not called to find out."""
        return self._laws[group.incoming_weights()[0]].std()

    # -- saving ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """How the incoming weights of each group started (not for an `init` of another name, which does not depend on it), and
        the entries of single units as they were when the method was attached, where fresh units get such.
        """
        borrowed: dict[str, Any] = {"borrowed": [law.entries for law in self._borrowed()]}
        if self._candidates:
            borrowed["candidates"] = [each.state_dict() for each in self._candidates.values()]
        if self.init != "module":
            return {"starts": None, **borrowed}
        starts = [[self._starts.get(part, RESET) for part in group.incoming_weights()] for group in self._groups]
        return {"starts": starts, **borrowed}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Draw as the saved method did. None is of an older version, which drew by resets alone.

        Raises `ValueError`, with nothing changed, if it drew by an initializer that the model does not have.
        """
        laws = self._borrowed()
        if state is None:
            state = {"starts": [[RESET]] * len(self._parts), "borrowed": [law.entries for law in laws]}
        if self.init == "module" and state["starts"] is not None:
            self._begin([start for starts in state["starts"] for start in starts])
        if len(entry(state, "borrowed", [])) != len(laws):
            raise ValueError(
                f"'borrowed' of this state holds entries of {len(state['borrowed'])} parameters, not of {len(laws)}"
            )
        for law, entries in zip(laws, state["borrowed"], strict=True):
            held = law.entries.clone()
            fill(held, entries, "borrowed")
            law.entries = held
        if self._candidates and "candidates" in state:  # else they begin without examples
            rings = entry(state, "candidates", [])
            if len(rings) != len(self._candidates):
                raise ValueError(
                    f"'candidates' of this state holds examples of {len(rings)} groups, not of {len(self._candidates)}"
                )
            for each, held in zip(self._candidates.values(), rings, strict=True):
                each.load_state_dict(held)

    @property
    def recorders(self) -> list[Recorder]:
        return [recorder for each in self._candidates.values() for recorder in each.recorders]

    def _compare(self, agree: Callable[[Sequence[Any]], list[Any]]) -> list[str]:
        """Set up the comparison of candidates, group by group; lines for the plan about those that cannot be compared."""
        obstacles = {group: found for group in self._groups if (found := obstacle(group)) is not None}
        self._candidates = {
            group: Candidates(group, self.candidates, agree) for group in self._groups if group not in obstacles
        }
        if not self._candidates:
            group, why = next(iter(obstacles.items()))
            raise ValueError(
                f"candidates={self.candidates}: there is no group whose fresh units can be compared, as '{group.name}': {why}. "
                f"Take candidates=0"
            )
        return [
            f"candidates: fresh units of '{group.name}' are drawn plainly: {why}" for group, why in obstacles.items()
        ]

    def _borrowed(self) -> list[Borrowed]:
        return [law for law in self._own.values() if isinstance(law, Borrowed)]

    # -- the phases --------------------------------------------------------------------------------------------

    def hand_over(self, group: BoundGroup, chosen: SelectedUnits, mean: Tensor) -> None:
        """Add the chosen units' mean contribution, `mean` (runs, units, columns), to what absorbs it."""
        for part, columns, absorber, sign in group.absorbers():
            weights = part.read(chosen)  # (count, columns, next units, ...)
            per_next = weights.flatten(3).sum(3) if weights.dim() > 3 else weights
            contribution = (per_next * chosen.read(mean)[:, columns].to(per_next.dtype).unsqueeze(-1)).sum(1)
            shares = torch.where(contribution.isfinite(), contribution, 0.0)
            if not chosen.all_at_full_strength:
                shares *= chosen.strength.to(shares.dtype).unsqueeze(-1)
            if sign < 0:
                shares = -shares
            _add_by_run(absorber, chosen, shares.to(absorber.dtype))

    def incoming(self, group: BoundGroup, chosen: SelectedUnits, generators: Sequence[torch.Generator]) -> None:
        """Redraw what computes the chosen units."""
        biases: Tensor | float = 0.0
        for part in group.incoming_weights():
            draw = partial(_fresh, self._laws[part], part, chosen, generators)
            if group in self._candidates:
                fresh, biases = self._candidates[group].best(draw)
            else:
                fresh = draw()
            part.write(chosen, fresh)
        for part in group.incoming_biases() if self.biases else ():
            part.write(chosen, biases)
        for part, value in group.own:
            part.write(chosen, _fresh(self._own[part], part, chosen, generators) if value is None else value)
        for part, vector, value in group.statistics():
            part.write(chosen, value, vector)

    def outgoing(self, group: BoundGroup, chosen: SelectedUnits) -> None:
        """Cut the chosen units off, so that their arrival changes nothing."""
        for part in group.outgoing:
            part.write(chosen, 0.0)

    # -- fresh weights -----------------------------------------------------------------------------------------

    def _named(self, group: BoundGroup, part: BoundSlice) -> Law:
        if callable(self.init):
            return Given(part, self.init)
        fan_in = prod(part.row)
        fan_out = group.units * fan_in // part.row[0]
        return Uniform(part, uniform_bound(self.init, fan_in, fan_out, gain=group.spec.gain))

    def _begin(self, starts: Sequence[Start]) -> None:
        """Draw each slice as it started, from here on; in the order of the groups and of their slices."""
        given = dict(zip(self._parts, starts, strict=True))
        own = {part: start for part, start in given.items() if start in (INITIALIZER, INITIALIZER_BY_UNIT)}
        for part in own:
            if self._initializers.of(part.part.parameter) is None:
                raise ValueError(
                    f"this state draws '{part.part.parameter}' by the model's own initializer, and nothing that holds it has one"
                )
        found = {part: start for part, start in given.items() if isinstance(start, float)}
        self._starts: dict[BoundSlice, Start] = {**own, **found}
        self._laws = {
            **self._resets,
            **{part: self._resets[part].at(std) for part, std in found.items()},
            **{
                part: Initializer(part, self._initializers, by_unit=start == INITIALIZER_BY_UNIT)
                for part, start in own.items()
            },
        }
        by_name: dict[str, list[BoundSlice]] = {}
        for part in own:
            by_name.setdefault(str(self._initializers.of(part.part.parameter)), []).append(part)
        self.notes = [
            *self._compared,
            *(f"init: {name} draws fresh units of {self._named_groups(parts)}" for name, parts in by_name.items()),
        ]
        if found:
            self.notes.append(
                f"init: the scale found at construction is that of fresh units of {self._named_groups(found)}"
            )

    def _doubt(self, found: Started) -> str:
        part, std, reset = found.differing[0]
        groups = self._named_groups([each for each, *_ in found.differing])
        return (
            f"init: fresh units of {groups} are drawn by their modules' reset (standard deviation {reset:.3g} in "
            f"'{part.part.parameter}', whose weights have {std:.3g}), because the scale at which the network started is not "
            f"known any more: {found.trained}. If it was not the reset's, say so with init= (a name or a function), or load the "
            f"state_dict() of the method that was attached before; if it was, say init='reset'"
        )

    def _named_groups(self, parts: Iterable[BoundSlice]) -> str:
        names = [*dict.fromkeys(f"'{self._parts[part].name}'" for part in parts)]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more groups" if len(names) > 3 else "")


def _fresh(law: Law, part: BoundSlice, chosen: SelectedUnits, generators: Sequence[torch.Generator]) -> Tensor:
    """(count, repeat, *row): every run draws its own from its generator, on the CPU, so that devices agree."""
    drawn: list[Tensor] = []
    first = 0
    for count, generator in zip(chosen.counts, generators, strict=True):
        if count:
            drawn.append(law.draw(chosen, slice(first, first + count), generator))
        first += count
    fresh = drawn[0] if len(drawn) == 1 else torch.cat(drawn)
    return fresh.to(part.parameter.dtype).to(part.parameter.device, non_blocking=True)


def _own(group: BoundGroup, part: BoundSlice) -> Reset | Borrowed:
    """Where entries that are one unit's alone start: at their module's reset, else where another unit's are now."""
    owner, leaf = group.owner(part.part), part.part.parameter.rpartition(".")[2]
    return Reset(part, owner) if resets(owner, leaf) else Borrowed(part)


def _reset(group: BoundGroup, part: BoundSlice) -> Uniform | Reset:
    """What the module that holds the slice starts from by itself; a raw parameter starts like a Linear."""
    owner = group.owner(part.part)
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        return Uniform(part, 1.0 / sqrt(owner.hidden_size))
    if like_linear(owner) is None and resets(owner, part.part.parameter.rpartition(".")[2]):
        return Reset(part, owner)
    transposed = isinstance(owner, _ConvTransposeNd)  # torch takes outputs times kernel for its fan-in
    fan_in = prod(part.parameter.shape[1:] if transposed else part.row)
    return Uniform(part, uniform_bound("default", fan_in, 1, gain=1.0))


def _add_by_run(absorber: Tensor, chosen: SelectedUnits, shares: Tensor) -> None:
    """Row r of `absorber` (runs, next units) gains the shares of run r's units, in an order that does not vary."""
    first = 0
    for run, count in enumerate(chosen.counts):
        if count:
            absorber[run] += shares[first : first + count].sum(0)
        first += count
