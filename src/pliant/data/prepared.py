"""Images resized once, and kept as one memory-mapped array.

    prepared/NAME-KEY/    pixels.npy    (n, 32, 32, 3), training set, then test set
                          labels.npy    (n,)
                          set.json      the counts, the classes and the SHA-256 of pixels and labels

KEY is a hash of the listing: it changes when an image is added, removed or changed. The SHA-256 is compared at every opening
(a fraction of a second for 330 MB); if it differs, the set is prepared again. A folder appears complete or not at all: it is
written under another name, flushed to disk, and renamed, by one process at a time.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.data.decode import SIDE, decoded
from pliant.data.files import flush, locked, put_in_place
from pliant.data.images import DataError, Images, ImageSet, fingerprint
from pliant.data.listing import Listing
from pliant.data.places import cache_folder

log = logging.getLogger(__name__)

FORMAT = 1


@dataclass(frozen=True)
class Facts:
    """The content of set.json."""

    format: int
    train: int  # images
    test: int  # images
    classes: list[str]
    sha256: str
    source: str


def prepared(name: str, images: Listing) -> ImageSet:
    """The images, from the cache or put there now. Raises DataError where one of them cannot be read."""
    folder = cache_folder() / "prepared" / f"{name}-{images.key[:16]}"
    kept = opened(name, folder)  # without the lock: the cache may be another user's, and read-only
    if kept is None:
        with locked(folder.with_name(f"{name}.lock")):
            kept = opened(name, folder)  # another process may have made it meanwhile
            if kept is None:
                _make(folder, images)
                kept = opened(name, folder)
    if kept is None:
        raise DataError(f"{folder} changed right after it was written: is the disk sound?")
    return kept


def opened(name: str, folder: Path) -> ImageSet | None:
    """The data set kept in the folder; None where there is none, or, with a line in the log, where it is damaged."""
    if not folder.is_dir():
        return None
    try:
        facts = facts_in(folder)
        pixels: NDArray[np.uint8] = np.asarray(np.load(folder / "pixels.npy", mmap_mode="c"))
        labels: NDArray[np.int64] = np.array(
            np.load(folder / "labels.npy", mmap_mode="r")
        )  # no more than the file holds
        classes = tuple(facts.classes)
        train = Images(pixels[: facts.train], labels[: facts.train], classes)
        test = Images(pixels[facts.train :], labels[facts.train :], classes) if facts.test else None
        if len(labels) != facts.train + facts.test or fingerprint(train, test) != facts.sha256:
            raise DataError("its SHA-256 is not the one that was recorded")
    except Exception as error:  # a damaged file may raise nearly anything
        log.warning("%s is damaged (%s): it is made again", folder, error)
        return None
    return ImageSet(name, train, test, facts.sha256)


def facts_in(folder: Path) -> Facts:
    """The content of set.json. Raises ValueError or TypeError where it is another format."""
    try:
        found: Any = json.loads((folder / "set.json").read_bytes().decode("utf-8"))
    except RecursionError:
        raise ValueError("set.json is no table") from None
    facts = Facts(**found)
    if facts.format != FORMAT:
        raise ValueError(f"format {facts.format}, not {FORMAT}")
    counts, texts = (facts.train, facts.test), (facts.sha256, facts.source, *facts.classes)
    if not all(type(each) is int and each >= 0 for each in counts) or not all(type(each) is str for each in texts):
        raise ValueError("set.json holds values of other types")
    return facts


def kept_facts(name: str) -> Facts | None:
    """The recorded facts of the newest preparation of a set, unchecked: for listings."""
    folders = sorted(
        (cache_folder() / "prepared").glob(f"{name}-{'[0-9a-f]' * 16}"), key=lambda path: path.stat().st_mtime
    )
    for folder in reversed(folders):
        try:
            return facts_in(folder)
        except (OSError, ValueError, TypeError):
            continue
    return None


def _make(folder: Path, images: Listing) -> None:
    names = images.names
    log.info("preparing %s images of %s, once", f"{len(names):,}", images.source)
    for leftover in (folder, *folder.parent.glob(f"{folder.name}.*.tmp")):
        shutil.rmtree(leftover, ignore_errors=True)  # nobody else writes here: the lock is held
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        unfinished.mkdir()
        _write_pixels(unfinished / "pixels.npy", images)
        labels = np.array([label for _, label in (*images.train, *images.test)], np.int64)
        with open(unfinished / "labels.npy", "xb") as file:
            np.save(file, labels)
            flush(file)
        with open(unfinished / "set.json", "xb") as file:
            file.write(json.dumps(asdict(_facts(unfinished, images, labels))).encode())
            flush(file)
        put_in_place(unfinished, folder)
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_pixels(path: Path, images: Listing) -> None:
    """Plain writes, not a memory map: on a full disk these raise."""
    names = images.names
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(names), SIDE, SIDE, 3)}
    with open(path, "xb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in decoded(images.source, names):
            file.write(chunk)
        flush(file)


def _facts(folder: Path, images: Listing, labels: NDArray[np.int64]) -> Facts:
    pixels: NDArray[np.uint8] = np.asarray(np.load(folder / "pixels.npy", mmap_mode="r"))
    count = len(images.train)
    train = Images(pixels[:count], labels[:count], images.classes)
    test = Images(pixels[count:], labels[count:], images.classes) if images.test else None
    return Facts(FORMAT, count, len(images.test), list(images.classes), fingerprint(train, test), str(images.source))
