"""The images of a folder, or a zip, of class folders: their paths, their classes, and which are the test set.

    <class>/<file>                                                               all to learn from
    train/<class>/<file>             val/<class>/<file>                          val, or else test, is the test set
    train/<class>/images/<file>      val/images/<file>, val/val_annotations.txt  Tiny ImageNet as it is published

The test set may be called val/, valid/ or validation/, else test/, in capitals or not. Other folders beside train/ and a test
set are left out; where there are others and no test set, they are refused. All of it may lie within further folders. Classes
are in the order of their names, images in that of class, then file name.
Other files, and hidden ones, are not looked at. Nothing of a zip is unpacked to disk: its names lead nowhere.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from pliant.data.images import DataError

log = logging.getLogger(__name__)

ENDINGS = frozenset(
    [
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".webp", ".avif", ".gif"),
        *(".bmp", ".tif", ".tiff", ".tga", ".ppm", ".pgm", ".pbm", ".pnm"),
    ]
)
ANNOTATIONS = "val_annotations.txt"
TESTED = (
    ("val", "valid", "validation"),
    ("test",),
)  # names of the folder of the test set; the first are looked for first
_NOT_MARKED = ("val", "test")  # known before the others, and so not in the key
_DEPTHS = (".png", ".tif", ".tiff")  # files in which numbers may have 16 bits
_MOST = 1 << 26  # bytes of an image's file
_ENCRYPTED = 1  # a flag of a file in a zip
_DEEPEST = 6  # folders; a loop of links ends here


@dataclass(frozen=True)
class Listing:
    """The images of a data set: paths within `source`, each with the index of its class."""

    source: Path
    classes: tuple[str, ...]
    train: tuple[tuple[str, int], ...]
    test: tuple[tuple[str, int], ...]
    key: str  # changes with any image's name, size, and time (in a folder) or checksum (in a zip), and with the way of decoding

    @property
    def names(self) -> list[str]:
        """All images, training set first."""
        return [name for name, _ in (*self.train, *self.test)]


def listing(source: Path) -> Listing:
    """The images in a folder or a zip. Raises DataError where there are none, or where a class cannot be told."""
    stamps = _stamps(source)
    images = [name for name in stamps if not name.endswith(ANNOTATIONS)]
    if not images:
        raise DataError(
            f"{source} holds no images ({', '.join(sorted(ENDINGS))}): give a zip or folder of class folders"
        )
    root = common_root(images)
    annotations = root + "val/" + ANNOTATIONS
    labels = _annotated(_text(source, annotations), source) if annotations in stamps else {}
    try:
        train, test = split([name.removeprefix(root) for name in images], labels)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    classes = tuple(sorted({label for _, label in train}))
    strange = sorted({label for _, label in test} - set(classes))
    if strange:
        raise DataError(
            f"{source}: class '{strange[0]}' of the test set is none of the {len(classes)} training classes"
        )
    index = {label: number for number, label in enumerate(classes)}

    def ordered(part: Iterable[tuple[str, str]]) -> tuple[tuple[str, int], ...]:
        return tuple((root + name, index[label]) for name, label in sorted(part, key=lambda pair: (pair[1], pair[0])))

    return Listing(source, classes, ordered(train), ordered(test), _digest(stamps, _marks(stamps, test)))


def common_root(names: list[str]) -> str:
    """The folders that all images lie in, beyond the layouts above.

    >>> common_root(["set/train/cat/1.png", "set/train/dog/1.png"]), common_root(["cat/1.png", "cat/2.png"])
    ('set/', '')
    """
    folders = [name.split("/")[:-2] for name in names]
    first, last = min(folders), max(folders)  # what these two share, all share
    shared = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))]
    kept = shared.index("train") if "train" in shared else len(shared)
    return "".join(f"{folder}/" for folder in shared[:kept])


def split(names: list[str], annotated: Mapping[str, str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Each image with its class, training set and test set; `annotated` are the classes of val/images.

    >>> split(["train/cat/1.png", "train/dog/2.png", "val/images/3.png"], {"3.png": "dog"})
    ([('train/cat/1.png', 'cat'), ('train/dog/2.png', 'dog')], [('val/images/3.png', 'dog')])
    """
    folders = dict.fromkeys(name.partition("/")[0] for name in names if "/" in name)
    if "train" not in folders:
        return [(name, _class_of(name, name)) for name in names], []
    tested = tested_folder([folder for folder in folders if folder != "train"]) or "val"
    train, test = _under("train/", names), _under(f"{tested}/", names)
    if test and tested not in _NOT_MARKED:
        log.info("%s/ is taken for the test set", tested)
    if others := len(names) - len(train) - len(test):
        log.info("%d images are neither in train/ nor in %s/, and are left out", others, tested)
    return (
        [(name, _class_of(name, name[len("train/") :])) for name in train],
        [(name, _annotated_class(name, annotated) or _class_of(name, name[len(tested) + 1 :])) for name in test],
    )


