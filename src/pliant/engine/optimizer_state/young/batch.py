"""Parameters that one optimizer steps with the same settings: the ages of their entries, and the plan of the next steps.

Which entries are to be moved, and where their weights W are looked up, holds until a unit is reset or, by the host's count, some
entries have converged. Until then a step costs the moves themselves and little else.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.engine.optimizer_state.young.ages import Ages
from pliant.engine.optimizer_state.young.averages import (
    AHEAD,
    Averages,
    MissingWeights,
    change_of_scale,
    steps_of_youth,
)
from pliant.engine.optimizer_state.young.compiled import MovesInOneCall, in_one_call
from pliant.engine.optimizer_state.young.moves import AverageTarget, Plan, Prepare
from pliant.engine.taken_steps import will_be_taken

States = dict[nn.Parameter, dict[str, Any]]


class Batch:
    """Parameters with common settings, device and dtype. Their ages lie in one tensor, and so does their W."""

    def __init__(self, averages: Averages, settings: dict[str, Any], members: list[Ages], compiled: Any = None) -> None:
        self.averages, self.settings, self.members = averages, settings, members
        self._compiled = compiled  # the module of `pliant.engine.compiled.kernels()`
        like = members[0].parameter
        sizes = [member.size for member in members]
        self._ages = torch.empty(sum(sizes), dtype=torch.int64, device=like.device)
        self._shares = torch.zeros(2, sum(sizes), dtype=like.dtype, device=like.device)
        self._owner = torch.arange(len(members)).repeat_interleave(torch.tensor(sizes)).to(like.device)
        self._where: dict[Ages, slice] = {}
        first = 0
        for member, size in zip(members, sizes, strict=True):
            where = self._where[member] = slice(first, first + size)
            member.place(self._ages[where], self._shares[:, where])
            first += size
        self._weights: list[MissingWeights | None] = [None, None]
        self._ahead = 0  # steps that are not in the ages yet
        self._unsure = 0  # steps of which only the device knows whether they were taken
        self._forget_plan()

    def in_place(self) -> bool:
        """Whether parameters are still where and what they were."""
        like = self.members[0].parameter
        return like.device == self._ages.device and like.dtype == self._shares.dtype

    def flush(self) -> None:
        """Bring ages up to date, to be read or changed."""
        if self._ahead:
            self._grow(self._ahead, self._ahead)
            self._ahead = 0
        self._forget_plan()

    # -- what is planned ----------------------------------------------------------------------------------------------

    def _forget_plan(self) -> None:
        self._stepped: list[Ages] = []
        self._betas = (0.0, 0.0)
        self._plans: list[Plan] = []
        self._in_one_call: MovesInOneCall | None = None
        self._agree = False  # on a count that the host knows
        self._until = 0  # steps for which it holds

    def _plan(self, stepped: list[Ages], states: States, betas: tuple[float, float]) -> None:
        """What these parameters have to be moved, until the first sets of units are young no more."""
        self.flush()
        self._stepped, self._betas = stepped, betas
        self._follow(stepped, states, betas)
        if self._unsure and any(0 < left <= self._unsure for member in stepped for left in member.left()):
            for member in self.members:
                member.recount(self._converged_after(member.betas or betas))
            self._unsure = 0
        self._until = min([AHEAD, *(left for member in stepped for left in member.left() if left)])
        keys = (self.averages.first, None), (self.averages.second, self.averages.maximum)
        for row, (key, maximum) in enumerate(keys):
            young = [member for member in stepped if member.is_young(row)]
            if key is not None and young:
                weights = self._weights_of(row, betas[row])
                pieces = [piece for member in young for piece in member.pieces(row, weights.converged_after)]
                weights.locate(self._ages)
                self._plans += [Plan(key, maximum, row == 1, weights, self._shares[row], pieces)] if pieces else []
        counts = list(self._counts(states).values()) if self._plans else []
        self._agree = all(isinstance(count, float) and count == counts[0] for count in counts)
        self._in_one_call = in_one_call(self._compiled, self._plans, list(states)) if self._agree else None

    def _follow(self, stepped: list[Ages], states: States, betas: tuple[float, float]) -> None:
        """Bring moments that were averaged with other betas into the scale of these."""
        for member in stepped:
            before, member.betas = member.betas or betas, betas
            count = self.averages.count_of(self.settings, states[member.parameter])
            if before == betas or (isinstance(count, float) and not count):
                continue
            member.ripen(
                [max(pair) for pair in zip(self._converged_after(before), self._converged_after(betas), strict=True)]
            )
            for row, (old, new) in enumerate(zip(before, betas, strict=True)):
                if old != new and member.is_young(row):
                    self._rescale(member, row, states[member.parameter], count, old, new)
            member.ripen(self._converged_after(betas))

    def _rescale(
        self, member: Ages, row: int, state: dict[str, Any], count: float | Tensor, old: float, new: float
    ) -> None:
        where, dtype = self._where[member], self._shares.dtype
        self._shares[row, where] = change_of_scale(self._ages[where], count, old, new, dtype)
        keys = (self.averages.first,), (self.averages.second, self.averages.maximum)
        moments = [state[key] for key in keys[row] if key in state]
        for piece in member.pieces(row, max(self._converged_after((old, new)))):
            piece.rescale(moments, torch.maximum if new > old else torch.minimum)

    def _converged_after(self, betas: tuple[float, float]) -> list[int]:
        """For both averages, the steps after which an entry is young no more."""
        return [steps_of_youth(beta, self._shares.dtype) for beta in betas]

    def _weights_of(self, row: int, beta: float) -> MissingWeights:
        weights = self._weights[row]
        if weights is None or weights.beta != beta:
            weights = self._weights[row] = MissingWeights(beta, self._shares.dtype, self._shares.device)
        return weights

    # -- before each step ---------------------------------------------------------------------------------------------

    def make_up(self, optimizer: Optimizer) -> None:
        """Move moments of young entries by the shares that the coming step leaves out, and count the step."""
        taken = will_be_taken(optimizer)
        if taken is False:
            return
        stepped, states = self._about_to_step(cast(States, optimizer.state))
        betas = self.averages.betas(self.settings)
        if self._ahead >= self._until or betas != self._betas or stepped != self._stepped:
            self._plan(stepped, states, betas)
        kept = taken.to(self._ages.device) if isinstance(taken, Tensor) else None
        if self._plans:
            self._move(optimizer, states, kept)
        self._count_step(kept)

    def _about_to_step(self, known: States) -> tuple[list[Ages], States]:
        """Parameters with a gradient. The first step of one brings its state about, and needs no help."""
        stepped: list[Ages] = []
        states: States = {}
        for member in self.members:
            state = known.get(member.parameter) if member.parameter.grad is not None else None
            if state:
                stepped.append(member)
                states[member.parameter] = state
        return stepped, states

    def _move(self, optimizer: Optimizer, states: States, kept: Tensor | None) -> None:
        first = next(iter(states.values()))
        counts = {} if self._agree else self._counts(states)
        count = self.averages.count_of(self.settings, first) if self._agree else self._by_position(counts)
        prepare = self._prepare(optimizer, kept)
        one_call = self._in_one_call if prepare is None and not isinstance(count, Tensor) else None
        if one_call is not None and one_call.move(self._ahead, cast(float, count), states):
            return
        for plan in self._plans:
            plan.find_shares(self._ahead, count, kept)
            towards = AverageTarget(plan.squared, plan.weights.scale(count) if self._agree else None, prepare)
            for piece in plan.pieces:
                if not self._agree:
                    towards.scale = plan.weights.scale(counts[piece.parameter])
                state = states[piece.parameter]
                piece.move(towards, state[plan.key], state.get(plan.maximum) if plan.maximum else None)

    def _counts(self, states: States) -> dict[nn.Parameter, float | Tensor]:
        """Steps so far."""
        return {parameter: self.averages.count_of(self.settings, state) for parameter, state in states.items()}

    def _by_position(self, counts: dict[nn.Parameter, float | Tensor]) -> Tensor:
        """Steps so far of the parameter of each position."""
        each = [torch.as_tensor(counts.get(member.parameter, 0.0)) for member in self.members]
        there = [count.to(self._ages.device, torch.float32).reshape(()) for count in each]
        return torch.stack(there)[self._owner]

    def _prepare(self, optimizer: Optimizer, kept: Tensor | None) -> Prepare | None:
        """What the optimizer averages: sign and weight decay are in it, a GradScaler's factor is not. None: g as it is."""
        decay, negative = self.averages.decay(self.settings), bool(self.settings.get("maximize", False))
        scale: Tensor | None = getattr(optimizer, "grad_scale", None)
        if kept is None and scale is None and not decay and not negative:
            return None
        factor = None if scale is None else scale.to(self._ages.device)

        def prepared(gradient: Tensor, parameter: Tensor) -> Tensor:
            if factor is not None:
                gradient = gradient / factor
            if kept is not None:
                gradient = torch.where(kept, gradient, 0.0)
            if negative:
                gradient = -gradient
            return gradient.add(parameter, alpha=decay) if decay else gradient

        return prepared

    # -- the count ----------------------------------------------------------------------------------------------------

    def _count_step(self, kept: Tensor | None) -> None:
        if kept is None:
            self._ahead += 1
            return
        taken = kept.to(torch.int64)
        self._grow(taken, 0)
        self._unsure += 1
        self._until -= 1
        for plan in self._plans:
            plan.weights.grow(taken)

    def _grow(self, steps: int | Tensor, at_least: int) -> None:
        if self._stepped == self.members:
            self._ages += steps
        for member in self._stepped:
            member.pass_by(at_least)
            if self._stepped != self.members:
                member.grow(steps)
