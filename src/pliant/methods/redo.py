"""ReDo: recycle dormant units.

Every `period` optimizer steps, each unit whose mean |activity| is at most `tau` of its layer's mean has its incoming
weights redrawn, its outgoing weights zeroed and its optimizer state forgotten.

A layer that is silent throughout, whose mean is 0, is recycled whole: every unit in it is dormant, as `pliant.diagnose`
counts. A layer whose activity is not finite is left alone. Both are `pliant.engine.utility.dormancy`.

Source: Sokar et al., ICML 2023, algorithm 1. The activity is that of the last step's batches; the released code runs
one extra batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import nn
from torch.optim import Optimizer

from pliant.engine.optimizer_state import OptimizerState, Policy
from pliant.engine.planning import Where
from pliant.engine.redraw import Init, Redraw
from pliant.engine.score import Dormancy
from pliant.engine.select import Threshold
from pliant.engine.unit_reset import UnitReset


class ReDo(UnitReset):
    """Attach ReDo to a model and its optimizer. `tau` is a share of the layer's mean activity, `period` optimizer steps, `init`
    what fresh incoming weights are drawn from, see `pliant.engine.redraw.Redraw`.

    `where`: `example_inputs=x` or `groups=...`, and the rest as in `pliant.engine.unit_reset.UnitReset`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        tau: float = 0.025,
        period: int = 1000,
        optimizer_state: Policy = "fresh",
        init: Init = "module",
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            model,
            optimizer,
            score=Dormancy(),
            select=Threshold(tau, period),
            redraw=Redraw(init, hand_over_mean=False),
            forget=OptimizerState(optimizer_state),
            **where,
        )
