"""What the experiments on streams of changing images share: a compiled network that learns from one example at a time.

    task     a stretch of the stream after which it changes; what changes is the experiment's own
    row      at the end of each task: accuracy and loss before the updates, the size of the weights, dead units

An experiment is a `Config` of its own fields, `batch`, which gives any part of any task, and its profiles. All methods of a seed
see the same stream and start from the same weights. Nothing tells the network that a task begins; only method `fresh` is told.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas and matplotlib are typed in part)

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, Self, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pliant.base.saving import all_or_nothing, count_in, entry, load_part
from pliant.data import ImageSet, load
from pliant.data.images import check_same
from pliant.diagnostics import dead
from pliant.experiments.base import Cell, ShippedExperiment, is_own
from pliant.experiments.images.glyphs import glyphs
from pliant.experiments.methods import CANDIDATES, RIVALS, Utility, check_fields, method_of
from pliant.experiments.twin import Twin, cost_in_words, examples_per_advance
from pliant.lab import DONE, RUNNING, Context, RunConfig, RunStatus, diverged
from pliant.lab.figures import Part, figure_of
from pliant.online import OnlineEnsemble
from pliant.online.standardize import Standardizer
from pliant.streams import generator, stream_key

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

Method = Literal["bp", "l2", "l2init", "snp", "layernorm", "upgd", "cbp", "random", "linear", "fresh"]
GLYPHS = "glyphs"  # the one set that is drawn, not loaded


class StreamConfig(RunConfig, frozen=True):
    """One network on one stream of tasks."""

    added: ClassVar[Mapping[str, Any]] = {"candidates": 0}

    method: Method = "bp"
    dataset: str = Field("mnist", description="name of a set of images, all of one size; 'glyphs' needs no download")
    tasks: int = Field(200, gt=0, description="tasks")
    period: int = Field(5_000, gt=0, description="examples per task")
    hidden: tuple[int, ...] = Field((300, 150), description="units of each hidden layer; none for method linear")
    pixels: Literal["unit", "standard", "online"] = Field(
        "unit",
        description="0 to 1; or standardized, by mean and deviation of the set, or by running ones of each pixel (decay 0.99)",
    )
    init: Literal["kaiming", "default"] = Field(
        "kaiming", description="of hidden layers: ± sqrt(6 / fan_in), or torch's ± sqrt(1 / fan_in)"
    )
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="not for method upgd, which is one")
    step_size: float = Field(0.01, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="coupled, with adamw and upgd decoupled; method l2, snp or upgd")
    l2_init: float = Field(0.0, ge=0, description="strength of the pull to the initial parameters; method l2init")
    noise_std: float = Field(0.0, ge=0, description="of the noise on every weight and bias after each step; method snp")
    sigma: float = Field(0.0, ge=0, description="of the noise in a step; method upgd")
    beta_utility: float = Field(0.9999, ge=0, lt=1, description="of running utilities; method upgd")
    replacement_rate: float = Field(
        0.0, ge=0, le=1, description="share of mature units per example; method cbp, random"
    )
    maturity_threshold: int = Field(100, ge=0, description="examples; method cbp or random")
    decay_rate: float = Field(0.99, ge=0, lt=1, description="of running averages, per example; method cbp or random")
    utility: Utility = Field("contribution", description="method cbp")
    candidates: int = CANDIDATES
    hand_over_mean: bool = Field(True, description="to the next bias, of a replaced unit; method cbp or random")
    probe: int = Field(500, gt=0, description="examples of a new task on which hidden units are measured")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_fields(self, get_args(Method), weight_decay=("upgd",))
        if (self.method == "linear") != (not self.hidden):
            raise ValueError("method linear has hidden=[], and the others have at least one hidden layer")
        if self.method == "upgd" and self.optimizer != "sgd":
            raise ValueError("method upgd is an optimizer: leave optimizer out")
        if min(self.hidden, default=1) < 1:
            raise ValueError(f"hidden has a layer of {min(self.hidden)} units: give 1 or more")
        if self.probe > self.period:
            raise ValueError(f"a probe of {self.probe} is no part of a task of {self.period} examples: lower probe")
        return self


class Batch(NamedTuple):
    """Examples of a task."""

    pixels: NDArray[np.float32]  # (n, inputs)
    labels: NDArray[np.int64]  # (n,)
    marked: NDArray[np.bool_] | None = None  # (n,) those that `marked_accuracy` counts, and `accuracy` does not


def shuffled(seed: int, images: int, begin: int, end: int) -> NDArray[np.int64]:
    """Numbers `begin` to `end` of an endless stream of all images, in a new order each time."""
    pieces: list[NDArray[np.int64]] = []
    while begin < end:
        epoch, first = divmod(begin, images)
        pieces.append(generator(seed, "images", epoch).permutation(images)[first : first + end - begin])
        begin += len(pieces[-1])
    return np.concatenate(pieces)


def unit(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """From 0 to 1, (n, pixels)."""
    return np.multiply(pixels, np.float32(1 / 255), dtype=np.float32)


ConfigT = TypeVar("ConfigT", bound=StreamConfig)

COLUMNS = {
    "task": "number of the task, from 1",
    "accuracy": "share of the task's examples whose label was predicted before the update (NaN: the run diverged)",
    "examples": "seen at the end of the task",
    "loss": "cross-entropy before each update, mean of the task (NaN: the run diverged)",
    "weight_magnitude": "mean |weight| of all weight matrices at the end of the task, biases not counted",
    "dead": "share of hidden units that are 0 for all probe examples, before learning from them; mean of the layers",
    "replaced": "hidden units replaced so far",
}
WORK, FEWEST = 4e10, 500  # weights updated in an advance, about 5 seconds of SGD; and its examples at least
DENSE = {"adamw": 10, "upgd": 30}  # times the work of SGD, which skips what is zero


class Learner(Generic[ConfigT]):
    """One run: a network, and where it is in its stream. A task may take several advances."""

    def __init__(self, experiment: ImageStream[ConfigT], config: ConfigT, data: ImageSet) -> None:
        self.experiment, self.config, self.data = experiment, config, data
        self.examples, self.loss = 0, 0.0
        self.hits = np.zeros(2, np.int64)  # of this task: unmarked, marked
        self.counts = np.zeros(2, np.int64)
        self.dead = np.nan  # when the task began
        self.statistics = Standardizer(experiment.inputs(config, data), decay=0.99)
        if config.pixels == "standard":
            self.level, self.spread = (
                np.float32(each / 255) for each in (data.train.pixels.mean(), data.train.pixels.std())
            )
        self.network = self._network(0)

    @property
    def steps_done(self) -> int:
        return self.examples

    @property
    def steps_total(self) -> int:
        return self.config.tasks * self.config.period

    @property
    def diverged_at(self) -> int:
        """Number of the example whose loss was not finite, or -1."""
        found = int(self.network.diverged_at[0])
        begun = (self.examples - 1) // self.config.period * self.config.period if self.config.method == "fresh" else 0
        return found + begun if found >= 0 else -1

    def statuses(self) -> list[RunStatus]:
        if self.diverged_at >= 0:
            return [diverged(self.diverged_at)]
        return [DONE if self.examples >= self.steps_total else RUNNING]

    def state_dict(self) -> dict[str, Any]:
        return {
            "data_sha256": self.data.sha256,
            "examples": self.examples,
            "hits": self.hits.copy(),
            "counts": self.counts.copy(),
            "loss": self.loss,
            "dead": self.dead,
            "statistics": self.statistics.state_dict(),
            "network": self.network.state_dict(),
        }

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises `ValueError` where the images are not those of the run so far."""
        check_same(self.config.dataset, state["data_sha256"], self.data.sha256)
        self.examples = count_in(state, "examples")
        for name in ("hits", "counts", "loss", "dead"):
            setattr(self, name, entry(state, name, getattr(self, name)))
        self.network = self._network(max(self.examples - 1, 0) // self.config.period)
        load_part(self.statistics, state, "statistics")
        load_part(self.network, state, "network")

    def learn(self) -> bool:
        """Learn from the next examples of the task, or from all that are left. True where the task ended, or the run."""
        task, begin = divmod(self.examples, self.config.period)
        end = min(begin + segment(self.config, self.network.sizes), self.config.period)
        if begin == 0:
            self._begin(task)
        batch = self.experiment.batch(self.config, self.data, task, begin, end)
        progress = self.network.partial_fit(self._seen(batch.pixels, keep=True)[None], batch.labels[None])
        assert progress.correct is not None
        marked = np.zeros(end - begin, np.int64) if batch.marked is None else batch.marked.astype(np.int64)
        self.hits += np.bincount(marked, progress.correct[0], 2).astype(np.int64)
        self.counts += np.bincount(marked, minlength=2)
        self.loss += float(progress.loss.sum(dtype=np.float64))
        self.examples += end - begin
        return end == self.config.period or self.diverged_at >= 0

    def row(self) -> dict[str, NDArray[Any]]:
        """What is known at the end of a task."""
        lost = self.diverged_at >= 0
        shares = np.full(2, np.nan) if lost else self.hits / np.maximum(self.counts, 1)
        values = {
            "run": 0,
            "task": -(-self.examples // self.config.period),
            "examples": self.examples,
            "accuracy": shares[0],
            "loss": np.nan if lost else self.loss / self.config.period,
            "weight_magnitude": float(
                np.average(self.network.weight_magnitude()[0], weights=[m * n for m, n in pairwise(self.network.sizes)])
            ),
            "dead": self.dead,
            "replaced": self.network.replacements.sum(),
            **({"marked_accuracy": shares[1]} if "marked_accuracy" in self.experiment.columns else {}),
        }
        return {name: np.array([value]) for name, value in values.items()}

    def _begin(self, task: int) -> None:
        """Start the sums of a task, and measure the hidden units on it before learning from it."""
        self.hits[:], self.counts[:], self.loss = 0, 0, 0.0
        if task and self.config.method == "fresh":
            self.network = self._network(task)
        probe = self.experiment.batch(self.config, self.data, task, 0, self.config.probe)
        layers = self.network.activations(self._seen(probe.pixels, keep=False)[None])[:-1]
        shares = [float(dead(torch.from_numpy(h[0])).double().mean()) for h in layers]
        self.dead = float(np.mean(shares)) if shares else np.nan

    def _seen(self, pixels: NDArray[np.float32], *, keep: bool) -> NDArray[np.float32]:
        """The pixels as the network sees them; with `keep`, the running statistics learn from them."""
        if self.config.pixels == "unit":
            return pixels
        if self.config.pixels == "standard":
            return (pixels - self.level) / self.spread
        return self.statistics(pixels.astype(np.float64), np.empty_like(pixels), keep=keep)

    def _network(self, task: int) -> Any:
        """The network that the run starts with; for method fresh, that of a task."""
        config, row = self.config, method_of(self.config, get_args(Method))
        anew = task and config.method == "fresh"
        seed = stream_key(config.seed, "fresh network", task) >> 1 if anew else config.seed
        replacing = config.method in ("cbp", "random")
        learner = OnlineEnsemble(
            inputs=self.experiment.inputs(config, self.data),
            hidden=config.hidden,
            outputs=len(self.data.train.classes),
            learners=1,
            seed=seed,
            loss="cross_entropy",
            optimizer="upgd" if config.method == "upgd" else config.optimizer,
            step_size=config.step_size,
            weight_decay=config.weight_decay,
            l2_init=config.l2_init,
            noise_std=config.noise_std,
            sigma=config.sigma,
            beta_utility=config.beta_utility,
            normalization="layer" if config.method == "layernorm" else "none",
            replacement_rate=config.replacement_rate if replacing else None,
            maturity_threshold=config.maturity_threshold,
            decay_rate=config.decay_rate,
            utility="random" if config.method == "random" else config.utility,
            candidates=config.candidates,
            hand_over_mean=config.hand_over_mean,
            init=config.init,
            kernel="rows",
        )
        return Twin(learner, row, config) if is_own(config) else learner


def segment(config: StreamConfig, sizes: Sequence[int]) -> int:
    """Examples of an advance that has no task's end in it."""
    if is_own(config):
        return examples_per_advance(sizes)
    weights = sum(m * n for m, n in pairwise(sizes))
    return max(FEWEST, int(WORK / (weights * DENSE.get("upgd" if config.method == "upgd" else config.optimizer, 3))))


class ImageStream(ShippedExperiment, Generic[ConfigT]):
    """An experiment on such a stream: every run is a job of its own."""

    columns: ClassVar[Mapping[str, str]] = COLUMNS
    shares: ClassVar[Sequence[str]] = ("accuracy", "dead")
    rivals = tuple(name for name in RIVALS if name not in get_args(Method))
    methods = (*get_args(Method), *rivals)
    devices: ClassVar[Sequence[str]] = ("cpu",)
    panels: ClassVar[Sequence[str]] = ("accuracy", "weight_magnitude", "dead")

    @abstractmethod
    def batch(self, config: ConfigT, data: ImageSet, task: int, begin: int, end: int) -> Batch:
        """Examples `begin` to `end` of a task (from 0), the same whenever they are asked for."""

    def inputs(self, config: ConfigT, data: ImageSet) -> int:
        """Of the network."""
        return int(np.prod(data.train.pixels.shape[1:]))

    def data_sets(self, config: ConfigT) -> tuple[str, ...]:
        return () if config.dataset == GLYPHS else (config.dataset,)

    def stack_key(self, config: ConfigT, device: str) -> Hashable:
        return config

    def note(self, configs: Sequence[ConfigT]) -> list[str]:
        """What learning by PyTorch costs."""
        sizes = {config: (784, *config.hidden, 47) for config in configs}
        return cost_in_words((config, config.tasks * config.period, sizes[config]) for config in configs)

    def start(self, configs: Sequence[ConfigT], context: Context) -> Learner[ConfigT]:
        (config,) = configs
        return Learner(self, config, glyphs() if config.dataset == GLYPHS else load(config.dataset, context.data))

    def advance(self, state: Learner[ConfigT]) -> dict[str, NDArray[Any]]:
        ended = state.learn()
        row = state.row()
        return row if ended else {name: values[:0] for name, values in row.items()}

    def figure(self, rows: pandas.DataFrame) -> Figure:
        """A panel for each measure, over tasks."""
        percent = [name for name in self.panels if name in self.shares]
        table: Any = rows
        table = table.assign(**{name: 100 * table[name] for name in percent})
        curves = self.curves(table)
        part = Part(curves, [("task", y) for y in self.panels], "", BINS, ("hidden",))
        return figure_of([part], self.look, LABELS, bounds=self.bounds(percent))


def nine_each(**common: Any) -> list[Cell]:
    """Nine settings of each method: three step sizes and three values of its own, or nine step sizes if it has none.

    Without UPGD, of which an example costs twenty times as much: it runs at published settings.
    """
    steps, fine = (0.003, 0.01, 0.03), (3e-4, 1e-3, 2e-3, 3e-3, 6e-3, 1e-2, 2e-2, 3e-2, 6e-2)
    cells: list[Cell] = []
    for method, own, values in (
        ("l2", "weight_decay", (1e-5, 1e-4, 1e-3)),
        ("l2init", "l2_init", (1e-4, 1e-3, 1e-2)),
        ("snp", "noise_std", (1e-5, 1e-4, 1e-3)),
        ("cbp", "replacement_rate", (1e-5, 1e-4, 1e-3)),
        ("random", "replacement_rate", (1e-5, 1e-4, 1e-3)),
    ):
        decay = {"weight_decay": 1e-4} if method == "snp" else {}
        for step_size, value in product(steps, values):
            cells.append({**common, "method": method, "step_size": step_size, own: value, **decay})
    for method in ("bp", "fresh", "layernorm", "linear"):
        none = {"hidden": ()} if method == "linear" else {}
        cells += [{**common, **none, "method": method, "step_size": step_size} for step_size in fine]
    return cells


BINS = 40
LABELS = {
    "task": "task",
    "accuracy": "online accuracy (%)",
    "marked_accuracy": "accuracy, rare context (%)",
    "weight_magnitude": "mean |weight|",
    "dead": "dead units (%)",
}
