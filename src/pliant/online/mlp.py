"""One online learner with the interface of scikit-learn."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pliant.online.ensemble import OnlineEnsemble
from pliant.online.examples import as_array


class OnlineMLP:
    """A network that learns from one example at a time: `partial_fit`, `predict`, `score`.

    Takes the arguments of `OnlineEnsemble`; it is an ensemble of one, with the kernel for single learners. Numbers are
    converted to its dtype.

    Features far from 0 and 1, or a large `step_size`, may make it diverge. The first loss that is not finite gives one
    `RuntimeWarning`; from then on `diverged` is true, and `partial_fit`, `predict` and `score` raise `RuntimeError`, because
    learning cannot continue from such weights.

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

    @property
    def diverged(self) -> bool:
        """Whether a loss was not finite."""
        return bool(self.ensemble.diverged_at[0] >= 0)

    def partial_fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learn from X (n, inputs), y (n[, outputs]) or (n,) labels, one example after the other."""
        self._check_alive()
        inputs = self._inputs(X)
        self.loss_ = self.ensemble.partial_fit(inputs, self._answers(y)).loss[0]
        if self.diverged:
            warnings.warn(
                f"OnlineMLP {self._when()}, and has learned nothing since. {self._remedy()} "
                f"(the largest |x| of this call is {np.abs(inputs).max():.3g})",
                RuntimeWarning,
                stacklevel=2,
            )
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Outputs (n, outputs), or (n,) if there is one; labels (n,) for cross-entropy. Always finite, else it raises."""
        self._check_alive()
        answer = self.ensemble.predict(self._inputs(X))[0]
        broken = answer < 0 if self.ensemble.loss == "cross_entropy" else ~np.isfinite(answer)
        if broken.any():
            raise RuntimeError(
                f"OnlineMLP has outputs that are not finite for X[{int(np.argwhere(broken)[0, 0])}]: its last step broke it, or "
                f"these features are too large. {self._remedy()}"
            )
        return answer[:, 0] if answer.ndim == 2 and answer.shape[1] == 1 else answer

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Accuracy, or R^2 as `OnlineEnsemble.score` defines it."""
        self._check_alive()
        return float(self.ensemble.score(self._inputs(X), self._answers(y))[0])

    def _check_alive(self) -> None:
        if self.diverged:
            raise RuntimeError(f"OnlineMLP {self._when()}: it neither learns nor predicts any more. {self._remedy()}")

    def _when(self) -> str:
        return f"diverged: its loss at step {self.ensemble.diverged_at[0]:,}, counted from 0, is not finite"

    def _remedy(self) -> str:
        step_size = float(self.ensemble.step_size[0])
        return f"Build it anew, and scale the features to mean 0 and deviation 1, or lower step_size from {step_size:g}"

    def _inputs(self, X: ArrayLike) -> NDArray[Any]:
        return self._floats("X", X)[None]

    def _answers(self, y: ArrayLike) -> NDArray[Any]:
        given = as_array("y", y) if self.ensemble.loss == "cross_entropy" else self._floats("y", y)
        return given[None]

    def _floats(self, name: str, values: ArrayLike) -> NDArray[Any]:
        given = as_array(name, values)
        if given.dtype.kind not in "biuf":
            raise TypeError(f"{name} is an array of {given.dtype}: give numbers")
        return given.astype(self.ensemble.dtype, copy=False)
