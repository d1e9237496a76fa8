"""What tests of class-incremental learning and warm starting share: short runs that can be stopped anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pliant.lab import Context


@dataclass
class Runs:
    """Short runs of one experiment, on the data set `small` of a folder."""

    experiment: Any
    short: dict[str, Any]  # settings of all runs
    _finished: dict[Any, Any] = field(default_factory=dict)

    def begin(self, folder: Path, pieces: int = 7, **settings: Any) -> Any:
        """A run that advances by a few pieces at a time."""
        config = self.experiment.Config(**{"dataset": "small", **self.short, **settings})
        state = self.experiment.start([config], Context(data=folder))
        state.pieces_per_advance = pieces
        return state

    def finish(self, state: Any) -> dict[str, np.ndarray]:
        """All rows from here on."""
        rows = []
        while state.statuses()[0].word == "running":
            rows.append(self.experiment.advance(state))
        return joined(rows)

    def straight(self, folder: Path, **settings: Any) -> tuple[Any, dict[str, np.ndarray]]:
        """A finished run of these settings, and its rows; looked at, never changed."""
        key = (folder, *settings.items())
        if key not in self._finished:
            state = self.begin(folder, **settings)
            self._finished[key] = state, self.finish(state)
        return self._finished[key]


def joined(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([each[name] for each in rows]) for name in rows[0]}


def equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(first[name], second[name], equal_nan=True) for name in first)
