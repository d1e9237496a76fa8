"""A study shared out among machines that see its folder: shard K of N runs the K-th of every N jobs.

Which jobs are a shard's follows from the plan alone, so that machines agree without a word to each other, also on file
systems without locks. Whoever comes first writes the plan (`Study.save_first`); the others find it there.

    shard K/N      holds shard-K-of-N.lock, then sees that nobody holds study.lock
    all of it      holds study.lock, then sees that nobody holds a shard's lock

So a shard never runs twice at a time, nor beside a run of the whole study.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pliant.base.choices import shortened
from pliant.lab.errors import LabError
from pliant.lab.stored.files import Lock, is_held, last_holder
from pliant.lab.study.study import Job, Study

_LOCK = re.compile(r"shard-([0-9]+)-of-([0-9]+)\.lock")
_PATIENCE = 5.0  # seconds for locks that others hold for a moment, to see that they are free


@dataclass(frozen=True)
class Shard:
    """The `number`-th of `count` shards; 1 of 1 is all of a study."""

    number: int = 1
    count: int = 1

    @property
    def is_all(self) -> bool:
        return self.count == 1

    def jobs(self, study: Study) -> tuple[Job, ...]:
        """Those of its jobs in the study, which stay its own where jobs are added."""
        return study.jobs[self.number - 1 :: self.count]

    @property
    def option(self) -> str:
        """As it is typed; empty for all of a study.

        >>> Shard(3, 10).option
        ' --shard 3/10'
        """
        return "" if self.is_all else f" --shard {self.number}/{self.count}"

    @property
    def prefix(self) -> str:
        """Of the names of its files."""
        return "" if self.is_all else f"shard-{self.number}-of-{self.count}-"


ALL = Shard()


def shard(text: str | None) -> Shard:
    """As typed, all of the study where it was not. Raises LabError where it is none.

    >>> shard("3/10")
    Shard(number=3, count=10)
    """
    if text is None:
        return ALL
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise LabError(f"--shard {shortened(text)}: write K/N with K from 1 to N, such as 3/10")
    return Shard(int(match[1]), int(match[2]))


@contextmanager
def at_work(folder: Path, part: Shard) -> Generator[None]:
    """Inside, nobody else starts this part of the study. Raises `Held`, naming the holder, where somebody is at work on it."""
    whole = Lock(folder / "study.lock", f"the study in {folder}", 1.0 if part.is_all else _PATIENCE)
    if part.is_all:
        with whole:
            for other, file in _lock_files(folder):
                with _lock(folder, file, other, _PATIENCE):
                    pass
            yield
    else:
        with _lock(folder, folder / f"{part.prefix[:-1]}.lock", part, 1.0):
            with whole:
                pass
            yield


def _lock(folder: Path, file: Path, part: Shard, patience: float) -> Lock:
    return Lock(file, f"shard {part.number}/{part.count} of {folder}", patience)


def _lock_files(folder: Path) -> Iterator[tuple[Shard, Path]]:
    """Of the shards that were ever at work in the folder."""
    for file in sorted(folder.glob("shard-*.lock")):
        match = _LOCK.fullmatch(file.name)
        if match is not None:
            yield Shard(int(match[1]), int(match[2])), file


def shards_at_work(folder: Path) -> list[str]:
    """In words, which shards somebody is at work on now, as far as the file system tells."""
    return [
        f"shard {part.number}/{part.count}, {last_holder(file)}" for part, file in _lock_files(folder) if is_held(file)
    ]
