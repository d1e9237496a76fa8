"""Shrink and perturb.

    θ <- s θ + σ ξ        s `shrink`,  σ `noise_std`,  ξ ~ N(0, 1) or a fresh draw of the network;  every `period` steps

Published forms, which are not interchangeable:

    Ash and Adams       at each arrival of data: s < 1, then θ + N(0, σ²)     shrink=s, noise_std=σ, period=None, `apply()`
    Dohare et al.       weight decay in the optimizer, N(0, σ²) every step    shrink=1, noise_std=σ (not times the step size)
    UPGD's baseline     (1 - α d) θ and α σ ξ every step                      shrink=1 - α d, noise_std=α σ
    L2 Init's baseline  (1 - q) θ and σ times fresh weights every step        shrink=1 - q, noise_std=σ, source="init"
    SR-SPR              s θ + (1 - s) fresh weights at events                 shrink=s, noise_std=1 - s, source="init"

Sources: Ash and Adams, NeurIPS 2020; Dohare et al., Nature 632 (2024), released code: weights and biases of weight layers
(image problems, where there are no others), every parameter, batch norms' too, on class-incremental CIFAR-100. The same numbers
come on every device (`pliant.engine.normal_stream`). In half precision a sum below half a unit in the last place is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from pliant.base.arguments import number
from pliant.base.choices import one_of
from pliant.base.deprecation import renamed_attributes
from pliant.engine.after_step import AfterStep, Period
from pliant.engine.attached import Optimizers
from pliant.engine.fresh_copy import FreshCopy
from pliant.engine.normal_stream import normal_like
from pliant.engine.whole_parameters import Place


@renamed_attributes({"perturb": "apply"})
class ShrinkAndPerturb(AfterStep):
    """Shrink parameters and add noise to them, after every `period` optimizer steps or when `apply()` says so.

    Args:
        model, optimizer: the network and what steps it, or several, each with its own count of steps; None if `period` is.
        noise_std: σ, standard deviation of the noise, or what a fresh draw is multiplied by.
        shrink: s, in [0, 1]; 1 leaves the shrinking to the optimizer's weight decay.
        source: "normal", or "init": what a fresh `reset_parameters()` of each layer draws (1 for the scale of a norm).
        period: also `parameters` (biases and norm parameters too, unless you say otherwise), `runs`, `seed`, `attach`,
            `process_group`: as in `pliant.engine.after_step.AfterStep`. Raises `ValueError` for what does not fit.

    >>> model = nn.Linear(3, 2)
    >>> ShrinkAndPerturb(model, noise_std=0.0, shrink=0.0, period=None).apply()
    >>> model.weight.any().item()
    False
    """

    draws = "perturbation"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers | None = None,
        *,
        noise_std: float,
        shrink: float = 1.0,
        source: Literal["normal", "init"] = "normal",
        **period: Unpack[Period],
    ) -> None:
        if one_of("source", source, ("normal", "init")) == "init" and period.get("runs") is not None:
            raise ValueError("source='init' draws a whole network at a time and knows no runs; use source='normal'")
        self.noise_std, self.shrink, self.source = (
            number("noise_std", noise_std),
            number("shrink", shrink, 0.0, 1.0),
            source,
        )
        self._fresh = FreshCopy(model) if source == "init" else None
        super().__init__(model, optimizer, **period)

    def act(self, places: Sequence[Place], keys: Sequence[int]) -> None:
        parameters = {place.path: place.parameter for place in places}
        noise: Sequence[Tensor] = [*parameters.values()]  # where there is none, of no use
        if self.noise_std:
            noise = normal_like(noise, keys) if self._fresh is None else self._fresh.numbers_like(parameters, keys[0])
        pairs = [(θ, ξ) for θ, ξ in zip(parameters.values(), noise, strict=True) if θ.requires_grad]
        shrink_and_perturb([θ for θ, _ in pairs], [ξ for _, ξ in pairs], shrink=self.shrink, noise_std=self.noise_std)

    def check_fit(self) -> None:
        super().check_fit()
        if self._fresh is not None:
            self._fresh.draw(0, [place.path for place in self.places])

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "source": self.source}


@torch.no_grad()
def shrink_and_perturb(parameters: list[Tensor], noise: list[Tensor], *, shrink: float, noise_std: float) -> None:
    """`shrink` θ + `noise_std` ξ in the place of each θ.

    >>> weight = torch.tensor([2.0, 4.0])
    >>> shrink_and_perturb([weight], [torch.tensor([1.0, -1.0])], shrink=0.5, noise_std=0.1)
    >>> weight
    tensor([1.1000, 1.9000])
    """
    if parameters and shrink != 1.0:
        torch._foreach_mul_(parameters, shrink)  # pyright: ignore
    if parameters and noise_std:
        torch._foreach_add_(parameters, noise, alpha=noise_std)  # pyright: ignore
