"""A first replacement rate and maturity threshold for continual backpropagation.

    rate       between 10⁻⁴ and 10⁻³, as 10 / T is      T  optimizer steps that the run will have
    maturity   max(100, 1000 / batch)                   optimizer steps: a hundred, and a thousand examples

Each unit is so replaced about ten times in a run, and once in 10,000 steps at least; in a layer of n units that is one unit in
1 / (n rate) steps. A unit is judged by what it did in a thousand examples.

Where the rule lies beside rates that were tuned on our own problems: docs/doctor.md.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from pliant.base.arguments import whole

LEAST, MOST = 1e-4, 1e-3


class Setting(NamedTuple):
    replacement_rate: float
    maturity_threshold: int  # optimizer steps
    between: float  # steps between replacements in a layer of `width` units
    steps: int  # that the run has before it


def first_setting(*, width: int, batch_size: int, steps: int) -> Setting:
    """The rule of the module's docstring, for a layer of `width` units and a run of `steps` optimizer steps.

    >>> first_setting(width=100, batch_size=1, steps=9_000_000)
    Setting(replacement_rate=0.0001, maturity_threshold=1000, between=100.0, steps=9000000)
    >>> first_setting(width=32, batch_size=100, steps=37_500).replacement_rate
    0.00027
    """
    width, batch_size, steps = (
        whole("width", width, 1),
        whole("batch_size", batch_size, 1),
        whole("steps", steps, 1, of="optimizer steps"),
    )
    rate = float(f"{min(MOST, max(LEAST, 10.0 / steps)):.2g}")
    return Setting(rate, max(100, ceil(1000 / batch_size)), 1.0 / (width * rate), steps)
