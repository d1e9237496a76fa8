"""Warm starting: does a network that has learned half of the data end as well as one that meets all of it fresh?

Stream  half of the training pictures until they are learned, then all of them; or all of them from the start
Curve   test accuracy by epoch; at the end, the gap to backpropagation from scratch, seed by seed
Source  Ash and Adams, NeurIPS 2020 (arXiv 1910.08475), figure 1; departures: docs/experiments/warm-starting.md

Both starts of a seed have the same initial weights, and the same batches of the whole set in the same order.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas and matplotlib are typed in part)

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from pliant.data import ImageSet, load
from pliant.experiments.parts.pictures import check_enough, split_by_class
from pliant.experiments.parts.residual_learner import (
    EVALUATED,
    Learner,
    LearnerConfig,
    first_not_finite,
    pieces_an_advance,
)
from pliant.lab import DONE, RUNNING, Context, RunStatus, diverged
from pliant.lab.curves import less_reference, with_curves
from pliant.lab.figures import Style, band, looks, panels
from pliant.lab.statistics import estimate
from pliant.methods import reset_optimizer
from pliant.streams import generator

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HALF, ALL = 1, 2  # the stages

Method = Literal["bp", "cbp", "snp"]


class Config(LearnerConfig, frozen=True):
    """One network, started warm or from scratch."""

    method: Method = "bp"
    start: Literal["warm", "scratch"] = Field(
        "warm", description="with half of the pictures first, or with all at once"
    )
    dataset: str = Field("cifar-10", description="a name that `pliant data list` shows")
    classes: int = Field(10, gt=1, description="the first so many of the data set")
    train_images: int = Field(5000, gt=1, description="pictures a class to learn from")
    test_images: int = Field(1000, gt=0, description="pictures a class; the last ones where a set has no test part")
    validation_images: int = Field(
        0,
        ge=0,
        description="pictures a class, the first of the set, before those to learn from; where there are any, accuracy is "
        "of these, and no one sees those of the test: to choose settings by",
    )
    epochs: int = Field(350, gt=0, description="epochs a stage, at most")
    until: float = Field(0.99, gt=0, description="training accuracy over an epoch that ends a stage; above 1: never")
    batch: int = Field(128, gt=0, description="pictures in a mini-batch")
    step_size: float = Field(0.001, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0, description="coupled, on every parameter")
    shrink: float = Field(1.0, ge=0, le=1, description="factor of all parameters as the other half arrives; method snp")
    noise_std: float = Field(0.0, ge=0, description="of the noise added to them then; method snp")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        used = {"cbp": self.replacement_rate > 0, "snp": self.shrink < 1 or self.noise_std > 0}
        names = {"cbp": "replacement_rate", "snp": "shrink and noise_std"}
        for method, name in names.items():
            if used[method] and self.method != method:
                raise ValueError(f"{name}: for method {method}, not {self.method}: add --methods {method}")
            if not used[method] and self.method == method:
                raise ValueError(f"method {method} needs {name}: add --set {name.split()[0]}=...")
        if self.method == "snp" and self.start == "scratch":
            raise ValueError("method snp acts as the other half arrives, so its start is 'warm'")
        return self


COLUMNS = {
    "step": "steps so far, of both stages",
    "test_accuracy": "after the epoch; of the pictures of validation where the config has any (profile tuning)",
    "stage": "1: half of the pictures; 2: all",
    "epoch": "epochs of the stage so far",
    "train_accuracy": "over the epoch, before each step",
    "weight_magnitude": "mean |p| over all parameters after the epoch",
    "replaced": "hidden units replaced so far",
    "last": "1 in the last row of a stage, else 0",
}
INTEGERS = ("stage", "epoch", "step", "replaced", "last")


class Training:
    """A run in mid-learning.

    An epoch is a number of pieces: training steps, then pieces of evaluation. `stage`, `epoch` and `piece` say where the run
    stands; batches are looked up from them.
    """

    def __init__(self, config: Config, context: Context) -> None:
        images = load(config.dataset, context.data)
        self.config, self.sha256 = config, images.sha256
        counts = (config.validation_images, config.train_images, config.test_images)
        self.data = split_by_class(images, np.arange(config.classes), *counts, device=context.device)
        self.judged = self.data.validation if config.validation_images else self.data.test
        self.learner = Learner(config, config.classes, self.data.train.channels, context.device)
        if config.method == "snp":
            self.learner.shrink_and_perturb(config.noise_std, config.shrink, every_step=False)
        self.pieces_an_advance = pieces_an_advance(config.width, context.device)
        self.stage = HALF if config.start == "warm" else ALL
        self.epoch = self.piece = self.updates = 0
        self.done = False
        self.diverged_at: int | None = None
        self.hits = torch.zeros(3, dtype=torch.int64, device=context.device)  # this epoch's: training, test, broken
        self._order: NDArray[np.int64] | None = None

    # -- where it stands --------------------------------------------------------------------------------------------

    def _sizes(self, stage: int) -> tuple[int, int]:
        """Pieces of an epoch: training, test."""
        trained = len(self.data.train) // 2 if stage == HALF else len(self.data.train)
        return -(-trained // self.config.batch), -(-len(self.judged) // EVALUATED)

    @property
    def _stages(self) -> tuple[int, ...]:
        return (HALF, ALL) if self.config.start == "warm" else (ALL,)

    @property
    def steps_total(self) -> int:
        """In pieces, if no stage ends early."""
        return self.config.epochs * sum(sum(self._sizes(stage)) for stage in self._stages)

    @property
    def steps_done(self) -> int:
        if self.done:
            return self.steps_total
        before = sum(self.config.epochs * sum(self._sizes(stage)) for stage in self._stages if stage < self.stage)
        return before + self.epoch * sum(self._sizes(self.stage)) + self.piece

    def statuses(self) -> list[RunStatus]:
        if self.diverged_at is not None:
            return [diverged(self.diverged_at)]
        return [DONE if self.done else RUNNING]

    # -- learning ---------------------------------------------------------------------------------------------------

    def learn_a_while(self) -> list[dict[str, float]]:
        """Some pieces of an epoch, or of two; a row for each epoch that ended, none for one in which the run diverged."""
        rows: list[dict[str, float]] = []
        losses: list[Tensor] = []  # since they were last looked at
        for _ in range(self.pieces_an_advance):
            train, test = self._sizes(self.stage)
            if self.piece < train:
                losses.append(self.learn_a_batch())
            else:
                self.evaluate(self.piece - train)
            self.piece += 1
            if self.piece == train:
                self.look_at(losses)
            if self.piece == train + test:
                rows.extend(self.end_epoch())
            if self.done or self.diverged_at is not None:
                break
        self.look_at(losses)
        return rows

    def look_at(self, losses: list[Tensor]) -> None:
        """Did the run diverge in the updates that these losses are of, the latest ones? They are forgotten."""
        broken = first_not_finite(losses)
        if broken is not None:
            self.diverged_at = self.updates - len(losses) + broken
        losses.clear()

    def learn_a_batch(self) -> Tensor:
        """One training step; its loss."""
        if self._order is None:
            self._order = self._epochs_order()
        chosen = self._order[self.piece * self.config.batch :][: self.config.batch]
        self.updates += 1
        loss, right = self.learner.learn(*self.data.train.batch(chosen), self.config.classes)
        self.hits[0] += right
        return loss

    def _epochs_order(self) -> NDArray[np.int64]:
        """Of the pictures of the stage."""
        seed, count = self.config.seed, len(self.data.train)
        pictures = generator(seed, "halves").permutation(count)[: count // 2 if self.stage == HALF else count]
        return generator(seed, "order", self.stage, self.epoch).permutation(np.sort(pictures))

    def evaluate(self, piece: int) -> None:
        """Count hits among the next EVALUATED pictures of the test."""
        chosen = np.arange(EVALUATED * piece, min(EVALUATED * (piece + 1), len(self.judged)))
        right, broken = self.learner.right(*self.judged.batch(chosen), self.config.classes)
        self.hits[1] += right
        self.hits[2] += broken

    def end_epoch(self) -> list[dict[str, float]]:
        """A row; and on to the next stage, if this one has been learned. No row where the last update broke the network."""
        trained = len(self.data.train) // 2 if self.stage == HALF else len(self.data.train)
        right, right_in_test, broken = cast(list[int], self.hits.tolist())
        if broken:
            self.diverged_at = self.updates  # the next one, whose loss would not be finite
            return []
        train, test = right / trained, right_in_test / len(self.judged)
        self.hits.zero_()
        self.epoch, self.piece, self._order = self.epoch + 1, 0, None
        last = train >= self.config.until or self.epoch == self.config.epochs
        row = {
            "stage": self.stage,
            "epoch": self.epoch,
            "step": self.updates,
            "train_accuracy": train,
            "test_accuracy": test,
            "weight_magnitude": self.learner.weight_magnitude(),
            "replaced": self.learner.replaced(),
            "last": int(last),
        }
        if last:
            self.end_stage()
        return [row]

    def end_stage(self) -> None:
        """The other half arrives; or this was all."""
        if self.stage == ALL:
            self.done = True
            return
        self.stage, self.epoch = ALL, 0
        reset_optimizer(self.learner.optimizer)
        if self.learner.snp:
            self.learner.snp.perturb()

    # -- storing ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "data": self.sha256,
            "at": [self.stage, self.epoch, self.piece, self.updates],
            "done": self.done,
            "diverged_at": self.diverged_at,
            "hits": self.hits.clone(),
            "learner": self.learner.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["data"] != self.sha256:
            raise ValueError(
                f"this run began with other pictures of '{self.config.dataset}' (sha256 {state['data'][:12]}, now "
                f"{self.sha256[:12]}): give it those again, or begin a new study"
            )
        self.stage, self.epoch, self.piece, self.updates = state["at"]
        self.done, self.diverged_at = state["done"], state["diverged_at"]
        self.hits.copy_(state["hits"])
        self.learner.load_state_dict(state["learner"])
        self._order = None


# -- the experiment -----------------------------------------------------------------------------------------------------


class WarmStarting:
    """The experiment, as the laboratory runs it."""

    Config = Config
    columns: ClassVar[Mapping[str, str]] = COLUMNS
    profiles: ClassVar[Mapping[str, str]] = {
        "quick": "5 classes of Tiny ImageNet, width 4, 6 epochs a stage: does it run; about a minute",
        "small": "10 classes of Tiny ImageNet, width 8, at most 40 epochs a stage, 3 seeds; about 40 minutes on one core",
        "tuning": "what the settings of small are chosen from: 9 of each method on seed 1000; about 50 minutes on one core",
        "paper": "CIFAR-10, width 64, until 99% of the training pictures are told right, 10 seeds; a GPU",
    }

    def runs(self, profile: str) -> list[Config]:
        if profile == "tuning":
            return _tuning()
        common, own, seeds = {"quick": _quick, "small": _small, "paper": _paper}[profile]()
        return [
            Config(seed=seed, **common, **{**cell, **own[cell["method"]]}) for seed in range(seeds) for cell in CELLS
        ]

    def data_sets(self, config: Config) -> list[str]:
        return [config.dataset]

    def check_data(self, config: Config, found: Mapping[str, ImageSet]) -> None:
        counts = (config.validation_images, config.train_images, config.test_images)
        check_enough(found[config.dataset], config.classes, *counts)

    def stack_key(self, config: Config, device: str) -> Hashable:
        return config  # every run is a job of its own

    def start(self, configs: Sequence[Config], context: Context) -> Training:
        return Training(configs[0], context)

    def advance(self, state: Training) -> dict[str, NDArray[Any]]:
        rows = state.learn_a_while()
        kinds = {name: np.int64 if name in INTEGERS else np.float64 for name in COLUMNS}
        columns = {name: np.array([row[name] for row in rows], dtype=kind) for name, kind in kinds.items()}
        return {"run": np.zeros(len(rows), dtype=np.int64), **columns}

    def figure(self, rows: pandas.DataFrame) -> Figure:
        """Accuracy in training and in the test with all of the pictures; the gap to backprop from scratch at the end."""
        table: Any = rows
        table = with_curves(table, COLUMNS, NAMES, WORDS, always=["start"])
        look = looks(table, COLOURS, by=["method", "start"])
        all_of_it = carried_on(table[table["stage"] == ALL])
        figure, [[train, test, gap]] = panels(1, 3)
        for panel, column in ((train, "train_accuracy"), (test, "test_accuracy")):
            band(panel, all_of_it, x="epoch", y=column, by="curve", look=look, labels=LABELS, name_lines=panel is test)
        _gaps(gap, table[(table["stage"] == ALL) & (table["last"] == 1)], look)
        train.set_title(", ".join(table["dataset"].unique()), loc="left")
        return figure


def carried_on(rows: Any) -> Any:
    """The rows, with those of runs that ended early, as learned, repeated up to the last epoch of all.

    A run that diverged or is under way has no last row, and is not carried on.
    """
    import pandas

    longest = range(1, int(rows["epoch"].max()) + 1) if len(rows) else range(0)
    runs: list[Any] = [run for _, run in rows.groupby(["curve", "seed"], sort=False)]
    whole: list[Any] = [
        run.set_index("epoch").reindex(longest).ffill().rename_axis("epoch").reset_index()
        if (run["last"] == 1).any()
        else run
        for run in runs
    ]
    return cast(Any, pandas).concat(whole) if whole else rows


def _gaps(axes: Axes, ends: Any, look: Mapping[str, Style]) -> None:
    """Final test accuracy less that of backprop from scratch, of the seeds that have both, with its interval."""
    scratch = (ends["method"] == "bp") & (ends["start"] == "scratch")
    gaps = ends.assign(gap=less_reference(ends, ends[scratch], "test_accuracy", [], COLUMNS))
    gaps = gaps[~scratch].dropna(subset=["gap"])
    shown = [name for name in look if (gaps["curve"] == name).any()]
    for place, name in enumerate(shown):
        difference = estimate(gaps["gap"][gaps["curve"] == name])
        low, high = difference.interval()
        axes.plot([place, place], [low, high], color=look[name]["color"], linestyle=look[name]["linestyle"])
        axes.plot([place], [difference.mean], "o", color=look[name]["color"])
    axes.axhline(0.0, color="#999999", linewidth=0.8)
    axes.set_xticks(range(len(shown)), [name.replace(", ", "\n") for name in shown])
    axes.set_ylabel("test accuracy less that of backprop, scratch")


NAMES = {"bp": "backprop", "snp": "shrink+perturb", "cbp": "continual backprop"}
WORDS = {"start": "", "step_size": "", "weight_decay": "decay", "noise_std": "noise", "replacement_rate": "rate"}
COLOURS = {
    ("bp", "scratch"): "#555555",
    ("bp", "warm"): "#D55E00",
    ("snp", "warm"): "#E69F00",
    ("cbp", "scratch"): "#56B4E9",
    ("cbp", "warm"): "#0072B2",
}
LABELS = {
    "epoch": "epochs with all of the pictures",
    "train_accuracy": "training accuracy",
    "test_accuracy": "test accuracy",
}
CELLS: list[dict[str, Any]] = [{"method": method, "start": start} for method, start in COLOURS]

Profile = tuple[dict[str, Any], dict[str, dict[str, Any]], int]  # of all methods, of each, seeds
TINY = {"dataset": "tiny-imagenet", "test_images": 50}
PUBLISHED = {"shrink": 0.6, "noise_std": 0.01}


def _quick() -> Profile:
    common = {**TINY, "classes": 5, "train_images": 200, "width": 4, "epochs": 6, "step_size": 0.01, "momentum": 0.9}
    return common, {"bp": {}, "snp": PUBLISHED, "cbp": {"replacement_rate": 1e-3, "maturity_threshold": 20}}, 2


def _small() -> Profile:
    common = {**TINY, "classes": 10, "train_images": 450, "test_images": 100, "width": 8, "epochs": 40}
    common |= {"batch": 64, "step_size": 0.003, "momentum": 0.9}
    return common, {"bp": {}, "snp": PUBLISHED, "cbp": {"replacement_rate": 1e-4, "maturity_threshold": 100}}, 3


def _tuning() -> list[Config]:
    """Nine settings of each method: three step sizes by three values of its own, or nine step sizes where it has none.

    Judged by pictures that `small` learns from. Those that it is tested on are seen by no one.
    """
    common, _, _ = _small()
    common |= {"train_images": 350, "validation_images": 100, "epochs": 15, "seed": 1000}
    own: dict[str, list[dict[str, Any]]] = {
        "snp": [{"shrink": shrink, "noise_std": 0.01} for shrink in (0.3, 0.6, 0.8)],
        "cbp": [{"replacement_rate": rate, "maturity_threshold": 100} for rate in (1e-5, 1e-4, 1e-3)],
    }
    settings: dict[str, list[dict[str, Any]]] = {
        method: [{**each, "step_size": step_size} for step_size in (0.001, 0.003, 0.01) for each in values]
        for method, values in own.items()
    }
    nine = (0.0003, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03)
    settings["bp"] = [{"step_size": step_size} for step_size in nine]
    return [Config(**{**common, **cell, **setting}) for cell in CELLS for setting in settings[cell["method"]]]


def _paper() -> Profile:
    return {}, {"bp": {}, "snp": PUBLISHED, "cbp": {"replacement_rate": 1e-5}}, 10
