"""One learner of single examples whose inputs and outputs may grow in number, and whose call costs little.

An added input or output gets the fresh weights that it would have had in a new network of the larger shape: their distribution,
that is; the numbers are of the streams (seed, "grown input" or "grown output", its number). Everything else stays: weights,
optimizer state, utilities and ages. With Adam an entry counts its steps from the younger of its two units, and inputs and outputs
count as old as the network; so the first steps of what was added are up to three times as long as those of a fresh network.

Calls with a single example are the reason for the rest: what a call of the kernel needs is kept between calls.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pliant import streams
from pliant.online import build
from pliant.online.ensemble import OnlineEnsemble
from pliant.online.examples import Array, as_read
from pliant.online.learner import aligned
from pliant.online.rows import RowsWork, answer_rows, learn_rows, rows_work

RULES = ("step_size", "weight_decay", "dropout", "replacement_rate", "maturity_threshold", "decay_rate")  # may change


class GrowingLearner(OnlineEnsemble):
    """An ensemble of one, of the kernel "rows"; takes examples (n, inputs) in its dtype that were checked before."""

    least_outputs = 1  # a classifier that has seen one label

    def __init__(
        self, *, inputs: int, hidden: Any, outputs: int, seed: int, noise_std: float, candidates: int, **settings: Any
    ) -> None:
        super().__init__(
            inputs=inputs, hidden=hidden, outputs=outputs, learners=1, seed=seed, kernel="rows", noise_std=noise_std,
            candidates=candidates, **settings,
        )  # fmt: skip
        self._fixed = {"noise_std": noise_std, "candidates": candidates}
        self._kept: _Kept | None = None

    def learn(self, x: Array, targets: Array, labels: NDArray[np.int64], weights: Array | None = None) -> Array:
        """Learn from examples (n, inputs), one after the other; returns the outputs before each update, (n, outputs).

        `targets` (n, outputs), or (n, 0) and `labels` (n,) for cross-entropy, `weights` (n,) of the gradients. Examples after one
        whose loss is not finite are not learned, and their outputs are NaN.
        """
        n, kept = len(x), self._ready()
        answers = np.full((1, n, self.sizes[-1]), np.nan, self.dtype)
        learn_rows(
            self._net, self._rules, self._state, kept.work, _FIRST, _FIRST, as_read(x[None], self.dtype), 0,
            as_read(targets[None], self.dtype), as_read(labels[None], np.int64), self.steps,
            np.empty((1, n), self.dtype), np.empty((1, n), np.bool_), kept.sums,
            kept.unweighted if weights is None else as_read(weights[None], self.dtype), answers,
        )  # fmt: skip
        self.steps += n
        return answers[0]

    def learn_one(self) -> Array:
        """`learn` from the example in `buffers`; returns the outputs, (outputs,), overwritten by the next call."""
        kept = self._ready()
        learn_rows(
            self._net, self._rules, self._state, kept.work, _FIRST, _FIRST, kept.x, 0, kept.targets, kept.labels, self.steps,
            kept.loss, kept.correct, kept.sums, kept.weights, kept.answers,
        )  # fmt: skip
        self.steps += 1
        return kept.answers[0, 0]

    def buffers(self) -> tuple[Array, Array, NDArray[np.int64], Array]:
        """Memory for the example of `learn_one`: x (1, inputs), targets (outputs or none,), labels (1,), weights (1,)."""
        return self._ready().writable

    def outputs(self, x: Array) -> Array:
        """Outputs (n, outputs) for examples (n, inputs)."""
        if self._state.settled.size:  # weights with noise: of a copy that has it
            return self.activations(x[None])[-1][0]
        answers = np.empty((len(x), self.sizes[-1]), self.dtype)
        answer_rows(
            self._net, self._rules, self._state, self._ready().work, self.steps, as_read(x, self.dtype), answers
        )
        return answers

    @property
    def diverged(self) -> bool:
        """Whether a loss was not finite."""
        return bool(self._state.diverged_at[0] >= 0)

    def change(self, **rules: ArrayLike) -> None:
        """Go on with other settings, some of `RULES`. Raises `ValueError`, with nothing changed, for one out of range."""
        self._rules = build.rules(
            self.seeds, len(self.sizes) - 2, self.dtype, **self._fixed, **rules  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
        self._kept = None

    def grow(self, inputs: int, outputs: int) -> None:
        """Add fresh inputs and outputs, to so many in all."""
        before, state, matrices = self._net, self._state, self._matrices()
        self.sizes = [inputs, *self.sizes[1:-1], outputs]
        self._net = before._replace(**build.layout(self.sizes, "rows", str(self._method["init"]), self.activation))
        noisy, remembering = bool(state.settled.size), bool(state.past_inputs.shape[1])
        grown = build.state_without_weights(self._net, 1, self.dtype, "rows", noisy=noisy, remembering=remembering)
        for name in _OF_HIDDEN_UNITS:
            getattr(grown, name)[...] = getattr(state, name)
        grown.settled[...] = self.steps
        grown.past_inputs[..., : before.sizes[0]] = state.past_inputs[..., : before.sizes[0]]  # what is new was 0 then
        grown.past_inputs[..., self._net.unit_at[1] :] = state.past_inputs[..., before.unit_at[1] :]
        grown.past_deltas[..., : state.past_deltas.shape[2]] = state.past_deltas
        for layer, old in enumerate(matrices):
            self._fill_fresh(grown, layer, old.shape[1] - 1, old.shape[2])
            pairs = [(build.matrix_of(self._net, grown.parameters, layer), old)]
            for new_moment, moment in ((grown.moment1, state.moment1), (grown.moment2, state.moment2)):
                if moment.size:
                    pairs.append(
                        (build.matrix_of(self._net, new_moment, layer), build.matrix_of(before, moment, layer))
                    )
            for new, known in pairs:
                new[:, : known.shape[1] - 1, : known.shape[2]] = known[:, :-1]
                new[:, -1, : known.shape[2]] = known[:, -1]
            sizes = np.abs(build.matrix_of(self._net, grown.parameters, layer)[0, :-1])
            begin, middle, first = *self._net.unit_at[layer : layer + 2], self._net.unit_at[1]
            grown.row_sum[0, begin : begin + len(sizes)] = sizes.sum(axis=1)
            grown.column_sum[0, middle - first : middle - first + sizes.shape[1]] = sizes.sum(axis=0)
        self._state, self._kept = grown, None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None}  # it holds addresses of this process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._net, self._rules, self._state = (_own(each) for each in (self._net, self._rules, self._state))

    # -- inside ------------------------------------------------------------------------------------------------------

    def _fill_fresh(self, grown: Any, layer: int, known_inputs: int, known_outputs: int) -> None:
        """Fresh weights of the inputs and outputs that a layer did not have."""
        matrix, bound = build.matrix_of(self._net, grown.parameters, layer)[0], build.bound_of(self._net, layer)
        inputs, outputs = matrix.shape[0] - 1, matrix.shape[1]
        for j in range(known_inputs, inputs):
            key = streams.stream_key(self.seeds[0], "grown input", j)
            matrix[j] = (2.0 * streams.uniform(key, 0, outputs) - 1.0) * bound
        for o in range(known_outputs, outputs):
            key = streams.stream_key(self.seeds[0], "grown output", o)
            matrix[:-1, o] = (2.0 * streams.uniform(key, 0, inputs) - 1.0) * bound

    def _ready(self) -> _Kept:
        if self._kept is None:
            self._kept = _Kept(self.sizes, self.dtype, rows_work(self._net, self._rules, self._state), self.loss)
        return self._kept


class _Kept:
    """What a call of the kernel with one example reads and writes."""

    def __init__(self, sizes: list[int], dtype: np.dtype[Any], work: RowsWork, loss: str) -> None:
        self.work = work
        x, labels, weights = np.zeros((1, 1, sizes[0]), dtype), np.zeros((1, 1), np.int64), np.ones((1, 1), dtype)
        targets = np.zeros((1, 1, 0 if loss == "cross_entropy" else sizes[-1]), dtype)
        self.writable = x[0], targets[0, 0], labels[0], weights[0]
        self.x, self.targets, self.weights = (as_read(each, dtype) for each in (x, targets, weights))
        self.labels = as_read(labels, np.int64)
        self.unweighted = as_read(np.zeros((1, 0)), dtype)
        self.loss, self.correct = np.zeros((1, 1), dtype), np.zeros((1, 1), np.bool_)
        self.sums, self.answers = np.zeros((1, 0, len(sizes) - 1), dtype), np.zeros((1, 1, sizes[-1]), dtype)


def _own(held: Any) -> Any:
    """The named tuple with arrays in memory of their own, aligned: those of a memory map are read-only."""

    def own(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        given = cast("Array", value)
        mine = aligned(given.shape, given.dtype)
        mine[...] = given
        return mine

    return held._replace(**{name: own(value) for name, value in held._asdict().items()})


_FIRST = np.zeros(1, np.int64)  # the only learner, and its stream
_OF_HIDDEN_UNITS = (
    "affine", "affine_moment1", "affine_moment2", "statistics", "beta_power", "utility", "mean", "decay_power", "age",
    "eligible", "replaced", "diverged_at",
)  # fmt: skip
