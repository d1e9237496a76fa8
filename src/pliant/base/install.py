"""How to install what a part of the library needs, said in one place."""

from __future__ import annotations

import re
from importlib.metadata import version


def how_to_install(extra: str) -> str:
    """There is no release yet: the extra is installed from a clone.

    >>> how_to_install("lab")
    'pip install -e ".[lab]" in a clone of Pliant'
    """
    return f'pip install -e ".[{extra}]" in a clone of Pliant'


def check_tested(package: str, least: str, below: str) -> None:
    """Raise `RuntimeError` where the version of `package` that is installed is none of those that its adapter is tested with.

    >>> check_tested("torch", "0.1", "0.2")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    RuntimeError: torch ... is installed, and the adapter is tested with torch>=0.1,<0.2: pip install "torch>=0.1,<0.2"
    """
    there = version(package)
    if not _numbers(least) <= _numbers(there) < _numbers(below):
        wanted = f"{package}>={least},<{below}"
        raise RuntimeError(
            f'{package} {there} is installed, and the adapter is tested with {wanted}: pip install "{wanted}"'
        )


def _numbers(release: str) -> tuple[int, ...]:
    """The leading numbers of a version.

    >>> _numbers("2.13.0+cpu"), _numbers("5.0rc1") >= _numbers("5")
    ((2, 13, 0), True)
    """
    return tuple(int(number) for number in re.findall(r"\d+", re.split(r"[^\d.]", release)[0]))
