"""`pliant data list | fetch | add`: data sets, where they are, and how to get them."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pliant.data import ImageSet, KnownSet

data = typer.Typer(rich_markup_mode=None, help="Data sets: where they are, and how to get them.")


@data.command(name="list")
def list_sets() -> None:
    """Known data sets, whether they are available, how many images they have, and their licenses."""
    from pliant.data import known_sets

    table = [_row(known) for known in known_sets()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    print(
        "Looked for in $PLIANT_DATA, among added data sets, and in the cache folder. One of your own: pliant data add NAME PATH"
    )


@data.command()
def fetch(name: Annotated[str, typer.Argument(metavar="NAME", help="a name of `pliant data list`")]) -> None:
    """Find a data set, or download it, and check it."""
    from pliant.data import load

    with telling():
        began = time.monotonic()
        _describe(load(name), time.monotonic() - began)


@data.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="what to call it")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="a folder, or a zip, of class folders")],
) -> None:
    """Prepare the images in a folder or zip as the data set NAME."""
    from pliant.data import add

    with telling():
        began = time.monotonic()
        _describe(add(name, path), time.monotonic() - began)


@contextmanager
def telling() -> Generator[None]:
    """Print the log of the data code: what it waits for, downloads, prepares."""
    log, handler = logging.getLogger("pliant.data"), logging.StreamHandler()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _row(known: KnownSet) -> tuple[str, str, str, str]:
    from pliant.data import CATALOG

    entry = CATALOG.get(known.name)
    if known.where is not None:
        place = str(known.where)
    else:
        how = f"pliant data fetch {known.name}" if entry and entry.files else f"pliant data add {known.name} PATH"
        place = f"not here: {how}"
    count = "not prepared" if known.images is None else f"{known.images:,} images"
    return known.name, count, place, known.license


def _describe(images: ImageSet, seconds: float) -> None:
    size = "x".join(map(str, images.train.pixels.shape[1:]))
    tested = f" + {len(images.test):,} for the test" if images.test else ""
    print(f"{images.name}   {len(images.train):,} images{tested}   {len(images.train.classes)} classes   {size}")
    print(f"  sha256  {images.sha256}   {seconds:.1f} s")


def in_words(name: str) -> str:
    """A data set's name and where it is, or what it takes to have it."""
    from pliant.data import CATALOG, where

    place, entry = where(name), CATALOG.get(name)
    if place is not None:
        return f"{name}: {place}"
    if entry is not None and entry.files:
        return f"{name}: not here, {sum(file.megabytes for file in entry.files):.0f} MB will be fetched"
    return f"{name}: not here, and a run is refused; to get it: {entry.how if entry else f'pliant data add {name} FOLDER-OR-ZIP'}"
