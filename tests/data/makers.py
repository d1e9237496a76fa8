"""Small data sets in the official layouts, and their entries in the catalog."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from pliant.data.catalog import CATALOG, Entry, File


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def idx(array: np.ndarray) -> bytes:
    """An array as an IDX file."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def digits(folder: Path, packed: bool = True) -> Entry:
    """Six 4x4 digits to learn and two for the test, as MNIST is published."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    arrays = [
        generator.integers(0, 256, (6, 4, 4)),
        np.arange(6),
        generator.integers(0, 256, (2, 4, 4)),
        np.array([9, 8]),
    ]
    for file, array in zip(CATALOG["mnist"].files, arrays, strict=True):
        content = idx(array)
        zipped = gzip.compress(content, mtime=0)
        if packed:
            (folder / file.name).write_bytes(zipped)
        else:
            (folder / file.name.removesuffix(".gz")).write_bytes(content)
        files.append(File(file.name, sha256(zipped), 0.001, sha256(content)))
    return dataclasses.replace(CATALOG["mnist"], train=6, test=2, files=tuple(files))


class Python2Pickler(pickle._Pickler):
    """Writes what cPickle of Python 2 wrote: `str` and bytes are both byte strings, and numpy has its old name."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_bytes(self, content):
        self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)

    def save_text(self, text):
        self.save_bytes(text.encode("latin1"))

    dispatch[bytes] = save_bytes
    dispatch[str] = save_text


def python2_pickle(content: object) -> bytes:
    out = io.BytesIO()
    Python2Pickler(out, protocol=2).dump(content)
    return out.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def batch(count: int, first: int, key: str) -> dict[str, object]:
    """One batch: the red of image i is i, its green its column, its blue its row."""
    column, row = np.meshgrid(np.arange(32), np.arange(32))
    rows = [
        np.concatenate([np.full(1024, number), column.ravel(), row.ravel()]) for number in range(first, first + count)
    ]
    labels = [number % 10 for number in range(first, first + count)]
    return {"data": np.array(rows, np.uint8), key: labels, "filenames": [f"{n}.png" for n in range(count)]}


def cifar(path: Path, classes: int, **replaced: bytes) -> Entry:
    """Ten images to learn and two for the test, as CIFAR is published; members by name are replaced."""
    if classes == 10:
        members = {
            f"cifar-10-batches-py/data_batch_{n}": python2_pickle(batch(2, 2 * n, "labels")) for n in range(1, 6)
        }
        members["cifar-10-batches-py/test_batch"] = python2_pickle(batch(2, 0, "labels"))
        members["cifar-10-batches-py/batches.meta"] = python2_pickle({"label_names": [f"kind {n}" for n in range(10)]})
    else:
        members = {
            "cifar-100-python/train": python2_pickle(batch(10, 2, "fine_labels")),
            "cifar-100-python/test": python2_pickle(batch(2, 0, "fine_labels")),
            "cifar-100-python/meta": python2_pickle({"fine_label_names": [f"kind {n}" for n in range(100)]}),
        }
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            content = replaced.get(name.rpartition("/")[2], content)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    entry = CATALOG[f"cifar-{classes}"]
    file = File(path.name, sha256(path.read_bytes()), 0.001)
    return dataclasses.replace(entry, train=10, test=2, files=(file,))


def image(
    path: Path, color: tuple[int, ...] | int = (10, 20, 30), size: tuple[int, int] = (32, 32), mode: str = "RGB"
) -> None:
    """One image of one color; the ending says in which format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def class_folders(folder: Path, classes: int = 3, each: int = 2) -> Path:
    """<class>/<file>: image i of class c has the color (c, i, 200)."""
    for label in range(classes):
        for number in range(each):
            image(folder / f"class{label}" / f"{number:03}.png", (label, number, 200))
    return folder


def tiny_imagenet(folder: Path) -> Path:
    """Tiny ImageNet's own layout, with two classes."""
    root = folder / "tiny-imagenet-200"
    for label, kind in enumerate(["n01", "n02"]):
        for number in range(2):
            image(root / "train" / kind / "images" / f"{kind}_{number}.JPEG", (100 * label, 10, 10), (64, 64))
        (root / "train" / kind / f"{kind}_boxes.txt").write_text("n01_0.JPEG\t0\t0\t9\t9\n")
    for number in range(3):
        image(root / "val" / "images" / f"val_{number}.JPEG", (10, 10, 10 * number), (64, 64))
    image(root / "test" / "images" / "test_0.JPEG", (0, 0, 0), (64, 64))
    annotations = "val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\nval_2.JPEG\tn02\t0\t0\t9\t9\n"
    (root / "val" / "val_annotations.txt").write_text(annotations)
    return root


def zipped(folder: Path, path: Path, root: str = "") -> Path:
    """The folder's files in a zip, stored uncompressed."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, root + file.relative_to(folder).as_posix())
    return path
