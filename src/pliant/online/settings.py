"""Settings of online learners: the known names, and the checks.

Initial and fresh weights are bounded as in `pliant.base.initial`. One departure from the released code of Dohare et al., Nature
632 (2024): it uses lecun for selu, whatever the setting; here `init` is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pliant.online import arithmetic, norms

Activation = Literal["relu", "leaky_relu", "tanh", "sigmoid", "elu", "swish", "selu", "linear"]
Loss = Literal["squared_error", "cross_entropy"]
Optimizer = Literal["sgd", "adam"]
Count = Literal["accumulate", "bernoulli"]
Init = Literal["kaiming", "xavier", "lecun", "default"]
Kernel = Literal["auto", "lanes", "rows"]
Normalization = Literal["none", "layer", "online"]
Floats: TypeAlias = NDArray[np.floating[Any]]

ACTIVATIONS: dict[str, int] = {  # by their number in the kernels
    "relu": arithmetic.RELU,
    "leaky_relu": arithmetic.LEAKY_RELU,
    "tanh": arithmetic.TANH,
    "sigmoid": arithmetic.SIGMOID,
    "elu": arithmetic.ELU,
    "swish": arithmetic.SWISH,
    "selu": arithmetic.SELU,
    "linear": arithmetic.LINEAR,
}
LOSSES: dict[str, int] = {"squared_error": arithmetic.SQUARED_ERROR, "cross_entropy": arithmetic.CROSS_ENTROPY}

NORMALIZATIONS: dict[str, int] = {"none": norms.NONE, "layer": norms.LAYER, "online": norms.ONLINE}


class UtilityTerms(NamedTuple):
    """Terms of a utility: form of the activity, whether times mean |outgoing weight|, whether over mean |incoming weight|."""

    activity: int
    outgoing: bool
    incoming: bool


UTILITIES: dict[str, UtilityTerms] = {
    "contribution": UtilityTerms(arithmetic.PLAIN, outgoing=True, incoming=False),
    "adaptable_contribution": UtilityTerms(arithmetic.CENTERED, outgoing=True, incoming=True),
    "zero_contribution": UtilityTerms(arithmetic.CENTERED, outgoing=True, incoming=False),
    "weight": UtilityTerms(arithmetic.NO_ACTIVITY, outgoing=True, incoming=False),
    "adaptation": UtilityTerms(arithmetic.NO_ACTIVITY, outgoing=False, incoming=True),
    "feature_by_input": UtilityTerms(arithmetic.CENTERED, outgoing=False, incoming=True),
    "random": UtilityTerms(arithmetic.RANDOM, outgoing=False, incoming=False),
}


def per_learner(
    name: str, value: ArrayLike, learners: int, low: float = 0.0, high: float = math.inf
) -> NDArray[np.float64]:
    """A hyperparameter as one number per learner, (learners,). Raises `ValueError` outside [low, high]."""
    given = np.asarray(value, dtype=np.float64)
    if given.shape not in ((), (learners,)):
        raise ValueError(f"{name} has shape {given.shape}; give one number, or one for each of {learners} learners")
    bad = ~((given >= low) & (given <= high) & np.isfinite(given))
    if bad.any():
        place = f" (learner {int(np.flatnonzero(bad)[0])})" if given.shape else ""
        room = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} must be finite and {room}, not {given[bad].flat[0]:g}{place}")
    return np.broadcast_to(given, (learners,)).copy()


def seeds(seed: int | Sequence[int] | NDArray[np.integer[Any]], learners: int) -> list[int]:
    """One seed per learner: `seed`, `seed + 1`, ... if one number is given."""
    if isinstance(seed, int | np.integer):
        return [int(seed) + r for r in range(learners)]
    given = np.asarray(seed)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise ValueError(f"seed must be an integer, or one for each learner, not {seed!r}")
    if len(given) != learners:
        raise ValueError(f"{len(given)} seeds for {learners} learners; give one number, or one for each learner")
    return [int(s) for s in given]


def layer_sizes(inputs: int, hidden: Sequence[int], outputs: int) -> list[int]:
    """inputs, hidden..., outputs; raises `ValueError` if one is not a positive integer."""
    if np.ndim(hidden) != 1:
        raise ValueError(f"hidden must be the sizes of the hidden layers, such as ({hidden},) for one, not {hidden!r}")
    sizes = [inputs, *hidden, outputs]
    for name, size in zip(["inputs", *(f"hidden[{i}]" for i in range(len(hidden))), "outputs"], sizes, strict=True):
        if int(size) != size or size < 1:
            raise ValueError(f"{name} must be a positive integer, not {size}")
    return [int(size) for size in sizes]
