"""What tests of learning from images share: a small data set of class folders, PNG images whose colors differ by class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


def make_pictures(folder: Path, classes: int = 6, count: int = 26, seed: int = 0, size: int = 32) -> Path:
    """Write `folder/class-0/00.png` and so on; returns the folder."""
    draw = np.random.default_rng(seed)
    for number in range(classes):
        (folder / f"class-{number}").mkdir(parents=True)
        pattern = draw.integers(40, 216, (4, 4, 3)).repeat(size // 4, 0).repeat(size // 4, 1)
        for image in range(count):
            noisy = pattern + draw.normal(0, 25, pattern.shape)
            pixels = noisy.clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class-{number}" / f"{image:02}.png")
    return folder


def assert_same_state(found: Any, expected: Any, where: str = "state") -> None:
    """Both states hold the same tensors, numbers and words."""
    if isinstance(expected, Mapping):
        assert list(found) == list(expected), where
        for key in expected:
            assert_same_state(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same_state(one, other, f"{where}.{place}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where
