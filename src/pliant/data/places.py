"""Where data sets are looked for, and where prepared and downloaded ones are kept.

1  the folder that is asked for, then $PLIANT_DATA          the user's own files, only ever read
2  sets.json in the cache folder                            what `pliant data add` was told
3  the cache folder: $PLIANT_CACHE, else the platform's     downloads/ and prepared/
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

from pliant.base.files import write_durably
from pliant.data.catalog import Entry, File
from pliant.data.files import locked
from pliant.data.images import DataError

ARCHIVE = ".zip"


def folders(folder: Path | None = None) -> list[Path]:
    """The user's folders of data sets, in the order in which they are searched."""
    asked = [folder] if folder is not None else []
    named = [Path(os.environ["PLIANT_DATA"])] if os.environ.get("PLIANT_DATA") else []
    return list(dict.fromkeys(Path(path).expanduser().absolute() for path in (*asked, *named)))


def cache_folder() -> Path:
    """$PLIANT_CACHE, else the platform's cache folder."""
    if os.environ.get("PLIANT_CACHE"):
        return Path(os.environ["PLIANT_CACHE"]).expanduser().absolute()
    import pooch  # pyright: ignore[reportMissingTypeStubs]

    return Path(pooch.os_cache("pliant"))


def downloads(name: str) -> Path:
    """The folder of a data set's downloaded files."""
    return cache_folder() / "downloads" / name


def candidates(file: File, name: str, entry: Entry, roots: list[Path]) -> list[Path]:
    """Paths where a file of a known data set may be: packed or not, under the set's name or another.

    The names of IDX files do not say which data set they are of, so these are looked for in the set's own folder.
    """
    spellings = [file.name, *([file.name.removesuffix(".gz")] if file.unpacked else [])]
    own = [root / folder for root in roots for folder in (name, *entry.folders)]
    shared = [] if entry.form == "idx" else roots
    return [*(place / spelling for place in (*own, *shared) for spelling in spellings), downloads(name) / file.name]


def found_file(file: File, name: str, entry: Entry, folder: Path | None = None) -> Path | None:
    """The first of the places where the file is."""
    return next((path for path in candidates(file, name, entry, folders(folder)) if path.is_file()), None)


def found_images(name: str, entry: Entry | None, folder: Path | None = None) -> Path | None:
    """A zip or folder of class folders with the name of the set, or added under it."""
    places = [root / spelling for root in folders(folder) for spelling in (name, *(entry.folders if entry else ()))]
    for place in places:
        packed = place.with_name(place.name + ARCHIVE)
        if packed.is_file():
            return packed
        if place.is_dir():
            return place
    return added().get(name)


def added() -> dict[str, Path]:
    """The data sets that were added: name -> folder or zip."""
    try:
        text = _register().read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise DataError(f"cannot read {_register()}: {error.strerror or error}") from None
    try:
        register: Any = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        register = None
    if not isinstance(register, dict) or not all(type(path) is str for path in cast(Any, register).values()):
        raise DataError(f"{_register()} is damaged: delete it, and add your data sets again")
    return {name: Path(path) for name, path in cast(dict[str, str], register).items()}


def remember(name: str, path: Path) -> None:
    """Let `name` mean the folder or zip at `path` from now on."""
    with locked(_register().with_suffix(".lock")):
        register = {**added(), name: path}
        text = json.dumps({key: str(register[key]) for key in sorted(register)}, indent=2)
        try:
            write_durably(_register(), text.encode())
        except OSError as error:
            raise DataError(f"cannot write {_register()}: {error.strerror or error}") from None


def _register() -> Path:
    return cache_folder() / "sets.json"
