"""CIFAR-10 and CIFAR-100: the authors' "python version", read directly from its archive.

    cifar-10-batches-py/    data_batch_1 .. data_batch_5, test_batch    data (n, 3072), labels
                            batches.meta                                label_names
    cifar-100-python/       train, test                                 data (n, 3072), fine_labels
                            meta                                        fine_label_names

    data[i]    1,024 bytes of red, then green, then blue; each 32 rows of 32

These are pickles, and a pickle may run any program. They are read, after the archive's hash has been compared, by an unpickler
that gives them no class of Python's or NumPy's: an array is noted as it is described, and made here, once its type, shape and
number of bytes are found to agree.

Source: A. Krizhevsky, https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import tarfile
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from pliant.data.catalog import Entry
from pliant.data.files import has_hash
from pliant.data.images import DataError, Images

_MOST = 1 << 28  # bytes that a member may hold; the largest has 155 million
_PLAIN = re.compile(r"[<>|=]?[biuf][1248]")  # truth values and numbers, as NumPy names their types


class Layout(NamedTuple):
    """The names of the members of an archive."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: str
    names: str


LAYOUTS = {
    10: Layout(
        train=tuple(f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)),
        test=("cifar-10-batches-py/test_batch",),
        meta="cifar-10-batches-py/batches.meta",
        labels="labels",
        names="label_names",
    ),
    100: Layout(
        train=("cifar-100-python/train",),
        test=("cifar-100-python/test",),
        meta="cifar-100-python/meta",
        labels="fine_labels",
        names="fine_label_names",
    ),
}


def read(path: Path, entry: Entry) -> tuple[Images, Images]:
    """The training and the test images. Raises DataError, naming the file, where it is not the published one."""
    assert isinstance(entry.classes, int)
    if not has_hash(path, entry.files[0].hash):
        raise DataError(f"{path} is not the published file (its hash is another): delete it, and get it again")
    layout = LAYOUTS[entry.classes]
    try:
        with tarfile.open(path, "r:gz") as archive:
            classes = _names(_unpickled(archive, layout.meta)[layout.names])
            parts = [_images(archive, members, layout.labels, classes) for members in (layout.train, layout.test)]
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # a damaged archive may raise nearly anything
        raise DataError(f"{path} is truncated or damaged ({type(error).__name__}: {error}): get it again") from None
    for part, count in zip(parts, (entry.train, entry.test), strict=True):
        if len(part) != count:
            raise DataError(f"{path} holds {len(part):,} examples where there are {count:,}: get it again")
    return parts[0], parts[1]


def _names(listed: Any) -> tuple[str, ...]:
    if not isinstance(listed, list) or not all(type(name) is str for name in cast(list[Any], listed)):
        raise ValueError("its classes are no list of names")
    return tuple(cast(list[str], listed))


def _images(archive: tarfile.TarFile, members: tuple[str, ...], key: str, classes: tuple[str, ...]) -> Images:
    batches = [_unpickled(archive, member) for member in members]
    rows: NDArray[np.uint8] = np.concatenate([_array(batch["data"], np.uint8, 2) for batch in batches])
    labels = np.concatenate([_array(batch[key], np.int64, 1) for batch in batches])
    pixels = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return Images(pixels, labels, classes)


def _array(found: Any, dtype: Any, dimensions: int) -> NDArray[Any]:
    """An array, or a list of integers, as numbers of `dtype`; a list within a list could stand for any number of them."""
    if isinstance(found, list) and all(type(each) is int for each in cast(list[Any], found)):
        found = np.array(cast(list[int], found), np.int64)
    if not isinstance(found, np.ndarray):
        raise ValueError("something else stands where an array is expected")
    array = cast(NDArray[Any], found)
    if array.ndim != dimensions or not np.can_cast(array.dtype, dtype):
        raise ValueError(f"an array of {array.dtype.name}{list(array.shape)} stands where another is expected")
    return array.astype(dtype)


def _unpickled(archive: tarfile.TarFile, member: str) -> dict[str, Any]:
    info = archive.getmember(member)
    file = archive.extractfile(info)
    if file is None or info.size > _MOST:
        raise ValueError(f"'{member}' is not a file of at most {_MOST:,} bytes")
    try:
        content: Any = PlainUnpickler(io.BytesIO(file.read(_MOST)), encoding="latin1").load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise ValueError(f"'{member}' cannot be unpickled, {type(error).__name__}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"'{member}' is not a table")
    return content  # pyright: ignore[reportUnknownVariableType]


class _Type:
    """Stands for a NumPy type: `dtype("u1", ...)`, and then its byte order."""

    def __init__(self, text: str, *how: Any) -> None:
        if type(text) is not str or not _PLAIN.fullmatch(text):
            raise DataError(f"it holds an array of type {str(text)[:20]!r}, and images are plain numbers: delete it")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError("an unknown byte order")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for a NumPy array: described by its version, shape, type, order in memory, and bytes."""

    made: NDArray[Any] | None = None

    def __new__(cls, *given: Any) -> _Array:
        if given:
            raise DataError("it makes an array in a way that no image needs: it may be an attack; delete it")
        return super().__new__(cls)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, content = state
        content = content.encode("latin1") if isinstance(content, str) else content  # Python 2 had one type for both
        if (
            not isinstance(kind, _Type)
            or type(content) is not bytes
            or not all(type(n) is int and n >= 0 for n in shape)
        ):
            raise ValueError("an array is described in an unknown way")
        if math.prod(shape) * kind.dtype.itemsize != len(content):
            raise ValueError(f"an array of shape {shape} has {len(content):,} bytes")
        self.made = np.frombuffer(content, kind.dtype).reshape(shape, order="F" if by_columns else "C")


class _Reconstruct:
    """Stands for the function that makes an empty array, which is then given its contents."""

    def __new__(cls, of: Any, shape: Any, kind: Any) -> Any:
        return _Array()

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a function has no contents")


class PlainUnpickler(pickle._Unpickler):  # pyright: ignore[reportPrivateUsage, reportUntypedBaseClass]
    """Reads numbers, texts, lists, tables and arrays of plain numbers, and refuses to look up anything else.

    It is the one that is written in Python: a few bytes can have that in C reserve any amount of memory.

    >>> import io
    >>> PlainUnpickler(io.BytesIO(pickle.dumps({"labels": [1, 2]}))).load()
    {'labels': [1, 2]}
    """

    def load(self) -> Any:
        found: Any = super().load()
        if type(found) is dict:
            return {key: _made(value) for key, value in cast(dict[Any, Any], found).items()}
        return _made(found)

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Type,
            ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
        }
        if (module, name) not in known:
            raise DataError(
                f"it asks for {f'{module}.{name}'[:80]}, which no image needs: it may be an attack; delete it"
            )
        return known[module, name]


def _made(value: Any) -> Any:
    if isinstance(value, _Array) and value.made is None:
        raise ValueError("an array has no contents")
    return value.made if isinstance(value, _Array) else value
