"""A data set by its name: found, checked, and if necessary downloaded or prepared."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pliant.base.choices import did_you_mean
from pliant.base.deprecation import renamed_attributes
from pliant.data import cifar, idx
from pliant.data.catalog import CATALOG, Entry, File
from pliant.data.download import fetched
from pliant.data.files import has_hash
from pliant.data.images import DataError, ImageSet, image_set
from pliant.data.listing import Listing, listing
from pliant.data.places import ARCHIVE, added, cache_folder, candidates, folders, found_file, found_images, remember
from pliant.data.prepared import kept_facts, prepared

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LONGEST = 100  # letters of a name: it becomes part of names of files


def load(name: str, folder: Path | None = None, *, download: bool = True) -> ImageSet:
    """The data set `name`: one of `known_sets()`, or one added by `pliant data add`.

    It is looked for in `folder`, in $PLIANT_DATA, among the sets that were added and in the cache folder; then, unless
    `download` is False, it is downloaded. Raises DataError saying which file is missing or broken, where it was looked
    for, and how to get it.
    """
    _check_name(name)
    entry = CATALOG.get(name)
    with _readable():
        if entry is None or entry.form == "folders":
            return _load_images(name, entry, folder, download)
        return _load_files(name, entry, folder, download)


def _load_files(name: str, entry: Entry, folder: Path | None, download: bool) -> ImageSet:
    files = [_file(file, name, entry, folder, download) for file in entry.files]
    train, test = idx.read(files, entry) if entry.form == "idx" else cifar.read(files[0], entry)
    return image_set(name, train, test)


def available(name: str, folder: Path | None = None) -> bool:
    """Whether `load` would find the set without downloading; files are looked for, but not opened."""
    return where(name, folder) is not None


def where(name: str, folder: Path | None = None) -> Path | None:
    """The file or folder that `load` would read, None where there is none; for a set of several files, their folder."""
    entry = CATALOG.get(name)
    if entry is None or entry.form == "folders":
        found = found_images(name, entry, folder)
        if found is not None or entry is None:
            return found
    paths = [found_file(file, name, entry, folder) for file in entry.files]
    if not paths or None in paths:
        return None
    return paths[0] if len(paths) == 1 or paths[0] is None else paths[0].parent


def _file(file: File, name: str, entry: Entry, folder: Path | None, download: bool) -> Path:
    """The path of the file; damaged downloads are fetched again, and the user's own files are checked when they are read."""
    path = found_file(file, name, entry, folder)
    ours = path is not None and cache_folder() in path.parents
    if path is not None and not ours:
        return path
    if download:
        return fetched(name, entry, file)
    if path is not None:
        return path
    raise _missing(file.name, candidates(file, name, entry, folders(folder)), f"pliant data fetch {name}")


def _load_images(name: str, entry: Entry | None, folder: Path | None, download: bool) -> ImageSet:
    source = found_images(name, entry, folder)
    if source is None and entry is not None and entry.files:
        source = _file(entry.files[0], name, entry, folder, download)
    if source is not None:
        return _reduced(name, entry, source)
    places = [root / f"{name}{ending}" for root in folders(folder) for ending in (".zip", "")]
    if entry is not None:
        raise _missing(f"{name}.zip or {name}/", places, entry.how)
    guess = did_you_mean(name, [known.name for known in known_sets(folder)])
    raise _missing(f"data set '{name}'{guess}", places, f"pliant data add {name} FOLDER-OR-ZIP")


def _reduced(name: str, entry: Entry | None, source: Path) -> ImageSet:
    """The images of a folder or zip; of a known set, only if they are all there."""
    images = listing(source)
    if entry is not None:
        published = next((file for file in entry.files if file.name == source.name and source.is_file()), None)
        if published and not has_hash(source, published.hash):
            raise DataError(f"{source} is not the published file (its hash is another): delete it, and get it again")
        _check_counts(name, entry, images)
    return prepared(name, images)


def _check_counts(name: str, entry: Entry, images: Listing) -> None:
    """Raise DataError unless the whole set is there; a test set may be left out."""
    counts = (len(images.classes), len(images.train), len(images.test) or entry.test)
    if counts != (entry.classes, entry.train, entry.test):
        raise DataError(
            f"{images.source} holds {counts[0]:,} classes, {counts[1]:,} training images and {len(images.test):,} "
            f"test images; {name} has {entry.classes:,}, {entry.train:,} and {entry.test:,}. A part of it can be "
            "added under a name of its own: pliant data add NAME FOLDER"
        )


def _missing(what: str, places: Sequence[Path], how: str) -> DataError:
    looked = ", ".join(map(str, places)) or "no folder ($PLIANT_DATA is not set)"
    return DataError(f"{what} is missing; looked for in {looked}. To get it: {how}")


def add(name: str, path: str | os.PathLike[str]) -> ImageSet:
    """Prepare the images in a folder or zip of class folders, and let `name` mean them from now on.

    Raises DataError where the name is taken by a set with files of its own or by other images of that name in
    $PLIANT_DATA, which would be found first, or where the images cannot be read.
    """
    entry = CATALOG.get(name)
    if entry is not None and entry.form != "folders":
        raise DataError(f"'{name}' is read from its published files, not from images: choose another name")
    _check_name(name)
    source = Path(path).expanduser().absolute()
    taken = found_images(name, entry)
    if taken is not None and taken != added().get(name) and taken.absolute() != source:
        raise DataError(
            f"'{name}' already means {taken}, which is looked for first: move that away, or choose another name"
        )
    with _readable():
        images = _reduced(name, entry, source)
        remember(name, source)
    return images


def _check_name(name: str) -> None:
    if not isinstance(cast(Any, name), str) or not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise DataError(
            f"{repr(name)[:80]} cannot name a data set: use letters, digits, '.', '_' and '-', "
            f"a letter or digit first, {_LONGEST} at most"
        )


@contextmanager
def _readable() -> Generator[None]:
    """Turn an `OSError` into one line that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror or error}") from None


@renamed_attributes({"pictures": "images", "licence": "license"})
@dataclass(frozen=True)
class KnownSet:
    """A data set that `load` knows, available or not."""

    name: str
    where: Path | None
    images: int | None  # None: not prepared yet
    license: str


def known_sets(folder: Path | None = None) -> list[KnownSet]:
    """All data sets that `load` knows: those of the catalog, those added, and those found in the user's folders."""
    names = dict.fromkeys([*CATALOG, *sorted({*added(), *_names_in(folders(folder))})])
    return [_known(name, folder) for name in names]


def _known(name: str, folder: Path | None) -> KnownSet:
    entry, kept = CATALOG.get(name), kept_facts(name)
    count = entry.train + entry.test if entry else kept.train + kept.test if kept else None
    return KnownSet(name, where(name, folder), count, entry.license if entry else "your own")


def _names_in(roots: Sequence[Path]) -> list[str]:
    taken = {spelling for name, entry in CATALOG.items() for spelling in (name, *entry.folders)}
    taken |= {file.name for entry in CATALOG.values() for file in entry.files} | {"MNIST", "FashionMNIST"}
    paths = [path for root in roots if root.is_dir() for path in root.iterdir() if path.name not in taken]
    names = [
        path.name.removesuffix(ARCHIVE)
        for path in paths
        if path.is_dir() or (path.suffix == ARCHIVE and path.is_file())
    ]
    return [name for name in names if _NAME.fullmatch(name) and name not in taken]
