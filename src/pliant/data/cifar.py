"""CIFAR-10 and CIFAR-100: the authors' "python version", read directly from its archive.

    cifar-10-batches-py/    data_batch_1 .. data_batch_5, test_batch    data (n, 3072), labels
                            batches.meta                                label_names
    cifar-100-python/       train, test                                 data (n, 3072), fine_labels
                            meta                                        fine_label_names

    data[i]    1,024 bytes of red, then green, then blue; each 32 rows of 32

These are pickles, and a pickle may run any program. They are read by an unpickler that knows arrays of plain numbers and
nothing else, after the archive's hash has been compared.

Source: A. Krizhevsky, https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pliant.data.catalog import Entry
from pliant.data.files import has_hash
from pliant.data.images import DataError, Images

_MOST = 1 << 29  # bytes that a member may hold


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
            names = _unpickled(archive, layout.meta)[layout.names]
            classes = tuple(str(name) for name in names)
            parts = [_images(archive, members, layout.labels, classes) for members in (layout.train, layout.test)]
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (tarfile.TarError, OSError, EOFError, zlib.error, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path} is truncated or damaged ({type(error).__name__}: {error}): get it again") from None
    for part, count in zip(parts, (entry.train, entry.test), strict=True):
        if len(part) != count:
            raise DataError(f"{path} holds {len(part):,} examples where there are {count:,}: get it again")
    return parts[0], parts[1]


def _images(archive: tarfile.TarFile, members: tuple[str, ...], key: str, classes: tuple[str, ...]) -> Images:
    batches = [_unpickled(archive, member) for member in members]
    rows: NDArray[np.uint8] = np.concatenate([batch["data"] for batch in batches])
    labels = np.array([label for batch in batches for label in batch[key]])
    pixels = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return Images(pixels, labels.astype(np.int64, casting="safe"), classes)


def _unpickled(archive: tarfile.TarFile, member: str) -> dict[str, Any]:
    info = archive.getmember(member)
    file = archive.extractfile(info)
    if file is None or info.size > _MOST:
        raise ValueError(f"'{member}' is not a file of at most {_MOST:,} bytes")
    try:
        content: Any = PlainUnpickler(file, encoding="latin1").load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise ValueError(f"'{member}' cannot be unpickled, {type(error).__name__}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"'{member}' is not a table")
    return content  # pyright: ignore[reportUnknownVariableType]


class PlainUnpickler(pickle.Unpickler):
    """Reads numbers, texts, lists, tables and arrays of these, and refuses to look up anything else.

    >>> import io
    >>> PlainUnpickler(io.BytesIO(pickle.dumps({"labels": [1, 2]}))).load()
    {'labels': [1, 2]}
    """

    def find_class(self, module: str, name: str, /) -> Any:
        known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        }
        if (module, name) not in known:
            raise DataError(f"it asks for {module}.{name}, which no image needs: it may be an attack; delete it")
        return known[module, name]
