"""Selective weight reinitialization: the least useful weights of each parameter are drawn anew, weight by weight.

    u = |w g| (`utility="gradient"`) or |w| ("magnitude")        every `period` steps:
    w <- fresh weight where u <= `tau` x mean of u over the parameter

g is the gradient of the step just made, w the weight after it. |w g| is to first order what removing the weight would do to the
loss. Beside units that are silent all of their weights have u = 0, and are drawn anew at every event.

Source: Hernandez-Garcia et al., CoLLAs 2025 (arXiv 2508.00212), in the form of their released configuration: utility of the
current mini-batch alone, threshold 1e-5 of the mean, every 2,048 steps. Their other forms (a fixed share of the weights, means
over steps, a redraw to 0, random choice) are not here. They report that magnitude fails, choosing the same weights again and
again. Departure: the optimizer's averages of redrawn weights start at 0 and their sizes at the mean of the others ("fill");
theirs go on ("keep").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack, get_args

import torch
from torch import Tensor, nn

from pliant.base.arguments import number
from pliant.base.choices import one_of
from pliant.engine.after_step import AfterStep, Period
from pliant.engine.attached import Optimizers
from pliant.engine.fresh_copy import FreshCopy
from pliant.engine.optimizer_state import forget_entries
from pliant.engine.optimizer_state.rules import check_keys, layers, rule_of
from pliant.engine.whole_parameters import Place

Usefulness = Literal["gradient", "magnitude"]
Kept = Literal["fill", "zero", "keep"]


class SelectiveReinitialization(AfterStep):
    """Draw the least useful weights anew after every `period` optimizer steps, or when `apply()` says so.

    Args:
        model, optimizer: the network and what steps it, or several.
        utility: "gradient" or "magnitude"; by gradient a parameter without one is left alone.
        tau: share of the parameter's mean utility, 0 or more.
        optimizer_state: "fill", "zero" or "keep", see `pliant.engine.optimizer_state.forget_entries`.
        period: also `parameters` (biases and norm parameters too, unless you say otherwise), `seed`, `attach` and the rest of
            `pliant.engine.after_step.AfterStep`; `runs` is not for it. Raises `ValueError` for what does not fit.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 0.25]]))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    >>> swr = SelectiveReinitialization(model, optimizer, tau=0.5, period=1, seed=0)
    >>> model(torch.ones(1, 2)).sum().backward()
    >>> optimizer.step()  # u = 3 and 0.25, of mean 1.625
    >>> (model.weight == torch.tensor([[3.0, 0.25]])).tolist()
    [[True, False]]
    """

    draws = "reinitialization"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        *,
        utility: Usefulness = "gradient",
        tau: float = 1e-5,
        optimizer_state: Kept = "fill",
        **period: Unpack[Period],
    ) -> None:
        if period.get("runs") is not None:
            raise ValueError(
                "fresh weights are drawn of a whole network at a time, which knows no runs: leave runs out"
            )
        self.utility, self.tau = one_of("utility", utility, get_args(Usefulness)), number("tau", tau)
        self.optimizer_state: Kept = one_of("optimizer_state", optimizer_state, get_args(Kept))
        self._fresh = FreshCopy(model)
        period.setdefault("period", 2048)
        super().__init__(model, optimizer, **period)

    def act(self, places: Sequence[Place], keys: Sequence[int]) -> None:
        fresh = self._fresh.numbers_like({place.path: place.parameter for place in places}, keys[0])
        for place, drawn in zip(places, fresh, strict=True):
            w, g = place.parameter, place.parameter.grad
            if not w.requires_grad or (g is None and self.utility == "gradient"):
                continue
            useless = least_useful(w if g is None or self.utility == "magnitude" else w * g, self.tau)
            w.copy_(torch.where(useless, drawn, w))
            if g is not None:
                g.masked_fill_(useless, 0.0)
            if self.optimizers:
                forget_entries(self.optimizers[place.optimizer], w, useless, self.optimizer_state)

    def check_fit(self) -> None:
        super().check_fit()
        self._fresh.draw(0, [place.path for place in self.places])
        for place in self.places if self.optimizers and self.optimizer_state != "keep" else ():
            for optimizer in layers(self.optimizers[place.optimizer]):
                otherwise = "Use optimizer_state='keep'"
                check_keys(optimizer, rule_of(optimizer, otherwise), place.parameter, otherwise)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "utility": self.utility}


def least_useful(signed: Tensor, tau: float) -> Tensor:
    """Where |w g|, or |w|, is at most `tau` of its mean; nowhere if that is not finite.

    >>> least_useful(torch.tensor([-1.0, 0.0, 3.0, 4.0]), tau=0.5)
    tensor([ True,  True, False, False])
    """
    utility = signed.abs()
    return utility <= tau * utility.mean()
