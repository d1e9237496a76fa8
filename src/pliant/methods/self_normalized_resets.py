"""Self-normalized resets: reset a unit when it has been silent for longer than it is wont to be.

    reset unit i when P[i](gap >= a[i]) <= η        a[i] steps since it last fired, P[i] the law of its own gaps before

η is `rejection`. Each unit is judged by its own history (`pliant.engine.firing_score`): one that fires for rare inputs is left
alone for long, one that fired at each step is reset soon after it fell silent. Incoming weights are drawn anew, outgoing weights
and bias zeroed, optimizer state and history forgotten.

Source: Farias and Jozefiak, ICLR 2025 (arXiv 2410.20098), which sweeps η from 0.08 to 0.00125. Article and released code differ:

    which gaps   the article counts all (gaps="all"); the code leaves out those without a silent example (gaps="silent"), so that
                 a unit that mostly fires is judged by its silences alone, and later
    limits       the article's is the quantile; the code's is renewed every 16 tasks, doubled where the quantile does not shrink
                 it, and lies between 100 examples (`shortest`) and 20,000 (`longest`, where it begins)

Here limits follow the counts at once, since no task is known, and until 1 / η gaps were counted a unit's limit is `longest`. Time
is counted in optimizer steps, in which a unit fires if it does for any example; the code counts the examples of its batches. The
defaults are the code's in batches of 20. A unit whose activation has no silent side (a sigmoid; a tanh is above 0 for half of its
inputs) is never or seldom reset.
"""

from __future__ import annotations

from typing import Unpack

from torch import nn

from pliant.engine.attached import Optimizers
from pliant.engine.firing_score import Gaps, SilenceLeft
from pliant.engine.optimizer_state import OptimizerState, Policy
from pliant.engine.planning import Where
from pliant.engine.redraw import Init, Redraw
from pliant.engine.select import Threshold
from pliant.engine.unit_reset import UnitReset


class SelfNormalizedResets(UnitReset):
    """Attach self-normalized resets to a model and its optimizer.

    Args:
        rejection: η, in [0, 1], the share of its own gaps that a unit's silence may be as rare as; 0 waits for `longest`.
        shortest, longest: optimizer steps between which every limit lies. `longest` numbers are kept for each unit.
        gaps: "all" or "silent", see above.
        period: optimizer steps between looks at the limits, which read the device.
        optimizer_state, init, where: as for `pliant.ReDo`.

    Raises `ValueError` or `TypeError` at construction for what does not fit.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> _ = nn.init.constant_(model[0].bias, 5.0)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    >>> snr = SelfNormalizedResets(model, optimizer, example_inputs=torch.ones(1, 1), rejection=0.1, shortest=2)
    >>> for step in range(12):  # after ten steps in which both fire, unit 1 is silent for two
    ...     if step == 10:
    ...         _ = model[0].bias.data[1].fill_(-5.0)
    ...     model(torch.ones(1, 1)).sum().backward()
    ...     optimizer.step()
    >>> snr.ages()["0"]
    tensor([[12,  0]])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        *,
        rejection: float = 0.01,
        shortest: int = 5,
        longest: int = 1000,
        gaps: Gaps = "all",
        period: int = 1,
        optimizer_state: Policy = "fresh",
        init: Init = "module",
        **where: Unpack[Where],
    ) -> None:
        super().__init__(
            model,
            optimizer,
            score=SilenceLeft(rejection, shortest, longest, gaps),
            select=Threshold(0.0, period),
            redraw=Redraw(init, hand_over_mean=False),
            forget=OptimizerState(optimizer_state),
            **where,
        )
