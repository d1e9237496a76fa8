"""Counter-based random numbers: each is a function of a key and a position, so that no generator state is kept.

A stream has a 64-bit key made of a seed and words that say what the numbers are for; its number `n`
is a hash of the key and `n`. So a number depends on its key and position alone: not on how many
learners run beside it, on their order, on threads, or on where a run was interrupted.

    state = key + (n + 1) 0x9E3779B97F4A7C15  (mod 2^64),   number = mix(state)

Source: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), whose generator this is, entered at any
position. `pliant.online` compiles the same arithmetic; a test compares the two.
"""

from __future__ import annotations

from hashlib import blake2b
from math import prod
from operator import index
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pliant.base.choices import shown
from pliant.base.memory import refuse_too_large

Counters: TypeAlias = NDArray[np.uint64]

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def stream_key(seed: int, *words: str | int) -> int:
    """The 64-bit key of the stream of `seed` and `words`, such as `stream_key(3, "fresh weights", layer)`.

    Raises `TypeError` for a seed that is no whole number, and for a word that is neither that nor a text.
    """
    for word in words:
        if not isinstance(word, str | int | np.integer):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"a word of a stream is a text or a whole number, not {shown(word)}")
    name = "\x1f".join([str(_whole("seed", seed)), *(f"{type(word).__name__}:{word}" for word in words)])
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def random_bits(key: int, counters: Counters) -> Counters:
    """64 random bits for each counter, same shape."""
    z = np.uint64(key & _MASK) + (counters + np.uint64(1)) * np.uint64(GOLDEN_GAMMA)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(key: int, start: int, shape: int | tuple[int, ...]) -> NDArray[np.float64]:
    """Numbers `start`, `start + 1`, ... of a stream, uniform in [0, 1) with 53 bits, in C order.

    >>> uniform(stream_key(0, "example"), 1, 2) == uniform(stream_key(0, "example"), 0, 3)[1:]
    array([ True,  True])
    """
    sizes = shape if isinstance(shape, tuple | list) else (shape,)
    count = prod(_whole("shape", size) for size in sizes)
    if count < 0 or min(sizes, default=0) < 0 or not 0 <= _whole("start", start) < 1 << 64:
        raise ValueError(f"start={shown(start)}, shape={shown(shape)}: whole numbers, 0 or more")
    refuse_too_large(f"shape={shape}", count)
    counters = np.arange(count, dtype=np.uint64) + np.uint64(start)
    return ((random_bits(key, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)


def _whole(name: str, value: object) -> int:
    try:
        return index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise TypeError(f"{name} is a whole number, not {shown(value)}") from None


def generator(seed: int, *words: str | int) -> np.random.Generator:
    """A NumPy generator keyed by `seed` and `words`, for many numbers at once."""
    return np.random.Generator(np.random.Philox(key=stream_key(seed, *words)))
