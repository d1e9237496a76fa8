"""What the classifier and the regressor of single examples share: an estimator of scikit-learn and a model of River.

Each is one compiled network (`pliant.online.growing`) behind the running standardization of its inputs and, for the regressor, of
its targets (`pliant.online.standardize`). For every example: predict, keep the score, update. How examples are divided into calls
of `learn_one`, `learn_many` and `partial_fit` changes nothing.

Like any estimator of scikit-learn, one is built without a check of its arguments; the first call that learns raises `ValueError`,
naming the argument. Those that shape the network cannot change once learning has begun; the others can.
"""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, ClassVar, Generic, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pliant import streams
from pliant.base.choices import one_of, shortened
from pliant.online import settings
from pliant.online.answers import as_weight, as_weights, in_order, of_weight
from pliant.online.bases import NotFittedError, refusing_others
from pliant.online.examples import Array
from pliant.online.features import Features, Rows, refuse_new, refuse_unusable
from pliant.online.growing import RULES, GrowingLearner
from pliant.online.standardize import Standardizer, first_unusable
from pliant.online.stream import Score, Stream, refuse_odd
from pliant.online.tables import named_table, table

NETWORK = (
    "activation", "optimizer", "step_size", "weight_decay", "noise_std", "dropout", "normalization", "replacement_rate",
    "maturity_threshold", "decay_rate", "utility", "candidates", "init",
)  # fmt: skip
ANY_TIME = ("on_divergence", "epochs", "shuffle")  # arguments that are read where they are used
MISSING = ("mean", "zero", "raise")
ON_DIVERGENCE = ("raise", "restart")
FLOATS = (np.dtype(np.float64), np.dtype(np.float32))


