"""Continual backpropagation.

After every optimizer step, in each group of hidden units:

    age[i] += 1;   U[i] <- η U[i] + (1 - η) |h[i]| mean_k |V[k, i]|
    of the units with age > m, owe a share ρ;  for each whole unit owed, the least useful one is replaced:
    its mean contribution goes into the next bias, incoming weights are drawn anew, outgoing weights become zero,
    its utility, age and optimizer state start over

    η `decay_rate`    ρ `replacement_rate`    m `maturity_threshold`

A departure that saves time on small networks: with `observe_every` k > 1, U takes in every k-th step of a group alone,
with η^k in the place of η. Ages, and what is owed, go on at each step.

Source: Dohare et al., Nature 632 (2024), algorithm 1. Departures are named where they are made, in `pliant.engine`: `utility`
(means for sums), `replacement` (integer counts), `unit_reset` (order of phases), `redraw` (hand-over that works),
`optimizer_state` (fresh state for SGD, Adam, AdamW).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, Unpack, cast

from torch import nn
from torch.optim import Optimizer

from pliant.engine.optimizer_state import OptimizerState, Policy
from pliant.engine.planning import Where
from pliant.engine.redraw import Init, Redraw
from pliant.engine.score import RunningUtility
from pliant.engine.select import Count, Eligible, ReplacementRate
from pliant.engine.unit_reset import UnitReset
from pliant.engine.utility import Utility


class Parameters(TypedDict, total=False):
    """The parameters of continual backpropagation, for whoever passes them on: callbacks, PPO, experiments.

    Their meaning and their defaults are those of `ContinualBackprop`, and stand nowhere else.
    """

    replacement_rate: float
    maturity_threshold: int
    decay_rate: float
    observe_every: int
    utility: str | Utility
    count: Count
    eligible: Eligible
    hand_over_mean: bool
    optimizer_state: Policy
    init: Init
    candidates: int


def parameters_of(settings: object) -> Parameters:
    """Those that `settings` has as attributes of the same names (a config, a dataclass).

    >>> from types import SimpleNamespace
    >>> parameters_of(SimpleNamespace(replacement_rate=1e-3, step_size=0.1))
    {'replacement_rate': 0.001}
    """
    names = Parameters.__annotations__
    return cast(Parameters, {name: getattr(settings, name) for name in names if hasattr(settings, name)})


class ContinualBackprop(UnitReset):
    """Attach continual backpropagation to a model and its optimizer; the training loop stays as it is.

    Args:
        model: the network.
        optimizer: what steps it, or several.
        replacement_rate: share of mature units replaced per optimizer step. 0 observes and writes nothing.
        maturity_threshold: optimizer steps; a unit may be replaced when its age is greater.
        decay_rate: of the running averages; 0 = instantaneous.
        observe_every: optimizer steps, of which the last alone is averaged in, at η to their number; a departure that saves time.
            At most `maturity_threshold` + 1.
        utility: a name of `pliant.engine.utility.UTILITIES`, or a `Utility`.
        count: "accumulate" or "bernoulli".
        eligible: "mature" or "all".
        hand_over_mean: move the unit's mean contribution into its consumer.
        optimizer_state: "fresh", "fill", "zero" or "keep", see `pliant.engine.optimizer_state.units`.
        init: what fresh incoming weights are drawn from: "module" (as the layer's own reset, or as the network started, where
            that is another scale), a name, or a callable, see `pliant.engine.redraw.Redraw`.
        candidates: 0 draws a fresh unit once, as Dohare et al.; N takes of N draws the one that will learn fastest, with a bias
            that lets it be active for half of the examples, for Linear, activation, Linear: ours, see `pliant.engine.candidates`.
        where: `example_inputs=x` finds the units by running the model once; `groups`, `include`, `exclude`, `strict`,
            `residual`, `heads`, `trial`, `seed`, `attach`, `process_group` and `mask` as in `pliant.engine.planning.Where`.

    Raises `ValueError` or `TypeError` at construction for what does not fit.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> x = torch.randn(16, 4)
    >>> cbp = ContinualBackprop(model, optimizer, example_inputs=x, replacement_rate=0.1, maturity_threshold=5)
    >>> for _ in range(20):
    ...     optimizer.zero_grad()
    ...     model(x).square().mean().backward()
    ...     optimizer.step()
    >>> cbp.stats()["0"]["replaced"]
    [8]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        replacement_rate: float = 1e-4,
        maturity_threshold: int = 1000,
        decay_rate: float = 0.99,
        observe_every: int = 1,
        utility: str | Utility = "contribution",
        count: Count = "accumulate",
        eligible: Eligible = "mature",
        hand_over_mean: bool = True,
        optimizer_state: Policy = "fresh",
        init: Init = "module",
        candidates: int = 0,
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            model,
            optimizer,
            score=RunningUtility(utility, decay_rate, observe_every),
            select=ReplacementRate(replacement_rate, maturity_threshold, count, eligible),
            redraw=Redraw(init, hand_over_mean=hand_over_mean, candidates=candidates),
            forget=OptimizerState(optimizer_state),
            **where,
        )
