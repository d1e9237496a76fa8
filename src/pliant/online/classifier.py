"""A classifier of single examples, as scikit-learn and River have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pliant.base.choices import shown
from pliant.online.answers import as_labels, as_objects, as_python, as_weights, hashable, in_order, refuse_label
from pliant.online.bases import ClassifierMixin, Estimator, river_model
from pliant.online.estimator import OnlineEstimator
from pliant.online.examples import Array
from pliant.online.features import Rows
from pliant.online.scores import RunningAccuracy
from pliant.online.stream import Stream
from pliant.online.tables import frame_like, series_like


@river_model("MiniBatchClassifier")
class OnlineClassifier(OnlineEstimator[RunningAccuracy], ClassifierMixin, Estimator):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A network that learns to classify one example at a time; an estimator of scikit-learn and a model of River.

    Args:
        hidden: sizes of the hidden layers; `()` is the linear learner.
        step_size: by default 0.01 for labels and 0.003 for numbers.
        optimizer, activation, weight_decay, noise_std, dropout, normalization: see `OnlineEnsemble`.
        replacement_rate, maturity_threshold, decay_rate, utility, candidates, init: continual backpropagation, see there;
            rate 0: none.
        normalize: standardize inputs by their running mean and variance, with decay rate `normalize_decay`
            (`pliant.online.standardize`).
        missing: what stands for a feature that is absent, None or NaN: its running "mean", "zero", or an error ("raise").
        on_divergence: when a loss is not finite: "raise" `RuntimeError`, or "restart" the network and warn.
        epochs, shuffle: of `fit` alone: passes over the examples, each in an order of its own.
        seed: of everything random.

    `score_` is the prequential accuracy: the share of examples that were predicted rightly before they were learned. A label that
    was never seen before counts as missed, and adds an output.

    >>> model = OnlineClassifier(hidden=(16,), step_size=0.05)
    >>> for i in range(2000):
    ...     model.learn_one({"height": i % 7, "width": i % 3}, "tall" if i % 7 > 3 else "wide")
    >>> model.predict_one({"height": 6, "width": 1}), model.score_ > 0.9
    ('tall', True)
    """

    loss = "cross_entropy"
    usual_step_size = 0.01

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Learn from X (examples, features) and labels y, one example after the other, in this order.

        `classes` may name labels in advance; others get an output when they come. `sample_weight` (examples,) multiplies each
        gradient; an example with weight 0 is not learned.
        """
        return self._partial_fit(X, y, None if classes is None else self._labels_of(classes), sample_weight)

    def predict_one(self, x: Mapping[Any, Any], **_: Any) -> Any:
        """The label of one example; None before any was learned. Features that were never learned are left out."""
        stream = self._stream
        return (
            None
            if stream is None or not stream.labels
            else stream.labels[int(self._outputs_of_one(stream, x).argmax())]
        )

    def predict_proba_one(self, x: Mapping[Any, Any], **_: Any) -> dict[Any, float]:
        """The probability of each label; empty before any was learned."""
        stream = self._stream
        if stream is None or not stream.labels:
            return {}
        return dict(zip(stream.labels, _softmax(self._outputs_of_one(stream, x)[None])[0].tolist(), strict=True))

    def predict_many(self, X: Any) -> Any:
        """Labels for a table with named columns, as `predict_one` gives them, in a series with the index of X."""
        stream, outputs = self._stream, self._outputs_of_many(X, "predict_many")
        if stream is None or outputs is None:
            return series_like(X, np.full(len(X), None), None)
        return series_like(X, stream.answers[outputs.argmax(axis=1)], stream.y_name)

    def predict_proba_many(self, X: Any) -> Any:
        """Probabilities for a table with named columns: a table with the index of X and a column for each of `classes_`."""
        stream, outputs = self._stream, self._outputs_of_many(X, "predict_proba_many")
        if stream is None or outputs is None:
            return frame_like(X, np.empty((len(X), 0)), [])
        return frame_like(X, _softmax(outputs)[:, stream.order], [stream.labels[code] for code in stream.order])

    def predict(self, X: Any) -> NDArray[Any]:
        """Labels (n,) for X (n, features)."""
        stream, x = self._rows_to_predict(X)
        return stream.answers[self._outputs(stream, x).argmax(axis=1)]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities (n, labels), in the order of `classes_`."""
        stream, x = self._rows_to_predict(X)
        return _softmax(self._outputs(stream, x))[:, stream.order]

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> float:
        """Accuracy."""
        found = self.predict(X)
        answers, weights = self._answers(y, len(found)), as_weights(sample_weight, len(found))
        return float(
            np.average([mine == theirs for mine, theirs in zip(found.tolist(), answers, strict=True)], weights=weights)
        )

    @property
    def classes_(self) -> NDArray[Any]:
        """The labels so far, sorted."""
        return self._learned("classes_").classes

    _multiclass = True  # for River

    def _new_score(self, outputs: int) -> RunningAccuracy:
        return RunningAccuracy()

    def _answers(self, y: Any, n: int) -> NDArray[Any]:
        self._asked_for(y)
        labels = as_objects(as_labels(y))
        if len(labels) != n:
            raise ValueError(f"y has {len(labels)} labels for the {n} examples of X")
        return labels

    def _labels_of(self, classes: Any) -> list[Any]:
        labels = as_labels(classes, "classes")
        for label in labels:
            refuse_label(label)
        return in_order(labels)

    def _shape_of(self, answers: NDArray[Any], *, all_known: bool) -> list[Any]:
        for label in dict.fromkeys(hashable(answers)):
            refuse_label(label)
        return in_order(answers) if all_known else []

    def _check_one(self, stream: Stream[RunningAccuracy], y: Any) -> Any:
        try:
            known = y in stream.codes
        except TypeError:
            raise TypeError(f"a label must be hashable, and {shown(y)} is not") from None
        if not known:
            refuse_label(y)
        return y

    def _check_many(self, stream: Stream[RunningAccuracy], answers: NDArray[Any], labels: list[Any] | None) -> None:
        for label in dict.fromkeys(hashable(answers)):
            if label not in stream.codes:
                refuse_label(label)
        if labels is not None:
            listed = dict.fromkeys(labels)
            unlisted = next((label for label in answers if label not in listed), None)
            if unlisted is not None:
                raise ValueError(
                    f"y holds the label {unlisted!r}, which `classes` does not: leave `classes` out, or add it"
                )
            more = [label for label in listed if label not in stream.codes]
            if more:
                stream.add_labels(more)

    def _known(self, stream: Stream[RunningAccuracy], answer: Any) -> int:
        """The number of a label, which gets an output if it is new; then ~number, which no prediction equals."""
        code = stream.codes.get(answer)
        if code is None:
            stream.add_labels([as_python(answer)])
            return ~(len(stream.labels) - 1)
        return code

    def _learn_answer(
        self, stream: Stream[RunningAccuracy], code: int, target: Array, label: Array, weight: float
    ) -> None:
        label[0] = max(code, ~code)
        out = stream.network.learn_one()
        stream.score.add_one(int(out.argmax()) == code, weight)

    def _learn_rows(
        self, stream: Stream[RunningAccuracy], rows: Rows, answers: NDArray[Any], weights: Array | None, *, scored: bool
    ) -> None:
        begin = 0
        while begin < len(rows):
            surprised = self._known(stream, answers[begin]) < 0
            codes = [stream.codes.get(label) for label in answers[begin:]]
            end = begin + (codes.index(None) if None in codes else len(codes))  # up to the next label that is new
            labels = np.array(codes[: end - begin], np.int64)
            some = None if weights is None else weights[begin:end]
            x = stream.inputs(rows[begin:end], np.empty(rows[begin:end].shape, stream.network.dtype), keep=True)
            out = self._learn_some(stream, x, np.empty((len(x), 0), x.dtype), labels, some)
            if scored:
                hits: NDArray[np.bool_] = out.argmax(axis=1) == labels
                hits[0] &= not surprised
                stream.score.add(hits, some, where=np.all(np.isfinite(out), axis=1))
            begin = end


def _softmax(out: NDArray[np.float64]) -> NDArray[np.float64]:
    shares = np.exp(out - out.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)
