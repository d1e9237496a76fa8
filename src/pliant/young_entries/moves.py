"""Moves of young entries towards what the coming step averages, by the weight W that its shared count leaves out.

    m <- m + W (s1 g - m),    v <- v + W (s2 g² - v),    x <- (1 - W) x,    s = 1 - β^(t-1)

Time goes into the number of operations more than into their size. So whole parameters are moved, W being 0 at most entries,
unless they are large and few of their entries are young.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from pliant.units.entries import BoundSlice
from pliant.young_entries.averages import MissingWeights

_foreach_lerp_, _foreach_addcmul_, _foreach_mul, _foreach_mul_ = (
    getattr(cast(Any, torch), f"_foreach_{name}") for name in ("lerp_", "addcmul_", "mul", "mul_")
)


class Piece:
    """Entries at `places` along `axis` of a parameter, or all of them, and W from each set of units they lie between."""

    def __init__(
        self,
        parameter: nn.Parameter,
        shares: Sequence[Tensor],
        axis: int = 0,
        places: Tensor | None = None,
        splits: Sequence[BoundSlice] = (),
    ) -> None:
        self.parameter, self._shares = parameter, shares
        self._axis, self._places, self._splits = axis, places, splits
        self.share = shares[0]
        self.size = parameter.numel() if places is None else len(places)
        self.derived = len(shares) > 1 or places is not None or bool(splits)
        self._room: Tensor | None = None  # kept: fresh memory costs more than the comparison

    def renew(self) -> None:
        """W of each entry, from that of the positions it lies between."""
        shares = self._shares
        if self._splits:
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
        """The entries: `tensor` itself, or a copy that `put` writes back."""
        return tensor if self._places is None else tensor.index_select(self._axis, self._places)

    def put(self, tensor: Tensor, entries: Tensor) -> None:
        if self._places is not None:
            tensor.index_copy_(self._axis, self._places, entries)


@dataclass
class Move:
    """Of one average: the entries to be moved, and where W comes from."""

    key: str  # of the state
    maximum: str | None
    squared: bool
    weights: MissingWeights
    places: Tensor  # of each position in the table of weights
    shares: Tensor  # W of each position, of which the pieces hold views
    pieces: Sequence[Piece]

    def find_shares(self, ahead: int, count: float | Tensor, kept: Tensor | None) -> None:
        """W for this step; 0 if it is not `kept`."""
        self.weights.find(self.places, ahead, count, self.shares)
        if kept is not None:
            self.shares *= kept
        for piece in self.pieces:
            if piece.derived:
                piece.renew()

    def grow(self, steps: Tensor) -> None:
        """Positions are older by a number that the host does not know."""
        self.places.add_(steps).clamp_(max=self.weights.ripe)

    def apply(
        self,
        states: dict[nn.Parameter, dict[str, Any]],
        gradients: Callable[[Sequence[Piece]], list[Tensor]],
        scales: float | list[float | Tensor],
    ) -> None:
        """Move the entries; `scales` are 1 - β^count, one for all pieces or one each."""
        targets = gradients(self.pieces)
        if self.squared:
            targets = _foreach_mul(targets, targets)
        if scales != 1.0:
            targets = _foreach_mul(targets, scales)
        held = [states[piece.parameter] for piece in self.pieces]
        shares = [piece.share for piece in self.pieces]
        entries = [piece.of(state[self.key]) for piece, state in zip(self.pieces, held, strict=True)]
        _foreach_lerp_(entries, targets, shares)
        self._put(self.key, held, entries)
        if self.maximum is not None and self.maximum in held[0]:
            entries = [piece.of(state[self.maximum]) for piece, state in zip(self.pieces, held, strict=True)]
            _foreach_addcmul_(entries, entries, shares, value=-1.0)
            self._put(self.maximum, held, entries)

    def _put(self, key: str, states: Sequence[dict[str, Any]], entries: Sequence[Tensor]) -> None:
        for number in reversed(range(len(entries))):
            self.pieces[number].put(states[number][key], entries[number])


def _unsplit(part: BoundSlice, values: Tensor) -> Tensor:
    """The same against the parameter as it is, where the slice sees it in another shape."""
    if part.part.shape is None:
        return values
    runs = values.shape[:1] if part.stacked else ()
    return values.expand(*runs, *part.part.shape).reshape(part.parameter.shape)
