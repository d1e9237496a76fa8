"""Running averages that start at 0, and their correction.

    U <- η U + (1 - η) r         running average; η is `decay_rate`
    Û  = U / (1 - η^age)         corrected for its start at 0

Source: Dohare et al., Nature 632 (2024), eq. 1; the correction is Adam's (Kingma and Ba, ICLR 2015), by each unit's own age.
"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor


def running_average(average: Tensor, value: Tensor | float, decay_rate: float) -> Tensor:
    """η average + (1 - η) value."""
    return decay_rate * average + (1.0 - decay_rate) * value


def weight_seen(age: Tensor, decay_rate: float, dtype: torch.dtype) -> Tensor:
    """1 - η^age: the total weight of what a running average has seen in `age` steps, without cancellation for small ages."""
    if decay_rate == 0.0:
        return (age > 0).to(dtype)
    return -torch.expm1(age.to(dtype) * log(decay_rate))


def corrected(average: Tensor, age: Tensor, decay_rate: float) -> Tensor:
    """A running average that started at 0, `age` steps ago, without the pull of its start: average / (1 - η^age).

    At age 0 nothing has been averaged yet and the result is 0.

    >>> corrected(torch.tensor([0.1, 0.19, 0.0]), torch.tensor([1, 2, 0]), decay_rate=0.9)
    tensor([1., 1., 0.])
    """
    return torch.where(age > 0, average / weight_seen(age, decay_rate, average.dtype), 0.0)
