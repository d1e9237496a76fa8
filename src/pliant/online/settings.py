"""Settings of online learners: the known names, and the checks.

Initial and fresh weights are bounded as in `pliant.base.initial`. One departure from the released code of Dohare et al., Nature
632 (2024): it uses lecun for selu, whatever the setting; here `init` is used.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pliant.base.choices import shortened
from pliant.online import arithmetic, norms

Activation = Literal["relu", "leaky_relu", "tanh", "sigmoid", "elu", "swish", "selu", "linear"]
Loss = Literal["squared_error", "cross_entropy"]
Optimizer = Literal["sgd", "adam", "adamw", "upgd", "obgd"]
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
OPTIMIZERS: dict[str, int] = {  # "adamw" is Adam with decoupled decay
    "sgd": arithmetic.SGD,
    "adam": arithmetic.ADAM,
    "adamw": arithmetic.ADAM,
    "upgd": arithmetic.UPGD,
    "obgd": arithmetic.OBGD,
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


def whole(name: str, value: Any, least: int = 1) -> int:
    """A setting that is a whole number. Raises `ValueError` for anything else, also for True, and below `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        wanted = "a positive integer" if least == 1 else f"a whole number, {least} or more"
        raise ValueError(f"{name} must be {wanted}, not {_shown(value)}")
    return int(cast(int, value))


def number(name: str, value: Any) -> float:
    """A setting that is a single number. Raises `ValueError` for anything else, also for text and True."""
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        raise ValueError(f"{name} must be a number, not {_shown(value)}")
    return float(cast(float, value))


def truth(name: str, value: Any) -> bool:
    """A setting that is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, not {_shown(value)}")
    return bool(cast(bool, value))


def floating(dtype: Any) -> np.dtype[Any]:
    """float32 or float64."""
    with warnings.catch_warnings(action="ignore"):  # of old names of other types
        try:
            found = np.dtype(dtype)
        except Exception:  # it may be anything
            found = None
    if dtype is None or found is None or found.name not in ("float32", "float64"):
        raise ValueError(f"dtype must be float32 or float64, not {_shown(dtype if found is None else found)}")
    return found.newbyteorder("=")


def _shown(value: Any) -> str:
    return shortened(f"'{value}'" if isinstance(value, np.dtype) else repr(value), 80)


def per_learner(
    name: str, value: ArrayLike, learners: int, low: float = 0.0, high: float = math.inf
) -> NDArray[np.float64]:
    """A hyperparameter as one number per learner, (learners,). Raises `ValueError` outside [low, high]."""
    try:
        given = np.asarray(value)
    except ValueError:
        given = np.empty(0, np.object_)
    if given.dtype.kind not in "iuf":
        raise ValueError(f"{name} must be a number, or one for each learner, not {_shown(value)}")
    given = given.astype(np.float64)
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
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        return [int(seed) + r for r in range(learners)]
    try:
        given = np.asarray(seed)
    except ValueError:
        given = np.empty(0, np.object_)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise ValueError(f"seed must be an integer, or one for each learner, not {_shown(seed)}")
    if len(given) != learners:
        raise ValueError(f"{len(given)} seeds for {learners} learners; give one number, or one for each learner")
    return [int(s) for s in given]


def layer_sizes(inputs: int, hidden: Sequence[int], outputs: int) -> list[int]:
    """inputs, hidden..., outputs; raises `ValueError` if one is not a positive integer."""
    if isinstance(hidden, int | np.integer):
        raise ValueError(f"hidden must be the sizes of the hidden layers, such as ({hidden},) for one, not {hidden!r}")
    if isinstance(hidden, str | bytes) or not isinstance(hidden, Sequence | np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"hidden must be the sizes of the hidden layers, such as (100, 100), not {_shown(hidden)}")
    between = {f"hidden[{i}]": size for i, size in enumerate(hidden)}
    return [whole(name, size) for name, size in ({"inputs": inputs} | between | {"outputs": outputs}).items()]
