"""Online permuted MNIST: is the 800th task learned as well as the first?

Stream  60,000 images a task, seen once, one at a time; for each task the pixels are permuted anew. Nothing tells the
        network that a task begins, and nothing in it is reset
Curve   share of images whose label was predicted before the update, by task; mean and 95% interval over seeds; weight
        magnitude, dead units, and the effective rank of what the hidden layers say
Source  Dohare et al., Nature 632 (2024), figure 2 and extended data; departures: docs/experiments/permuted-mnist.md

All methods of a seed see the same tasks and start from the same weights.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas and matplotlib are typed in part)

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from pydantic import Field, model_validator

from pliant.base.saving import all_or_nothing, count_in, entry, load_part
from pliant.data import ImageSet, load
from pliant.data.images import check_same
from pliant.diagnostics import dead, effective_rank, singular_values
from pliant.experiments.base import Cell, Profile, ShippedExperiment, is_own
from pliant.experiments.methods import CANDIDATES, RIVALS, Utility, check_fields, method_of
from pliant.experiments.twin import Twin, cost_in_words, examples_per_advance
from pliant.lab import DONE, RUNNING, Context, RunConfig, RunStatus, diverged
from pliant.lab.figures import Part, figure_of
from pliant.online import OnlineEnsemble
from pliant.streams import generator

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

Method = Literal["bp", "adam", "l2", "snp", "dropout", "onlinenorm", "layernorm", "cbp", "linear"]


class Config(RunConfig, frozen=True):
    """One network on one stream of tasks."""

    added: ClassVar[Mapping[str, Any]] = {"candidates": 0}

    method: Method = "bp"
    dataset: str = Field("mnist", description="name of a set of images; all of one size")
    tasks: int = Field(800, gt=0, description="tasks")
    period: int = Field(60_000, gt=0, description="examples per task; more than the images there are: they come again")
    width: int = Field(100, gt=0, description="units in each hidden layer")
    hidden_layers: int = Field(3, ge=0, description="0 for method linear")
    step_size: float = Field(0.003, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="coupled, of weights and biases; method l2 or snp")
    noise_std: float = Field(0.0, ge=0, description="of the noise on every weight and bias after each step; method snp")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of hidden units left out of a step; method dropout")
    norm_decay: float = Field(0.999, ge=0, lt=1, description="of running statistics, per example; method onlinenorm")
    norm_backward_decay: float = Field(0.99, ge=0, lt=1, description="of running gradients; method onlinenorm")
    replacement_rate: float = Field(0.0, ge=0, le=1, description="share of mature units per example; method cbp")
    maturity_threshold: int = Field(100, ge=0, description="examples; method cbp")
    decay_rate: float = Field(0.99, ge=0, lt=1, description="of running averages, per example; method cbp")
    utility: Utility = Field("contribution", description="method cbp")
    candidates: int = CANDIDATES
    hand_over_mean: bool = Field(True, description="to the next bias, of a replaced unit; method cbp")
    probe: int = Field(2000, gt=0, description="examples of a new task on which hidden units are measured")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_fields(self, get_args(Method))
        if (self.method == "linear") != (self.hidden_layers == 0):
            raise ValueError("method linear has hidden_layers=0, and the others have at least 1")
        return self


# -- the stream -----------------------------------------------------------------------------------------------------


class Stream(NamedTuple):
    """The tasks of one seed. Each is looked up by its number, so nothing needs to be stored."""

    seed: int
    pixels: int  # in an image
    images: int  # in the set

    def permutation(self, task: int) -> NDArray[np.int64]:
        """Which pixel each input of the network sees, (pixels,)."""
        return generator(self.seed, "pixels", task).permutation(self.pixels)

    def order(self, task: int, begin: int, end: int) -> NDArray[np.int64]:
        """Which images are examples `begin` to `end` of a task, (end - begin,)."""
        drawn = generator(self.seed, "images", task).permutation(self.images)
        return drawn[np.arange(begin, end) % self.images]


# -- the learner ----------------------------------------------------------------------------------------------------

COLUMNS = {
    "task": "number of the task, from 1",
    "accuracy": "share of the task's examples whose label was predicted before the update (NaN: the run diverged)",
    "examples": "seen at the end of the task",
    "loss": "cross-entropy before each update, mean of the task (NaN: the run diverged)",
    "weight_magnitude": "mean |weight| of all weight matrices at the end of the task, biases not counted",
    "dead": "share of hidden units that are 0 for all probe examples, before learning from them; mean of the layers",
    "dead_first": "the same, of the first hidden layer",
    "dead_last": "the same, of the last hidden layer",
    "effective_rank": "of the hidden units' answers to the probe, as a share of the width; mean of the layers",
    "effective_rank_first": "the same, of the first hidden layer",
    "effective_rank_last": "the same, of the last hidden layer",
    "replaced": "hidden units replaced so far",
}

WORK = 4e10  # weights updated in an advance: about 5 seconds of SGD
FEWEST = 500  # examples in an advance, lest storing the largest networks takes as long as learning


class Learner:
    """One run: a network, and where it is in its stream.

    A task may take several advances; what was measured at its beginning, and the sums since, are kept until its end.
    """

    def __init__(self, config: Config, data: ImageSet, dtype: DTypeLike = np.float32) -> None:
        self.config, self.data_sha256 = config, data.sha256
        self.images = data.train.pixels.reshape(1, len(data.train.pixels), -1)  # one stream for `partial_fit`
        self.labels = data.train.labels[None]
        self.stream = Stream(config.seed, self.images.shape[2], self.images.shape[1])
        row = method_of(config, get_args(Method))
        learner = _network(config, self.stream.pixels, len(data.train.classes), dtype)
        self.network = Twin(learner, row, config) if is_own(config) else learner
        self.examples = self.hits = 0  # seen so far; predicted in this task
        self.loss = 0.0  # sum over this task
        self.dead = self.rank = np.full(config.hidden_layers, np.nan)  # of each hidden layer when the task began

    @property
    def steps_done(self) -> int:
        return self.examples

    @property
    def steps_total(self) -> int:
        return self.config.tasks * self.config.period

    @property
    def diverged_at(self) -> int:
        """Number of the example whose loss was not finite, or -1."""
        return int(self.network.diverged_at[0])

    def statuses(self) -> list[RunStatus]:
        if self.diverged_at >= 0:
            return [diverged(self.diverged_at)]
        return [DONE if self.examples >= self.steps_total else RUNNING]

    def state_dict(self) -> dict[str, Any]:
        sums = {"hits": self.hits, "loss": self.loss, "dead": self.dead, "rank": self.rank}
        return {
            "data_sha256": self.data_sha256,
            "examples": self.examples,
            **sums,
            "network": self.network.state_dict(),
        }

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises `ValueError` where the images are not those of the run so far."""
        check_same(self.config.dataset, state["data_sha256"], self.data_sha256)
        self.examples, self.hits = count_in(state, "examples"), count_in(state, "hits")
        self.loss = entry(state, "loss", self.loss)
        self.dead, self.rank = (entry(state, name, self.dead) for name in ("dead", "rank"))
        load_part(self.network, state, "network")

    def learn(self) -> bool:
        """Learn from the next examples of the task, or from all that are left. True where the task ended, or the run."""
        task, begin = divmod(self.examples, self.config.period)
        end = min(begin + segment(self.config, self.network.sizes), self.config.period)
        permutation = self.stream.permutation(task)
        if begin == 0:
            self._begin(task, permutation)
        progress = self.network.partial_fit(
            self.images,
            self.labels,
            rows=self.stream.order(task, begin, end)[None],
            columns=permutation[None],
            scale=1 / 255,
        )
        assert progress.correct is not None
        self.hits += int(progress.correct.sum())
        self.loss += float(progress.loss.sum(dtype=np.float64))
        self.examples += end - begin
        return end == self.config.period or self.diverged_at >= 0

    def _begin(self, task: int, permutation: NDArray[np.int64]) -> None:
        """Measure the hidden units on a task not yet learned from."""
        self.hits, self.loss = 0, 0.0
        answers = self.network.activations(self.probe(task, permutation))[:-1]
        hidden = [torch.from_numpy(layer[0]) for layer in answers]
        self.dead = np.array([float(dead(h).double().mean()) for h in hidden])
        self.rank = np.array([float(effective_rank(singular_values(h))) / h.shape[1] for h in hidden])

    def probe(self, task: int, permutation: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        """The first examples of a task as the network sees them, (1, probe, pixels)."""
        order = self.stream.order(task, 0, self.config.probe)
        pixels = self.images[:, order[:, None], permutation]
        return np.multiply(pixels, 1 / 255, dtype=self.network.dtype)

    def row(self) -> dict[str, NDArray[Any]]:
        """What is known at the end of a task."""
        lost = self.diverged_at >= 0
        values = {
            "run": 0,
            "task": -(-self.examples // self.config.period),
            "examples": self.examples,
            "accuracy": np.nan if lost else self.hits / self.config.period,
            "loss": np.nan if lost else self.loss / self.config.period,
            "weight_magnitude": _weight_magnitude(self.network),
            **_layers("dead", self.dead),
            **_layers("effective_rank", self.rank),
            "replaced": self.network.replacements.sum(),
        }
        return {name: np.array([value]) for name, value in values.items()}


def segment(config: Config, sizes: Sequence[int]) -> int:
    """Examples of an advance that has no task's end in it."""
    if is_own(config):
        return examples_per_advance(sizes)
    weights = sum(m * n for m, n in pairwise(sizes))
    passes = {"adam": 4, "dropout": 2}.get(config.method, 1)  # its three arrays, all dense; a second forward
    return max(FEWEST, int(WORK / (weights * passes)))


def _network(config: Config, inputs: int, outputs: int, dtype: DTypeLike) -> OnlineEnsemble:
    decays = (config.norm_decay, config.norm_backward_decay)
    own: dict[str, dict[str, Any]] = {
        "adam": {"optimizer": "adam"},
        "dropout": {"dropout": config.dropout},
        "layernorm": {"normalization": "layer"},
        "onlinenorm": {"normalization": "online", "online_norm_decay": decays},
    }
    return OnlineEnsemble(
        inputs=inputs,
        hidden=(config.width,) * config.hidden_layers,
        outputs=outputs,
        learners=1,
        seed=config.seed,
        loss="cross_entropy",
        step_size=config.step_size,
        weight_decay=config.weight_decay,
        noise_std=config.noise_std,
        replacement_rate=config.replacement_rate if config.method == "cbp" else None,
        maturity_threshold=config.maturity_threshold,
        decay_rate=config.decay_rate,
        utility=config.utility,
        candidates=config.candidates,
        hand_over_mean=config.hand_over_mean,
        dtype=dtype,
        kernel="rows",
        **own.get(config.method, {}),
    )


def _weight_magnitude(network: OnlineEnsemble | Twin) -> float:
    """Mean |weight| of all matrices."""
    counts = [m * n for m, n in pairwise(network.sizes)]
    return float(np.average(network.weight_magnitude()[0], weights=counts))


def _layers(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    """The mean over hidden layers, and the first and last of them; NaN where there are none."""
    known = values if len(values) else np.array([np.nan])
    return {name: known.mean(), f"{name}_first": known[0], f"{name}_last": known[-1]}


# -- the experiment --------------------------------------------------------------------------------------------------


class PermutedMnist(ShippedExperiment):
    """The experiment, as the laboratory runs it: every run is a job of its own."""

    Config = Config
    columns = COLUMNS
    shares: ClassVar[Sequence[str]] = (
        "accuracy",
        "dead",
        "dead_first",
        "dead_last",
        "effective_rank",
        "effective_rank_first",
        "effective_rank_last",
    )
    rivals = RIVALS
    methods = (*get_args(Method), *rivals)
    devices: ClassVar[Sequence[str]] = ("cpu",)

    def data_sets(self, config: Config) -> tuple[str]:
        return (config.dataset,)

    def check_data(self, config: Config, found: Mapping[str, ImageSet]) -> None:
        have = len(found[config.dataset].train)
        if have < config.probe:
            raise ValueError(f"'{config.dataset}' has {have:,} images, and a probe {config.probe:,}: lower `probe`")

    def stack_key(self, config: Config, device: str) -> Hashable:
        return config

    def note(self, configs: Sequence[Config]) -> list[str]:
        """What learning by PyTorch costs."""
        sizes = {config: (784, *(config.width,) * config.hidden_layers, 10) for config in configs}  # of MNIST
        return cost_in_words((config, config.tasks * config.period, sizes[config]) for config in configs)

    def start(self, configs: Sequence[Config], context: Context) -> Learner:
        (config,) = configs
        return Learner(config, load(config.dataset, context.data))

    def advance(self, state: Learner) -> dict[str, NDArray[Any]]:
        ended = state.learn()
        row = state.row()
        return row if ended else {name: values[:0] for name, values in row.items()}

    def figure(self, rows: pandas.DataFrame) -> Figure:
        """Accuracy, weight magnitude, dead units, effective rank; a row of panels for each dataset, width and period."""
        table: Any = rows
        table = table.assign(**{name: 100 * table[name] for name in PERCENT})
        linear = table["method"] == "linear"  # in the panels of every width, as it has none
        networks = table if linear.all() else table[~linear]
        parts: list[Part] = []
        for dataset, width, period in networks.groupby(_PANEL, sort=False).groups:
            same = (table["dataset"] == dataset) & (table["period"] == period)
            cell = self.curves(table[same & ((table["width"] == width) | linear)], panel=_PANEL)
            pooled = ("width",) if (cell["hidden_layers"] == 0).any() else ()
            title = f"{dataset}, width {width:,}, {period:,} examples per task"
            parts.append(Part(cell, [("task", y) for y in list(LABELS)[1:]], title, BINS, pooled))
        return figure_of(parts, self.look, LABELS, bounds=self.bounds(PERCENT))


BINS = 40
PERCENT = ("accuracy", "dead", "effective_rank")
LABELS = {
    "task": "task",
    "accuracy": "online accuracy (%)",
    "weight_magnitude": "mean |weight|",
    "dead": "dead units (%)",
    "effective_rank": "effective rank (% of width)",
}
_PANEL = ["dataset", "width", "period"]
# -- what the profiles run -------------------------------------------------------------------------------------------

_CHOSEN: dict[str, Cell] = {  # by profile `tuning`: docs/experiments/permuted-mnist.md has the table
    "bp": {"step_size": 0.0006},
    "adam": {"step_size": 6e-5},
    "l2": {"step_size": 0.003, "weight_decay": 1e-3},
    "snp": {"step_size": 0.003, "weight_decay": 1e-3, "noise_std": 1e-5},
    "dropout": {"step_size": 0.001, "dropout": 0.01},
    "onlinenorm": {"step_size": 0.003, "norm_decay": 0.999},
    "layernorm": {"step_size": 0.002},
    "cbp": {"step_size": 0.003, "replacement_rate": 1e-4},
    "linear": {"step_size": 0.01, "hidden_layers": 0},
}


def _chosen(methods: Sequence[str], **common: Any) -> list[Cell]:
    return [{"method": method, **_CHOSEN[method], **common} for method in methods]


def _tuning() -> list[Cell]:
    """Nine settings of each method: three step sizes and three values of its own, or nine step sizes if it has none.

    Where the best of those lay at an edge, more followed beyond it: stronger weight decay, and less dropout with smaller steps.
    """
    steps, fine = (0.001, 0.003, 0.01), (1e-4, 3e-4, 6e-4, 1e-3, 2e-3, 3e-3, 6e-3, 1e-2, 3e-2)
    common = {"tasks": 40}
    cells: list[Cell] = []
    for method, own, values in (
        ("l2", "weight_decay", (1e-5, 1e-4, 1e-3)),
        ("snp", "noise_std", (1e-6, 1e-5, 1e-4)),
        ("dropout", "dropout", (0.01, 0.03, 0.1)),
        ("onlinenorm", "norm_decay", (0.99, 0.999, 0.9999)),
        ("cbp", "replacement_rate", (1e-5, 1e-4, 1e-3)),
    ):
        shrink = {"weight_decay": 1e-4} if method == "snp" else {}
        for step_size, value in product(steps, values):
            cells.append({**common, "method": method, "step_size": step_size, own: value, **shrink})
    cells += [{**common, "method": "l2", "step_size": step_size, "weight_decay": 1e-2} for step_size in steps]
    for decay, noise in product((1e-3, 1e-2), (1e-6, 1e-5, 1e-4)):
        cells.append({**common, "method": "snp", "step_size": 0.003, "weight_decay": decay, "noise_std": noise})
    for step_size, share in ((3e-4, 0.01), (6e-4, 0.01), (6e-4, 0.003), (1e-3, 0.003)):
        cells.append({**common, "method": "dropout", "step_size": step_size, "dropout": share})
    for method, scale in (("bp", 1.0), ("layernorm", 1.0), ("linear", 1.0), ("adam", 0.1)):
        none = {"hidden_layers": 0} if method == "linear" else {}
        cells += [{**common, **none, "method": method, "step_size": round(scale * step_size, 9)} for step_size in fine]
    return cells


def _paper() -> list[Cell]:
    """Section by section as the released configurations list them."""
    common = {"width": 2000, "step_size": 0.003}
    cells: list[Cell] = [{**common, "method": "bp", "step_size": step_size} for step_size in (0.01, 0.003, 0.001)]
    cells += [{"method": "bp", "width": 100, "step_size": step_size} for step_size in (0.01, 0.003, 0.001)]
    cells += [{**common, "method": "bp", "width": width} for width in (1000, 10_000)]
    for period in (10_000, 100_000, 1_000_000):
        cells.append({**common, "method": "bp", "period": period, "tasks": 48_000_000 // period})
    cells += [{**common, "method": "adam", "step_size": step_size} for step_size in (1e-4, 5e-5, 3e-5)]
    cells += [{**common, "method": "l2", "weight_decay": decay} for decay in (1e-3, 1e-4, 1e-5)]
    shrink = {**common, "method": "snp", "weight_decay": 1e-4}
    cells += [{**shrink, "noise_std": noise} for noise in (1e-4, 1e-5, 1e-6)]
    released = {**common, "method": "cbp", "utility": "adaptable_contribution", "hand_over_mean": False}
    return [*cells, *({**released, "replacement_rate": rate} for rate in (1e-4, 1e-5, 1e-6))]


_AT_ONCE = {"step_size": 0.003, "tasks": 150, "period": 5_000}  # shorter tasks need larger steps
_WIDE = {"step_size": 0.003, "tasks": 150, "width": 1000}  # the article's step size


def _quick() -> list[Cell]:
    return [
        {**_AT_ONCE, "method": "bp"},
        {**_AT_ONCE, "method": "l2", "weight_decay": 1e-3},
        {**_AT_ONCE, "method": "cbp", "replacement_rate": 1e-4},
        {**_AT_ONCE, "method": "linear", "hidden_layers": 0},
    ]


def _small() -> list[Cell]:
    return [*_chosen(tuple(_CHOSEN), tasks=200), {"method": "bp", "step_size": 0.003, "tasks": 200}]


def _medium() -> list[Cell]:
    return [{**_WIDE, "method": "bp"}, {**_WIDE, "method": "cbp", "replacement_rate": 1e-5}]


PermutedMnist.plans = {
    "quick": Profile(
        "width 100, short tasks, 3 seeds: backprop, L2, continual backprop, linear; about a minute", _quick, range(3)
    ),
    "small": Profile(
        "width 100, 200 tasks of 60,000, 3 seeds, all methods, backprop also at the published step size; an hour",
        _small,
        range(3),
    ),
    "medium": Profile(
        "width 1,000, 150 tasks of 60,000, 1 seed, backprop and continual backprop; about half a core-hour",
        _medium,
        range(1),
    ),
    "tuning": Profile(
        "width 100, 40 tasks of 60,000, seed 1000, nine settings or more of each method; half an hour on two cores",
        _tuning,
        range(1000, 1001),
    ),
    "paper": Profile("the published cells at their own lengths, 10 seeds; months on one core", _paper, range(10)),
}
