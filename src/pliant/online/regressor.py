"""A regressor of single examples, as scikit-learn and River have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pliant.base.choices import shown
from pliant.online.answers import as_weights
from pliant.online.bases import Estimator, RegressorMixin, river_model
from pliant.online.estimator import OnlineEstimator
from pliant.online.examples import Array
from pliant.online.features import NUMBERS, Rows, as_float
from pliant.online.scores import RunningDetermination, determination
from pliant.online.standardize import LARGEST, first_unusable
from pliant.online.stream import Stream
from pliant.online.tables import series_like, table


@river_model("MiniBatchRegressor")
class OnlineRegressor(OnlineEstimator[RunningDetermination], RegressorMixin, Estimator):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A network that learns numbers from one example at a time; an estimator of scikit-learn and a model of River.

    Takes the arguments of `OnlineClassifier`. With `normalize` the network learns targets that are standardized by their own
    running mean and variance, so that prices need no smaller step size than shares; predictions are scaled
    back. Targets may have several columns.

    `score_` is the prequential R², of each example as it was predicted before it was learned, mean over columns.

    >>> model = OnlineRegressor(hidden=(16,), step_size=0.05)
    >>> X = np.random.default_rng(0).uniform(0, 1, (4000, 2))
    >>> model.partial_fit(X, 1e5 * X[:, 0] * X[:, 1]).score_ > 0.8
    True
    """

    loss = "squared_error"
    usual_step_size = 0.003

    def partial_fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Learn from X (examples, features) and y (examples[, columns]), one example after the other, in this order.

        `sample_weight` (examples,) multiplies each gradient; an example with weight 0 is not learned.
        """
        return self._partial_fit(X, y, None, sample_weight)

    def predict_one(self, x: Mapping[Any, Any]) -> float:
        """The prediction for one example; 0.0 before any was learned. Features that were never learned are left out."""
        stream = self._stream
        if stream is None:
            return 0.0
        self._only_column(stream)
        return float(self._scaled_back(stream, self._outputs_of_one(stream, x))[0])

    def predict_many(self, X: Any) -> Any:
        """Predictions for a table with named columns, as `predict_one` gives them, in a series with the index of X."""
        outputs = self._outputs_of_many(X, "predict_many")
        if self._stream is None or outputs is None:
            return series_like(X, np.zeros(len(X)), None)
        self._only_column(self._stream)
        return series_like(X, self._scaled_back(self._stream, outputs)[:, 0], self._stream.y_name)

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Predictions (n,), or (n, columns) if there are several, for X (n, features)."""
        stream, x = self._rows_to_predict(X)
        found = self._scaled_back(stream, self._outputs(stream, x))
        return found[:, 0] if found.shape[1] == 1 else found

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> float:
        """R², mean over columns: 1 - Σ w (ŷ - y)² / Σ w (y - mean y)² (`pliant.online.scores`)."""
        found = self.predict(X).reshape(len(table(X)[0]), -1)
        truth, weights = self._answers(y, len(found)), as_weights(sample_weight, len(found))
        if truth.shape != found.shape:
            raise ValueError(f"y has {truth.shape[1]} columns; this {type(self).__name__} learned {found.shape[1]}")
        return float(determination(truth[None], found[None], weights).mean())

    def _scaled_back(self, stream: Stream[RunningDetermination], out: NDArray[np.float64]) -> NDArray[np.float64]:
        targets = stream.targets
        return targets.mean + np.sqrt(targets.variance) * out if targets.scaled else out

    def _only_column(self, stream: Stream[RunningDetermination]) -> None:
        if stream.network.sizes[-1] != 1:
            raise ValueError(
                f"this {type(self).__name__} learned {stream.network.sizes[-1]} columns of targets: use partial_fit and predict"
            )

    def _new_score(self, outputs: int) -> RunningDetermination:
        return RunningDetermination(outputs)

    def _answers(self, y: Any, n: int) -> NDArray[np.float64]:
        self._asked_for(y)
        given = np.asarray(y)
        if given.dtype.kind == "c":
            raise ValueError(f"Complex data not supported: y is {given.dtype}")
        if given.dtype.kind not in NUMBERS:
            cells = given if hasattr(y, "dtype") else np.asarray(y, object)
            try:
                given = np.array([as_float(each) for each in cells.flat]).reshape(cells.shape)
            except (TypeError, ValueError, OverflowError) as error:
                raise type(error)(f"y must be numbers: {error}") from None
        targets = given.astype(np.float64)
        if targets.ndim not in (1, 2) or targets.size == 0:
            raise ValueError(f"y has shape {targets.shape}; expected (examples,) or (examples, columns)")
        if len(targets) != n:
            raise ValueError(f"y has {len(targets)} numbers for the {n} examples of X")
        targets = np.ascontiguousarray(targets.reshape(n, -1))
        at = first_unusable(targets, True)
        if at >= 0:
            raise ValueError(
                f"y[{at // targets.shape[1]}] is {targets.flat[at]:g}: targets must be finite, no NaN, up to {LARGEST:g}"
            )
        return targets

    def _shape_of(self, answers: NDArray[np.float64], *, all_known: bool) -> int:
        return answers.shape[1]

    def _check_one(self, stream: Stream[RunningDetermination], y: Any) -> float:
        self._only_column(stream)
        try:
            answer = as_float(y)
        except (TypeError, ValueError, OverflowError):
            raise TypeError(f"y must be a number, not {shown(y)}") from None
        if not abs(answer) <= LARGEST:
            raise ValueError(f"y is {answer:g}: targets must be finite, no NaN, up to {LARGEST:g}")
        return answer

    def _check_many(
        self, stream: Stream[RunningDetermination], answers: NDArray[np.float64], labels: list[Any] | None
    ) -> None:
        if answers.shape[1] != stream.network.sizes[-1]:
            raise ValueError(
                f"y has {answers.shape[1]} columns; this {type(self).__name__} learned {stream.network.sizes[-1]}"
            )

    def _known(self, stream: Stream[RunningDetermination], answer: float) -> float:
        return answer

    def _learn_answer(
        self, stream: Stream[RunningDetermination], code: float, target: Array, label: Array, weight: float
    ) -> None:
        y, before, z = np.array([[code]]), np.empty((1, 2, 1)), np.empty((1, 1))
        stream.targets(y, z, keep=True, before=before)
        target[0] = z[0, 0]
        out = float(stream.network.learn_one()[0])
        found = before[0, 0, 0] + before[0, 1, 0] * out if stream.targets.scaled else out
        stream.score.add_one(code, found, weight)

    def _learn_rows(
        self,
        stream: Stream[RunningDetermination],
        rows: Rows,
        answers: NDArray[np.float64],
        weights: Array | None,
        *,
        scored: bool,
    ) -> None:
        network, before = stream.network, np.empty((len(rows), 2, answers.shape[1]))
        targets = stream.targets(answers, np.empty(answers.shape, network.dtype), keep=True, before=before)
        x = stream.inputs(rows, np.empty(rows.shape, network.dtype), keep=True)
        out = self._learn_some(stream, x, targets, np.zeros(len(x), np.int64), weights)
        if scored:
            found = before[:, 0] + before[:, 1] * out if stream.targets.scaled else out
            stream.score.add(answers, found, weights)
