"""Class-incremental CIFAR-100: does a network that is given new classes learn them as well as one that starts over?

Stream  5 more classes every 200 epochs; each task has the images of all classes so far, 450 a class, augmented
Curve   test accuracy at the end of each task, of the state that was best in validation; dormant units, ranks and weight
        magnitude as each task begins
Source  Dohare et al., Nature 632 (2024), figure 2; departures: docs/experiments/class-incremental-cifar-100.md

All methods of a seed see the same classes in the same order, the same batches, and start from the same weights.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas and matplotlib are typed in part)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from pliant.base.saving import all_or_nothing, count_in, entry
from pliant.diagnostics.features import features
from pliant.diagnostics.health import dormant_by_firing
from pliant.diagnostics.ranks import effective_rank, singular_values, srank
from pliant.engine.feedback import written
from pliant.experiments.base import Cell, Profile
from pliant.experiments.images.batches import Augmentation
from pliant.experiments.images.residual import initialize
from pliant.experiments.images.residual_learner import Learner
from pliant.experiments.images.residual_run import EVALUATED, ResidualExperiment, ResidualRun, RunConfig
from pliant.experiments.makers import act_at_event
from pliant.experiments.methods import RIVALS, check_fields, method_of
from pliant.lab import Context
from pliant.lab.curves import less_reference
from pliant.lab.figures import Part, figure_of
from pliant.methods import reset_head, reset_network
from pliant.streams import generator, stream_key

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

DROPS, FACTOR = (0.3, 0.6, 0.8), 0.2  # of the step size: after these shares of a task's epochs, to a fifth
PROBED = 1000  # images that a task is judged by before it is learned

Method = Literal["bp", "cbp", "head", "full", "snp"]


class Config(RunConfig, frozen=True):
    """One network, learning class after class."""

    method: Method = "bp"
    dataset: str = Field("cifar-100", description="a name that `pliant data list` shows")
    increment: int = Field(5, gt=0, description="classes a task adds")
    tasks: int = Field(
        20, gt=0, description="tasks; increment x tasks classes, the first of the data set, in an order drawn"
    )
    epochs: int = Field(200, gt=0, description="epochs a task")
    train_images: int = Field(450, gt=0, description="images a class to learn from, after those of validation")
    validation_images: int = Field(50, gt=0, description="images a class that select the state, the first of the set")
    test_images: int = Field(100, gt=0, description="images a class; the last ones where a set has no test part")
    noise_std: float = Field(0.0, ge=0, description="of the noise on every parameter after each step; method snp")
    reset: Literal["everything", "parameters"] = Field(
        "everything", description="statistics and momentum too; or neither, as released; methods head and full"
    )
    augment_test: bool = Field(False, description="as released: test images are augmented too")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_fields(self, get_args(Method))
        return self

    @property
    def outputs(self) -> int:
        return self.increment * self.tasks


COLUMNS = {
    "task": "tasks learned, this one included",
    "test_accuracy": "share of test images of all classes so far, told right by the state best in validation",
    "classes": "classes so far",
    "best_test_accuracy": "largest over the epochs of the task: what the article reports",
    "validation_accuracy": "of the state best in validation",
    "best_epoch": "epochs of the task until that state",
    "dormant": "share of 17 layers' units active (above 0) in < 1% of positions; new training images, before learning them",
    "effective_rank": "of the pooled features of the last layer, same images: exp of the entropy of singular values",
    "singular_value_rank": "same: singular values that make up 99% of their sum (the article's 'stable rank')",
    "weight_magnitude": "mean |p| over all parameters as the task begins",
    "replaced": "hidden units replaced so far",
}


class EpochPlan(NamedTuple):
    """What an epoch goes through."""

    order: NDArray[np.int64]  # of its images
    augmentation: Augmentation  # of each image


class Growth(ResidualRun[EpochPlan]):
    """A run in mid-learning; `task`, too, says where it stands."""

    def __init__(self, config: Config, context: Context) -> None:
        order = generator(config.seed, "class order").permutation(config.outputs)
        super().__init__(config, context, order, method_of(config, get_args(Method)))
        self.config = config
        self.task = 0
        self.best: dict[str, Any] = {}  # state of the network, and what was measured with it
        self.found: dict[str, float] = {}  # what the task found as it began

    # -- where it stands --------------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        return self.task >= self.config.tasks

    @property
    def seen(self) -> int:
        """Classes so far."""
        return self.config.increment * (self.task + 1)

    def _pieces(self, task: int) -> tuple[int, int, int]:
        """Of an epoch of a task: training, validation, test."""
        c, classes = self.config, self.config.increment * (task + 1)
        counts = ((c.train_images, c.batch), (c.validation_images, EVALUATED), (c.test_images, EVALUATED))
        train, validation, test = (ceil(classes * each / size) for each, size in counts)
        return train, validation, test

    def sizes(self) -> tuple[int, int]:
        train, validation, test = self._pieces(self.task)
        return train, validation + test

    @property
    def steps_total(self) -> int:
        """In pieces."""
        return self.config.epochs * sum(sum(self._pieces(task)) for task in range(self.config.tasks))

    @property
    def steps_done(self) -> int:
        before = self.config.epochs * sum(sum(self._pieces(task)) for task in range(self.task))
        return before + (0 if self.over else self.epoch * sum(self._pieces(self.task)) + self.piece)

    # -- learning ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Measure what the new classes of a task find, before any of them is learned."""
        first = self.seen - self.config.increment
        new = np.arange(first * self.config.train_images, self.seen * self.config.train_images)
        drawn = generator(self.config.seed, "probe", self.task).permutation(new)[:PROBED]
        self.found = probe(self.learner, self.data.train.batch(np.sort(drawn))[0])
        if self.task:
            self._start_over()
            act_at_event(self.learner.method)

    def _start_over(self) -> None:
        """Of methods head and full."""
        config, network, optimizer = self.config, self.learner.network, self.learner.optimizer
        seed = stream_key(config.seed, "network", self.task) >> 1
        whole = config.reset == "everything"
        state: Literal["fresh", "keep"] = "fresh" if whole else "keep"
        if config.method == "head":
            reset_head(network.head, optimizer, seed=seed, init=initialize, optimizer_state=state)
        if config.method == "full":
            reset_network(network, optimizer, seed=seed, init=initialize, statistics=whole, optimizer_state=state)

    def look_up(self) -> EpochPlan:
        seed, count = self.config.seed, self.seen * self.config.train_images
        order = generator(seed, "order", self.task, self.epoch).permutation(count)
        return EpochPlan(order, Augmentation.draw(count, seed, self.task, self.epoch))

    def learn_a_batch(self) -> Tensor:
        config, (order, augmentation) = self.config, self.plan
        chosen = order[self.piece * config.batch :][: config.batch]
        self.learner.set_step_size(scheduled(config.step_size, self.epoch, config.epochs))
        return self.learner.learn(*self.data.train.batch(chosen, augmentation[chosen]), self.seen)[0]

    def evaluate(self, piece: int) -> None:
        """Validation first, then test."""
        config, (_, validation, _) = self.config, self._pieces(self.task)
        if piece < validation:
            self.count_hits(0, self.data.validation, EVALUATED * piece, self.seen * config.validation_images, self.seen)
            return
        count, augmentation = self.seen * config.test_images, None
        if config.augment_test:
            augmentation = Augmentation.draw(count, config.seed, "test", self.task, self.epoch)
        self.count_hits(1, self.data.test, EVALUATED * (piece - validation), count, self.seen, augmentation)

    def end_epoch(self, hits: tuple[int, int]) -> list[dict[str, float]]:
        """Keep the state if it is the task's best in validation. A row, if the task is over."""
        validation = hits[0] / (self.seen * self.config.validation_images)
        test = hits[1] / (self.seen * self.config.test_images)
        largest = max(test, self.best.get("best_test_accuracy", 0.0))
        if not self.best or validation > self.best["validation_accuracy"]:
            network = {name: value.clone() for name, value in self.learner.network.state_dict().items()}
            self.best = {
                "network": network,
                "validation_accuracy": validation,
                "test_accuracy": test,
                "best_epoch": self.epoch,
            }
        self.best["best_test_accuracy"] = largest
        return [self.end_task()] if self.epoch == self.config.epochs else []

    def end_task(self) -> dict[str, float]:
        """Go back to the best state (parameters and statistics; momentum and utilities go on), and on to the next task."""
        self.learner.network.load_state_dict(self.best.pop("network"))
        written(self.learner.network.parameters())  # on purpose, replaced units too, as in the released code
        row = {"task": self.task + 1, "classes": self.seen, **self.best, **self.found}
        self.task, self.epoch, self.best, self.found = self.task + 1, 0, {}, {}
        return {**row, "replaced": self.learner.replaced()}

    # -- storing ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "task": self.task, "best": dict(self.best), "found": dict(self.found)}

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.task, self.best, self.found = count_in(state, "task"), dict(state["best"]), dict(state["found"])
        for measured in (self.best, self.found):
            for name in measured.keys() - {"network"}:
                entry(measured, name, 0.0)
        if self.best:
            for name, value in self.learner.network.state_dict().items():
                entry(self.best["network"], name, value)


