"""Class-incremental CIFAR-100: does a network that is given new classes learn them as well as one that starts over?

Stream  5 more classes every 200 epochs; each task has the pictures of all classes so far, 450 a class, augmented
Curve   test accuracy at the end of each task, of the state that was best in validation; dormant units, ranks and weight
        magnitude as each task begins
Source  Dohare et al., Nature 632 (2024), figure 2; departures: docs/experiments/class-incremental-cifar-100.md

All methods of a seed see the same classes in the same order, the same batches, and start from the same weights.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas and matplotlib are typed in part)

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from pliant.data import ImageSet, load
from pliant.diagnostics.features import features
from pliant.diagnostics.health import dormant_by_firing
from pliant.diagnostics.ranks import effective_rank, singular_values, srank
from pliant.experiments.parts.pictures import Augmentation, Split, check_enough, split_by_class
from pliant.experiments.parts.residual import initialise
from pliant.experiments.parts.residual_learner import (
    EVALUATED,
    Learner,
    LearnerConfig,
    first_not_finite,
    pieces_an_advance,
)
from pliant.lab import DONE, RUNNING, Context, RunStatus, check_owners, diverged
from pliant.lab.curves import less_reference, with_curves
from pliant.lab.figures import band, looks, panels, with_values
from pliant.methods import reset_head, reset_network
from pliant.streams import generator, stream_key

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

DROPS, FACTOR = (0.3, 0.6, 0.8), 0.2  # of the step size: after these shares of a task's epochs, to a fifth
PROBED = 1000  # pictures that a task is judged by before it is learned

Method = Literal["bp", "cbp", "head", "full", "snp"]


class Config(LearnerConfig, frozen=True):
    """One network, learning class after class."""

    method: Method = "bp"
    dataset: str = Field("cifar-100", description="a name that `pliant data list` shows")
    increment: int = Field(5, gt=0, description="classes a task adds")
    tasks: int = Field(
        20, gt=0, description="tasks; increment x tasks classes, the first of the data set, in an order drawn"
    )
    epochs: int = Field(200, gt=0, description="epochs a task")
    train_images: int = Field(450, gt=0, description="pictures a class to learn from, after those of validation")
    validation_images: int = Field(50, gt=0, description="pictures a class that select the state, the first of the set")
    test_images: int = Field(100, gt=0, description="pictures a class; the last ones where a set has no test part")
    noise_std: float = Field(0.0, ge=0, description="of the noise on every parameter after each step; method snp")
    reset: Literal["everything", "parameters"] = Field(
        "everything", description="statistics and momentum too; or neither, as released; methods head and full"
    )
    augment_test: bool = Field(False, description="as released: test pictures are augmented too")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_owners(self, {"replacement_rate": ("cbp",), "noise_std": ("snp",)})
        return self

    @property
    def classes(self) -> int:
        return self.increment * self.tasks


COLUMNS = {
    "task": "tasks learned, this one included",
    "test_accuracy": "share of test pictures of all classes so far, told right by the state best in validation",
    "classes": "classes so far",
    "best_test_accuracy": "largest over the epochs of the task: what the article reports",
    "validation_accuracy": "of the state best in validation",
    "best_epoch": "epochs of the task until that state",
    "dormant": "share of 17 layers' units active (above 0) in < 1% of positions; new training pictures, before learning them",
    "effective_rank": "of the pooled features of the last layer, same pictures: exp of the entropy of singular values",
    "singular_value_rank": "same: singular values that make up 99% of their sum (the article's 'stable rank')",
    "weight_magnitude": "mean |p| over all parameters as the task begins",
    "replaced": "hidden units replaced so far",
}


INTEGERS = ("task", "classes", "best_epoch", "replaced")


class Growth:
    """A run in mid-learning.

    An epoch is a number of pieces: training steps, then pieces of evaluation. `task`, `epoch` and `piece` say where the run
    stands; batches and augmentation are looked up from them.
    """

    def __init__(self, config: Config, context: Context) -> None:
        images = load(config.dataset, context.data)
        self.config, self.sha256 = config, images.sha256
        order = generator(config.seed, "class order").permutation(config.classes)
        counts = (config.validation_images, config.train_images, config.test_images)
        self.data: Split = split_by_class(images, order, *counts, device=context.device)
        self.learner = Learner(config, config.classes, self.data.train.channels, context.device)
        if config.method == "snp":
            self.learner.shrink_and_perturb(config.noise_std, shrink=1.0, every_step=True)
        self.pieces_an_advance = pieces_an_advance(config.width, context.device)
        self.task = self.epoch = self.piece = self.updates = 0
        self.diverged_at: int | None = None
        self.hits = torch.zeros(3, dtype=torch.int64, device=context.device)  # this epoch's: validation, test, broken
        self.best: dict[str, Any] = {}  # state of the network, and what was measured with it
        self.found: dict[str, float] = {}  # what the task found as it began
        self._order: NDArray[np.int64] | None = None
        self._augmentation: Augmentation | None = None

    # -- where it stands --------------------------------------------------------------------------------------------

    @property
    def seen(self) -> int:
        """Classes so far."""
        return self.config.increment * (self.task + 1)

    def _sizes(self, task: int) -> tuple[int, int, int]:
        """Pieces of an epoch: training, validation, test."""
        c, classes = self.config, self.config.increment * (task + 1)
        counts = ((c.train_images, c.batch), (c.validation_images, EVALUATED), (c.test_images, EVALUATED))
        train, validation, test = (-(-classes * each // size) for each, size in counts)
        return train, validation, test

    @property
    def steps_total(self) -> int:
        """In pieces."""
        return self.config.epochs * sum(sum(self._sizes(task)) for task in range(self.config.tasks))

    @property
    def steps_done(self) -> int:
        before = self.config.epochs * sum(sum(self._sizes(task)) for task in range(self.task))
        return before + (self.epoch * sum(self._sizes(self.task)) + self.piece if self.task < self.config.tasks else 0)

    def statuses(self) -> list[RunStatus]:
        if self.diverged_at is not None:
            return [diverged(self.diverged_at)]
        return [DONE if self.task >= self.config.tasks else RUNNING]

    # -- learning ---------------------------------------------------------------------------------------------------

    def learn_a_while(self) -> list[dict[str, float]]:
        """Some pieces of an epoch, or of two; a row for each task that ended, none for one in which the run diverged."""
        rows: list[dict[str, float]] = []
        losses: list[Tensor] = []  # since they were last looked at
        for _ in range(self.pieces_an_advance):
            train, validation, test = self._sizes(self.task)
            if self.epoch == self.piece == 0:
                self.begin_task()
            if self.piece < train:
                losses.append(self.learn_a_batch())
            else:
                self.evaluate(self.piece - train, validation)
            self.piece += 1
            if self.piece == train:
                self.look_at(losses)
            if self.piece == train + validation + test:
                self.end_epoch()
            if self.epoch == self.config.epochs:
                rows.append(self.end_task())
            if self.task == self.config.tasks or self.diverged_at is not None:
                break
        self.look_at(losses)
        return rows

    def look_at(self, losses: list[Tensor]) -> None:
        """Did the run diverge in the updates that these losses are of, the latest ones? They are forgotten."""
        broken = first_not_finite(losses)
        if broken is not None:
            self.diverged_at = self.updates - len(losses) + broken
        losses.clear()

    def begin_task(self) -> None:
        """Measure what the new classes find, before any of them is learned."""
        first = self.seen - self.config.increment
        new = np.arange(first * self.config.train_images, self.seen * self.config.train_images)
        drawn = generator(self.config.seed, "probe", self.task).permutation(new)[:PROBED]
        self.found = probe(self.learner, self.data.train.batch(np.sort(drawn))[0])
        if self.task:
            self._start_over()

    def _start_over(self) -> None:
        """Of methods head and full."""
        config, network, optimizer = self.config, self.learner.network, self.learner.optimizer
        seed = stream_key(config.seed, "network", self.task) >> 1
        whole = config.reset == "everything"
        state: Literal["fresh", "keep"] = "fresh" if whole else "keep"
        if config.method == "head":
            reset_head(network.head, optimizer, seed=seed, init=initialise, optimizer_state=state)
        if config.method == "full":
            reset_network(network, optimizer, seed=seed, init=initialise, statistics=whole, optimizer_state=state)

    def learn_a_batch(self) -> Tensor:
        """One training step; its loss."""
        config = self.config
        order, augmentation = self._looked_up()
        chosen = order[self.piece * config.batch :][: config.batch]
        self.learner.set_step_size(scheduled(config.step_size, self.epoch, config.epochs))
        self.updates += 1
        return self.learner.learn(*self.data.train.batch(chosen, augmentation[chosen]), self.seen)[0]

    def _looked_up(self) -> tuple[NDArray[np.int64], Augmentation]:
        """The order of the epoch's pictures, and what befalls each."""
        if self._order is None or self._augmentation is None:
            name = (self.config.seed, self.task, self.epoch)
            count = self.seen * self.config.train_images
            self._order = generator(name[0], "order", *name[1:]).permutation(count)
            self._augmentation = Augmentation.draw(count, *name)
        return self._order, self._augmentation

    def evaluate(self, piece: int, validation_pieces: int) -> None:
        """Count hits among the next EVALUATED pictures of validation, and after those, of test."""
        testing = piece >= validation_pieces
        pictures = self.data.test if testing else self.data.validation
        each = self.config.test_images if testing else self.config.validation_images
        first = EVALUATED * (piece - validation_pieces * testing)
        chosen = np.arange(first, min(first + EVALUATED, self.seen * each))
        augmentation = None
        if testing and self.config.augment_test:
            whole = Augmentation.draw(self.seen * each, self.config.seed, "test", self.task, self.epoch)
            augmentation = whole[chosen]
        right, broken = self.learner.right(*pictures.batch(chosen, augmentation), self.seen)
        self.hits[int(testing)] += right
        self.hits[2] += broken

    def end_epoch(self) -> None:
        """Keep the state if it is the task's best in validation. The run ends where the last update broke the network."""
        right, right_in_test, broken = cast(list[int], self.hits.tolist())
        if broken:
            self.diverged_at = self.updates  # the next one, whose loss would not be finite
            return
        validation = right / (self.seen * self.config.validation_images)
        test = right_in_test / (self.seen * self.config.test_images)
        largest = max(test, self.best.get("best_test_accuracy", 0.0))
        self.hits.zero_()
        self.epoch, self.piece, self._order, self._augmentation = self.epoch + 1, 0, None, None
        if not self.best or validation > self.best["validation_accuracy"]:
            network = {name: value.clone() for name, value in self.learner.network.state_dict().items()}
            self.best = {
                "network": network,
                "validation_accuracy": validation,
                "test_accuracy": test,
                "best_epoch": self.epoch,
            }
        self.best["best_test_accuracy"] = largest

    def end_task(self) -> dict[str, float]:
        """Go back to the best state (parameters and statistics; momentum and utilities go on), and on to the next task."""
        self.learner.network.load_state_dict(self.best.pop("network"))
        row = {"task": self.task + 1, "classes": self.seen, **self.best, **self.found}
        self.task, self.epoch, self.best, self.found = self.task + 1, 0, {}, {}
        return {**row, "replaced": self.learner.replaced()}

    # -- storing ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "data": self.sha256,
            "at": [self.task, self.epoch, self.piece, self.updates],
            "diverged_at": self.diverged_at,
            "hits": self.hits.clone(),
            "best": dict(self.best),
            "found": dict(self.found),
            "learner": self.learner.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["data"] != self.sha256:
            raise ValueError(
                f"this run began with other pictures of '{self.config.dataset}' (sha256 {state['data'][:12]}, now "
                f"{self.sha256[:12]}): give it those again, or begin a new study"
            )
        self.task, self.epoch, self.piece, self.updates = state["at"]
        self.diverged_at, self.found = state["diverged_at"], dict(state["found"])
        self.hits.copy_(state["hits"])
        self.best = dict(state["best"])
        self.learner.load_state_dict(state["learner"])
        self._order = self._augmentation = None


