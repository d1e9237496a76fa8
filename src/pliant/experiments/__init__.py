"""The experiments by short name. Only the command line reads this table; nothing heavy is imported for it.

A test holds it to the classes: the same methods, the same profiles.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """An experiment, as `pliant list` shows it."""

    target: str  # module:Class
    question: str
    methods: tuple[str, ...]
    profiles: tuple[str, ...]


TABLE: dict[str, Entry] = {
    "slowly-changing-regression": Entry(
        target="pliant.experiments.slowly_changing_regression:SlowlyChangingRegression",
        question="does a small network go on fitting a target that drifts?",
        methods=("bp", "cbp", "linear", "l2", "snp"),
        profiles=("quick", "paper"),
    ),
}
