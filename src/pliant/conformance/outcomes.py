"""How a check ends, other than passed."""

from __future__ import annotations


class Failed(Exception):
    """The implementation does something else than what the check specifies."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"expected {expected}; found {found}")
        self.expected, self.found = expected, found


class NotApplicable(Exception):
    """The check says nothing about this implementation; its text is the reason."""


def expect(holds: bool, expected: str, found: object) -> None:
    """Raise `Failed` unless it holds."""
    if not holds:
        raise Failed(expected, str(found))