def tested_folder(others: Sequence[str]) -> str | None:
    """Which of the folders beside train/ is the test set, None where there are none. Raises DataError where it must be told.

    >>> tested_folder(["test", "Valid"]), tested_folder([])
    ('Valid', None)
    """
    for names in TESTED:
        found = [folder for folder in others if folder.casefold() in names]
        if len(found) > 1:
            raise DataError(f"{' and '.join(f'{name}/' for name in found)} lie beside train/: keep one test set")
        if found:
            return found[0]
    if others:
        raise DataError(
            f"{', '.join(f'{name}/' for name in others)} beside train/: if that is the test set, call it val/, else move it away"
        )
    return None


def _under(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(folder)]


def _class_of(name: str, within: str) -> str:
    folders = within.split("/")[:-1]
    if len(folders) == 1 or (len(folders) == 2 and folders[1] == "images"):
        return folders[0]
    raise DataError(
        f"the class of '{name}' is unknown: give class folders (<class>/<file>), or train/ and val/ with class folders in each"
    )


def _annotated_class(name: str, annotated: Mapping[str, str]) -> str | None:
    if not annotated:
        return None
    if name.rpartition("/")[2] not in annotated:
        raise DataError(f"{ANNOTATIONS} does not tell the class of '{name}': it is not the published one")
    return annotated[name.rpartition("/")[2]]


def _annotated(text: str, source: Path) -> dict[str, str]:
    rows = [line.split("\t") for line in text.splitlines() if line]
    if any(len(row) < 2 for row in rows):
        raise DataError(
            f"{source}: a line of {ANNOTATIONS} has no second column, the class: it is not the published one"
        )
    return {row[0]: row[1] for row in rows}


def _wanted(name: str) -> bool:
    parts = name.split("/")
    hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
    return not hidden and (os.path.splitext(name)[1].lower() in ENDINGS or parts[-1] == ANNOTATIONS)


def _stamps(source: Path) -> dict[str, str]:
    """Each image's path within the source -> what changes when the image does."""
    if source.is_dir():
        found = {name: (size, time) for name, size, time in _walk(str(source), "", 0) if _wanted(name)}
        for name, (size, _) in found.items():
            _check_size(source, name, size)
        return {name: f"{size} {time}" for name, (size, time) in found.items()}
    if not source.is_file():
        raise DataError(f"there is no {source}: give a zip or folder of class folders")
    with open_zip(source) as archive:
        files = [info for info in archive.infolist() if not info.is_dir() and _wanted(info.filename)]
    stamps: dict[str, str] = {}
    for info in files:
        _check_size(source, info.filename, info.file_size)
        if info.flag_bits & _ENCRYPTED:
            raise DataError(f"{source}: '{info.filename}' is encrypted: unpack it, and give the folder")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{source}: '{info.filename}' is a link, and no image: pack what it leads to")
        if info.filename in stamps:
            raise DataError(f"{source}: '{info.filename}' is in it twice: pack it anew")
        stamps[info.filename] = f"{info.file_size} {info.CRC:08x}"
    return stamps


def _check_size(source: Path, name: str, size: int) -> None:
    if size > _MOST:
        raise DataError(f"{source}: '{name}' has {size:,} bytes, and an image may have {_MOST:,}: remove it")


def _walk(folder: str, prefix: str, depth: int) -> Iterator[tuple[str, int, int]]:
    """Each file's path within the folder, its size and its time."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir() and depth < _DEEPEST:
                yield from _walk(entry.path, f"{prefix}{entry.name}/", depth + 1)
            elif entry.is_file():
                seen = entry.stat()
                yield prefix + entry.name, seen.st_size, seen.st_mtime_ns


def _text(source: Path, name: str) -> str:
    if source.is_dir():
        encoded = (source / name).read_bytes()
    else:
        with open_zip(source) as archive:
            encoded = _read(archive, source, name)
    try:
        return encoded.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: {name} is not UTF-8 ({error}): it is not the published one") from None


def open_zip(source: Path) -> zipfile.ZipFile:
    """The zip, opened. Raises DataError where it is none, of a version to come, or truncated (a zip's table is at its end)."""
    try:
        return zipfile.ZipFile(source)
    except PermissionError:
        raise
    except Exception as error:  # a damaged zip may raise nearly anything
        raise DataError(f"{source} is truncated, damaged or no zip ({error}): get it again") from None


def _read(archive: zipfile.ZipFile, source: Path, name: str) -> bytes:
    try:
        return archive.read(name)
    except Exception as error:  # the same
        raise DataError(f"{source}: '{name}' cannot be unpacked ({error}): get it again") from None


def _marks(stamps: Iterable[str], test: Sequence[tuple[str, str]]) -> list[str]:
    """Marks in the key of data sets that earlier versions decoded in another way."""
    marks: list[str] = []
    if test and (tested := test[0][0].partition("/")[0]) not in _NOT_MARKED:
        marks.append(f"test\t{tested}")  # earlier versions left it out
    if any(name.lower().endswith(_DEPTHS) for name in stamps):
        marks.append("16 bits")  # earlier versions decoded images that use few of them as black
    return marks


def _digest(stamps: Mapping[str, str], marks: Sequence[str]) -> str:
    lines = "\n".join([*(f"{name}\t{stamps[name]}" for name in sorted(stamps)), *marks])
    return hashlib.sha256(lines.encode(errors="surrogatepass")).hexdigest()
