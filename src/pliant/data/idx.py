"""The IDX format of MNIST and its heirs.

    byte 0-1   zero                      byte 4-        each dimension: 32 bits, big endian
    byte 2     type: 8 = unsigned byte   then           the data, last dimension fastest
    byte 3     number of dimensions

Source: Y. LeCun's MNIST page, "The IDX file format". Only unsigned bytes are read: images are (n, rows, columns), labels (n,).
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pliant.data.catalog import Entry
from pliant.data.images import DataError, Images

_MOST = 1 << 26  # bytes that a file may hold; the largest of these sets has 47 million


def read(files: list[Path], entry: Entry) -> tuple[Images, Images]:
    """The training and the test images, from the four files in the order of the catalog.

    Raises DataError, naming the file, where one is not the published one.
    """
    arrays: list[NDArray[np.uint8]] = []
    sizes = (entry.train, entry.train, entry.test, entry.test)
    for path, file, count, dimensions in zip(files, entry.files, sizes, (3, 1, 3, 1), strict=True):
        content = unpacked(path)
        check_content(path, content, file.unpacked)
        array = parse(content, str(path), dimensions)
        if len(array) != count:
            raise DataError(f"{path} holds {len(array):,} examples and the data set has {count:,}: delete it")
        arrays.append(array)
    assert isinstance(entry.classes, tuple)
    train, train_labels, test, test_labels = arrays
    return (
        Images(train, train_labels.astype(np.int64), entry.classes),
        Images(test, test_labels.astype(np.int64), entry.classes),
    )


def unpacked(path: Path) -> bytearray:
    """The content of the file, unpacked if it is a .gz."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            content = bytearray(file.read(_MOST))
            excess = file.read(1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is truncated or damaged ({error}): delete it, and get it again") from None
    if excess:
        raise DataError(f"{path} unpacks to more than {_MOST:,} bytes: it is not what it says")
    return content


def check_content(path: Path, content: bytearray, expected: str | None) -> None:
    """Raise DataError unless the content has the published hash."""
    algorithm, _, value = (expected or "").partition(":")
    if expected and hashlib.new(algorithm, content).hexdigest() != value:
        raise DataError(
            f"{path} is not the published file (its content has another {algorithm}): delete it, and get it again"
        )


def parse(content: bytearray, name: str, dimensions: int) -> NDArray[np.uint8]:
    """The array in an IDX file, (n, ...); `name` is for the error.

    >>> parse(bytearray([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]), "labels", dimensions=1)
    array([7, 8, 9], dtype=uint8)
    """
    header = 4 + 4 * dimensions
    if len(content) < header or any(content[:2]):
        raise DataError(f"{name} is no IDX file: it does not begin with two zero bytes and a header of {header} bytes")
    if content[2] != 8 or content[3] != dimensions:
        raise DataError(
            f"{name} holds type {content[2]} in {content[3]} dimensions, not unsigned bytes (8) in {dimensions}"
        )
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    if len(content) - header != math.prod(shape):
        raise DataError(
            f"{name} says {'x'.join(map(str, shape))} and holds {len(content) - header:,} bytes of {math.prod(shape):,}: "
            "it is truncated or damaged; delete it, and get it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
