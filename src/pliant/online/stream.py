"""What an online estimator has learned, how it grows, and how it is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from pliant.online import settings
from pliant.online.answers import as_classes, in_order
from pliant.online.features import Features, Rows
from pliant.online.growing import GrowingLearner
from pliant.online.scores import RunningAccuracy, RunningDetermination
from pliant.online.standardize import Standardizer

FORMAT = 1  # of `state_dict`
KINDS = {
    "features": list,
    "labels": list,
    "y_name": list,
    "network": Mapping,
    "inputs": Mapping,
    "targets": Mapping,
    "score": Mapping,
}

Score = TypeVar("Score", RunningAccuracy, RunningDetermination)


class Stream(Generic[Score]):
    """What an estimator has learned."""

    def __init__(
        self,
        features: Features,
        network: GrowingLearner,
        inputs: Standardizer,
        targets: Standardizer,
        labels: list[Any],
        score: Score,
        given: tuple[Any, ...],
    ) -> None:
        self.features, self.network, self.inputs, self.targets, self.score = features, network, inputs, targets, score
        self.given = given  # the arguments that it was built with, and changed to since
        self.nan_too = False  # whether a missing number is refused
        self.seen = self.restarts = 0
        self.y_name: Any = None  # of the series last given to `learn_many`
        self.labels: list[Any] = []
        self.add_labels(labels)

    def add_labels(self, labels: Sequence[Any]) -> None:
        """Give the network outputs for labels that are new."""
        self.labels = [*self.labels, *labels]
        self.codes = {label: code for code, label in enumerate(self.labels)}
        self.answers, in_turn = as_classes(self.labels), in_order(self.labels)
        self.classes, self.order = as_classes(in_turn), [self.codes[label] for label in in_turn]
        if len(self.labels) > self.network.sizes[-1]:
            self.network.grow(self.network.sizes[0], len(self.labels))

    def add_features(self, rows: Rows, new: Mapping[Any, Any]) -> Rows:
        """Give the network inputs for features that are `new`, each with a number per row; returns the rows with them."""
        names = in_order(new)  # the order of a dictionary changes nothing
        numbers = np.array([new[name] for name in names], np.float64).reshape(len(names), len(rows))
        rows = np.ascontiguousarray(np.concatenate([rows, numbers.T], axis=1))
        if self.features.names == [None]:  # an example without any feature came first
            self.features = Features([])
            rows = np.ascontiguousarray(rows[:, 1:])
        self.features.add(names)
        if rows.shape[1] > self.network.sizes[0]:
            self.network.grow(rows.shape[1], self.network.sizes[-1])
            self.inputs.grow(rows.shape[1])
        return rows

    def state_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "features": list(self.features.names),
            "labels": list(self.labels),
            "y_name": [self.y_name],
            "network": self.network.state_dict(),
            "inputs": self.inputs.state_dict(),
            "targets": self.targets.state_dict(),
            "score": self.score.state_dict(),
            "seen": self.seen,
            "restarts": self.restarts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state that `refuse_odd` let through, into a stream of its features and labels."""
        (self.y_name,) = state["y_name"]
        self.network.load_state_dict(state["network"])
        self.inputs.load_state_dict(state["inputs"])
        self.targets.load_state_dict(state["targets"])
        self.score.load_state_dict(state["score"])
        self.seen = settings.whole("'seen' of the state", state["seen"], least=0)


def refuse_odd(state: Any) -> None:
    """Raise `ValueError` for what is no state of an estimator."""
    if not isinstance(state, Mapping) or state.get("format") != FORMAT:
        raise ValueError(f"this is no state of format {FORMAT} of an online estimator: load what state_dict() gave")
    for name in (*KINDS, "seen", "restarts"):
        if name not in state or (name in KINDS and not isinstance(state[name], KINDS[name])):
            raise ValueError(f"the state lacks '{name}', or it is of another kind: load what state_dict() gave")
