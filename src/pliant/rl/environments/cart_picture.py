"""An image of the cart and its pole, drawn with NumPy alone: of the state itself, not of the sensors' observation."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pliant.rl.environments.base import Flags, Floats
from pliant.rl.environments.cart_pole import HALF_LENGTH, TRACK

Picture: TypeAlias = NDArray[np.uint8]

PAPER, GROUND, CART, POLE = (255, 255, 255), (150, 150, 150), (40, 40, 40), (200, 120, 60)
CART_SIZE = (0.5, 0.24)  # m
POLE_WIDTH = 0.09  # m


def cart_picture(state: Floats, width: int = 320, height: int = 240) -> Picture:
    """The cart on its track, (height, width, 3), 0 to 255; `state` (4,): x, v, q, w.

    >>> cart_picture(np.zeros(4)).shape
    (240, 320, 3)
    """
    meters = 2.2 * TRACK / width  # of a pixel
    across: Floats = (np.arange(width, dtype=np.float64) - (width - 1) / 2)[None, :] * meters - state[0]
    up: Floats = (0.75 * height - np.arange(height, dtype=np.float64))[:, None] * meters
    picture = np.full((height, width, 3), PAPER, np.uint8)
    on_track = np.abs(across + state[0]) <= TRACK
    picture[on_track & (np.abs(up) <= meters)] = GROUND
    picture[(np.abs(across) <= CART_SIZE[0] / 2) & (np.abs(up) <= CART_SIZE[1] / 2)] = CART
    picture[_near_pole(across, up, float(state[2]))] = POLE
    return picture


def _near_pole(across: Floats, up: Floats, lean: float) -> Flags:
    """Which points, seen from the cart, lie on a pole that leans by `lean` rad to the right."""
    sine, cosine = np.sin(lean), np.cos(lean)
    along = np.clip(across * sine + up * cosine, 0.0, 2 * HALF_LENGTH)
    return np.hypot(across - along * sine, up - along * cosine) <= POLE_WIDTH / 2
