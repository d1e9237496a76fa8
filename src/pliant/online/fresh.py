"""The fresh incoming weights of replaced units, as a function of seed, layer and replacement.

    number k fan_in + j of the stream (seed, "fresh weights", layer), uniform in [-bound, bound)

for input j of the k-th replacement in a layer of a learner; with N candidates (`pliant.online.candidates`) its draw n, from 0 on,
has the place of replacement k N + n. The kernels compile the same arithmetic.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pliant import streams


def fresh_weights(seed: int, layer: int, replacement: int, fan_in: int, bound: float) -> NDArray[np.float64]:
    """Incoming weights of replacement number `replacement` (from 0) in hidden layer `layer`, (fan_in,).

    >>> fresh_weights(seed=0, layer=0, replacement=3, fan_in=5, bound=1.0).shape
    (5,)
    """
    key = streams.stream_key(seed, "fresh weights", layer)
    return (2.0 * streams.uniform(key, replacement * fan_in, fan_in) - 1.0) * bound
