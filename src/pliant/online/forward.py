"""The same networks in NumPy, for predictions and probes: what a learner answers, without learning.

h[0] = x,   h[l + 1] = f(h[l] W[l] + b[l]),   the last layer without f
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.online.arithmetic import SELU_ALPHA, SELU_SCALE

Array = NDArray[np.floating[Any]]


def _sigmoid(z: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * z))  # exp(-z) of a large negative z would overflow


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "elu": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    "swish": lambda z: z * _sigmoid(z),
    "selu": lambda z: SELU_SCALE * np.where(z > 0, z, SELU_ALPHA * np.expm1(np.minimum(z, 0))),
    "linear": lambda z: z,
}


def layers(x: Array, weights: Sequence[Array], biases: Sequence[Array], activation: str) -> list[Array]:
    """Hidden activations and outputs, each (learners, n, units), of inputs (learners, n, inputs)."""
    found = [x]
    for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
        z = found[-1] @ w + b[:, None, :]
        hidden = layer + 1 < len(weights)
        found.append(ACTIVATIONS[activation](z).astype(z.dtype, copy=False) if hidden else z)
    return found[1:]
