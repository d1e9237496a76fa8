"""Warm starting: does a network that has learned half of the data end as well as one that meets all of it fresh?

Stream  half of the training images until they are learned, then all of them; or all of them from the start
Curve   test accuracy by epoch; at the end, the gap to backpropagation from scratch, seed by seed
Source  Ash and Adams, NeurIPS 2020 (arXiv 1910.08475), figure 1; departures: docs/experiments/warm-starting.md

Both starts of a seed have the same initial weights, and the same batches of the whole set in the same order.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas and matplotlib are typed in part)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from pliant.base.saving import all_or_nothing, count_in, entry
from pliant.experiments.base import Cell, Profile
from pliant.experiments.images.residual_run import EVALUATED, ResidualExperiment, ResidualRun, RunConfig
from pliant.experiments.makers import act_at_event
from pliant.experiments.methods import FIELD_WORDS, RIVALS, is_own_field, method_of
from pliant.lab import Context
from pliant.lab.curves import less_reference
from pliant.lab.figures import Part, Style, figure_of
from pliant.lab.statistics import estimate
from pliant.methods import reset_optimizer
from pliant.streams import generator

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HALF, ALL = 1, 2  # the stages

Method = Literal["bp", "cbp", "snp"]


class Config(RunConfig, frozen=True):
    """One network, started warm or from scratch."""

    method: Method = "bp"
    start: Literal["warm", "scratch"] = Field("warm", description="with half of the images first, or with all at once")
    dataset: str = Field("cifar-10", description="a name that `pliant data list` shows")
    classes: int = Field(10, gt=1, description="the first so many of the data set")
    train_images: int = Field(5000, gt=1, description="images a class to learn from")
    test_images: int = Field(1000, gt=0, description="images a class; the last ones where a set has no test part")
    validation_images: int = Field(
        0,
        ge=0,
        description="images a class, the first of the set, before those to learn from; where there are any, accuracy is "
        "of these, and no one sees those of the test: to choose settings by",
    )
    epochs: int = Field(350, gt=0, description="epochs a stage, at most")
    until: float = Field(0.99, gt=0, description="training accuracy over an epoch that ends a stage; above 1: never")
    batch: int = Field(128, gt=0, description="images in a mini-batch")
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
            if used[method] and self.method != method and not is_own_field(self, name):
                raise ValueError(f"{name}: for method {method}, not {self.method}: add --methods {method}")
            if not used[method] and self.method == method:
                raise ValueError(f"method {method} needs {name}: add --set {name.split()[0]}=...")
        if self.method == "snp" and self.start == "scratch":
            raise ValueError("method snp acts as the other half arrives, so its start is 'warm'")
        return self

    @property
    def outputs(self) -> int:
        return self.classes


COLUMNS = {
    "step": "steps so far, of both stages",
    "test_accuracy": "after the epoch; of the images of validation where the config has any (profile tuning)",
    "stage": "1: half of the images; 2: all",
    "epoch": "epochs of the stage so far",
    "train_accuracy": "over the epoch, before each step",
    "weight_magnitude": "mean |p| over all parameters after the epoch",
    "replaced": "hidden units replaced so far",
    "last": "1 in the last row of a stage, else 0",
}


class Training(ResidualRun[NDArray[np.int64]]):
    """A run in mid-learning; `stage`, too, says where it stands. What an epoch goes through is its images, in order."""

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context, np.arange(config.classes), method_of(config, get_args(Method)), event=True)
        self.config = config
        self.judged = self.data.validation if config.validation_images else self.data.test
        self.stage = HALF if config.start == "warm" else ALL
        self.done = False

    # -- where it stands --------------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        return self.done

    def _learned_from(self, stage: int) -> int:
        """ImageBatches."""
        return len(self.data.train) // 2 if stage == HALF else len(self.data.train)

    def sizes(self, stage: int | None = None) -> tuple[int, int]:
        """Pieces of an epoch of a stage, the present one if none is given: training, test."""
        trained = self._learned_from(self.stage if stage is None else stage)
        return ceil(trained / self.config.batch), ceil(len(self.judged) / EVALUATED)

    @property
    def _stages(self) -> tuple[int, ...]:
        return (HALF, ALL) if self.config.start == "warm" else (ALL,)

    @property
    def steps_total(self) -> int:
        """In pieces, if no stage ends early."""
        return self.config.epochs * sum(sum(self.sizes(stage)) for stage in self._stages)

    @property
    def steps_done(self) -> int:
        if self.done:
            return self.steps_total
        before = sum(self.config.epochs * sum(self.sizes(stage)) for stage in self._stages if stage < self.stage)
        return before + self.epoch * sum(self.sizes()) + self.piece

    # -- learning ---------------------------------------------------------------------------------------------------

    def look_up(self) -> NDArray[np.int64]:
        """The images of the stage, in the order of the epoch."""
        seed, count = self.config.seed, len(self.data.train)
        images = generator(seed, "halves").permutation(count)[: self._learned_from(self.stage)]
        return generator(seed, "order", self.stage, self.epoch).permutation(np.sort(images))

    def learn_a_batch(self) -> Tensor:
        chosen = self.plan[self.piece * self.config.batch :][: self.config.batch]
        loss, right = self.learner.learn(*self.data.train.batch(chosen), self.config.classes)
        self.hits[0] += right
        return loss

    def evaluate(self, piece: int) -> None:
        self.count_hits(1, self.judged, EVALUATED * piece, len(self.judged), self.config.classes)

    def end_epoch(self, hits: tuple[int, int]) -> list[dict[str, float]]:
        """A row; and on to the next stage, if this one has been learned."""
        train, test = hits[0] / self._learned_from(self.stage), hits[1] / len(self.judged)
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
        act_at_event(self.learner.method)

    # -- storing ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "stage": self.stage, "done": self.done}

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.stage, self.done = count_in(state, "stage", most=ALL), entry(state, "done", self.done)


# -- the experiment -----------------------------------------------------------------------------------------------------


class WarmStarting(ResidualExperiment[Config, Training]):
    """The experiment, as the laboratory runs it."""

    Config = Config
    columns = COLUMNS
    shares: ClassVar[Sequence[str]] = ("test_accuracy", "train_accuracy")
    rivals = (*RIVALS, "fire", "hare")
    methods = (*get_args(Method), *rivals)
    field_words = {**FIELD_WORDS, "start": ""}  # noqa: RUF012
    integers: ClassVar[Sequence[str]] = ("stage", "epoch", "step", "replaced", "last")

    def start(self, configs: Sequence[Config], context: Context) -> Training:
        (config,) = configs
        return Training(config, context)

    def figure(self, rows: pandas.DataFrame) -> Figure:
        """Accuracy in training and in the test with all of the images; the gap to backprop from scratch at the end."""
        table = self.curves(rows, always=["start"])
        all_of_it = carried_on(table[table["stage"] == ALL])
        measures = [("epoch", "train_accuracy"), ("epoch", "test_accuracy")]
        part = Part(all_of_it, measures, ", ".join(table["dataset"].unique()))
        look = self.look(table)
        figure = figure_of([part], lambda own: look, LABELS, named=["test_accuracy"], more=1, bounds=self.bounds())
        _gaps(figure.axes[-1], table, look)
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


def _gaps(axes: Axes, rows: Any, look: Mapping[str, Style]) -> None:
    """Final test accuracy less that of backprop from scratch, of the seeds that have both, with its interval."""
    ends = rows[(rows["stage"] == ALL) & (rows["last"] == 1)]
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
    axes.set_xticks(range(len(shown)), [_tick(name, rows, gaps) for name in shown])
    axes.set_ylabel("test accuracy less that of backprop, scratch")


def _tick(curve: str, rows: Any, gaps: Any) -> str:
    """A curve's name, a word a line, and of how many of its seeds there is a gap, if not of all."""
    have, all_of_them = (table["seed"][table["curve"] == curve].nunique() for table in (gaps, rows))
    few = [] if have == all_of_them else [f"({have} of {all_of_them} seeds)"]
    return "\n".join([*curve.replace(",", "").split(), *few])


