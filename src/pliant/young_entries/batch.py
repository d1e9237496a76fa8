"""Parameters that one optimizer steps alike: their ages, and what is planned for the next steps.

What is to be moved, and where W is looked up, holds until a unit is reset or, by the host's count, some are young no
more. Until then a step costs its moves and little else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.young_entries.ages import Ages
from pliant.young_entries.averages import AHEAD, Averages, MissingWeights
from pliant.young_entries.moves import Move, Piece

States = dict[nn.Parameter, dict[str, Any]]


class Batch:
    """Parameters with common settings, device and dtype. Their ages lie in one tensor, and so does their W."""

    def __init__(self, averages: Averages, settings: dict[str, Any], members: list[Ages]) -> None:
        self.averages, self.settings, self.members = averages, settings, members
        like = members[0].parameter
        sizes = [member.size for member in members]
        self._ages = torch.empty(sum(sizes), dtype=torch.int64, device=like.device)
        self._shares = torch.zeros(2, sum(sizes), dtype=like.dtype, device=like.device)
        self._owner = torch.arange(len(members)).repeat_interleave(torch.tensor(sizes)).to(like.device)
        ages, shares = self._ages.split(sizes), self._shares.split(sizes, dim=1)
        for member, own_ages, own_shares in zip(members, ages, shares, strict=True):
            member.place(own_ages, own_shares)
        self._weights: list[MissingWeights | None] = [None, None]
        self._ahead = 0  # steps that are not in the ages yet
        self._forget_plan()

    def in_place(self) -> bool:
        """Whether parameters are still where and what they were."""
        like = self.members[0].parameter
        return like.device == self._ages.device and like.dtype == self._shares.dtype

    def settle(self) -> None:
        """Bring ages up to date, to be read or changed."""
        if self._ahead:
            self._grow(self._ahead, self._ahead)
            self._ahead = 0
        self._forget_plan()

    # -- what is planned ----------------------------------------------------------------------------------------------

    def _forget_plan(self) -> None:
        self._stepped: list[Ages] = []
        self._betas = (0.0, 0.0)
        self._moves: list[Move] = []
        self._agree = False  # on a count that the host knows
        self._until = 0  # steps for which it holds
        self._idle = False  # no entry is young

    def _plan(self, stepped: list[Ages], states: States, betas: tuple[float, float]) -> None:
        """What these parameters have to be moved, until the first sets of units are young no more."""
        self.settle()
        self._stepped, self._betas = stepped, betas
        self._idle = not any(left for member in self.members for left in member.left())
        self._until = min([AHEAD, *(left for member in stepped for left in member.left() if left)])
        keys = (self.averages.first, None), (self.averages.second, self.averages.maximum)
        for row, (key, maximum) in enumerate(keys):
            young = [member for member in stepped if member.is_young(row)]
            if key is not None and young:
                weights = self._weights_of(row, betas[row])
                pieces = [piece for member in young for piece in member.pieces(row, weights.ripe)]
                places, shares = weights.places(self._ages), self._shares[row]
                self._moves += [Move(key, maximum, row == 1, weights, places, shares, pieces)] if pieces else []
        counts = list(self._counts(states).values()) if self._moves else []
        self._agree = all(isinstance(count, float) and count == counts[0] for count in counts)

    def _weights_of(self, row: int, beta: float) -> MissingWeights:
        weights = self._weights[row]
        if weights is None or weights.beta != beta:
            weights = self._weights[row] = MissingWeights(beta, self._shares.dtype, self._shares.device)
        return weights

    # -- before each step ---------------------------------------------------------------------------------------------

    def make_up(self, optimizer: Optimizer) -> None:
        """Move moments of young entries by the shares that the coming step leaves out, and count the step."""
        if self._idle:
            return
        stepped, states = self._about_to_step(cast(States, optimizer.state))
        betas = self.averages.betas(self.settings)
        if self._ahead >= self._until or betas != self._betas or stepped != self._stepped:
            self._plan(stepped, states, betas)
        kept = _kept(optimizer, self._ages.device)
        if self._moves:
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
        first = self.averages.count_of(self.settings, next(iter(states.values()))) if self._agree else None
        counts = {} if self._agree else self._counts(states)
        by_position = first if first is not None else self._by_position(counts)

        def gradients(pieces: Sequence[Piece]) -> list[Tensor]:
            return self._gradients(pieces, optimizer, kept)

        for move in self._moves:
            scale = move.weights.scale
            move.find_shares(self._ahead, by_position, kept)
            each = scale(first) if first is not None else [scale(counts[piece.parameter]) for piece in move.pieces]
            move.apply(states, gradients, each)

    def _counts(self, states: States) -> dict[nn.Parameter, float | Tensor]:
        """Steps so far."""
        return {parameter: self.averages.count_of(self.settings, state) for parameter, state in states.items()}

    def _by_position(self, counts: dict[nn.Parameter, float | Tensor]) -> Tensor:
        """Steps so far of the parameter of each position."""
        each = [torch.as_tensor(counts.get(member.parameter, 0.0)) for member in self.members]
        there = [count.to(self._ages.device, torch.float32).reshape(()) for count in each]
        return torch.stack(there)[self._owner]

    def _gradients(self, pieces: Sequence[Piece], optimizer: Optimizer, kept: Tensor | None) -> list[Tensor]:
        """What the optimizer averages: sign and weight decay are in it, a GradScaler's factor is not."""
        gradients = [piece.of(cast(Tensor, piece.parameter.grad)) for piece in pieces]
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

    # -- the count ----------------------------------------------------------------------------------------------------

    def _count_step(self, kept: Tensor | None) -> None:
        if kept is None:
            self._ahead += 1
            return
        taken = kept.to(torch.int64)  # the host does not know: it counts the step as taken
        self._grow(taken, 1)
        self._until -= 1
        for move in self._moves:
            move.grow(taken)

    def _grow(self, steps: int | Tensor, at_most: int) -> None:
        if self._stepped == self.members:
            self._ages += steps
        for member in self._stepped:
            member.pass_by(at_most)
            if self._stepped != self.members:
                member.grow(steps)


def _kept(optimizer: Optimizer, device: torch.device) -> Tensor | None:
    """Whether a fused step under a GradScaler will be taken; None: no one asks."""
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    return None if found_inf is None else found_inf.to(device).reshape(()) == 0
