"""Slowly-changing regression: does a small network go on fitting a target that drifts?

Stream  20 bits, one example at a time: 15 slow ones that change every 10,000 examples (one of them flips, or all are
        redrawn), 5 fair ones at every example; the target is a fixed random network of 100 threshold units
Curve   squared error before each update, in bins; mean and 95% interval over seeds; weight magnitude, and the share of
        hidden units that are dead (ReLU) or saturated (tanh, sigmoid)
Source  Dohare et al., Nature 632 (2024), extended data figure 1; departures: docs/experiments/slowly-changing-regression.md

All methods of a seed see the same stream and start from the same weights.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas and matplotlib are typed in part)

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pliant.base.saving import all_or_nothing, count_in, entry, load_part
from pliant.experiments.base import Profile, ShippedExperiment, is_own
from pliant.experiments.methods import CANDIDATES, RIVALS, Utility, check_fields, method_of
from pliant.experiments.twin import Twin, cost_in_words
from pliant.lab import DONE, RUNNING, Context, LabError, RunConfig, RunStatus, diverged
from pliant.lab.figures import Part, figure_of
from pliant.online import OnlineEnsemble
from pliant.streams import generator, stream_key, uniform

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

SLOW, FAST = 15, 5  # bits
TARGET_UNITS, BETA = 100, 0.7
PATTERNS = (np.arange(2**FAST)[:, None] >> np.arange(FAST) & 1).astype(
    np.uint8
)  # (32, 5): all settings of the fast bits
REPLACING = ("cbp", "random")
ACTIVATIONS = ("relu", "tanh", "sigmoid", "elu", "leaky_relu", "swish")

Method = Literal["bp", "cbp", "linear", "l2", "snp", "l2init", "random", "fresh"]
Activation = Literal["relu", "tanh", "sigmoid", "elu", "leaky_relu", "swish", "selu", "linear"]


class Config(RunConfig, frozen=True):
    """One learner on one stream."""

    added: ClassVar[Mapping[str, Any]] = {"l2_init": 0.0, "candidates": 0}

    method: Method = "bp"
    variant: Literal["flip-one", "redraw-all"] = Field("flip-one", description="what the slow bits do at a change")
    activation: Activation = Field(
        "relu", description="of the hidden units; 'linear' for method linear, which has none"
    )
    optimizer: Literal["sgd", "adam"] = "sgd"
    step_size: float = Field(0.01, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="coupled, of weights and biases; method l2 or snp")
    noise_std: float = Field(0.0, ge=0, description="of the noise on every weight and bias after each step; method snp")
    l2_init: float = Field(0.0, ge=0, description="strength of the pull to the initial parameters; method l2init")
    replacement_rate: float = Field(
        0.0, ge=0, le=1, description="share of mature units per example; method cbp, random"
    )
    maturity_threshold: int = Field(100, ge=0, description="examples; method cbp or random")
    decay_rate: float = Field(0.99, ge=0, lt=1, description="of running averages; method cbp or random")
    utility: Utility = Field("contribution", description="method cbp")
    candidates: int = CANDIDATES
    count: Literal["accumulate", "bernoulli"] = Field("accumulate", description="method cbp or random")
    hidden_units: int = Field(5, gt=0, description="units in the hidden layer")
    period: int = Field(10_000, gt=0, description="examples between changes of the slow bits")
    bin: int = Field(20_000, gt=0, description="examples per row; a multiple of the period")
    steps: int = Field(1_000_000, gt=0, description="examples; a multiple of the bin")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.bin % self.period or self.steps % self.bin:
            raise ValueError(
                f"steps ({self.steps}) must be a multiple of bin ({self.bin}), and bin of period ({self.period})"
            )
        check_fields(self, get_args(Method))
        if (self.method == "linear") and self.activation != "linear":
            raise ValueError("method linear has no hidden units, so its activation is 'linear'")
        return self


# -- the stream -----------------------------------------------------------------------------------------------------


class Stream:
    """The problem of one seed. Every period is looked up by its number, so nothing needs to be stored."""

    def __init__(self, seed: int, variant: str, period: int) -> None:
        self.seed, self.variant, self.period = seed, variant, period
        draw = generator(seed, "target network")
        signs = np.array([-1.0, 1.0])
        self.weights = draw.choice(signs, (TARGET_UNITS, SLOW + FAST))
        self.biases = draw.choice(signs, TARGET_UNITS)
        self._v = draw.choice(signs, TARGET_UNITS)
        self._v0 = draw.choice(signs)
        # as in the released code, the bias counts with the wrong sign
        negative = (SLOW + FAST - self.weights.sum(axis=1) + self.biases) / 2
        self.thresholds = BETA * (SLOW + FAST + 1) - negative

    def slow_bits(self, number: int) -> NDArray[np.uint8]:
        """The slow bits of a period, (15,)."""
        key = stream_key(self.seed, "slow bits")
        if self.variant == "redraw-all":
            return (uniform(key, SLOW * number, SLOW) >= 0.5).astype(np.uint8)
        first = uniform(key, 0, SLOW) >= 0.5
        flipped = (uniform(stream_key(self.seed, "flips"), 0, number) * SLOW).astype(np.int64)
        return (first ^ (np.bincount(flipped, minlength=SLOW) % 2 == 1)).astype(np.uint8)

    def inputs(self, number: int) -> NDArray[np.uint8]:
        """All inputs that can occur in a period, (32, 20)."""
        return np.hstack([np.tile(self.slow_bits(number), (len(PATTERNS), 1)), PATTERNS])

    def targets(self, inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The target of each input, (n,)."""
        on = inputs @ self.weights.T + self.biases > self.thresholds
        return (on @ self._v + self._v0).astype(np.float32)

    def examples(self, number: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Inputs (period, 20) and targets (period,) of a period. Only 32 inputs occur in it, so the target is a table."""
        inputs = self.inputs(number)
        which = generator(self.seed, "fast bits", number).integers(0, len(PATTERNS), self.period)
        return inputs[which], self.targets(inputs)[which]


# -- the learners ---------------------------------------------------------------------------------------------------

COLUMNS = {
    "step": "examples seen at the end of the bin",
    "squared_error": "before each update, mean of the bin",
    "weight_magnitude": "mean |weight| of all weight matrices at the end of the bin, biases not counted",
    "dead": "share of hidden units that are 0 for all inputs of the bin's last period (ReLU; NaN for others)",
    "saturated": "mean share of hidden units with |h| > 0.9 (tanh), h < 0.05 or > 0.95 (sigmoid; NaN for others)",
    "replaced": "hidden units replaced so far",
}


class Learners:
    """The runs of a job: learners of one kind, on streams that those of one seed share."""

    def __init__(self, configs: Sequence[Config]) -> None:
        first = configs[0]
        row = method_of(first, get_args(Method))
        if len({_shared(config) for config in configs}) > 1:
            raise LabError("runs of several methods, problems or networks share a job: see stack_key")
        self.bin, self.period, self.steps_total = first.bin, first.period, first.steps
        seeds = sorted({config.seed for config in configs})
        self.streams = [Stream(seed, first.variant, first.period) for seed in seeds]
        self.stream_of_run = np.array([seeds.index(config.seed) for config in configs])
        self.configs, self.fresh = configs, first.method == "fresh"
        self.ensemble: OnlineEnsemble | Twin = _ensemble(configs)
        if is_own(first):
            self.ensemble = Twin(_ensemble(configs), row, first)
        self.bins_done = 0
        self.by_period = is_own(first)  # a bin takes a user's method several advances
        self.errors: list[NDArray[np.float64]] = []  # of the periods of the bin at hand

    @property
    def steps_done(self) -> int:
        return self.bins_done * self.bin + len(self.errors) * self.period

    def statuses(self) -> list[RunStatus]:
        alive = DONE if self.steps_done >= self.steps_total else RUNNING
        return [alive if step < 0 else diverged(step) for step in self.ensemble.diverged_at]

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"bins_done": self.bins_done, "ensemble": self.ensemble.state_dict()}
        return {**state, "errors": np.array(self.errors)} if self.by_period else state

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.bins_done = count_in(state, "bins_done")
        if self.fresh:
            self.ensemble = _ensemble(self.configs, max(self.steps_done // self.period - 1, 0))
        load_part(self.ensemble, state, "ensemble")
        self.errors = []
        if self.by_period:
            periods = len(state["errors"])
            self.errors = list(entry(state, "errors", np.empty((periods, len(self.stream_of_run)) if periods else 0)))

    def learn_on(self) -> NDArray[np.float64] | None:
        """Mean squared error of each run over the bin, (runs,), where it has ended."""
        periods = self.bin // self.period
        while len(self.errors) < periods:
            self.errors.append(self._learn_a_period(self.steps_done // self.period))
            if self.by_period and self.ensemble.diverged_at[0] < 0:
                break
        if len(self.errors) < periods:
            return None
        found, self.errors = np.mean(self.errors, axis=0), []
        self.bins_done += 1
        return found

    def _learn_a_period(self, number: int) -> NDArray[np.float64]:
        if self.fresh:
            self.ensemble = _ensemble(self.configs, number)
        inputs, targets = map(np.stack, zip(*(stream.examples(number) for stream in self.streams), strict=True))
        progress = self.ensemble.partial_fit(inputs, targets, stream=self.stream_of_run)
        return progress.loss.mean(axis=1, dtype=np.float64)

    def hidden(self) -> list[NDArray[np.floating[Any]]]:
        """Activity of each hidden layer on all inputs of the last period, (runs, 32, units)."""
        number = self.steps_done // self.period - 1
        inputs = np.stack([stream.inputs(number) for stream in self.streams])
        return self.ensemble.activations(inputs, stream=self.stream_of_run)


def _kind(config: Config) -> Hashable:
    """What the learners of one ensemble have in common."""
    replacement = (_utility(config), config.count, config.candidates > 0) if config.method in REPLACING else None
    return config.method == "linear", config.hidden_units, config.activation, config.optimizer, replacement


def _utility(config: Config) -> Utility:
    return "random" if config.method == "random" else config.utility


def _shared(config: Config) -> Hashable:
    """What the runs of one job have in common."""
    return _kind(config), config.method, config.variant, config.period, config.bin, config.steps


def _ensemble(configs: Sequence[Config], period: int = 0) -> OnlineEnsemble:
    """The learners at the start; those of method fresh, at the start of a period."""
    first = configs[0]
    begun = [stream_key(config.seed, "fresh network", period) >> 1 if period else config.seed for config in configs]

    def each(name: str) -> NDArray[Any]:
        return np.array([getattr(config, name) for config in configs])

    return OnlineEnsemble(
        inputs=SLOW + FAST,
        hidden=() if first.method == "linear" else (first.hidden_units,),
        outputs=1,
        learners=len(configs),
        seed=begun,
        activation=first.activation,
        optimizer=first.optimizer,
        step_size=each("step_size"),
        weight_decay=each("weight_decay"),
        noise_std=each("noise_std"),
        l2_init=each("l2_init"),
        replacement_rate=each("replacement_rate") if first.method in REPLACING else None,
        maturity_threshold=each("maturity_threshold"),
        decay_rate=each("decay_rate"),
        utility=_utility(first),
        candidates=each("candidates"),
        count=first.count,
    )


# -- the experiment --------------------------------------------------------------------------------------------------


class SlowlyChangingRegression(ShippedExperiment):
    """The experiment, as the laboratory runs it."""

    Config = Config
    columns = COLUMNS
    shares: ClassVar[Sequence[str]] = ("dead", "saturated")
    rivals = tuple(name for name in RIVALS if name not in get_args(Method))
    methods = (*get_args(Method), *rivals)
    devices: ClassVar[Sequence[str]] = ("cpu",)

    def stack_key(self, config: Config, device: str) -> Hashable:
        return config if is_own(config) else _shared(config)

    def note(self, configs: Sequence[Config]) -> list[str]:
        """What learning by PyTorch costs."""
        sizes = (SLOW + FAST, TARGET_UNITS, 1)  # at most, as far as costs go
        return cost_in_words((config, config.steps, sizes) for config in configs)

    def start(self, configs: Sequence[Config], context: Context) -> Learners:
        return Learners(configs)

    def advance(self, state: Learners) -> dict[str, NDArray[Any]]:
        errors = state.learn_on()
        if errors is None:
            return {name: np.zeros(0) for name in ("run", *COLUMNS)}
        hidden = state.hidden()
        return {
            "run": np.arange(len(errors)),
            "step": np.full(len(errors), state.steps_done),
            "squared_error": errors,
            "weight_magnitude": _weight_magnitude(state.ensemble),
            "dead": _dead(hidden, state.ensemble.activation, len(errors)),
            "saturated": _saturated(hidden, state.ensemble.activation, len(errors)),
            "replaced": state.ensemble.replacements.sum(axis=1),
        }

    def figure(self, rows: pandas.DataFrame) -> Figure:
        """A row of panels for each variant, optimizer, activation and length: error, weight magnitude, idle units."""
        table: Any = rows
        table = table.assign(step=table["step"] / 1e6)
        linear = table["method"] == "linear"  # in the panels of every activation, as it has none
        learners = table if linear.all() else table[~linear]
        parts: list[Part] = []
        for variant, optimizer, activation, steps in learners.groupby(_PANEL, sort=False).groups:
            same = (table["variant"] == variant) & (table["optimizer"] == optimizer) & (table["steps"] == steps)
            cell = self.curves(table[same & ((table["activation"] == activation) | linear)], panel=_PANEL)
            measures = ("squared_error", "weight_magnitude", _idle(activation))
            title = f"{activation}, {optimizer}, {variant}"
            parts.append(Part(cell, [("step", y) for y in measures], title, BINS))
        return figure_of(parts, self.look, LABELS, bounds=self.bounds())


def _idle(activation: str) -> str:
    """The column that says how many units no longer respond."""
    return "saturated" if activation in ("tanh", "sigmoid") else "dead"


def _weight_magnitude(ensemble: OnlineEnsemble | Twin) -> NDArray[np.float64]:
    """Mean |weight| of all matrices, (runs,)."""
    counts = [ensemble.weights(layer)[0].size for layer in range(len(ensemble.sizes) - 1)]
    return np.average(ensemble.weight_magnitude(), axis=1, weights=counts)


def _dead(hidden: Sequence[NDArray[Any]], activation: str, runs: int) -> NDArray[np.float64]:
    """Share of units that are 0 for all inputs, (runs,)."""
    if not hidden or activation != "relu":
        return np.full(runs, np.nan)
    return (hidden[0] == 0).all(axis=1).mean(axis=1)


def _saturated(hidden: Sequence[NDArray[Any]], activation: str, runs: int) -> NDArray[np.float64]:
    """Mean share of units in the flat ends of their activation, (runs,)."""
    if not hidden or activation not in ("tanh", "sigmoid"):
        return np.full(runs, np.nan)
    centred = hidden[0] if activation == "tanh" else 2 * hidden[0] - 1
    return (np.abs(centred) > 0.9).mean(axis=(1, 2))


BINS = 25
LABELS = {
    "step": "million examples",
    "squared_error": "squared error",
    "weight_magnitude": "mean |weight|",
    "dead": "share of dead units",
    "saturated": "share of saturated units",
}
_PANEL = ["variant", "optimizer", "activation", "steps"]


def _quick() -> list[dict[str, Any]]:
    common = {"variant": "flip-one", "steps": 3_000_000, "bin": 120_000}
    return [
        *({**common, "method": "bp", "step_size": step_size} for step_size in (0.01, 0.003, 0.001)),
        *({**common, "method": "cbp", "replacement_rate": rate} for rate in (1e-5, 1e-4, 1e-3)),
        {**common, "method": "linear", "activation": "linear"},
    ]


_CHOSEN: dict[str, dict[str, Any]] = {  # by `tuning`: docs/experiments/slowly-changing-regression.md has the table
    "bp": {"step_size": 0.00176},
    "l2": {"step_size": 0.003, "weight_decay": 1e-2},
    "l2init": {"step_size": 0.003, "l2_init": 1e-2},
    "snp": {"step_size": 0.01, "weight_decay": 1e-2, "noise_std": 1e-3},
    "cbp": {"step_size": 0.01, "replacement_rate": 1e-4},
    "random": {"step_size": 0.003, "replacement_rate": 1e-6},
    "fresh": {"step_size": 0.00937},
    "linear": {"step_size": 0.00267, "activation": "linear"},
}


def _small() -> list[dict[str, Any]]:
    common = {"variant": "flip-one", "steps": 3_000_000, "bin": 120_000}
    control = {**_CHOSEN["cbp"], "method": "random"}  # the same in number, at the same step size
    return [*({**common, "method": method, **chosen} for method, chosen in _CHOSEN.items()), {**common, **control}]


def _tuning() -> list[dict[str, Any]]:
    """Twelve settings of each method: four step sizes and three values of its own, or twelve step sizes if it has none.

    Where the best of those lay at an edge, six more followed beyond it.
    """
    common = {"variant": "flip-one", "steps": 1_000_000, "bin": 100_000}
    steps, fine = (0.001, 0.003, 0.01, 0.03), np.geomspace(0.0005, 0.05, 12).round(5).tolist()
    cells: list[dict[str, Any]] = []
    for method, own, values in (
        ("l2", "weight_decay", (1e-4, 1e-3, 1e-2)),
        ("l2init", "l2_init", (1e-4, 1e-3, 1e-2)),
        ("snp", "noise_std", (1e-4, 1e-3, 1e-2)),
        ("cbp", "replacement_rate", (1e-5, 1e-4, 1e-3)),
        ("random", "replacement_rate", (1e-5, 1e-4, 1e-3)),
    ):
        shrink = {"weight_decay": 1e-3} if method == "snp" else {}
        for step_size, value in product(steps, values):
            cells.append({**common, "method": method, "step_size": step_size, own: value, **shrink})
    beyond = (0.001, 0.003, 0.01)
    for step_size, value in product(beyond, (3e-2, 1e-1)):
        cells.append({**common, "method": "l2", "step_size": step_size, "weight_decay": value})
        cells.append({**common, "method": "l2init", "step_size": step_size, "l2_init": value})
    for step_size, noise in product(beyond, (3e-4, 1e-3)):
        cells.append({**common, "method": "snp", "step_size": step_size, "weight_decay": 1e-2, "noise_std": noise})
    for step_size, rate in product(beyond, (1e-6, 3e-6)):
        cells.append({**common, "method": "random", "step_size": step_size, "replacement_rate": rate})
    for method in ("bp", "fresh", "linear"):
        own = {"activation": "linear"} if method == "linear" else {}
        cells += [{**common, "method": method, "step_size": step_size, **own} for step_size in fine]
    return cells


def _paper() -> list[dict[str, Any]]:
    """Section by section as the released configurations list them."""
    steps = (0.01, 0.003, 0.001)
    cells: list[dict[str, Any]] = []
    for optimizer in ("sgd", "adam"):
        common = {"variant": "redraw-all", "optimizer": optimizer, "steps": 1_000_000}
        longer = {**common, "steps": 5_000_000}
        for activation, step_size in product(ACTIVATIONS, steps):
            cells.append({**common, "method": "bp", "activation": activation, "step_size": step_size})
        cells += [
            {**longer, "method": "bp", "activation": activation, "step_size": 0.001} for activation in ACTIVATIONS
        ]
        cells += [{**common, "method": "linear", "activation": "linear", "step_size": step_size} for step_size in steps]
        cells.append({**longer, "method": "linear", "activation": "linear", "step_size": 0.003})
        for activation in ACTIVATIONS:
            regular = {**common, "activation": activation, "step_size": 0.01}
            strongest = 0 if activation in ("relu", "leaky_relu", "swish") else -1
            decays = [10.0**exponent for exponent in range(-6, strongest + 1)]
            cells += [{**regular, "method": "l2", "weight_decay": decay} for decay in decays]
            shrink = SHRINK[optimizer][activation]
            noises = [10.0**exponent for exponent in range(-6, 0)]
            cells += [{**regular, "method": "snp", "weight_decay": shrink, "noise_std": noise} for noise in noises]
    cells += [{**_RELEASED_CBP, "replacement_rate": 10.0**exponent} for exponent in range(-6, -1)]
    flips = {"variant": "flip-one", "steps": 3_000_000}
    for activation, step_size in product(ACTIVATIONS, steps):
        cells.append({**flips, "method": "bp", "activation": activation, "step_size": step_size})
    for step_size in (0.03, 0.01, 0.003, 0.001, 0.0003):
        cells.append({**flips, "method": "linear", "activation": "linear", "step_size": step_size})
    return cells


SHRINK = {  # weight decay of the published shrink-and-perturb cells
    "sgd": {"relu": 1e-2, "leaky_relu": 1e-2, "swish": 1e-2, "tanh": 1e-2, "sigmoid": 1e-3, "elu": 1e-3},
    "adam": {"relu": 1e-2, "leaky_relu": 1e-3, "swish": 1e-3, "tanh": 1e-3, "sigmoid": 1e-3, "elu": 1e-4},
}

_RELEASED_CBP = {
    "variant": "redraw-all",
    "method": "cbp",
    "steps": 1_000_000,
    "utility": "adaptable_contribution",
    "count": "bernoulli",
    "maturity_threshold": 10,  # the released file says 100 under a name that is not read
}

SlowlyChangingRegression.plans = {
    "quick": Profile(
        "flip-one, ReLU, 3M examples, 20 seeds: backprop, continual backprop, linear; about a minute", _quick, range(20)
    ),
    "small": Profile(
        "flip-one, ReLU, 3M examples, 20 seeds: all methods at the settings that `tuning` chose; some minutes",
        _small,
        range(20),
    ),
    "tuning": Profile(
        "flip-one, ReLU, 1M examples, seeds 1000 to 1004, twelve settings of each method; some minutes",
        _tuning,
        range(1000, 1005),
    ),
    "paper": Profile("the published cells at their own lengths, 100 seeds", _paper, range(100)),
}