def scheduled(step_size: float, epoch: int, epochs: int) -> float:
    """A fifth of the step size after each of the DROPS.

    >>> [round(scheduled(0.1, epoch, 200), 6) for epoch in (0, 59, 60, 119, 120, 159, 160, 199)]
    [0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008]
    """
    return step_size * FACTOR ** sum(epoch >= round(share * epochs, 6) for share in DROPS)


@torch.no_grad()
def probe(learner: Learner, x: Tensor) -> dict[str, float]:
    """What pictures find in the network, in evaluation mode."""
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


class ClassIncremental:
    """The experiment, as the laboratory runs it."""

    Config = Config
    columns: ClassVar[Mapping[str, str]] = COLUMNS
    profiles: ClassVar[Mapping[str, str]] = {
        "quick": "4 increments of 2 classes of Tiny ImageNet, width 4, 4 epochs each: does it run; about a minute",
        "medium": "10 increments of 10 classes of Tiny ImageNet, width 8, 2 seeds; about an hour a run on one core",
        "tuning": "9 settings of each method on seed 1000, 4 short increments of 10 classes; about an hour on one core",
        "paper": "CIFAR-100 in 20 increments of 5 classes, width 64, 200 epochs each, all methods, 30 seeds; a GPU",
    }

    def runs(self, profile: str) -> list[Config]:
        cells, seeds = _PROFILES[profile]
        return [Config(seed=seed, **cell) for seed in seeds for cell in cells()]

    def data_sets(self, config: Config) -> list[str]:
        return [config.dataset]

    def check_data(self, config: Config, found: Mapping[str, ImageSet]) -> None:
        counts = (config.validation_images, config.train_images, config.test_images)
        check_enough(found[config.dataset], config.classes, *counts)

    def stack_key(self, config: Config, device: str) -> Hashable:
        return config  # every run is a job of its own

    def start(self, configs: Sequence[Config], context: Context) -> Growth:
        return Growth(configs[0], context)

    def advance(self, state: Growth) -> dict[str, NDArray[Any]]:
        rows = state.learn_a_while()
        kinds = {name: np.int64 if name in INTEGERS else np.float64 for name in COLUMNS}
        columns = {name: np.array([row[name] for row in rows], dtype=kind) for name, kind in kinds.items()}
        return {"run": np.zeros(len(rows), dtype=np.int64), **columns}

    def figure(self, rows: pandas.DataFrame) -> Figure:
        """Accuracy by classes seen; its difference to the network that starts over, or to backprop; dormancy; rank."""
        table: Any = rows
        table = with_curves(table, COLUMNS, NAMES, WORDS)
        present = set(table["method"])
        reference = next((method for method in ("full", "bp") if method in present), str(table["method"].iloc[0]))
        others = table[table["method"] == reference]
        table = table.assign(difference=less_reference(table, others, "test_accuracy", ["classes"], COLUMNS))
        look = looks(table, COLOURS)
        labels = {**LABELS, "difference": f"accuracy less that of {NAMES[reference]}"}
        figure, [axes] = panels(1, 4)
        for panel, column in zip(axes, ("test_accuracy", "difference", "dormant", "singular_value_rank"), strict=True):
            shown = with_values(table, column)
            band(panel, shown, x="classes", y=column, by="curve", look=look, labels=labels)
        axes[0].set_title(", ".join(table["dataset"].unique()), loc="left")
        return figure


