"""What cannot fit into memory is refused before it is asked for."""

from __future__ import annotations

import os


def refuse_too_large(what: str, numbers: int, size: int = 8) -> None:
    """Raise `ValueError` where `numbers` numbers of `size` bytes are more than the machine's memory.

    >>> refuse_too_large("hidden=(10**9, 10**9)", 10**18)
    Traceback (most recent call last):
    ValueError: hidden=(10**9, 10**9) would take 8,000,000,000 GB of memory, more than this machine has: choose less
    """
    if numbers * size > _memory():
        raise ValueError(
            f"{what} would take {numbers * size // 10**9:,} GB of memory, more than this machine has: choose less"
        )


def _memory() -> int:
    """Bytes, or 1 TB where that is not known."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 40
