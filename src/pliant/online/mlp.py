"""One online learner with the manners of scikit-learn."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pliant.online.ensemble import OnlineEnsemble


class OnlineMLP:
    """A network that learns from one example at a time: `partial_fit`, `predict`, `score`.

    Takes the arguments of `OnlineEnsemble`, of which it is a company of one (and so by the kernel that works on one at a
    time). Numbers are converted to its dtype.

    >>> mlp = OnlineMLP(inputs=2, hidden=[16], outputs=1, seed=0, step_size=0.05)
    >>> X = np.random.default_rng(0).uniform(-1, 1, (4000, 2))
    >>> bool(mlp.partial_fit(X, X[:, 0] * X[:, 1]).score(X, X[:, 0] * X[:, 1]) > 0.8)
    True
    """

    def __init__(
        self, *, inputs: int, hidden: tuple[int, ...] | list[int], outputs: int, seed: int, **settings: Any
    ) -> None:
        settings.setdefault("kernel", "rows")
        self.ensemble = OnlineEnsemble(inputs=inputs, hidden=hidden, outputs=outputs, learners=1, seed=seed, **settings)
        self.loss_: NDArray[np.floating[Any]] | None = None  # (n,) of the last `partial_fit`, before each update

    def partial_fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learn from X (n, inputs), y (n[, outputs]) or (n,) labels, one example after the other."""
        self.loss_ = self.ensemble.partial_fit(self._inputs(X), self._answers(y)).loss[0]
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Outputs (n, outputs), or (n,) if there is one; labels (n,) for cross-entropy."""
        answer = self.ensemble.predict(self._inputs(X))[0]
        return answer[:, 0] if answer.ndim == 2 and answer.shape[1] == 1 else answer

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Accuracy, or R^2."""
        return float(self.ensemble.score(self._inputs(X), self._answers(y))[0])

    def _inputs(self, X: ArrayLike) -> NDArray[Any]:
        return np.asarray(X, dtype=self.ensemble.dtype)[None]

    def _answers(self, y: ArrayLike) -> NDArray[Any]:
        given = np.asarray(y)
        return (given if self.ensemble.loss == "cross_entropy" else given.astype(self.ensemble.dtype))[None]
