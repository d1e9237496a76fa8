"""Many networks that learn from one example at a time, each with its own seed and hyperparameters.

At every step t of its stream a learner predicts, receives the target, and updates:

    loss      mean over outputs of (ŷ - y)^2, or cross-entropy, before the update
    update    p <- p - α (∂loss/∂p + λ p), or another optimizer's;  then w <- w + σ N(0, 1), weights and biases
    observe   age += 1;  mean h and utility: running averages with decay rate η, of h before and weights after the update
    replace   a share ρ of the units with age > m is due: n = floor(ρ Σ mature) - replaced, an integer;
              the n least useful add their mean contribution to the next bias, get fresh incoming and zero outgoing
              weights, and start over: utility, mean, age, Adam's moments and step count

    α `step_size`   λ `weight_decay`   σ `noise_std`   η `decay_rate`   m `maturity_threshold`   ρ `replacement_rate`

Source: Dohare et al., Nature 632 (2024), algorithm 1; departures as in `pliant.ContinualBackprop`, which in PyTorch
is the same method to rounding. All random numbers come from keyed streams (`pliant.streams`), so a learner's results do
not depend on how many others run beside it, on their order, or on threads, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypedDict, Unpack, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from pliant.base.choices import one_of
from pliant.base.memory import refuse_too_large
from pliant.online import build, forward, settings
from pliant.online.candidates import EXAMPLES
from pliant.online.examples import (
    Array,
    Selection,
    as_array,
    as_inputs,
    as_labels,
    as_read,
    as_selection,
    as_streams,
    as_targets,
    as_they_lie,
    pick_answers,
)
from pliant.online.gather import gather
from pliant.online.lanes import lanes_work, learn_lanes
from pliant.online.learner import aligned
from pliant.online.rows import learn_rows, rows_work, settle_and_shrink
from pliant.online.saved import refuse_impossible
from pliant.online.scores import determination
from pliant.online.settings import ACTIVATIONS, LOSSES, NORMALIZATIONS, OPTIMIZERS
from pliant.online.vectors import LANES

FORMAT = 3  # of `state_dict`
PAST = ("past_inputs", "past_deltas")  # of the state of learners with candidates
CHUNK = 2**19  # numbers of X that are converted to floats at a time, so that they stay in the cache,
MIN_CHUNK = 64  # but no fewer examples than this
STATES = {"sgd": 1, "adam": 3, "adamw": 3, "upgd": 2, "obgd": 1}  # numbers per weight
TINY = 4000  # parameters up to which the lanes kernel is faster (20-20-1: 8 times; 20-64-64-1, 5,569 parameters: equal)


@dataclass(frozen=True)
class Progress:
    """Measures of each step, before its update."""

    loss: Array  # (learners, n); NaN after the step at which a learner diverged
    correct: NDArray[np.bool_] | None  # (learners, n) whether the largest output was the label; cross-entropy only,
    # and never where the loss is not finite
    weight_sums: Array | None  # (learners, n, layers) sum of |w| of each matrix after the update, if asked for;
    # with noise and the rows kernel, a row of weights counts as when it was last used; all rows, every 1,000 steps


class Picked(TypedDict, total=False):
    """Selection of examples and inputs, see `OnlineEnsemble.partial_fit`."""

    rows: ArrayLike | None
    columns: ArrayLike | None
    scale: float | None


class OnlineEnsemble:
    """Networks of one shape that learn online, side by side, in compiled code.

    Args:
        inputs, hidden, outputs: sizes of the layers. `hidden=()` is the linear learner.
        learners: their number.
        seed: one per learner; one number stands for seed, seed + 1, ... The initial weights depend on the seed, the
            shape, the activation's gain and `init` alone, so that learners that differ in other settings start equal.
        activation: "relu", "leaky_relu", "tanh", "sigmoid", "elu", "swish", "selu" or "linear".
        loss: "squared_error" or "cross_entropy".
        optimizer: "sgd"; "adam" and "adamw" (PyTorch's; the state of a replaced unit starts over); "upgd"
            (`pliant.online.upgd`), without normalization and `l2_init`; "obgd" (`pliant.optimizers.ObGD`), without decay of
            either kind.
        step_size, weight_decay, noise_std: one number, or one per learner, like `dropout`. Decay applies to all parameters,
            also biases and a norm's scale and shift; noise to weights and biases. It is coupled, but for "adamw" and "upgd".
        l2_init: strength of L2 Init, g <- g + strength (p - p at the start) (`pliant.L2`), of all parameters.
        weight_clipping: κ; after a step no weight or bias leaves ± κ / sqrt(fan_in) (`pliant.WeightClipping`); 0: none. Not
            with noise.
        beta_utility, sigma: of "upgd": decay of its utilities, and the standard deviation of its noise.
        kappa: of "obgd": its factor of the bound on a step.
        dropout: probability that a hidden unit is left out of a step (`pliant.online.dropout`). Losses are those with every unit.
        normalization: "none", "layer" or "online", before each hidden activation, with a learned scale and shift
            (`pliant.online.norms`).
        online_norm_decay: α_f and α_b of online normalization.
        replacement_rate: share of mature units replaced per step, one number or one per learner, like the next two.
            Learners with 0 keep no utilities; None: no learner does.
        maturity_threshold: steps; a unit may be replaced when its age is greater.
        decay_rate: of the running averages; 0 = instantaneous.
        utility: the name of a utility (`pliant.online.settings.UTILITIES`).
        candidates: N, one number or one per learner: a fresh unit is the best of N draws, each on for half of the last 256
            examples (`pliant.online.candidates`); 0: one plain draw. Not with normalization.
        count: "accumulate" fractions of units that are due, or draw them ("bernoulli").
        hand_over_mean: add a replaced unit's mean contribution to the biases of the next layer.
        init: "kaiming", "xavier", "lecun" or "default", of hidden layers at the start and of replaced units;
            outputs start with sqrt(3 / fan_in), biases with 0.
        dtype: float32 or float64.
        threads: number of threads, each with learners of its own.
        kernel: "lanes", "rows", or "auto": by the shape, and "rows" for what "lanes" does not support, such as dropout,
            normalization and candidates. They agree to rounding, except for noise, for which they draw other numbers.

    Raises `ValueError` for a setting that is out of range, naming it.

    >>> learners = OnlineEnsemble(inputs=4, hidden=[8], outputs=1, learners=3, seed=0, step_size=[0.1, 0.01, 0.001])
    >>> X = np.random.default_rng(0).standard_normal((1, 500, 4), dtype=np.float32)
    >>> learners.partial_fit(X, X.sum(axis=2)).loss.shape
    (3, 500)
    """

    least_outputs = 2  # of cross-entropy

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
        beta_utility: float = 0.999,
        sigma: ArrayLike = 0.001,
        kappa: ArrayLike = 2.0,
        weight_decay: ArrayLike = 0.0,
        noise_std: ArrayLike = 0.0,
        l2_init: ArrayLike = 0.0,
        weight_clipping: ArrayLike = 0.0,
        dropout: ArrayLike = 0.0,
        normalization: settings.Normalization = "none",
        online_norm_decay: tuple[float, float] = (0.99, 0.99),
        replacement_rate: ArrayLike | None = 0.0,
        maturity_threshold: ArrayLike = 100,
        decay_rate: ArrayLike = 0.99,
        utility: str = "contribution",
        candidates: ArrayLike = 0,
        count: settings.Count = "accumulate",
        hand_over_mean: bool = True,
        init: settings.Init = "kaiming",
        dtype: DTypeLike = np.float32,
        threads: int = 1,
        kernel: settings.Kernel = "auto",
    ) -> None:
        self.learners, self.threads = settings.whole("learners", learners), settings.whole("threads", threads)
        self.sizes = settings.layer_sizes(inputs, hidden, outputs)
        self.steps: int = 0
        self.dtype = settings.floating(dtype)
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.loss = one_of("loss", loss, LOSSES)
        self.optimizer = one_of("optimizer", optimizer, OPTIMIZERS)
        weights = self.learners * sum((m + 1) * n for m, n in pairwise(self.sizes))
        what = f"{self.learners:,} learners of layers {' - '.join(f'{size:,}' for size in self.sizes)}"
        refuse_too_large(what, weights * STATES[self.optimizer], self.dtype.itemsize)
        self.seeds = settings.seeds(seed, self.learners)
        if self.loss == "cross_entropy" and outputs < self.least_outputs:
            raise ValueError("cross_entropy needs at least 2 outputs, one for each label")
        self.normalization = one_of("normalization", normalization, NORMALIZATIONS)
        hand_over_mean = settings.truth("hand_over_mean", hand_over_mean)
        self._method = {"utility_name": utility, "count": count, "init": init, "hand_over_mean": hand_over_mean}
        self._rules = build.rules(
            self.seeds, len(self.sizes) - 2, self.dtype, step_size=step_size, weight_decay=weight_decay,
            noise_std=noise_std, l2_init=l2_init, weight_clipping=weight_clipping, sigma=sigma, kappa=kappa, dropout=dropout,
            replacement_rate=replacement_rate, maturity_threshold=maturity_threshold, decay_rate=decay_rate,
            candidates=candidates,
        )  # fmt: skip
        self._refuse_pairs()
        self._refuse_too_many_candidates()
        self.kernel = self._choose_kernel(one_of("kernel", kernel, ("auto", "lanes", "rows")))
        self._net = build.net(
            self.sizes, self.kernel, self.dtype, activation=self.activation, loss=self.loss, optimizer=self.optimizer,
            beta1=beta1, beta2=beta2, eps=eps, beta_utility=beta_utility,
            utility=utility, count=count, hand_over_mean=hand_over_mean, init=init,
            normalization=self.normalization, online_norm_decay=online_norm_decay,
        )  # fmt: skip
        self._state = build.initial_state(self._net, self.seeds, self.dtype, self._rules, self.kernel)
        if (self._rules.l2_init > 0).any():
            self._rules = self._rules._replace(initial=aligned(self._state.parameters.shape, self.dtype))
            self._rules.initial[...] = self._state.parameters

    # -- learning ----------------------------------------------------------------------------------------------------

    def partial_fit(
        self,
        X: Array,
        y: Array,
        stream: ArrayLike | None = None,
        *,
        rows: ArrayLike | None = None,
        columns: ArrayLike | None = None,
        scale: float | None = None,
        log_weights: bool = False,
    ) -> Progress:
        """Train every learner on its stream, one example at a time, in one pass.

        Args:
            X: (streams, n, inputs), uint8 or the ensemble's dtype.
            y: (streams, n[, outputs]), or integer labels (streams, n).
            stream: (learners,) the stream that each learner reads: stream r (or the only one) for learner r if None.
            rows: (streams, n) indices of the examples of X and y, in this order, repeated ones included.
            columns: (streams, inputs) which number of an example is input j: a permutation of pixels.
            scale: factor of every number of X, such as 1 / 255.
            log_weights: also return sums of |w| at every step.

        X and y, `rows` and `columns` each have one row per stream, or one for all streams. With any of `rows`, `columns`
        and `scale`, X is not copied and examples are gathered a few at a time, so that a data set of bytes can be shared.

        >>> learners = OnlineEnsemble(inputs=4, hidden=[8], outputs=2, learners=1, seed=0, loss="cross_entropy")
        >>> pixels, labels = np.arange(24, dtype=np.uint8).reshape(1, 6, 4), np.array([[0, 1, 0, 1, 0, 1]])
        >>> learners.partial_fit(pixels, labels, rows=[[5, 0, 3]], columns=[[3, 1, 0, 2]], scale=1 / 255).loss.shape
        (1, 3)
        """
        settings.truth("log_weights", log_weights)
        inputs, selection, sources = self._read(X, stream, rows=rows, columns=columns, scale=scale)
        targets, labels = self._answers(inputs, y)
        if selection is not None:
            targets, labels = pick_answers(targets, selection), pick_answers(labels, selection)
        n, layers = labels.shape[1], len(self.sizes) - 1
        loss = np.full((self.learners, n), np.nan, self.dtype)
        correct = np.zeros((self.learners, n if self.loss == "cross_entropy" else 0), np.bool_)
        sums = np.full((self.learners, n if log_weights else 0, layers), np.nan, self.dtype)
        for begin, floats in self._pieces(inputs, selection):
            self._learn(sources, floats, begin, targets, labels, self.steps, loss, correct, sums)
        self.steps += n
        return Progress(loss, correct if self.loss == "cross_entropy" else None, sums if log_weights else None)

    def predict(self, X: Array, stream: ArrayLike | None = None, **selection: Unpack[Picked]) -> Array:
        """Outputs (learners, n, outputs), or labels (learners, n) for cross-entropy.

        The outputs of a learner that diverged are NaN and its labels -1, as is the label where an output is NaN.
        `rows`, `columns` and `scale` as in `partial_fit`; they are not remembered from there, here and below.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # the answer says it
            out = self.activations(X, stream, **selection)[-1]
        lost = self._state.diverged_at >= 0
        if self.loss == "cross_entropy":
            return np.where(lost[:, None] | np.isnan(out).any(axis=-1), -1, out.argmax(axis=-1))
        out[lost] = np.nan
        return out

    def score(
        self, X: Array, y: Array, stream: ArrayLike | None = None, **selection: Unpack[Picked]
    ) -> NDArray[np.float64]:
        """Of each learner, (learners,): accuracy, or the coefficient of determination R^2, mean over outputs.

        R^2 is scikit-learn's: for constant targets 1 if all are predicted exactly, else 0; NaN for a single example
        (`pliant.online.scores`) and for a learner that diverged.
        """
        inputs, picked, sources = self._read(X, stream, **selection)
        targets, labels = self._answers(inputs, y)
        if picked is not None:
            targets, labels = pick_answers(targets, picked), pick_answers(labels, picked)
        answer = self.predict(X, stream, **selection)
        if self.loss == "cross_entropy":
            return np.where(self._state.diverged_at >= 0, np.nan, (answer == labels[sources]).mean(axis=1))
        return determination(targets[sources], answer).mean(axis=1)

    def activations(self, X: Array, stream: ArrayLike | None = None, **selection: Unpack[Picked]) -> list[Array]:
        """Activity of every layer on probe inputs, each (learners, n, units); the last are the outputs."""
        inputs, picked, sources = self._read(X, stream, **selection)
        x: Array = np.concatenate([floats for _, floats in self._pieces(inputs, picked)], axis=1)[sources]
        matrices = self._matrices()
        weights, biases = [matrix[:, :-1] for matrix in matrices], [matrix[:, -1] for matrix in matrices]
        return forward.layers(x, weights, biases, self.activation, self.normalization, self._norms())

    # -- what the learners are now -----------------------------------------------------------------------------------

    def weights(self, layer: int) -> Array:
        """Copy of the weights of a layer, (learners, in, out): the transpose of PyTorch's, for each learner.

        They are the weights that the next step uses, with all noise so far (see `pliant.online.noise`).
        """
        return self._matrices()[layer][:, :-1].copy()

    def biases(self, layer: int) -> Array:
        """Copy of the biases of a layer, (learners, out)."""
        return self._matrices()[layer][:, -1].copy()

    def norm(self, layer: int) -> dict[str, Array]:
        """Parameters of a hidden layer's norm, copies (learners, units): scale and shift, mean and variance (online only)."""
        return {name: value.copy() for name, value in self._norms()[layer].items()}

    def weight_magnitude(self) -> Array:
        """Mean |w| of every weight matrix, biases left out, (learners, layers)."""
        return np.stack([np.abs(matrix[:, :-1]).mean(axis=(1, 2)) for matrix in self._matrices()], axis=1)

    @property
    def replacements(self) -> NDArray[np.int64]:
        """Units replaced so far, (learners, hidden layers)."""
        return self._state.replaced.copy()

    @property
    def step_size(self) -> Array:
        """Of each learner, (learners,)."""
        return self._rules.step_size.copy()

    @property
    def diverged_at(self) -> NDArray[np.int64]:
        """First step whose loss was not finite, or -1, (learners,). Such a learner keeps the weights of that step."""
        return self._state.diverged_at.copy()

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning has changed, as arrays, numbers and strings, to resume to the bit."""
        arrays = {name: value.copy() for name, value in self._arrays().items()}
        return {"format": FORMAT, "steps": self.steps, **self._identity(), **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of an ensemble with the same settings.

        Raises `ValueError`, with nothing changed, naming the setting that differs, or what the state lacks or cannot hold.
        """
        if not isinstance(state, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"a {type(state).__name__} is no state of learners: load what state_dict() gave")
        if state.get("format") != FORMAT:
            raise ValueError(f"the state has format {state.get('format')!r}; this version reads format {FORMAT}")
        ours = self._arrays()
        for name in PAST:
            if name in state and name not in ours:
                raise ValueError("the state is of learners with candidates, and these have none")
        for name in ("steps", *self._identity(), *ours):
            if name not in state:
                raise ValueError(f"the state lacks '{name}': load what state_dict() gave")
        for name, mine in self._identity().items():
            if not np.array_equal(state[name], mine):
                raise ValueError(f"the state is of learners with {name} {state[name]}, these have {mine}")
        steps = settings.whole("'steps' of the state", np.asarray(state["steps"])[()], least=0)
        held = {name: np.asarray(state[name]) for name in ours}
        for name, mine in ours.items():
            if (held[name].shape, held[name].dtype) != (mine.shape, mine.dtype):
                theirs, expected = (f"{each.dtype} of shape {each.shape}" for each in (held[name], mine))
                raise ValueError(f"'{name}' of the state is {theirs}, expected {expected}")
        refuse_impossible(held, steps)
        for name, mine in ours.items():
            mine[...] = held[name]
        self.steps = steps

    # -- inside ------------------------------------------------------------------------------------------------------

    def _pieces(self, X: Array, selection: Selection | None) -> Iterator[tuple[int, Array]]:
        """The examples in the ensemble's dtype, (streams, some, inputs), and the number of the first: all, or a few at a time."""
        if selection is None and X.dtype == self.dtype:
            yield 0, X
            return
        picked = selection or as_they_lie(X)
        n, times = picked.rows.shape[1], np.array(picked.scale, self.dtype)[()]
        chunk = max(MIN_CHUNK, CHUNK // (picked.streams * self.sizes[0]))
        for begin in range(0, n, chunk):
            floats = np.empty((picked.streams, min(chunk, n - begin), self.sizes[0]), self.dtype)
            rows = as_read(picked.rows[:, begin : begin + chunk], np.uint32)
            gather(X, rows, picked.columns, times, floats)
            yield begin, as_read(floats, self.dtype)

    def _learn(self, rows: NDArray[np.int64], *examples: Any) -> None:
        """Run the kernel, in as many threads as requested: it releases the GIL, and no two threads write to the same memory."""

        def learn(share: NDArray[np.int64]) -> None:
            if self.kernel == "lanes":
                memory = lanes_work(self._net, self._rules, self._state)
                learn_lanes(self._net, self._rules, self._state, *memory, share, rows, *examples)
            else:
                memory = rows_work(self._net, self._rules, self._state)
                unused = as_read(np.zeros((1, 0)), self.dtype), np.zeros((1, 0, 0), self.dtype)
                learn_rows(self._net, self._rules, self._state, memory, share, rows, *examples, *unused)

        shares = self._shares(rows)
        if len(shares) == 1:
            learn(shares[0])
        else:
            with ThreadPoolExecutor(len(shares)) as pool:
                list(pool.map(learn, shares))

    def _identity(self) -> dict[str, Any]:
        """Settings in which two ensembles must agree to exchange states."""
        shape = {"sizes": np.array(self.sizes), "seeds": np.array(self.seeds), "dtype": str(self.dtype)}
        names = {name: getattr(self, name) for name in ("activation", "loss", "optimizer", "normalization", "kernel")}
        return shape | names | self._method

    def _arrays(self) -> dict[str, Array]:
        """What learning changes, by name; without candidates nothing of `PAST`, which states of before candidates lack."""
        arrays = self._state._asdict()
        return {name: value for name, value in arrays.items() if name not in PAST or value.shape[1]}

    def _matrices(self) -> list[Array]:
        """The weights of every layer with the bias as last row, (learners, in + 1, out), as the next step would find them."""
        state = self._state
        parameters = state.parameters
        if state.settled.size or (state.shrunk != 1.0).any():
            parameters = parameters.copy()
            read = state._replace(parameters=parameters, settled=state.settled.copy())
            settle_and_shrink(self._net, self._rules, read, rows_work(self._net, self._rules, read), self.steps)
        return [build.matrix_of(self._net, parameters, layer) for layer in range(len(self.sizes) - 1)]

    def _norms(self) -> list[dict[str, Array]]:
        """Views of scale and shift, mean and variance of every hidden layer, (learners, units); empty without."""
        return build.norms_of(self._net, self._state)

    def _refuse_pairs(self) -> None:
        """Raise `ValueError` for settings that do not work together."""
        rules = self._rules
        given = {name: getattr(rules, name) > 0 for name in ("noise_std", "l2_init", "weight_clipping", "weight_decay")}
        given["normalization"] = np.full(self.learners, self.normalization != "none")
        if (given["weight_clipping"] & given["noise_std"]).any():
            raise ValueError("weight_clipping does not work with noise_std in these learners: leave one out")
        if (rules.candidates > 0).any():
            if not ((rules.candidates > 0) & (rules.replacement_rate > 0)).any():
                raise ValueError(
                    "candidates are of replaced units, and none is replaced: set replacement_rate, or leave them out"
                )
            if self.normalization != "none":
                raise ValueError(
                    "candidates do not work with normalization: what a fresh unit gives would not be known from its weights; "
                    "leave one out"
                )
        for other in {"upgd": ("normalization", "l2_init"), "obgd": ("weight_decay", "l2_init")}.get(
            self.optimizer, ()
        ):
            if given[other].any():
                raise ValueError(
                    f"optimizer '{self.optimizer}' does not work with {other} in these learners: leave one out"
                )

    def _refuse_too_many_candidates(self) -> None:
        """Raise `ValueError` where what is remembered for them, or the draws of one unit, take too much memory."""
        most, kept = int(self._rules.candidates.max()), sum(self.sizes[:-2]) + sum(self.sizes[2:])
        if most:
            numbers = self.learners * EXAMPLES * kept + 2 * most * (max(self.sizes) + EXAMPLES)
            refuse_too_large(f"candidates={most:,} of {self.learners:,} learners", numbers, self.dtype.itemsize)

    def _choose_kernel(self, kernel: str) -> settings.Kernel:
        """The requested kernel, or the faster one of those that support the settings."""
        asked = {"normalization": self.normalization != "none"}
        asked |= {
            name: bool((getattr(self._rules, name) > 0).any())
            for name in ("dropout", "l2_init", "weight_clipping", "candidates")
        }
        only_rows = [name for name, wanted in asked.items() if wanted]
        only_rows += [self.optimizer] if self.optimizer not in ("sgd", "adam") else []
        if kernel == "lanes" and only_rows:
            raise ValueError(f"the lanes kernel supports no {' and no '.join(only_rows)}; use kernel='rows' or 'auto'")
        tiny = sum((m + 1) * n for m, n in pairwise(self.sizes)) <= TINY
        if kernel == "auto":
            return "lanes" if tiny and not only_rows else "rows"
        return cast(settings.Kernel, kernel)

    def _read(
        self, X: Array, stream: ArrayLike | None, **selection: Unpack[Picked]
    ) -> tuple[Array, Selection | None, NDArray[np.int64]]:
        """The examples, their selection, and the stream that each learner reads."""
        inputs = as_inputs(as_array("X", X), self.sizes[0], self.dtype)
        picked = as_selection(selection.get("rows"), selection.get("columns"), selection.get("scale"), inputs)
        return inputs, picked, as_streams(stream, len(inputs) if picked is None else picked.streams, self.learners)

    def _answers(self, X: Array, y: Array) -> tuple[Array, NDArray[np.int64]]:
        """Targets and labels; the one that the loss does not need is an unused row of zeros."""
        streams, n = X.shape[:2]
        if self.loss == "cross_entropy":
            unused = as_read(np.zeros((streams, n, 0)), self.dtype)
            return unused, as_labels(as_array("y", y), streams, n, self.sizes[-1])
        targets = as_targets(as_array("y", y), streams, n, self.sizes[-1], self.dtype)
        return targets, as_read(np.zeros((streams, n)), np.int64)

    def _shares(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The learners in the kernel's form, in one share per thread."""
        work = self._blocks(rows) if self.kernel == "lanes" else np.arange(self.learners)
        return [share for share in np.array_split(work, min(self.threads, len(work))) if len(share)]

    def _blocks(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Blocks of learners that step side by side, (blocks, LANES), -1 where none is left.

        Learners that read the same stream, and agree in whether they have utilities, decay and noise, share a block if they
        fill at least half of it: such a block reads each example once and skips computations that none of them needs.
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
