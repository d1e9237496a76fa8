"""Bounds of the uniform distribution of initial weights.

Incoming weights are uniform in [-bound, bound], m = fan_in, n = fan_out, gain by activation:

    kaiming  gain sqrt(3 / m)      xavier   gain sqrt(6 / (m + n))
    lecun    sqrt(3 / m)           default  sqrt(1 / m), what torch's Linear and Conv layers start from

Source: He et al., ICCV 2015; Glorot and Bengio, AISTATS 2010; LeCun et al., 1998. Gains as in the released code of Dohare et
al., Nature 632 (2024): swish and elu have relu's.
"""

from __future__ import annotations

from math import sqrt

from pliant.base.choices import one_of

INITS = ("kaiming", "xavier", "lecun", "default")

LEAK = 0.01  # slope of leaky_relu, torch's default


def leaky_relu_gain(slope: float) -> float:
    """Gain of a leaky ReLU."""
    return sqrt(2.0 / (1.0 + slope**2))


GAINS = {
    "relu": sqrt(2.0),
    "leaky_relu": leaky_relu_gain(LEAK),
    "tanh": 5.0 / 3.0,
    "sigmoid": 1.0,
    "elu": sqrt(2.0),
    "swish": sqrt(2.0),
    "selu": 0.75,
    "linear": 1.0,
}


def uniform_bound(init: str, fan_in: int, fan_out: int, gain: float) -> float:
    """The bound by the rule `init`. Raises `ValueError` for a name that is not in `INITS`.

    >>> uniform_bound("default", fan_in=4, fan_out=1, gain=1.0)
    0.5
    """
    bounds = {
        "kaiming": gain * sqrt(3.0 / fan_in),
        "xavier": gain * sqrt(6.0 / (fan_in + fan_out)),
        "lecun": sqrt(3.0 / fan_in),
        "default": sqrt(1.0 / fan_in),
    }
    return bounds[one_of("init", init, INITS)]