def scheduled(step_size: float, epoch: int, epochs: int) -> float:
    """A fifth of the step size after each of the DROPS.

    >>> [round(scheduled(0.1, epoch, 200), 6) for epoch in (0, 59, 60, 119, 120, 159, 160, 199)]
    [0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008]
    """
    return step_size * FACTOR ** sum(epoch >= round(share * epochs, 6) for share in DROPS)


@torch.no_grad()
def probe(learner: Learner, x: Tensor) -> dict[str, float]:
    """What images find in the network, in evaluation mode."""
    learner.network.eval()
    dormant: list[Tensor] = []
    last = x
    for last in learner.network.hidden(x):
        dormant.append(dormant_by_firing(features(last, axis=1)))
    sigma = singular_values(last)
    return {
        "dormant": float(torch.cat(dormant).double().mean()),
        "effective_rank": float(effective_rank(sigma)),
        "singular_value_rank": float(srank(sigma)),
        "weight_magnitude": learner.weight_magnitude(),
    }


# -- the experiment -----------------------------------------------------------------------------------------------------


class ClassIncremental(ResidualExperiment[Config, Growth]):
    """The experiment, as the laboratory runs it."""

    Config = Config
    columns = COLUMNS
    shares: ClassVar[Sequence[str]] = ("test_accuracy", "best_test_accuracy", "validation_accuracy", "dormant")
    rivals = (*RIVALS, "fire")
    methods = (*get_args(Method), *rivals)
    integers: ClassVar[Sequence[str]] = ("task", "classes", "best_epoch", "replaced")

    def start(self, configs: Sequence[Config], context: Context) -> Growth:
        (config,) = configs
        return Growth(config, context)

    def figure(self, rows: pandas.DataFrame) -> Figure:
        """Accuracy by classes seen; its difference to the network that starts over, or to backprop; dormancy; rank."""
        table = self.curves(rows)
        present = set(table["method"])
        reference = next((method for method in ("full", "bp") if method in present), str(table["method"].iloc[0]))
        others = table[table["method"] == reference]
        table = table.assign(difference=less_reference(table, others, "test_accuracy", ["classes"], COLUMNS))
        labels = {**LABELS, "difference": f"accuracy less that of {self.name_of(reference)}"}
        measures = ("test_accuracy", "difference", "dormant", "singular_value_rank")
        part = Part(table, [("classes", y) for y in measures], ", ".join(table["dataset"].unique()))
        return figure_of([part], self.look, labels, bounds=self.bounds())


