"""Downloads: each mirror in turn; a file is kept only if it has the published hash.

Pooch writes to a temporary file, compares hashes and renames: a half-written download is never taken for a complete one.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pliant.data.catalog import Entry, File
from pliant.data.files import has_hash, locked
from pliant.data.images import DataError
from pliant.data.places import downloads

log = logging.getLogger(__name__)

TIMEOUT = 30  # seconds without a byte


def fetched(name: str, entry: Entry, file: File) -> Path:
    """The path of the file, downloaded before or now. Raises DataError, with the failure of every mirror."""
    folder = downloads(name)
    path = folder / file.name
    if not _sound(path, file):
        with locked(folder / f"{file.name}.lock"):
            if not _sound(path, file):  # another process may have fetched it meanwhile
                path.unlink(missing_ok=True)
                _download(entry, file, folder)
    return path


def _sound(path: Path, file: File) -> bool:
    if not path.is_file():
        return False
    sound = has_hash(path, file.hash)
    if not sound:
        log.warning("%s is damaged (its hash is not the published one): it is fetched again", path)
    return sound


def _download(entry: Entry, file: File, folder: Path) -> None:
    import pooch  # pyright: ignore[reportMissingTypeStubs]
    from requests.exceptions import RequestException

    failures: list[str] = []
    downloader: Any = pooch.HTTPDownloader(timeout=TIMEOUT)
    for mirror in entry.mirrors:
        log.info("downloading %s%s (%g MB)", mirror, file.name, file.megabytes)
        try:
            with _quiet(pooch.get_logger()):
                pooch.retrieve(mirror + file.name, file.hash, file.name, folder, downloader=downloader)
            return
        except RequestException as error:
            failures.append(f"{mirror}: {_why(error)}")
        except ValueError:
            failures.append(f"{mirror}: truncated or wrong, its hash is not the published one")
        except OSError as error:
            raise DataError(f"cannot write {folder / file.name}: {error.strerror or error}") from None
    raise DataError(
        f"cannot download {file.name}: {'; '.join(failures)}. Get it in another way, and put it into $PLIANT_DATA or {folder}"
    )


def _why(error: Exception) -> str:
    response = getattr(error, "response", None)
    return f"HTTP {response.status_code}" if response is not None else type(error).__name__


@contextmanager
def _quiet(logger: logging.Logger) -> Generator[None]:
    """Silence Pooch, which prints each file's hash on standard error."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
