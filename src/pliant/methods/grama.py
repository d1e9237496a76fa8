"""GraMa: reset units whose gradient is small.

    G[i] = size of the gradient of unit i / mean over its layer        reset if G[i] <= `tau`, every `period` steps

Incoming weights are drawn anew, outgoing weights zeroed, optimizer state forgotten, as by `pliant.ReDo`. Of a tanh or GELU unit,
which is seldom silent, the gradient tells where the activity does not. Two readings of "the gradient" are published, and are
told apart by `of`:

    of="weights"     mean |∂L/∂w| over the unit's incoming weights: the released code, and what others made of it
    of="activity"    mean |∂L/∂h[i]| over examples and positions: the article's score, of the unit's activation

They differ where inputs are small: a unit behind silent units has weights without a gradient, and is no less able to learn.

Source: Liu et al., NeurIPS 2025 (arXiv 2505.24061): `tau` 0.01, `period` 1000. Departures: the gradients are those of the last
step's batches. The released code draws at He's scale and draws the bias too; it leaves outgoing weights as they are, so that a
reset changes the output, and resets units of the output layer: the article sets outgoing weights to zero, and so do we.
A layer whose gradient is 0 throughout is reset whole, as there; one that has no gradient, or none that is finite, is left alone.
"""

from __future__ import annotations

from typing import Unpack

from torch import nn

from pliant.engine.attached import Optimizers
from pliant.engine.gradient_score import GradientShare, Size
from pliant.engine.optimizer_state import OptimizerState, Policy
from pliant.engine.planning import Where
from pliant.engine.redraw import Init, Redraw
from pliant.engine.select import Threshold
from pliant.engine.unit_reset import UnitReset


class GraMa(UnitReset):
    """Attach GraMa to a model and its optimizer. `tau` is a share of the layer's mean gradient, `period` optimizer steps.

    `of`: "weights" or "activity", see above. `init`: see `pliant.engine.redraw.Redraw`; `where`: see
    `pliant.engine.planning.Where`. Raises `ValueError` or `TypeError` at construction for what does not fit.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> _ = nn.init.zeros_(model[2].weight[:, 1])  # nothing reads unit 1, so nothing teaches it
    >>> _ = nn.init.ones_(model[0].bias)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    >>> grama = GraMa(model, optimizer, example_inputs=torch.ones(4, 2), period=1)
    >>> model(torch.ones(4, 2)).sum().backward()
    >>> optimizer.step()
    >>> grama.ages()["0"]
    tensor([[1, 0, 1]])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        *,
        of: Size = "weights",
        tau: float = 0.01,
        period: int = 1000,
        optimizer_state: Policy = "fresh",
        init: Init = "module",
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            model,
            optimizer,
            score=GradientShare(of),
            select=Threshold(tau, period),
            redraw=Redraw(init, hand_over_mean=False),
            forget=OptimizerState(optimizer_state),
            **where,
        )