class OnlineEstimator(ABC, Generic[Score]):
    """What `OnlineClassifier` and `OnlineRegressor` share."""

    loss: ClassVar[str]
    usual_step_size: ClassVar[float]
    _tags: ClassVar[set[str]] = set()  # for River
    _stream: Stream[Score] | None = None

    @refusing_others
    def __init__(
        self,
        hidden: Sequence[int] = (64, 64),
        *,
        step_size: float | None = None,
        optimizer: settings.Optimizer = "sgd",
        activation: settings.Activation = "relu",
        weight_decay: float = 0.0,
        noise_std: float = 0.0,
        dropout: float = 0.0,
        normalization: settings.Normalization = "none",
        replacement_rate: float = 1e-4,
        maturity_threshold: int = 100,
        decay_rate: float = 0.99,
        utility: str = "contribution",
        candidates: int = 0,
        init: settings.Init = "kaiming",
        normalize: bool = True,
        normalize_decay: float = 0.99,
        missing: str = "mean",
        on_divergence: str = "raise",
        epochs: int = 10,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        self.hidden = hidden
        self.step_size = step_size
        self.optimizer = optimizer
        self.activation = activation
        self.weight_decay = weight_decay
        self.noise_std = noise_std
        self.dropout = dropout
        self.normalization = normalization
        self.replacement_rate = replacement_rate
        self.maturity_threshold = maturity_threshold
        self.decay_rate = decay_rate
        self.utility = utility
        self.candidates = candidates
        self.init = init
        self.normalize = normalize
        self.normalize_decay = normalize_decay
        self.missing = missing
        self.on_divergence = on_divergence
        self.epochs = epochs
        self.shuffle = shuffle
        self.seed = seed

    # -- one example -------------------------------------------------------------------------------------------------

    def learn_one(self, x: Mapping[Any, Any], y: Any, w: float = 1.0) -> None:
        """Learn from one example: a dictionary of features, and its answer. `w` multiplies the gradient; 0 learns nothing.

        A new feature gets a fresh input; one that is absent, None or NaN is missing.
        """
        weight = as_weight(w)
        stream = self._stream
        if stream is None:
            features = Features([])
            row, new = features.read(x)
            fresh = self._begin(in_order(new) or [None], [] if self.loss == "cross_entropy" else 1)
            refuse_new(new, nan_too=fresh.nan_too)
            self._check_one(fresh, y)
            if weight == 0.0:
                return
            stream = self._stream = fresh
            row, new = stream.features.read(x)
        else:
            self._ready(stream)
            row, new = stream.features.read(x)
        self._learn_row(stream, row, y, weight, new)

    def _learn_row(self, stream: Stream[Score], row: Rows, y: Any, weight: float, new: Mapping[Any, float]) -> None:
        """Learn from a row (1, features) that was not checked yet, and features that are `new`."""
        if first_unusable(row, stream.nan_too) >= 0:
            refuse_unusable(row, stream.features.names, nan_too=stream.nan_too)
        if new:
            refuse_new(new, nan_too=stream.nan_too)
        answer = self._check_one(stream, y)
        if weight == 0.0:
            return
        if new:
            row = stream.add_features(row, new)
        network, code = stream.network, self._known(stream, answer)
        x, target, label, weights = network.buffers()
        stream.inputs(row, x, keep=True)
        weights[0] = weight
        self._learn_answer(stream, code, target, label, weight)
        stream.seen += 1
        if network.diverged:
            self._diverged(stream)

    # -- many --------------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Begin anew, and learn from X (examples, features) and y in `epochs` passes, each in an order of its own.

        With `shuffle=False` every pass keeps the order. `score_` counts the first pass alone.
        """
        epochs, shuffle = settings.whole("epochs", self.epochs), settings.truth("shuffle", self.shuffle)
        rows, columns = table(X)
        answers, weights = self._answers(y, len(rows)), as_weights(sample_weight, len(rows))
        if weights is not None and not weights.any():
            raise ValueError("sample_weight is zero for every example: there is nothing to learn")
        learned = of_weight(rows, answers, weights)
        stream = self._begin(columns or list(range(rows.shape[1])), self._shape_of(learned[1], all_known=True))
        refuse_unusable(rows, stream.features.names, nan_too=stream.nan_too)
        self._stream = stream
        rows, answers, weights = learned
        draw = streams.generator(stream.network.seeds[0], "order of examples")
        for epoch in range(epochs):
            order = draw.permutation(len(rows)) if shuffle else np.arange(len(rows))
            self._learn_rows(
                stream, rows[order], answers[order], None if weights is None else weights[order], scored=epoch == 0
            )
        return self

    def _partial_fit(self, X: Any, y: Any, labels: list[Any] | None, sample_weight: ArrayLike | None) -> Self:
        stream = self._stream
        if (
            stream is not None
            and labels is None
            and sample_weight is None
            and type(X) is np.ndarray
            and X.dtype in FLOATS
        ):
            row = stream.features.row
            if X.shape == row.shape and type(y) in (list, np.ndarray) and len(y) == 1:
                self._ready(stream)
                row[0] = X[0]
                self._learn_row(stream, row, y[0], 1.0, {})
                return self
        rows, columns = table(X)
        answers, weights = self._answers(y, len(rows)), as_weights(sample_weight, len(rows))
        if stream is None:
            shape = self._shape_of(answers, all_known=False) if labels is None else labels
            stream = self._begin(columns or list(range(rows.shape[1])), shape)
        else:
            self._ready(stream)
            rows = stream.features.in_order(rows, columns, type(self).__name__)
        refuse_unusable(rows, stream.features.names, nan_too=stream.nan_too)
        self._check_many(stream, answers, labels)
        self._stream = stream
        self._learn_rows(stream, *of_weight(rows, answers, weights), scored=True)
        return self

    def learn_many(self, X: Any, y: Any, w: ArrayLike = 1.0) -> None:
        """Learn from a table with named columns and its answers, row by row, exactly as `learn_one` does; River's mini-batch.

        Columns may come and go. `w` is one weight, or one for each row.
        """
        rows, columns = named_table(X, "learn_many")
        answers, weights = self._answers(y, len(rows)), as_weights(w, len(rows), "w")
        stream = self._stream
        if stream is None:
            stream = self._begin(in_order(columns), [] if self.loss == "cross_entropy" else 1)
        else:
            self._ready(stream)
        rows, new = stream.features.read_columns(rows, columns)
        refuse_unusable(rows, stream.features.names, nan_too=stream.nan_too)
        refuse_new(new, nan_too=stream.nan_too)
        self._check_many(stream, answers, None)
        if weights is not None and not weights.any():
            return
        if new:
            rows = stream.add_features(rows, new)
        self._stream = stream
        stream.y_name = getattr(y, "name", None)
        self._learn_rows(stream, *of_weight(rows, answers, weights), scored=True)

    def _outputs_of_many(self, X: Any, method: str) -> NDArray[np.float64] | None:
        """Of the network, (n, outputs), for a table whose columns may come and go; None before any answer was learned."""
        rows, columns = named_table(X, method)
        stream = self._stream
        if stream is None or (self.loss == "cross_entropy" and not stream.labels):
            return None
        self._ready(stream)
        rows, _ = stream.features.read_columns(rows, columns)
        refuse_unusable(rows, stream.features.names, nan_too=stream.nan_too)
        return self._outputs(stream, stream.inputs(rows, np.empty(rows.shape, stream.network.dtype), keep=False))

    def _rows_to_predict(self, X: Any) -> tuple[Stream[Score], Array]:
        """The inputs of the network for X (n, features)."""
        if self._stream is None:
            raise NotFittedError(
                f"This {type(self).__name__} has learned nothing yet: call fit, partial_fit or learn_one first"
            )
        stream = self._stream
        self._ready(stream)
        rows, columns = table(X)
        rows = stream.features.in_order(rows, columns, type(self).__name__)
        refuse_unusable(rows, stream.features.names, nan_too=stream.nan_too)
        return stream, stream.inputs(rows, np.empty(rows.shape, stream.network.dtype), keep=False)

    def _outputs(self, stream: Stream[Score], x: Array) -> NDArray[np.float64]:
        """Of the network, (n, outputs); always finite, else it raises."""
        out = stream.network.outputs(x).astype(np.float64)
        if not np.isfinite(out).all():
            bad = int(np.argwhere(~np.isfinite(out))[0, 0])
            raise RuntimeError(
                f"{type(self).__name__} has outputs that are not finite for X[{bad}]: its last step broke it. {self._remedy()}"
            )
        return out

    def _outputs_of_one(self, stream: Stream[Score], x: Mapping[Any, Any]) -> NDArray[np.float64]:
        """The same for one example, (outputs,)."""
        self._ready(stream)
        row, _ = stream.features.read(x)
        if first_unusable(row, stream.nan_too) >= 0:
            refuse_unusable(row, stream.features.names, nan_too=stream.nan_too)
        return self._outputs(stream, stream.inputs(row, stream.network.buffers()[0], keep=False))[0]

    # -- what it is --------------------------------------------------------------------------------------------------

    @property
    def score_(self) -> float:
        """Prequential score so far: of each example as it was predicted before the network learned from it."""
        return self._learned("score_").score.value()

    @property
    def n_seen_(self) -> int:
        """Examples learned so far, those of later passes of `fit` included."""
        return self._learned("n_seen_").seen

    @property
    def n_features_in_(self) -> int:
        return len(self._learned("n_features_in_").features.names)

    @property
    def feature_names_in_(self) -> NDArray[Any]:
        """Names of the features, where all of them are texts."""
        names = self._learned("feature_names_in_").features.names
        if not all(isinstance(name, str) for name in names):
            raise AttributeError("the features have numbers, not names")
        return np.array(names, dtype=object)

    @property
    def diverged_(self) -> bool:
        """Whether a loss was not finite: it neither learns nor predicts any more."""
        return self._learned("diverged_").network.diverged

    @property
    def restarts_(self) -> int:
        """How often the network began anew because it diverged, with `on_divergence="restart"`."""
        return self._learned("restarts_").restarts

    @property
    def replacements_(self) -> NDArray[np.int64]:
        """Units replaced so far, (hidden layers,)."""
        return self._learned("replacements_").network.replacements[0]

    def state_dict(self) -> dict[str, Any]:
        """All that it has learned, as arrays, numbers, texts and lists of them, to go on to the same bits."""
        return self._learned("state_dict()").state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what an estimator with the same arguments gave. Raises `ValueError`, with nothing changed, for anything else."""
        refuse_odd(state)
        labels: list[Any] = state["labels"]
        if bool(labels) != (self.loss == "cross_entropy"):
            raise ValueError(f"the state holds {len(labels)} labels, which no {type(self).__name__} does")
        try:
            restarts = settings.whole("'restarts' of the state", state["restarts"], least=0)
            stream = self._begin(state["features"], labels or int(state["network"]["sizes"][-1]), restarts=restarts)
            stream.load_state_dict(state)
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"the state is not that of an {type(self).__name__} with these arguments: {error}"
            ) from None
        self._stream = stream

    def __repr__(self, **_: Any) -> str:
        defaults = inspect.signature(type(self)).parameters
        params = {name: getattr(self, name) for name in defaults}
        changed = [f"{name}={value!r}" for name, value in params.items() if repr(value) != repr(defaults[name].default)]
        return f"{type(self).__name__}({', '.join(changed)})"

    __str__ = __repr__

    def __sklearn_is_fitted__(self) -> bool:
        return self._stream is not None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType, reportUnknownMemberType]
        tags.input_tags.allow_nan = self.missing != "raise"
        tags.target_tags.multi_output = self.loss == "squared_error"
        return tags  # pyright: ignore[reportUnknownVariableType]

    # -- inside ------------------------------------------------------------------------------------------------------

    def _learned(self, what: str) -> Stream[Score]:
        if self._stream is None:
            raise AttributeError(f"{type(self).__name__} has no {what} before it has learned")
        return self._stream

    def _network(self, inputs: int, outputs: int, restarts: int) -> GrowingLearner:
        seed = settings.seeds(self.seed, 1)[0]
        return GrowingLearner(
            inputs=inputs,
            hidden=self.hidden,
            outputs=outputs,
            seed=streams.stream_key(seed, "restart", restarts) if restarts else seed,
            loss=self.loss,
            **self._settings(NETWORK),
        )

    def _settings(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names} | {"step_size": self._step_size()}

    def _step_size(self) -> Any:
        return self.usual_step_size if self.step_size is None else self.step_size

    def _begin(self, names: Sequence[Any], shape: list[Any] | int, restarts: int = 0) -> Stream[Score]:
        """A stream before its first example, of features and either labels or a number of outputs."""
        labels = shape if isinstance(shape, list) else []
        scaled = settings.truth("normalize", self.normalize)
        one_of("on_divergence", self.on_divergence, ON_DIVERGENCE)
        decay = settings.number("normalize_decay", self.normalize_decay)
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"normalize_decay must be at least 0 and below 1, not {decay!r}")
        network = self._network(len(names), max(len(labels), 1) if isinstance(shape, list) else shape, restarts)
        stream = Stream(
            features=Features(names),
            network=network,
            inputs=Standardizer(len(names), decay=decay, scaled=scaled),
            targets=Standardizer(0 if self.loss == "cross_entropy" else network.sizes[-1], decay=decay, scaled=scaled),
            labels=labels,
            score=self._new_score(network.sizes[-1]),
            given=_arguments(type(self))(self),
        )
        stream.restarts = restarts
        self._read_missing(stream)
        return stream

    def _read_missing(self, stream: Stream[Score]) -> None:
        stream.nan_too = one_of("missing", self.missing, MISSING) == "raise"
        stream.inputs.zero = self.missing == "zero"

    def _ready(self, stream: Stream[Score]) -> None:
        """Take in arguments that were changed since; raise `RuntimeError` where learning has ended."""
        if stream.network.diverged:
            raise RuntimeError(
                f"{type(self).__name__} diverged after {stream.seen:,} examples: it neither learns nor predicts any more. "
                f"{self._remedy()}"
            )
        given = _arguments(type(self))(self)
        if given == stream.given:
            return
        names = _argument_names(type(self))
        changed = [name for name, now, then in zip(names, given, stream.given, strict=True) if now != then]
        fixed = [name for name in changed if name not in (*RULES, "missing")]
        if fixed:
            then, now = (
                shortened(repr(each), 60) for each in (stream.given[names.index(fixed[0])], getattr(self, fixed[0]))
            )
            raise ValueError(
                f"{fixed[0]} was changed from {then} to {now} after learning had begun: call fit, which begins anew, or clone "
                f"the estimator"
            )
        self._read_missing(stream)
        stream.network.change(**self._settings(RULES))
        stream.given = given

    def _diverged(self, stream: Stream[Score]) -> None:
        """Say that a loss is not finite, and begin anew if that is wanted."""
        name = type(self).__name__
        if one_of("on_divergence", self.on_divergence, ON_DIVERGENCE) == "raise":
            raise RuntimeError(f"{name} diverged: its loss at example {stream.seen:,} is not finite. {self._remedy()}")
        stream.restarts += 1
        sizes = stream.network.sizes
        stream.network = self._network(sizes[0], sizes[-1], stream.restarts)
        warnings.warn(
            f"{name} diverged: its loss at example {stream.seen:,} is not finite. Its network began anew (restart "
            f"{stream.restarts}). {self._remedy()}",
            RuntimeWarning,
            stacklevel=4,
        )

    def _remedy(self) -> str:
        scale = "" if self.normalize else ", or let normalize=True scale the features"
        return f"Lower step_size from {self._step_size():g}{scale}, and begin anew with fit or a clone"

    def _learn_some(
        self, stream: Stream[Score], x: Array, targets: Array, labels: Array, weights: Array | None
    ) -> Array:
        """Learn from inputs of the network (n, inputs); the outputs before each update, NaN for a step that broke it."""
        found, begin = np.empty((len(x), stream.network.sizes[-1])), 0
        while begin < len(x):
            network, first = stream.network, stream.network.steps
            some = None if weights is None else weights[begin:]
            found[begin:] = network.learn(x[begin:], targets[begin:], labels[begin:], some)
            learned = int(network.diverged_at[0]) - first + 1 if network.diverged else len(x) - begin
            begin, stream.seen = begin + learned, stream.seen + learned
            if network.diverged:
                self._diverged(stream)
        return found

    def _asked_for(self, y: Any) -> None:
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")

    # what a classifier and a regressor do in their own ways

    @abstractmethod
    def _new_score(self, outputs: int) -> Score: ...

    @abstractmethod
    def _answers(self, y: Any, n: int) -> NDArray[Any]: ...

    @abstractmethod
    def _shape_of(self, answers: NDArray[Any], *, all_known: bool) -> list[Any] | int: ...

    @abstractmethod
    def _check_one(self, stream: Stream[Score], y: Any) -> Any: ...

    @abstractmethod
    def _check_many(self, stream: Stream[Score], answers: NDArray[Any], labels: list[Any] | None) -> None: ...

    @abstractmethod
    def _known(self, stream: Stream[Score], answer: Any) -> Any: ...

    @abstractmethod
    def _learn_answer(self, stream: Stream[Score], code: Any, target: Array, label: Array, weight: float) -> None: ...

    @abstractmethod
    def _learn_rows(
        self, stream: Stream[Score], rows: Rows, answers: NDArray[Any], weights: Array | None, *, scored: bool
    ) -> None: ...


@cache
def _argument_names(kind: type) -> tuple[str, ...]:
    return tuple(name for name in inspect.signature(kind).parameters if name not in ANY_TIME)


@cache
def _arguments(kind: type) -> attrgetter[tuple[Any, ...]]:
    """Reads the arguments of an estimator on which what it learns depends."""
    return attrgetter(*_argument_names(kind))
