"""Images of 47 characters in the fonts that come with matplotlib: many classes without a download.

The characters are those of EMNIST's balanced classes: digits, capitals, and the small letters that do not look like theirs.
An image shows one in a font, turned, sheared, scaled and shifted at random, 28 x 28 bytes, light on dark:

    turn N(0, 8°)   shear N(0, 0.15)   size U(0.75, 1.05)   shift U(-2, 2) pixels, both ways

Which pixels come out depends on the versions of Pillow and of the fonts, so the set has its hash, as any other.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.data import Images, ImageSet, image_set
from pliant.streams import generator

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
FONTS = tuple(
    f"{family}{face}"
    for family, faces in (
        ("DejaVuSans", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("DejaVuSansMono", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("DejaVuSerif", ("", "-Bold", "-Italic", "-BoldItalic")),
        ("STIXGeneral", ("", "Bol", "Italic", "BolIta")),
    )
    for face in faces
)
SIDE, DRAWN, HEIGHT = 28, 64, 40  # pixels: of an image, of a drawing, of a font
PER_CLASS = 400


@cache
def glyphs() -> ImageSet:
    """The set: 400 images of each character, in random order."""
    drawings = np.stack([_drawing(font, character) for character in CHARACTERS for font in FONTS])
    draw = generator(0, "glyphs")
    labels = draw.permutation(np.repeat(np.arange(len(CHARACTERS), dtype=np.int64), PER_CLASS))
    which = labels * len(FONTS) + draw.integers(len(FONTS), size=len(labels))
    pixels = np.concatenate([_warped(drawings, part, draw) for part in np.array_split(which, 40)])
    return image_set("glyphs", Images(pixels, labels, tuple(CHARACTERS)), None)


def _drawing(font: str, character: str) -> NDArray[np.float32]:
    """A character in the middle of a square, (64, 64), from 0 to 1."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    square = Image.new("L", (DRAWN, DRAWN))
    pen = ImageDraw.Draw(square)
    face: Any = ImageFont.truetype(str(file), HEIGHT)
    left, top, right, bottom = pen.textbbox((0, 0), character, font=face)
    pen.text(((DRAWN - left - right) / 2, (DRAWN - top - bottom) / 2), character, fill=255, font=face)
    return np.multiply(np.asarray(square), np.float32(1 / 255), dtype=np.float32)


def _warped(drawings: NDArray[np.float32], which: NDArray[np.int64], draw: np.random.Generator) -> NDArray[np.uint8]:
    """An image of each of `which`, (n, 28, 28): bilinear between the pixels of its drawing."""
    n = len(which)
    turn, shear = np.deg2rad(draw.normal(0, 8, n)), draw.normal(0, 0.15, n)
    zoom, shift = DRAWN / SIDE / draw.uniform(0.75, 1.05, n) * 0.8, draw.uniform(-2, 2, (n, 2))
    across, down = np.meshgrid(np.arange(SIDE) - (SIDE - 1) / 2, np.arange(SIDE) - (SIDE - 1) / 2)
    x, y = across[None] - shift[:, :1, None], down[None] - shift[:, 1:, None]
    x, y = x + shear[:, None, None] * y, y
    cosine, sine = np.cos(turn)[:, None, None], np.sin(turn)[:, None, None]
    x, y = (cosine * x - sine * y) * zoom[:, None, None], (sine * x + cosine * y) * zoom[:, None, None]
    x, y = np.clip(x + (DRAWN - 1) / 2, 0, DRAWN - 1.001), np.clip(y + (DRAWN - 1) / 2, 0, DRAWN - 1.001)
    column, row = x.astype(np.int64), y.astype(np.int64)
    right, below, one = x - column, y - row, which[:, None, None]
    level = (
        drawings[one, row, column] * (1 - right) * (1 - below)
        + drawings[one, row, column + 1] * right * (1 - below)
        + drawings[one, row + 1, column] * (1 - right) * below
        + drawings[one, row + 1, column + 1] * right * below
    )
    return np.rint(255 * level).astype(np.uint8)
