"""Weight clipping: no weight leaves a multiple of the interval that it was drawn from.

    θ <- clip(θ, -κ s, κ s)        after every step; s = 1 / √fan_in of the layer, for its weights and its bias

κ is `kappa`. s is the bound of the uniform distribution that torch's layers start from (1 / √hidden_size in recurrent ones). So
weights cannot grow without end, while those inside are not pulled anywhere.

Source: Elsayed et al., RLC 2024 (arXiv 2407.01704), κ 1 to 2 and more. Their released codes have two bounds: this one, in the
README and for PPO, and 1 / √(fan_in + fan_out) for weights with 1 for biases, in the supervised experiments; we follow the first,
which is the article's. Vectors of layers without a matrix (scales and shifts of norms), of which neither speaks, are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import Unpack

from torch import Tensor, nn

from pliant.base.arguments import positive
from pliant.engine.after_step import AfterStep, Period
from pliant.engine.attached import Optimizers
from pliant.engine.whole_parameters import Place


class WeightClipping(AfterStep):
    """Clip parameters after every `period` optimizer steps, or when `apply()` says so.

    Args:
        model, optimizer: the network and what steps it, or several.
        kappa: κ, above 0.
        period: also `parameters`, `runs`, `attach` and the rest of `pliant.engine.after_step.AfterStep`; it draws nothing. Raises
            `ValueError` for what does not fit.

    >>> import torch
    >>> model = nn.Linear(4, 2)
    >>> _ = model.weight.data.fill_(3.0)
    >>> clipping = WeightClipping(model, kappa=2.0, period=None)
    >>> clipping.apply()
    >>> model.weight.max().item()  # 2 / √4
    1.0
    """

    draws = "clipping"

    def __init__(
        self, model: nn.Module, optimizer: Optimizers | None = None, *, kappa: float = 1.0, **period: Unpack[Period]
    ) -> None:
        self.kappa = positive("kappa", kappa)
        self._all = period.get("parameters") is None
        super().__init__(model, optimizer, **period)

    def check_fit(self) -> None:
        super().check_fit()
        bounds = {place: initial_bound(place, stacked=self.runs is not None) for place in self.places}
        without = [place.name for place, bound in bounds.items() if bound is None]
        if without and not self._all:
            raise ValueError(
                f"'{without[0]}' has no initial bound, since its layer has no matrix: leave it out of parameters"
            )
        self._bounds = {place.parameter: bound for place, bound in bounds.items() if bound is not None}
        self.places = [place for place in self.places if place.parameter in self._bounds]
        if not self.places:
            raise ValueError("no parameters are left to clip: no layer has a matrix")

    def act(self, places: Sequence[Place], keys: Sequence[int]) -> None:
        for parameter in (place.parameter for place in places if place.parameter.requires_grad):
            bound = self.kappa * self._bounds[parameter]
            parameter.clamp_(-bound, bound)


def initial_bound(place: Place, *, stacked: bool) -> float | None:
    """s of a parameter; None if its layer has no matrix. `stacked`: axis 0 is one of several runs.

    >>> layer = nn.Conv2d(3, 5, 2)
    >>> initial_bound(Place("bias", "bias", layer.bias, layer, "bias", 0), stacked=False) == 1 / sqrt(3 * 2 * 2)
    True
    """
    if isinstance(place.home, nn.RNNBase | nn.RNNCellBase):
        return 1.0 / sqrt(place.home.hidden_size)
    lead = 2 if stacked else 1
    weight = place.parameter if place.parameter.dim() > lead else getattr(place.home, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() <= lead:
        return None
    return 1.0 / sqrt(prod(weight.shape[lead:]))
