"""Many networks that learn from one example at a time, each with its own seed and hyperparameters.

At every step t of its stream a learner predicts, is told the answer, and changes:

    loss      mean over outputs of (ŷ - y)^2, or cross-entropy, before the update
    update    p <- p - α (∂loss/∂p + λ p), or Adam's;  then p <- p + σ N(0, 1)
    observe   age += 1;  mean h and utility: running averages with decay rate η, of h before and weights after the update
    replace   of units with age > m, a share ρ is owed: n = floor(ρ Σ mature) - replaced, an integer;
              the n least useful hand their mean to the next bias, are drawn anew, leave with weights of zero,
              and start over: utility, mean, age, Adam's moments and step count

    α `step_size`   λ `weight_decay`   σ `noise_std`   η `decay_rate`   m `maturity_threshold`   ρ `replacement_rate`

Source: Dohare et al., Nature 632 (2024), algorithm 1; departures as in `pliant.ContinualBackprop`, which in PyTorch
is the same method to rounding. Whatever a learner draws comes from keyed streams (`pliant.streams`), so its results
do not depend on how many others run beside it, on their order, or on threads, down to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from pliant import streams
from pliant.initial import GAINS, INITS, uniform_bound
from pliant.online import forward, settings
from pliant.online.examples import Array, as_inputs, as_labels, as_streams, as_targets
from pliant.online.lanes import lanes_work, learn_lanes
from pliant.online.learner import Net, Rules, State, aligned
from pliant.online.rows import learn_rows, rows_work
from pliant.online.settings import ACTIVATIONS, LOSSES, UTILITIES, one_of, per_learner
from pliant.online.vectors import LANES

FORMAT = 1  # of `state_dict`
CHUNK = 4096  # examples of uint8 that are turned into floats at a time
TINY = 4000  # parameters up to which the lanes kernel is faster (20-20-1: 8 times; 20-64-64-1, 5,569 parameters: equal)


@dataclass(frozen=True)
class Progress:
    """What was measured at each step, before its update."""

    loss: Array  # (learners, n); NaN after the step at which a learner diverged
    correct: NDArray[np.bool_] | None  # (learners, n) whether the largest output was the label; cross-entropy only
    weight_sums: Array | None  # (learners, n, layers) sum of |w| of each matrix after the update, if asked for


class OnlineEnsemble:
    """Networks of one shape that learn online, side by side, in compiled code.

    Args:
        inputs, hidden, outputs: sizes of the layers. `hidden=()` is the linear learner.
        learners: how many.
        seed: one for each learner; one number stands for seed, seed + 1, ... The initial weights depend on the seed,
            the shape, the activation's gain and `init` alone, so that learners that differ in anything else start equal.
        activation: "relu", "leaky_relu", "tanh", "sigmoid", "elu", "swish", "selu" or "linear".
        loss: "squared_error" or "cross_entropy".
        optimizer: "sgd" or "adam" (PyTorch's, with coupled weight decay; a replaced unit's entries start over).
        step_size, weight_decay, noise_std: one number, or one for each learner, like the next three.
        replacement_rate: share of mature units replaced per step. 0 leaves a learner unobserved; None all of them.
        maturity_threshold: steps; a unit may be replaced when its age is greater.
        decay_rate: of the running averages; 0 = instantaneous.
        utility: how useful a unit is, by name (`pliant.online.settings.UTILITIES`).
        count: "accumulate" what is owed, or "bernoulli".
        hand_over_mean: move a replaced unit's mean contribution into the bias of what it feeds.
        init: "kaiming", "xavier", "lecun" or "default", of hidden layers at the start and of replaced units;
            outputs start with sqrt(3 / fan_in), biases with 0.
        dtype: float32 or float64.
        threads: how many work at a time, each on learners of its own.
        kernel: "lanes", "rows", or "auto": by the shape alone. They agree to rounding.

    Raises `ValueError` for what is out of range, naming it.

    >>> learners = OnlineEnsemble(inputs=4, hidden=[8], outputs=1, learners=3, seed=0, step_size=[0.1, 0.01, 0.001])
    >>> X = np.random.default_rng(0).standard_normal((1, 500, 4), dtype=np.float32)
    >>> learners.partial_fit(X, X.sum(axis=2)).loss.shape
    (3, 500)
    """

    def __init__(
        self,
        *,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        learners: int,
        seed: int | Sequence[int],
        activation: settings.Activation = "relu",
        loss: settings.Loss = "squared_error",
        optimizer: settings.Optimizer = "sgd",
        step_size: ArrayLike = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: ArrayLike = 0.0,
        noise_std: ArrayLike = 0.0,
        replacement_rate: ArrayLike | None = 0.0,
        maturity_threshold: ArrayLike = 100,
        decay_rate: ArrayLike = 0.99,
        utility: str = "contribution",
        count: settings.Count = "accumulate",
        hand_over_mean: bool = True,
        init: settings.Init = "kaiming",
        dtype: DTypeLike = np.float32,
        threads: int = 1,
        kernel: settings.Kernel = "auto",
    ) -> None:
        if learners < 1 or threads < 1:
            raise ValueError(f"learners and threads must be at least 1, not {learners} and {threads}")
        self.sizes = settings.layer_sizes(inputs, hidden, outputs)
        self.learners, self.threads, self.steps = int(learners), int(threads), 0
        self.seeds = settings.seeds(seed, self.learners)
        self.dtype = np.dtype(dtype)
        if self.dtype.name not in ("float32", "float64"):
            raise ValueError(f"dtype must be float32 or float64, not {self.dtype}")
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.loss = one_of("loss", loss, LOSSES)
        self.optimizer = one_of("optimizer", optimizer, ("sgd", "adam"))
        if self.loss == "cross_entropy" and outputs < 2:
            raise ValueError("cross_entropy needs at least 2 outputs, one for each label")
        tiny = sum((m + 1) * n for m, n in pairwise(self.sizes)) <= TINY
        self.kernel = one_of("kernel", kernel, ("auto", "lanes", "rows"))
        self.kernel = ("lanes" if tiny else "rows") if kernel == "auto" else kernel
        self._net = self._plan(beta1, beta2, eps, utility, count, hand_over_mean, init)
        self._rules = self._per_learner(
            step_size, weight_decay, noise_std, replacement_rate, maturity_threshold, decay_rate
        )
        self._state = self._initial_state()

    # -- learning ----------------------------------------------------------------------------------------------------

    def partial_fit(
        self, X: Array, y: Array, stream: ArrayLike | None = None, *, log_weights: bool = False
    ) -> Progress:
        """Take every learner once through its stream, one example at a time.

        X (streams, n, inputs), uint8 or the ensemble's dtype; y (streams, n[, outputs]), or integer labels (streams, n);
        stream (learners,) the row that each learner reads: row r (or the only one) for learner r if None.
        `log_weights` also returns sums of |w| at every step.
        """
        inputs, rows = self._read(X, stream)
        targets, labels = self._answers(inputs, y)
        n, layers = inputs.shape[1], len(self.sizes) - 1
        loss = np.full((self.learners, n), np.nan, self.dtype)
        correct = np.zeros((self.learners, n if self.loss == "cross_entropy" else 0), np.bool_)
        sums = np.full((self.learners, n if log_weights else 0, layers), np.nan, self.dtype)
        results = (targets, labels, self.steps, loss, correct, sums)
        ready = inputs.dtype == self.dtype
        for begin in range(0, n, n if ready else CHUNK):
            floats = inputs if ready else inputs[:, begin : begin + CHUNK].astype(self.dtype)
            self._learn(rows, floats, begin, *results)
        self.steps += n
        return Progress(loss, correct if self.loss == "cross_entropy" else None, sums if log_weights else None)

    def predict(self, X: Array, stream: ArrayLike | None = None) -> Array:
        """Outputs (learners, n, outputs), or labels (learners, n) for cross-entropy."""
        out = self.activations(X, stream)[-1]
        return out.argmax(axis=-1) if self.loss == "cross_entropy" else out

    def score(self, X: Array, y: Array, stream: ArrayLike | None = None) -> NDArray[np.float64]:
        """Of each learner, (learners,): accuracy, or the coefficient of determination R^2, mean over outputs."""
        inputs, rows = self._read(X, stream)
        targets, labels = self._answers(inputs, y)
        answer = self.predict(X, stream)
        if self.loss == "cross_entropy":
            return (answer == labels[rows]).mean(axis=1)
        truth = targets[rows].astype(np.float64)
        around = ((truth - truth.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
        return (1.0 - ((answer - truth) ** 2).sum(axis=1) / around).mean(axis=1)

    def activations(self, X: Array, stream: ArrayLike | None = None) -> list[Array]:
        """What every layer answers to a probe, each (learners, n, units); the last is the outputs."""
        inputs, rows = self._read(X, stream)
        x: Array = inputs[rows].astype(self.dtype, copy=False)
        weights = [self.weights(layer) for layer in range(len(self.sizes) - 1)]
        biases = [self.biases(layer) for layer in range(len(self.sizes) - 1)]
        return forward.layers(x, weights, biases, self.activation)

    # -- what the learners are now -----------------------------------------------------------------------------------

    def weights(self, layer: int) -> Array:
        """Copy of the weights of a layer, (learners, in, out): the transpose of PyTorch's, for each learner."""
        return self._matrix(layer)[:, :-1].copy()

    def biases(self, layer: int) -> Array:
        """Copy of the biases of a layer, (learners, out)."""
        return self._matrix(layer)[:, -1].copy()

    def weight_magnitude(self) -> Array:
        """Mean |w| of every weight matrix, biases left out, (learners, layers)."""
        means = [np.abs(self.weights(layer)).mean(axis=(1, 2)) for layer in range(len(self.sizes) - 1)]
        return np.stack(means, axis=1)

    @property
    def replacements(self) -> NDArray[np.int64]:
        """Units replaced so far, (learners, hidden layers)."""
        return self._state.replaced.copy()

    @property
    def diverged_at(self) -> NDArray[np.int64]:
        """First step whose loss was not finite, or -1, (learners,). Such a learner keeps the weights that gave it."""
        return self._state.diverged_at.copy()

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning has changed, as arrays, numbers and strings; to resume to the bit."""
        arrays = {name: value.copy() for name, value in self._state._asdict().items()}
        return {"format": FORMAT, "steps": self.steps, **self._identity(), **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of an ensemble built alike. Raises `ValueError` naming what differs."""
        if state.get("format") != FORMAT:
            raise ValueError(f"the state has format {state.get('format')!r}; this version reads format {FORMAT}")
        for name, mine in self._identity().items():
            if not np.array_equal(state[name], mine):
                raise ValueError(f"the state is of learners with {name} {state[name]}, these have {mine}")
        for name, mine in self._state._asdict().items():
            if np.shape(state[name]) != mine.shape:
                raise ValueError(f"'{name}' of the state has shape {np.shape(state[name])}, expected {mine.shape}")
        for name, mine in self._state._asdict().items():
            mine[...] = state[name]
        self.steps = int(state["steps"])

    # -- inside ------------------------------------------------------------------------------------------------------

    def _learn(self, rows: NDArray[np.int64], *examples: Any) -> None:
        """Run the kernel, in as many threads as were asked for: it holds no lock, and learners share nothing written."""

        def learn(share: NDArray[np.int64]) -> None:
            if self.kernel == "lanes":
                memory = lanes_work(self._net, self._state)
                learn_lanes(self._net, self._rules, self._state, *memory, share, rows, *examples)
            else:
                memory = rows_work(self._net, self._state)
                learn_rows(self._net, self._rules, self._state, memory, share, rows, *examples)

        shares = self._shares(rows)
        if len(shares) == 1:
            learn(shares[0])
        else:
            with ThreadPoolExecutor(len(shares)) as pool:
                list(pool.map(learn, shares))

    def _identity(self) -> dict[str, Any]:
        """What two ensembles must share to exchange their states."""
        names = {"dtype": str(self.dtype), "optimizer": self.optimizer, "kernel": self.kernel}
        return {"sizes": np.array(self.sizes), "seeds": np.array(self.seeds), **names}

    def _matrix(self, layer: int) -> Array:
        """View of a layer's weights with the bias as last row, (learners, in + 1, out)."""
        begin, width = int(self._net.weight_at[layer]), int(np.diff(self._net.unit_at)[layer + 1])
        rows = self.sizes[layer] + 1
        flat = self._state.parameters[:, begin : begin + rows * width]
        return flat.reshape(-1, rows, width)[:, :, : self.sizes[layer + 1]]

    def _plan(
        self, beta1: float, beta2: float, eps: float, utility: str, count: str, hand_over_mean: bool, init: str
    ) -> Net:
        """What all learners share, as the kernels read it."""
        for name, beta in (("beta1", beta1), ("beta2", beta2)):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"{name} must be at least 0 and below 1, not {beta}")
        if not 0.0 <= eps < np.inf:
            raise ValueError(f"eps must not be negative, and finite, not {eps}")
        gain = GAINS[self.activation]
        one_of("init", init, INITS)
        chosen = UTILITIES[one_of("utility", utility, UTILITIES)]
        sizes = np.array(self.sizes)
        width = sizes if self.kernel == "lanes" else -(-sizes // LANES) * LANES
        real = cast(Callable[[float], Any], self.dtype.type)
        return Net(
            sizes=sizes,
            weight_at=np.concatenate([[0], np.cumsum((sizes[:-1] + 1) * width[1:])]),  # and where all end
            unit_at=np.concatenate([[0], np.cumsum(width)]),
            pairs=int(((sizes[:-1] + 1) * -(-sizes[1:] // 2)).sum()),
            activation=ACTIVATIONS[self.activation],
            loss=LOSSES[self.loss],
            adam=self.optimizer == "adam",
            beta1=real(beta1),
            beta2=real(beta2),
            eps=real(eps),
            activity=chosen.activity,
            outgoing=chosen.outgoing,
            incoming=chosen.incoming,
            bernoulli=one_of("count", count, ("accumulate", "bernoulli")) == "bernoulli",
            hand_over=bool(hand_over_mean),
            bound=np.array([uniform_bound(init, m, n, gain) for m, n in pairwise(self.sizes[:-1])]),
        )

    def _per_learner(
        self,
        step_size: ArrayLike,
        weight_decay: ArrayLike,
        noise_std: ArrayLike,
        replacement_rate: ArrayLike | None,
        maturity_threshold: ArrayLike,
        decay_rate: ArrayLike,
    ) -> Rules:
        learners, layers = self.learners, len(self.sizes) - 2
        rate = 0.0 if replacement_rate is None else replacement_rate

        def keys(purpose: str) -> NDArray[np.uint64]:
            names = [[streams.stream_key(seed, purpose, layer) for layer in range(layers)] for seed in self.seeds]
            return np.array(names, np.uint64).reshape(learners, layers)

        decay = per_learner("decay_rate", decay_rate, learners, 0.0, 1.0)
        if (decay == 1.0).any():
            raise ValueError("decay_rate must be below 1: an average that forgets nothing learns nothing")
        threshold = per_learner("maturity_threshold", maturity_threshold, learners)
        if (threshold % 1 != 0).any():
            raise ValueError(f"maturity_threshold must be whole steps, not {threshold[threshold % 1 != 0][0]:g}")
        return Rules(
            step_size=per_learner("step_size", step_size, learners).astype(self.dtype),
            weight_decay=per_learner("weight_decay", weight_decay, learners).astype(self.dtype),
            noise_std=per_learner("noise_std", noise_std, learners).astype(self.dtype),
            replacement_rate=per_learner("replacement_rate", rate, learners, 0.0, 1.0),
            maturity_threshold=threshold.astype(np.int64),
            decay_rate=decay.astype(self.dtype),
            noise_key=np.array([streams.stream_key(seed, "noise") for seed in self.seeds], np.uint64),
            fresh_key=keys("fresh weights"),
            count_key=keys("replacement count"),
            score_key=keys("random utility"),
        )

    def _initial_state(self) -> State:
        learners, real, hidden = self.learners, self.dtype, len(self.sizes) - 2
        parameters = int(self._net.weight_at[-1])
        width, moments = np.diff(self._net.unit_at), parameters * (self.optimizer == "adam")
        inputs, units, outputs = int(width[0]), int(width[1:-1].sum()), int(width[-1])
        state = State(
            parameters=aligned((learners, parameters), real),
            moment1=aligned((learners, moments), real),
            moment2=aligned((learners, moments), real),
            beta_power=np.ones((learners, 2, units + 1)),
            utility=np.zeros((learners, units), real),
            mean=np.zeros((learners, units), real),
            decay_power=np.ones((learners, units), real),
            age=np.zeros((learners, units), np.int64),
            row_sum=np.zeros((learners, inputs + units), real),
            column_sum=aligned((learners, units + outputs), real),
            eligible=np.zeros((learners, hidden), np.int64),
            replaced=np.zeros((learners, hidden), np.int64),
            diverged_at=np.full(learners, -1, np.int64),
        )
        self._state = state
        for layer in range(len(self.sizes) - 1):
            m, n = self.sizes[layer : layer + 2]
            bound = self._net.bound[layer] if layer < hidden else uniform_bound("lecun", m, n, 1.0)
            for r, seed in enumerate(self.seeds):
                drawn = streams.uniform(streams.stream_key(seed, "initial weights", layer), 0, (n, m))
                self._matrix(layer)[r, :-1] = ((2.0 * drawn - 1.0) * bound).T
        return state

    def _read(self, X: Array, stream: ArrayLike | None) -> tuple[Array, NDArray[np.int64]]:
        inputs = as_inputs(np.asarray(X), self.sizes[0], self.dtype)
        return inputs, as_streams(stream, len(inputs), self.learners)

    def _answers(self, X: Array, y: Array) -> tuple[Array, NDArray[np.int64]]:
        """Targets and labels; the one that the loss does not need is a row of zeros that nobody reads."""
        streams, n = X.shape[:2]
        if self.loss == "cross_entropy":
            return np.zeros((streams, n, 0), self.dtype), as_labels(np.asarray(y), streams, n, self.sizes[-1])
        targets = as_targets(np.asarray(y), streams, n, self.sizes[-1], self.dtype)
        return targets, np.zeros((streams, n), np.int64)

    def _shares(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The learners, as the kernel takes them, in one share for each thread."""
        work = self._blocks(rows) if self.kernel == "lanes" else np.arange(self.learners)
        return [share for share in np.array_split(work, min(self.threads, len(work))) if len(share)]

    def _blocks(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Blocks of learners that step side by side, (blocks, LANES), -1 where none is left.

        Whoever reads the same stream, and is observed, decayed and disturbed or not alike, goes together where that
        fills a block at least half: such a block reads each example once and skips what none of it needs.
        """
        rules, lanes = self._rules, LANES
        traits = (rules.replacement_rate > 0) * 4 + (rules.weight_decay > 0) * 2 + (rules.noise_std > 0) * 1
        blocks: list[NDArray[np.int64]] = []
        for trait in np.unique(traits):
            rest: list[NDArray[np.int64]] = []
            for row in np.unique(rows[traits == trait]):
                members = np.flatnonzero((traits == trait) & (rows == row))
                pieces = np.split(members, range(lanes, len(members), lanes))
                blocks += [piece for piece in pieces if 2 * len(piece) > lanes]
                rest += [piece for piece in pieces if 2 * len(piece) <= lanes]
            left = np.concatenate(rest) if rest else np.empty(0, np.int64)
            blocks += [left[i : i + lanes] for i in range(0, len(left), lanes)]
        return np.stack([np.pad(block, (0, lanes - len(block)), constant_values=-1) for block in blocks])
