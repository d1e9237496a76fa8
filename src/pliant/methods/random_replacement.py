"""Random replacement: continual backpropagation that chooses its units by chance.

As many units are replaced, at the same steps and in the same way, but which of the mature ones go is drawn uniformly. What
continual backpropagation does better is owed to its utility; what it does as well is not: the control of every comparison.

Source: a control of Dohare, Sutton and Mahmood, arXiv 2108.06325 (2021), where the contribution utility beats it.
"""

from __future__ import annotations

from typing import Unpack

from torch import nn

from pliant.engine.attached import Optimizers
from pliant.engine.optimizer_state import OptimizerState, Policy
from pliant.engine.planning import Where
from pliant.engine.redraw import Init, Redraw
from pliant.engine.score import RunningUtility
from pliant.engine.select import Count, ReplacementRate
from pliant.engine.unit_reset import UnitReset


class RandomReplacement(UnitReset):
    """Attach random replacement to a model and its optimizer. The parameters are those of `pliant.ContinualBackprop`.

    `decay_rate` is that of the mean activity, which is handed over. `where`: see `pliant.engine.planning.Where`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        *,
        replacement_rate: float = 1e-4,
        maturity_threshold: int = 1000,
        decay_rate: float = 0.99,
        observe_every: int = 1,
        count: Count = "accumulate",
        hand_over_mean: bool = True,
        optimizer_state: Policy = "fresh",
        init: Init = "module",
        candidates: int = 0,
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            model,
            optimizer,
            score=RunningUtility("random", decay_rate, observe_every),
            select=ReplacementRate(replacement_rate, maturity_threshold, count),
            redraw=Redraw(init, hand_over_mean=hand_over_mean, candidates=candidates),
            forget=OptimizerState(optimizer_state),
            **where,
        )
