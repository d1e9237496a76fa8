"""How to install what a part of the library needs, said in one place."""

from __future__ import annotations


def how_to_install(extra: str) -> str:
    """There is no release yet: the extra is installed from a clone.

    >>> how_to_install("lab")
    'pip install -e ".[lab]" in a clone of Pliant'
    """
    return f'pip install -e ".[{extra}]" in a clone of Pliant'
