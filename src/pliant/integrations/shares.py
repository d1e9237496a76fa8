"""What a diagnosis of a network comes to in a few numbers, for a log."""

from __future__ import annotations

from collections.abc import Sequence

from pliant.diagnostics import GroupDiagnosis

SHARES = {
    "dead": "dead",
    "dormant": "dormant_by_activity",
    "saturated": "saturated",
}  # as logged -> field of a diagnosis


def shares(rows: Sequence[GroupDiagnosis]) -> dict[str, float]:
    """Of all units to which a measure applies, how many are `dead_share`, `dormant_share` (ReDo's measure), `saturated_share`."""
    found: dict[str, float] = {}
    for name, field in SHARES.items():
        known = [row for row in rows if getattr(row, field) is not None]
        if known:
            found[f"{name}_share"] = sum(getattr(row, field) for row in known) / sum(row.units for row in known)
    return found
