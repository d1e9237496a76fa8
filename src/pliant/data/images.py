"""Data sets: images as bytes, labels, and a hash of both.

    sha256 = SHA-256 of, for train and then test:  shape, pixels (uint8, C order), labels (int64, little endian)

Two machines whose hashes agree learn from the same bytes in the same order. Class names are not hashed:
they never reach a network.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pliant.base.choices import shown


class DataError(ValueError):
    """A data set is not available. The message is one line: which file, what is wrong with it or where it was looked
    for, and what to do. The command line prints it and exits with status 2."""


@dataclass(frozen=True, eq=False)
class Images:
    """Labeled images.

    `pixels` uint8, (n, height, width) or (n, height, width, 3); may be memory-mapped, privately: writing to it never
    reaches the disk. `labels` int64, (n,), indices into `classes`. Raises DataError where they do not fit together.

    >>> digits = Images(np.zeros((2, 28, 28), np.uint8), np.array([0, 1]), ("zero", "one"))
    >>> len(digits), digits.classes[digits.labels[1]]
    (2, 'one')
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        pixels, labels = self.pixels, self.labels
        for name, given in {"pixels": pixels, "labels": labels}.items():
            if not isinstance(given, np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise DataError(f"{name} are {shown(given)}: give an array")
        if not isinstance(self.classes, tuple | list):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DataError(f"classes are {shown(self.classes)}: give a tuple of names")
        if pixels.dtype != np.uint8 or not (pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[-1] == 3)):
            raise DataError(f"pixels are {pixels.dtype}{list(pixels.shape)}: give uint8 (n, height, width[, 3])")
        if labels.dtype != np.int64 or labels.shape != pixels.shape[:1]:
            raise DataError(f"labels are {labels.dtype}{list(labels.shape)}: give int64 ({len(pixels)},)")
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(self.classes)):
            raise DataError(
                f"labels go from {labels.min()} to {labels.max()}, and there are {len(self.classes)} classes"
            )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A named data set: images to learn from, images to be tested on where the set has any, and their hash."""

    name: str
    train: Images
    test: Images | None
    sha256: str


def image_set(name: str, train: Images, test: Images | None) -> ImageSet:
    """The data set of these images, with its hash.

    >>> two = Images(np.zeros((2, 4, 4), np.uint8), np.array([0, 1]), ("a", "b"))
    >>> image_set("blank", two, None).sha256[:8]
    'd2676bd0'
    """
    return ImageSet(name, train, test, fingerprint(train, test))


def fingerprint(train: Images, test: Images | None) -> str:
    """The SHA-256 that the module's equation defines, in hexadecimal."""
    digest = hashlib.sha256()
    for part in (train, test):
        if part is not None:
            digest.update(f"{part.pixels.shape}\n".encode())
            digest.update(np.ascontiguousarray(part.pixels).data)
            digest.update(np.ascontiguousarray(part.labels, dtype="<i8").data)
    return digest.hexdigest()


def check_same(name: str, before: object, now: str) -> None:
    """Raise `ValueError` unless the set's SHA-256 `now` is that of the images that a run began with.

    >>> check_same("mnist", "d2676bd0", "5fa34c2e")
    Traceback (most recent call last):
    ValueError: this run began with other images of 'mnist' (SHA-256 d2676bd0, now 5fa34c2e): put those back, or begin a new study
    """
    if before != now:
        raise ValueError(
            f"this run began with other images of '{name}' (SHA-256 {str(before)[:12]}, now {now[:12]}): put those back, or "
            f"begin a new study"
        )
