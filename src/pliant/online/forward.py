"""The forward of the same networks in NumPy, for predictions and probes.

h[0] = x,   h[l + 1] = f(norm(h[l] W[l] + b[l])),   the last layer without f and norm (`pliant.online.norms`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.online.arithmetic import SELU_ALPHA, SELU_SCALE
from pliant.online.norms import EPS

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


def normalize(z: Array, kind: str, norm: Mapping[str, Array]) -> Array:
    """Input of the activation function, for pre-activations (learners, n, units); `norm`: scale, shift, ... (learners, units)."""
    if kind == "none":
        return z
    of_unit = {name: value[:, None, :] for name, value in norm.items()}
    if kind == "layer":
        away = z - z.mean(axis=-1, keepdims=True)
        return of_unit["scale"] * (away / _root_mean_square(away)) + of_unit["shift"]
    y = (z - of_unit["mean"]) / np.sqrt(of_unit["variance"] + z.dtype.type(EPS))
    u = of_unit["scale"] * y + of_unit["shift"]
    return u / _root_mean_square(u)


def _root_mean_square(a: Array) -> Array:
    return np.sqrt((a * a).mean(axis=-1, keepdims=True) + a.dtype.type(EPS))


def layers(
    x: Array,
    weights: Sequence[Array],
    biases: Sequence[Array],
    activation: str,
    normalization: str,
    norms: Sequence[Mapping[str, Array]],
) -> list[Array]:
    """Hidden activations and outputs, each (learners, n, units), of inputs (learners, n, inputs)."""
    found = [x]
    for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
        z = found[-1] @ w + b[:, None, :]
        if layer + 1 < len(weights):
            a = normalize(z, normalization, norms[layer])
            z = ACTIVATIONS[activation](a).astype(z.dtype, copy=False)
        found.append(z)
    return found[1:]
