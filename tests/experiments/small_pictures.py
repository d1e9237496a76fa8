"""A small data set of class folders, as a user may have one: PNG pictures that differ by class in colour and pattern."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def make_pictures(folder: Path, classes: int = 6, count: int = 26, seed: int = 0, size: int = 32) -> Path:
    """Write `folder/class-0/00.png` and so on; returns the folder."""
    draw = np.random.default_rng(seed)
    for number in range(classes):
        (folder / f"class-{number}").mkdir(parents=True)
        pattern = draw.integers(40, 216, (4, 4, 3)).repeat(size // 4, 0).repeat(size // 4, 1)
        for picture in range(count):
            noisy = pattern + draw.normal(0, 25, pattern.shape)
            pixels = noisy.clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class-{number}" / f"{picture:02}.png")
    return folder
