"""Continual ImageNet: is the 2,000th pair of classes learned as well as the first?

Stream  a pair of image classes a task, 32x32 pixels, trained on for many epochs; the head starts at zero in each task,
        everything else goes on; every pass over the classes pairs them anew
Curve   test accuracy after the last epoch of each task; mean and 95% interval over seeds; dead units, effective rank of
        the last hidden layer, weight magnitude
Source  Dohare et al., Nature 632 (2024), figure 1; departures: docs/experiments/continual-imagenet.md

All methods of a seed see the same pairs in the same batches and start from the same weights. Several seeds of one
setting can train as a stack; a run gives the same, to rounding, alone and in it.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas and matplotlib are typed in part)

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch.nn import functional as F

from pliant.base.saving import all_or_nothing, count_in, entry, load_part
from pliant.data import ImageSet, load
from pliant.data.images import check_same
from pliant.diagnostics import dead, effective_rank, features, singular_values, weight_magnitude
from pliant.experiments.base import Cell, Profile, ShippedExperiment, is_own
from pliant.experiments.images.captured_step import captured
from pliant.experiments.images.class_pairs import SIDE, Order, Pairs
from pliant.experiments.images.convolutional import ConvNet, normalized
from pliant.experiments.makers import Site
from pliant.experiments.methods import UNIT_RESETS, ReplacementConfig, check_fields, method_of, replaced
from pliant.lab import DONE, RUNNING, Context, RunStatus, diverged, shared_config
from pliant.lab.figures import Part, figure_of

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

Method = Literal["bp", "l2", "snp", "cbp", "fresh"]

WORK = 150e9  # multiply-accumulates in an advance, about 5 s of one slow core


class Config(ReplacementConfig, frozen=True):
    """One network on one sequence of pairs. The defaults are the article's network and lengths."""

    method: Method = "bp"
    dataset: str = Field("imagenet", description="a set of 32x32 color images, see `pliant data list`")
    order: Order = Field("anew", description="whether each pass over the classes pairs them anew")
    train_images: int = Field(600, gt=0, description="images of each class to learn from, its first")
    test_images: int = Field(100, gt=0, description="images of each class to be tested on, its last")
    left_out: int = Field(
        0, ge=0, description="last images of each class that no one sees; `tuning` keeps them for later"
    )
    tasks: int = Field(2000, gt=0, description="pairs of classes, one after the other")
    epochs: int = Field(250, gt=0, description="passes over the images of a task")
    batch_size: int = Field(100, gt=0, description="images; divides those of a task")
    channels: tuple[int, int, int] = Field((32, 64, 128), description="of the convolutions")
    hidden: tuple[int, int] = Field((128, 128), description="units of the linear layers")
    step_size: float = Field(0.01, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    head_momentum: Literal["clear", "keep"] = Field("clear", description="what a new task does to the head's momentum")
    weight_decay: float = Field(0.0, ge=0, description="coupled, of weights and biases; method l2 or snp")
    noise_std: float = Field(0.0, ge=0, description="of the noise on every weight and bias after each step; method snp")

    @property
    def steps_per_epoch(self) -> int:
        return 2 * self.train_images // self.batch_size

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if 2 * self.train_images % self.batch_size:
            raise ValueError(
                f"a task has {2 * self.train_images} images, which batch_size ({self.batch_size}) does not divide"
            )
        if min(*self.channels, *self.hidden) < 1:
            raise ValueError(f"channels {self.channels} and hidden {self.hidden} are at least 1 each")
        check_fields(self, get_args(Method))
        return self


# -- the learners ---------------------------------------------------------------------------------------------------

COLUMNS = {
    "task": "number of the task, from 1",
    "test_accuracy": "share of the task's test images, after its last epoch",
    "train_accuracy": "share of the images of the last epoch, each before the update that it takes part in",
    "dead": "share of hidden units (channels) that are 0 on all test images of the task",
    "effective_rank": "of the last hidden layer on these images (at most their number, and its units)",
    "weight_magnitude": "mean |weight| of all layers, biases not counted",
    "replaced": "hidden units replaced so far",
}


class Learners:
    """The runs of a job: one setting, several seeds, as a stack that goes through its tasks together."""

    def __init__(self, configs: Sequence[Config], data: ImageSet, device: str = "cpu") -> None:
        self.config = shared_config(configs)
        row = method_of(self.config, get_args(Method))
        self.seeds = [config.seed for config in configs]
        self.device = torch.device(device)
        self.sha256 = data.sha256
        self.pairs = pairs(data, self.config)
        self.net = ConvNet(len(configs), self.config.channels, self.config.hidden).to(self.device)
        self.net.redraw(self.seeds, task=0)
        self.optimizer = torch.optim.SGD(
            self.net.parameters(),
            lr=self.config.step_size,
            momentum=self.config.momentum,
            weight_decay=self.config.weight_decay,
        )
        self.momentum = {name: torch.zeros_like(parameter) for name, parameter in self.net.named_parameters()}
        for name, parameter in self.net.named_parameters():  # there from the start, so that it never moves in memory
            self.optimizer.state[parameter]["momentum_buffer"] = self.momentum[name]
        # By hand, so that a replayed graph is no different; a method with a config of its own hangs on the optimizer.
        self.steps_method = not is_own(self.config)
        self.method: Any = row.make(
            Site(
                self.net,
                self.optimizer,
                self.config,
                seed=lambda purpose: self.seeds,
                units=lambda: {"groups": self.net.groups()},
                runs=len(self.seeds),
                hooks=False,
            )
        )
        self.task = self.epoch = 0
        self.diverged_at = np.full(len(configs), -1, np.int64)
        self._allocate()
        self._step: Callable[[], None] | None = None

    def _allocate(self) -> None:
        """What a step reads and writes, at one place for good."""
        runs, batch = len(self.seeds), self.config.batch_size
        images = (runs, 2 * self.config.train_images, SIDE, SIDE, 3)
        self._images = torch.zeros(images, dtype=torch.uint8, device=self.device)
        self.test_images = torch.zeros((runs, 2 * self.config.test_images, SIDE, SIDE, 3), dtype=torch.uint8)
        self._batch = torch.zeros(runs * batch, dtype=torch.int64, device=self.device)
        self._labels = torch.zeros(runs * batch, dtype=torch.int64, device=self.device)
        self._losses = torch.zeros(runs, device=self.device)
        self._hits = torch.zeros(runs, device=self.device)
        self._task_at_hand = -1

    # -- what the laboratory asks ---------------------------------------------------------------------------------

    @property
    def steps_done(self) -> int:
        return (self.task * self.config.epochs + self.epoch) * self.config.steps_per_epoch

    @property
    def steps_total(self) -> int:
        return self.config.tasks * self.config.epochs * self.config.steps_per_epoch

    def statuses(self) -> list[RunStatus]:
        alive = DONE if self.task >= self.config.tasks else RUNNING
        return [alive if step < 0 else diverged(int(step)) for step in self.diverged_at]

    def state_dict(self) -> dict[str, Any]:
        return {
            "data": self.sha256,
            "task": self.task,
            "epoch": self.epoch,
            "diverged_at": self.diverged_at.copy(),
            "parameters": {name: value.detach().clone() for name, value in self.net.named_parameters()},
            "momentum": {name: value.clone() for name, value in self.momentum.items()},
            "method": self.method.state_dict() if self.method else {},
        }

    @all_or_nothing
    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `ValueError` where the data set is not the one that the state was learned on."""
        check_same(self.config.dataset, state["data"], self.sha256)
        self.task, self.epoch = count_in(state, "task"), count_in(state, "epoch")
        self.diverged_at = entry(state, "diverged_at", self.diverged_at)
        for name, parameter in self.net.named_parameters():
            parameter.copy_(entry(state["parameters"], name, parameter))
            self.momentum[name].copy_(entry(state["momentum"], name, parameter))
        load_part(self.method, state if self.method else {"method": state["method"] or None}, "method")

    # -- learning -------------------------------------------------------------------------------------------------

    def epochs_at_once(self) -> int:
        """How many are a few seconds of work: on a GPU the rest of the task, else by arithmetic."""
        left = self.config.epochs - self.epoch
        if self.device.type == "cuda":
            return left
        epoch = 3 * self.net.multiply_accumulates() * 2 * self.config.train_images  # forward, and two products backward
        return min(left, max(1, int(WORK / epoch)))

    def learn(self, epochs: int) -> NDArray[np.float64]:
        """So many epochs of the task; accuracy on the images of the last one, (runs,)."""
        if self._task_at_hand != self.task:
            self._fetch()
        if self.epoch == 0:
            self.begin_task()
        accuracy = [self._learn_an_epoch() for _ in range(epochs)]
        return accuracy[-1]

    def _fetch(self) -> None:
        """Bring the task's images to the device, as bytes."""
        found = [self.pairs.images(seed, self.task) for seed in self.seeds]
        self._images.copy_(torch.from_numpy(np.stack([learn for learn, _ in found])))
        self.test_images.copy_(torch.from_numpy(np.stack([test for _, test in found])))
        self._task_at_hand = self.task

    @torch.no_grad()
    def begin_task(self) -> None:
        """The head starts at zero; for method fresh everything starts over."""
        if self.config.method == "fresh":
            self.net.redraw(self.seeds, self.task)
            for momentum in self.momentum.values():
                momentum.zero_()
        for name, parameter in self.net.head.named_parameters():
            parameter.zero_()
            if self.config.head_momentum == "clear":
                self.momentum[f"head.{name}"].zero_()

    def _learn_an_epoch(self) -> NDArray[np.float64]:
        """Every image once; accuracy before the updates, (runs,)."""
        runs, steps = len(self.seeds), self.config.steps_per_epoch
        places = np.stack([self.pairs.batches(seed, self.task, self.epoch) for seed in self.seeds], axis=1)
        labels = torch.from_numpy(places >= self.config.train_images).long().view(steps, -1).to(self.device)
        first = np.arange(runs)[:, None] * 2 * self.config.train_images  # of each run, in the stack of all images
        batches = torch.from_numpy(places + first).view(steps, -1).to(self.device)
        losses, hits = torch.empty(2, steps, runs, device=self.device)
        step = self._step = self._step or self._prepared_step()
        for number in range(steps):
            self._batch.copy_(batches[number])
            self._labels.copy_(labels[number])
            step()
            if self.method and self.steps_method:
                self.method.step()
            losses[number], hits[number] = self._losses, self._hits
        self._note_divergence(losses.cpu().numpy())
        self.epoch += 1
        return hits.mean(0).cpu().numpy().astype(np.float64)

    def _prepared_step(self) -> Callable[[], None]:
        """The step as it is, or on a GPU as a graph."""
        if self.device.type != "cuda" or not self.steps_method:
            return self._update
        before = self.state_dict()
        return captured(self._update, undo=lambda: self.load_state_dict(before))

    def _update(self) -> None:
        """One step of stochastic gradient descent in every run, on the batch at hand."""
        runs = len(self.seeds)
        self.optimizer.zero_grad()
        images = self._images.flatten(0, 1).index_select(0, self._batch).view(runs, -1, SIDE, SIDE, 3)
        logits = self.net(normalized(images))
        each = F.cross_entropy(logits.flatten(0, 1), self._labels, reduction="none")
        loss = each.view(runs, -1).mean(1)
        loss.sum().backward()
        self.optimizer.step()
        self._losses.copy_(loss.detach())
        self._hits.copy_((logits.argmax(-1) == self._labels.view(runs, -1)).float().mean(1))

    def _note_divergence(self, losses: NDArray[np.float32]) -> None:
        """The first step at which a run's loss is not finite, (steps, runs) -> `diverged_at`."""
        broken = ~np.isfinite(losses)
        first = self.steps_done + broken.argmax(axis=0)
        self.diverged_at = np.where((self.diverged_at < 0) & broken.any(axis=0), first, self.diverged_at)

    @torch.no_grad()
    def look_at_outputs(self) -> None:
        """A run whose last update broke its network diverged in the next, whose loss would not be finite."""
        logits = self.net(normalized(self.test_images.to(self.device)))
        broken = ~logits.isfinite().all(-1).all(-1).cpu().numpy()
        self.diverged_at = np.where((self.diverged_at < 0) & broken, self.steps_done, self.diverged_at)

    def end_task(self) -> None:
        self.task, self.epoch = self.task + 1, 0

    # -- measuring ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def measures(self) -> dict[str, NDArray[Any]]:
        """How the runs do at the end of a task, each (runs,)."""
        hidden = self.net.hidden(normalized(self.test_images.to(self.device)))
        guesses = self.net.head(hidden[-1]).argmax(-1)
        labels = torch.arange(guesses.shape[1], device=self.device) >= self.config.test_images
        units = [dead(features(h, axis=2, leading=1)) for h in hidden]
        found = {
            "test_accuracy": (guesses == labels).double().mean(1),
            "dead": torch.cat(units, dim=1).double().mean(1),
            "effective_rank": effective_rank(singular_values(hidden[-1])),
            "weight_magnitude": weight_magnitude(*(layer.weight for layer in self.net.layers().values()), leading=1),
        }
        return {name: values.cpu().numpy().astype(np.float64) for name, values in found.items()}

    def replaced(self) -> NDArray[np.int64]:
        """Units replaced so far, (runs,)."""
        return np.array(replaced(self.method, len(self.seeds)), np.int64)


def pairs(data: ImageSet, config: Config) -> Pairs:
    """The tasks that a run's settings make of a data set."""
    return Pairs(
        data,
        train_images=config.train_images,
        test_images=config.test_images,
        left_out=config.left_out,
        batch_size=config.batch_size,
        order=config.order,
    )


class ContinualImageNet(ShippedExperiment):
    """The experiment, as the laboratory asks for it."""

    Config = Config
    columns = COLUMNS
    shares: ClassVar[Sequence[str]] = ("test_accuracy", "train_accuracy", "dead")
    rivals = UNIT_RESETS  # others know no stack
    methods = (*get_args(Method), *rivals)

    def data_sets(self, config: Config) -> Sequence[str]:
        return (config.dataset,)

    def check_data(self, config: Config, found: Mapping[str, ImageSet]) -> None:
        pairs(found[config.dataset], config)

    def stack_key(self, config: Config, device: str) -> Hashable:
        """On a GPU the seeds of a setting train as a stack; on a CPU a stack gains nothing, so each run is a job."""
        return config.model_copy(update={"seed": 0}) if device.startswith("cuda") and not is_own(config) else config

    def start(self, configs: Sequence[Config], context: Context) -> Learners:
        return Learners(configs, load(configs[0].dataset, context.data), context.device)

    def advance(self, state: Learners) -> dict[str, NDArray[Any]]:
        accuracy = state.learn(state.epochs_at_once())
        ended = state.epoch == state.config.epochs
        if ended:
            state.look_at_outputs()
        alive = np.flatnonzero(ended & (state.diverged_at < 0))
        rows = {
            "task": np.full(len(accuracy), state.task + 1),
            "train_accuracy": accuracy,
            "replaced": state.replaced(),
        }
        rows.update(state.measures())
        if ended:
            state.end_task()
        return {"run": alive, **{name: values[alive] for name, values in rows.items()}}

    def figure(self, rows: pandas.DataFrame) -> Figure:
        """A row of panels for each data set: accuracy, dead units, effective rank, weight magnitude."""
        table: Any = rows
        table = table.assign(test_accuracy=100 * table["test_accuracy"])
        parts: list[Part] = []
        for dataset, cell in table.groupby("dataset", sort=False):
            bins = max(1, min(MOST_BINS, int(cell["task"].max()) // TASKS_PER_BIN))
            cell = self.curves(cell, panel=["dataset"])
            parts.append(Part(cell, [("task", y) for y in list(LABELS)[1:]], str(dataset), bins))
        return figure_of(parts, self.look, LABELS, named=["test_accuracy"], bounds=self.bounds(["test_accuracy"]))


TASKS_PER_BIN, MOST_BINS = 20, 100
LABELS = {
    "task": "task",
    "test_accuracy": "test accuracy, %",
    "dead": "share of dead units",
    "effective_rank": "effective rank of the last hidden layer",
    "weight_magnitude": "mean |weight|",
}


# -- profiles -------------------------------------------------------------------------------------------------------

_TINY: dict[str, Any] = {
    "dataset": "tiny-imagenet",
    "train_images": 500,
    "test_images": 50,
    "channels": (8, 16, 32),
    "hidden": (32, 32),
}


def _quick() -> list[Cell]:
    common = {**_TINY, "tasks": 70, "epochs": 10, "step_size": 0.05}
    return [{**common, "method": "bp"}, {**common, "method": "cbp", "replacement_rate": 1e-3}]


def _small() -> list[Cell]:
    """The chosen setting of each method; for backprop also the step size of continual backprop, which is the article's."""
    common = {**_TINY, "tasks": 150, "epochs": 25}
    return [
        {**common, "method": "bp", "step_size": 0.003},
        {**common, "method": "bp", "step_size": 0.01},
        {**common, "method": "l2", "step_size": 0.03, "weight_decay": 1e-3},
        {**common, "method": "snp", "step_size": 0.01, "weight_decay": 1e-3, "noise_std": 1e-5},
        {**common, "method": "cbp", "step_size": 0.01, "replacement_rate": 1e-3},
        {**common, "method": "fresh", "step_size": 0.03},
    ]


def _tuning() -> list[Cell]:
    """Six settings of each method: two step sizes by three values of its own, or six step sizes where it has none.

    Judged by images that the other profiles learn from: those that they are tested on are left out.
    """
    common = {**_TINY, "tasks": 60, "epochs": 25, "train_images": 450, "left_out": 50}
    cells: list[Cell] = []
    for method, step_size in product(("bp", "fresh"), (0.001, 0.003, 0.005, 0.01, 0.02, 0.03)):
        cells.append({**common, "method": method, "step_size": step_size})
    both = ((1e-4, 1e-5), (1e-3, 1e-5), (1e-3, 1e-4))  # decay and noise
    for step_size, strength in product((0.01, 0.03), (0, 1, 2)):
        common["step_size"] = step_size
        cells.append({**common, "method": "l2", "weight_decay": (1e-4, 1e-3, 3e-3)[strength]})
        cells.append({**common, "method": "snp", "weight_decay": both[strength][0], "noise_std": both[strength][1]})
        cells.append({**common, "method": "cbp", "replacement_rate": (1e-4, 3e-4, 1e-3)[strength]})
    return cells


def _paper() -> list[Cell]:
    cells: list[Cell] = [{"method": "bp", "step_size": step_size} for step_size in (0.01, 0.001, 0.0001)]
    long = {"tasks": 5000}
    return [
        *cells,
        {**long, "method": "l2", "step_size": 0.03, "weight_decay": 3e-6},
        {**long, "method": "snp", "step_size": 0.01, "weight_decay": 1e-5, "noise_std": 1e-5},
        {**long, "method": "cbp", "step_size": 0.01, "replacement_rate": 3e-4, "utility": "adaptable_contribution"},
    ]


ContinualImageNet.plans = {
    "quick": Profile(
        "Tiny ImageNet, a small network, 1 seed of backprop and continual backprop: about a minute on two cores",
        _quick,
        (0,),
        seeds_first=True,
    ),
    "small": Profile(
        "Tiny ImageNet, a small network, 150 tasks, 5 methods, 3 seeds: about an hour on two cores",
        _small,
        range(3),
        seeds_first=True,
    ),
    "tuning": Profile(
        "what the settings of small were chosen from: 6 of each method on seed 1000, 60 tasks: a core-hour",
        _tuning,
        (1000,),
        seeds_first=True,
    ),
    "paper": Profile(
        "ImageNet, 2,000 and 5,000 tasks of 250 epochs, 30 seeds: GPUs", _paper, range(30), seeds_first=True
    ),
}
