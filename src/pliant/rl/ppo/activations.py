"""Activation functions twice: for learning, in PyTorch, and for acting, in place on NumPy arrays.

For one state at a time, a forward is a few small matrix products, whose time is the overhead of the calls: NumPy's is smaller. A
test compares the two forms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Activation:
    """One function in both forms. `nonnegative`: its values are never below 0."""

    learning: Callable[[Tensor], Tensor]
    acting: Callable[[NDArray[Any]], object]  # in place
    nonnegative: bool = False


def _relu(x: NDArray[Any]) -> None:
    np.maximum(x, 0.0, out=x)


def _tanh(x: NDArray[Any]) -> None:
    np.tanh(x, out=x)


def _sigmoid(x: NDArray[Any]) -> None:
    x[...] = 1.0 / (1.0 + np.exp(-x))


def _elu(x: NDArray[Any]) -> None:
    x[...] = np.where(x > 0, x, np.expm1(np.minimum(x, 0.0)))


ACTIVATIONS = {
    "relu": Activation(torch.relu, _relu, nonnegative=True),
    "tanh": Activation(torch.tanh, _tanh),
    "sigmoid": Activation(torch.sigmoid, _sigmoid, nonnegative=True),
    "elu": Activation(F.elu, _elu),
}