LABELS = {
    "epoch": "epochs with all of the images",
    "train_accuracy": "training accuracy",
    "test_accuracy": "test accuracy",
}
PAIRS = (("bp", "scratch"), ("bp", "warm"), ("snp", "warm"), ("cbp", "scratch"), ("cbp", "warm"))  # method and start
TINY = {"dataset": "tiny-imagenet", "test_images": 50}
PUBLISHED = {"shrink": 0.6, "noise_std": 0.01}
MOMENTUM = {"momentum": 0.9}
SMALL = {**TINY, **MOMENTUM, "classes": 10, "train_images": 450, "width": 8, "epochs": 40, "batch": 64}


def _both_starts(**own: Mapping[str, Any]) -> list[Cell]:
    """Each method's settings for the starts that it has."""
    return [{"method": method, "start": start, **own.get(method, {})} for method, start in PAIRS]


def _quick() -> list[Cell]:
    return _both_starts(snp=PUBLISHED, cbp={"replacement_rate": 1e-3, "maturity_threshold": 20})


def _small() -> list[Cell]:
    """The settings that `tuning` chose, for both starts of a method."""
    return _both_starts(
        bp={"step_size": 0.02},
        snp={"step_size": 0.003, "shrink": 0.3, "noise_std": 0.01},
        cbp={"step_size": 0.01, "replacement_rate": 1e-3, "maturity_threshold": 100},
    )


def _tuning() -> list[Cell]:
    """Nine settings of each method: three step sizes by three values of its own, or nine step sizes where it has none.

    Judged by images that `small` learns from. Those that it is tested on are seen by no one.
    """
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
    return [{"method": method, "start": start, **each} for method, start in PAIRS for each in settings[method]]


def _paper() -> list[Cell]:
    return _both_starts(snp=PUBLISHED, cbp={"replacement_rate": 1e-5})


WarmStarting.plans = {
    "quick": Profile(
        "5 classes of Tiny ImageNet, width 4, 6 epochs a stage: does it run; about a minute",
        _quick,
        range(2),
        {**TINY, **MOMENTUM, "classes": 5, "train_images": 200, "width": 4, "epochs": 6, "step_size": 0.01},
    ),
    "small": Profile(
        "10 classes of Tiny ImageNet, width 8, at most 40 epochs a stage, 3 seeds; about 40 minutes on one core",
        _small,
        range(3),
        SMALL,
    ),
    "tuning": Profile(
        "what the settings of small are chosen from: 9 of each method on seed 1000; about 50 minutes on one core",
        _tuning,
        (1000,),
        {**SMALL, "train_images": 350, "validation_images": 100, "epochs": 15},
    ),
    "paper": Profile(
        "CIFAR-10, width 64, until 99% of the training images are told right, 10 seeds; a GPU", _paper, range(10)
    ),
}