LABELS = {
    "classes": "classes",
    "test_accuracy": "test accuracy",
    "dormant": "share of dormant units",
    "singular_value_rank": "99% rank of last features",
}
RELEASED = {"cbp": {"replacement_rate": 1e-5}, "snp": {"noise_std": 1e-5}}  # what each method adds to backprop
METHODS = ("bp", "full", "head", "snp", "cbp")  # in the order in which they run
TINY = {"dataset": "tiny-imagenet", "test_images": 50}


def _quick() -> list[Cell]:
    common = {**TINY, "width": 4, "increment": 2, "tasks": 4, "epochs": 4, "train_images": 150, "validation_images": 50}
    own = {**RELEASED, "cbp": {"replacement_rate": 1e-3, "maturity_threshold": 20}}
    return [{**common, "method": method, **own.get(method, {})} for method in METHODS]


def _medium() -> list[Cell]:
    common = {**TINY, "width": 8, "increment": 10, "tasks": 10, "epochs": 12, "step_size": 0.03}
    own = {"cbp": {"replacement_rate": 1e-4, "maturity_threshold": 100}, "snp": {"noise_std": 1e-4}}
    return [{**common, "method": method, **own.get(method, {})} for method in METHODS]


def _tuning() -> list[Cell]:
    """Nine settings of each method: three step sizes by three values of its own, or nine step sizes where it has none.

    Judged by validation. Of the images that `medium` is tested on, a few are measured and none is selected by.
    """
    common = {**TINY, "width": 8, "increment": 10, "tasks": 4, "epochs": 5, "train_images": 150, "test_images": 10}
    nine = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5)
    alone: list[Cell] = [{"method": method, "step_size": size} for method in ("bp", "full", "head") for size in nine]
    own: list[Cell] = [
        *({"method": "snp", "noise_std": noise} for noise in (1e-5, 1e-4, 1e-3)),
        *({"method": "cbp", "replacement_rate": rate, "maturity_threshold": 100} for rate in (1e-4, 1e-3, 1e-2)),
    ]
    both = [{**each, "step_size": size} for size in (0.03, 0.1, 0.3) for each in own]
    return [{**common, **cell} for cell in (*alone, *both)]


def _paper() -> list[Cell]:
    return [{"method": method, **RELEASED.get(method, {})} for method in METHODS]


ClassIncremental.plans = {
    "quick": Profile(
        "4 increments of 2 classes of Tiny ImageNet, width 4, 4 epochs each: does it run; about a minute",
        _quick,
        range(2),
    ),
    "medium": Profile(
        "10 increments of 10 classes of Tiny ImageNet, width 8, 2 seeds; about 50 minutes a run on one core",
        _medium,
        range(2),
    ),
    "tuning": Profile(
        "9 settings of each method on seed 1000, 4 short increments of 10 classes; about an hour on one core",
        _tuning,
        (1000,),
    ),
    "paper": Profile(
        "CIFAR-100 in 20 increments of 5 classes, width 64, 200 epochs each, all methods, 30 seeds; a GPU",
        _paper,
        range(30),
    ),
}