NAMES = {
    "bp": "backprop",
    "full": "new network",
    "head": "head reset",
    "snp": "shrink+perturb",
    "cbp": "continual backprop",
}
WORDS = {"step_size": "", "weight_decay": "decay", "noise_std": "noise", "replacement_rate": "rate"}
COLOURS = {"bp": "#D55E00", "full": "#555555", "head": "#009E73", "snp": "#E69F00", "cbp": "#0072B2"}
LABELS = {
    "classes": "classes",
    "test_accuracy": "test accuracy",
    "dormant": "share of dormant units",
    "singular_value_rank": "99% rank of last features",
}
RELEASED = {"cbp": {"replacement_rate": 1e-5}, "snp": {"noise_std": 1e-5}}  # what each method adds to backprop
TINY = {"dataset": "tiny-imagenet", "test_images": 50}


def _quick() -> list[dict[str, Any]]:
    common = {**TINY, "width": 4, "increment": 2, "tasks": 4, "epochs": 4, "train_images": 150, "validation_images": 50}
    own = {**RELEASED, "cbp": {"replacement_rate": 1e-3, "maturity_threshold": 20}}
    return [{**common, "method": method, **own.get(method, {})} for method in NAMES]


def _medium() -> list[dict[str, Any]]:
    common = {**TINY, "width": 8, "increment": 10, "tasks": 10, "epochs": 15}
    own = {"cbp": {"replacement_rate": 1e-4, "maturity_threshold": 100}, "snp": {"noise_std": 1e-4}}
    return [{**common, "method": method, **own.get(method, {})} for method in NAMES]


