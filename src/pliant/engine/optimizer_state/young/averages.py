"""What an optimizer averages, and what the newest value counts for.

    w(τ) = (1 - β) / (1 - β^τ)              in an average of τ values
    W    = (w(τ) - w(t)) / (1 - w(t))       what a step with w(t) leaves out, made up for before it
    c    = (1 - β^t) / (1 - β^τ)            the scale that a moment is kept in, so that t is the right count
    R    = c(new β) / c(old β)              what brings it into that of a changed β

W of an entry depends on its age alone once the shared count t is of age, and is then looked up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, expm1, log
from typing import Any

import torch
from torch import Tensor

from pliant.engine.averaging import weight_seen

AHEAD = 64  # steps that can be taken on the same places in the table


@dataclass(frozen=True)
class Averages:
    """What a kind of optimizer averages and corrects by a shared count: state keys, and where the count is."""

    first: str | None  # average of gradients, by betas[0]
    second: str | None  # average of their squares, by betas[1]
    maximum: str | None = None  # of `second`
    count: str = "step"  # key of the state, or of the settings
    decay_in_gradient: bool | None = None  # whether weight decay is; None: unless `decoupled_weight_decay`

    def betas(self, settings: dict[str, Any]) -> tuple[float, float]:
        """β of both averages; 0 for one that is not kept."""
        first, second = settings["betas"]
        return float(first) if self.first else 0.0, float(second) if self.second else 0.0

    def count_of(self, settings: dict[str, Any], state: dict[str, Any]) -> float | Tensor:
        """Steps so far: a number if the host knows it, else a scalar on the device."""
        held: Any = state[self.count] if self.count in state else settings[self.count]
        return held.detach() if isinstance(held, Tensor) and held.device.type != "cpu" else float(held)

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


def change_of_scale(steps: Tensor, count: float | Tensor, old: float, new: float, dtype: torch.dtype) -> Tensor:
    """R of moments that have averaged `steps` values each beside a shared count of `count` (1 or more), by age.

    >>> change_of_scale(torch.tensor([1, 2, 9]), 2.0, old=0.5, new=0.75, dtype=torch.float64)
    tensor([1.1667, 1.0000, 1.0000], dtype=torch.float64)
    """
    shared = torch.as_tensor(count, device=steps.device).to(steps.dtype)
    own = torch.minimum(steps, shared).clamp_(min=1)
    kind = _wide(dtype)
    of_new = weight_seen(shared, new, kind) / weight_seen(own, new, kind)
    of_old = weight_seen(shared, old, kind) / weight_seen(own, old, kind)
    return (of_new / of_old).to(dtype)


@lru_cache(maxsize=64)
def steps_of_youth(beta: float, dtype: torch.dtype) -> int:
    """Steps until 1 - β^τ rounds to 1, 16,629 for β = 0.999 in float32; 0 if nothing is averaged."""
    return 0 if beta == 0.0 else ceil(log(torch.finfo(_wide(dtype)).eps / 2) / log(beta)) + 1


class MissingWeights:
    """W by age, for one β, of the positions of some parameters.

    Ages grow by one per step. So positions keep their places while the table moves on under them, for up to `AHEAD` steps, and
    a step takes one lookup.
    """

    def __init__(self, beta: float, dtype: torch.dtype, device: torch.device) -> None:
        self.beta = beta
        self.converged_after = steps_of_youth(beta, dtype)
        newest = weight_of_newest(torch.arange(1, self.converged_after + AHEAD + 1, device=device), beta, _wide(dtype))
        newest[self.converged_after :] = 1.0 - beta  # of age, or never young
        of_age = ((newest - (1.0 - beta)) / beta).clamp_(min=0.0).to(dtype)  # W beside a shared average that is of age
        self._newest = list(newest.unfold(0, self.converged_after + 1, 1))  # from one entry further on each
        self._of_age = list(of_age.unfold(0, self.converged_after + 1, 1))

    def locate(self, ages: Tensor) -> None:
        """Find the places of these ages."""
        self._places = ages.clamp(max=self.converged_after)

    def grow(self, steps: Tensor) -> None:
        """Positions are older by a number that the host does not know."""
        self._places.add_(steps).clamp_(max=self.converged_after)

    def find(self, ahead: int, count: float | Tensor, out: Tensor) -> None:
        """W of the step after `count` (a number or one for each position), `ahead` steps after the look."""
        if isinstance(count, float) and count >= self.converged_after:
            torch.index_select(self._of_age[ahead], 0, self._places, out=out)
            return
        shared: float | Tensor
        scale: float | Tensor
        if isinstance(count, Tensor):
            shared = weight_of_newest(count + 1.0, self.beta, self._newest[ahead].dtype)
            scale = torch.where(count > 0, 1.0 / (1.0 - shared), 0.0)
        else:
            shared, scale = self._beside(count)
        out.copy_(self._newest[ahead].index_select(0, self._places).sub_(shared).clamp_(min=0.0).mul_(scale))

    def _beside(self, count: float) -> tuple[float, float]:
        """W = max(w - shared, 0) x scale beside a shared average that is not of age: these two."""
        shared = (1.0 - self.beta) / -expm1((count + 1.0) * log(self.beta))
        return shared, 1.0 / (1.0 - shared) if count else 0.0

    def looked_up(self, ahead: int, count: float) -> tuple[Tensor, Tensor, float, float]:
        """What `find` computes from where the host knows the count: W = max(table[places] - shared, 0) x scale, these four."""
        if count >= self.converged_after:
            return self._of_age[ahead], self._places, 0.0, 1.0
        return self._newest[ahead], self._places, *self._beside(count)

    def scale(self, count: float | Tensor) -> float | Tensor | None:
        """1 - β^count, the shared correction; None once it is 1."""
        return None if isinstance(count, float) and count >= self.converged_after else 1.0 - self.beta**count


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
