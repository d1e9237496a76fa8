"""Continuous partial resets: every unit moves a little toward a fresh one, the less it learns the more.

    G[i] = size of the gradient of unit i / mean of that over its layer, as in `pliant.GraMa`
    u[i] <- η u[i] + (1 - η) G[i]                                 every step;  u = 1 at the start and after each reset
    r[i] = ρ f(u[i]),  f = 1 up to τ, falling above it by κ       every `period` steps:
    w_in[i] <- (1 - r) w_in[i] + r (fresh weights)     w_out[i] <- (1 - r) w_out[i]     biases stay

    η `decay_rate`    ρ `replacement_rate`    κ `sharpness`    τ `threshold`    f `transform`: see `pliant.engine.select.strength`

Two versions by the same authors, of which the second has other settings and another f:

    CCBP (OpenReview UJqXhFFzKu)    transform="exponential", ρ 0.012, κ 16, τ 0.95; the defaults, those of the released code
    CPR  (arXiv 2607.24996)         transform="sigmoid",     ρ 0.015, κ 16, τ 1

Source: both articles, and the released code. They disagree on G: the articles write the gradient of activations
(of="activity"), the code takes that of weights (of="weights", the default, since the published numbers are the code's).
Departures: what an optimizer remembers of a unit, its bias too, shrinks with its weights, averages and sizes of gradients by
1 - r (the authors leave it: optimizer_state="keep"); the count of steps by which Adam corrects its averages goes on. Entries of
norms and their statistics move by r like weights; the authors' networks have none. Units of all layers are moved before any
outgoing weight shrinks; the code goes layer by layer. `stats()` counts each partial reset as one.
"""

from __future__ import annotations

from typing import Unpack

from torch import nn

from pliant.engine.attached import Optimizers
from pliant.engine.gradient_score import GradientShare, Size
from pliant.engine.optimizer_state import OptimizerState, Policy
from pliant.engine.planning import Where
from pliant.engine.redraw import Init, Redraw
from pliant.engine.select import Partial, Transform
from pliant.engine.unit_reset import UnitReset


class PartialResets(UnitReset):
    """Attach continuous partial resets to a model and its optimizer.

    Args:
        replacement_rate: ρ, in [0, 1), the largest share of a fresh unit that one reset mixes in; 0 does nothing.
        sharpness, threshold, transform: κ, τ and f.
        decay_rate: η, in [0, 1).
        period: optimizer steps.
        of: "weights" or "activity", see above.
        optimizer_state: "fresh" or "zero" (here the same), "fill" or "keep", see `pliant.engine.optimizer_state.units`.
        init, where: see `pliant.engine.redraw.Redraw` and `pliant.engine.planning.Where`.

    Raises `ValueError` or `TypeError` at construction for what does not fit.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    >>> resets = PartialResets(model, optimizer, example_inputs=torch.ones(4, 2), replacement_rate=0.5, threshold=9.0, period=1)
    >>> before = model[2].weight.detach().clone()
    >>> model(torch.ones(4, 2)).sum().backward()
    >>> optimizer.step()
    >>> torch.equal(model[2].weight, 0.5 * before)
    True
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        *,
        of: Size = "weights",
        replacement_rate: float = 0.012,
        sharpness: float = 16.0,
        threshold: float = 0.95,
        transform: Transform = "exponential",
        decay_rate: float = 0.99,
        period: int = 1000,
        optimizer_state: Policy = "fresh",
        init: Init = "module",
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            model,
            optimizer,
            score=GradientShare(of, decay_rate),
            select=Partial(replacement_rate, sharpness, threshold, transform, period),
            redraw=Redraw(init, hand_over_mean=False, biases=False),
            forget=OptimizerState(optimizer_state),
            **where,
        )