def _tuning() -> list[dict[str, Any]]:
    """Nine settings of each method: three step sizes by three values of its own, or nine step sizes where it has none.

    Judged by validation. Of the pictures that `medium` is tested on, a few are measured and none is selected by.
    """
    common = {**TINY, "width": 8, "increment": 10, "tasks": 4, "epochs": 5, "train_images": 150, "test_images": 10}
    nine = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5)
    alone: list[dict[str, Any]] = [
        {"method": method, "step_size": size} for method in ("bp", "full", "head") for size in nine
    ]
    own: list[dict[str, Any]] = [
        *({"method": "snp", "noise_std": noise} for noise in (1e-5, 1e-4, 1e-3)),
        *({"method": "cbp", "replacement_rate": rate, "maturity_threshold": 100} for rate in (1e-5, 1e-4, 1e-3)),
    ]
    both = [{**each, "step_size": size} for size in (0.03, 0.1, 0.3) for each in own]
    return [{**common, **cell} for cell in (*alone, *both)]


def _paper() -> list[dict[str, Any]]:
    return [{"method": method, **RELEASED.get(method, {})} for method in NAMES]


_PROFILES: dict[str, tuple[Callable[[], list[dict[str, Any]]], Sequence[int]]] = {
    "quick": (_quick, range(2)),
    "medium": (_medium, range(2)),
    "tuning": (_tuning, (1000,)),
    "paper": (_paper, range(30)),
}
