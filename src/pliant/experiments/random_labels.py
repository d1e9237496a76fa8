"""Random labels: is the 50th set of meaningless labels memorized as well as the first?

Stream  1,200 images a task with labels drawn at random, seen 400 times each in batches of 16; then other labels are drawn
Curve   share of images whose label was predicted before the update, by task; mean and 95% interval over seeds
Source  Kumar, Marklund and Van Roy, CoLLAs 2025 (arXiv 2308.11958), after Lyle et al., ICML 2023; departures:
        docs/experiments/random-labels.md

To memorize takes large weights, so a decay that keeps units from saturating keeps the network from fitting.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# (pandas and matplotlib are typed in part)

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from pliant.base.saving import all_or_nothing, count_in, entry, load_part
from pliant.data import ImageSet, load
from pliant.data.images import check_same
from pliant.diagnostics import dead, weight_magnitude
from pliant.experiments.base import Cell, Profile, ShippedExperiment
from pliant.experiments.makers import Site
from pliant.experiments.methods import CANDIDATES, RIVALS, ReplacementConfig, check_fields, method_of, replaced
from pliant.lab import DONE, RUNNING, Context, RunStatus, diverged
from pliant.lab.figures import Part, figure_of
from pliant.streams import generator, stream_key

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

Method = Literal["bp", "l2", "l2init", "snp", "cbp", "random", "fresh"]


class Config(ReplacementConfig, frozen=True):
    """One network on one sequence of tasks. The defaults are the article's."""

    method: Method = "bp"
    dataset: str = Field("mnist", description="name of a set of images, all of one size")
    images: int = Field(1200, gt=0, description="images, the same in all tasks")
    epochs: int = Field(400, gt=0, description="passes over the images of a task")
    batch_size: int = Field(16, gt=0, description="images; divides those of a task")
    tasks: int = Field(50, gt=0, description="tasks")
    hidden: tuple[int, ...] = Field((100, 100), min_length=1, description="units of each hidden layer")
    optimizer: Literal["adam", "sgd"] = "adam"
    step_size: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="coupled, of weights and biases; method l2 or snp")
    l2_init: float = Field(0.0, ge=0, description="strength of the pull to the initial parameters; method l2init")
    noise_std: float = Field(0.0, ge=0, description="of the noise on every weight and bias after each step; method snp")
    candidates: int = CANDIDATES
    added: ClassVar[Mapping[str, Any]] = {"candidates": 0}

    @property
    def steps_per_epoch(self) -> int:
        return self.images // self.batch_size

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.images % self.batch_size:
            raise ValueError(f"a task has {self.images} images, which batch_size ({self.batch_size}) does not divide")
        if min(self.hidden) < 1:
            raise ValueError(f"hidden has a layer of {min(self.hidden)} units: give 1 or more")
        check_fields(self, get_args(Method))
        return self


COLUMNS = {
    "task": "number of the task, from 1",
    "accuracy": "share of the task's examples whose label was predicted before the update, mean of all epochs",
    "end_accuracy": "share of the task's images whose label is predicted after the last epoch",
    "loss": "cross-entropy before the updates, mean of all epochs",
    "weight_magnitude": "mean |weight| of all weight matrices at the end of the task, biases not counted",
    "dead": "share of hidden units that are 0 for all images at the end of the task; mean of the layers",
    "replaced": "hidden units replaced so far",
}
STEPS_PER_ADVANCE = 10_000  # some seconds


class Learner:
    """A run: a network on its tasks."""

    def __init__(self, config: Config, data: ImageSet) -> None:
        self._row = method_of(config, get_args(Method))
        self.config, self.sha256 = config, data.sha256
        chosen = generator(config.seed, "images").permutation(len(data.train))[: config.images]
        pixels = data.train.pixels[chosen].reshape(config.images, -1)
        self.inputs = torch.from_numpy(np.multiply(pixels, 1 / 255, dtype=np.float32))
        self.classes = len(data.train.classes)
        self.task = self.epoch = 0
        self.hits, self.loss = 0, 0.0  # of the task at hand
        self.diverged_at: int | None = None
        self._start_network(0)

    def _start_network(self, task: int) -> None:
        sizes = (self.inputs.shape[1], *self.config.hidden, self.classes)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream_key(self.config.seed, "weights", task))
            layers = [part for m, n in pairwise(sizes) for part in (nn.Linear(m, n), nn.ReLU())]
        self.network = nn.Sequential(*layers[:-1])
        kind = torch.optim.Adam if self.config.optimizer == "adam" else torch.optim.SGD
        plain = kind(self.network.parameters(), lr=self.config.step_size, weight_decay=self.config.weight_decay)
        self.optimizer = self._row.stepped_by(plain, self.config)
        self.method = self._row.make(
            Site(
                self.network,
                self.optimizer,
                self.config,
                seed=lambda purpose: self.config.seed,
                units=lambda: {"example_inputs": self.inputs[:2]},
            )
        )

    @property
    def steps_done(self) -> int:
        return (self.task * self.config.epochs + self.epoch) * self.config.steps_per_epoch

    @property
    def steps_total(self) -> int:
        return self.config.tasks * self.config.epochs * self.config.steps_per_epoch

    def statuses(self) -> list[RunStatus]:
        if self.diverged_at is not None:
            return [diverged(self.diverged_at)]
        return [DONE if self.steps_done >= self.steps_total else RUNNING]

    def state_dict(self) -> dict[str, Any]:
        state = {
            "data_sha256": self.sha256,
            "task": self.task,
            "epoch": self.epoch,
            "hits": self.hits,
            "loss": self.loss,
            "diverged_at": self.diverged_at,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict() if self.method else None,
        }
        return deepcopy(state)  # torch's own hand out what they go on writing to

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises `ValueError` where the images are not those of the run so far."""
        check_same(self.config.dataset, state["data_sha256"], self.sha256)
        self.task, self.epoch, self.hits = (count_in(state, name) for name in ("task", "epoch", "hits"))
        self.loss = entry(state, "loss", self.loss)
        self.diverged_at = None if state["diverged_at"] is None else count_in(state, "diverged_at")
        for part, name in ((self.network, "network"), (self.optimizer, "optimizer"), (self.method, "method")):
            load_part(part, state, name)

    def labels(self, task: int) -> Tensor:
        """Of the images in a task, (images,)."""
        return torch.from_numpy(
            generator(self.config.seed, "labels", task).integers(self.classes, size=self.config.images)
        )

    def learn(self) -> bool:
        """Go on to the end of the task, or for some seconds; whether the task ended, or the run did."""
        epochs = min(max(1, STEPS_PER_ADVANCE // self.config.steps_per_epoch), self.config.epochs - self.epoch)
        if self.epoch == 0:
            self.hits, self.loss = 0, 0.0
            if self.config.method == "fresh" and self.task:
                self._start_network(self.task)
        labels = self.labels(self.task)
        for _ in range(epochs):
            order = generator(self.config.seed, "order", self.task, self.epoch).permutation(self.config.images)
            for place, batch in enumerate(torch.from_numpy(order).view(-1, self.config.batch_size)):
                if not self._update(self.inputs[batch], labels[batch]):
                    self.diverged_at = self.steps_done + place
                    return True
            self.epoch += 1
        return self.epoch == self.config.epochs

    def _update(self, inputs: Tensor, labels: Tensor) -> bool:
        """One step; whether the loss was finite."""
        logits = self.network(inputs)
        loss = nn.functional.cross_entropy(logits, labels)
        value = float(loss.detach())
        if not np.isfinite(value):
            return False
        self.hits += int((logits.detach().argmax(1) == labels).sum())
        self.loss += value
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return True

    @torch.no_grad()
    def end_task(self) -> dict[str, float]:
        """The measures of a task that has ended; NaN where the run diverged in it."""
        steps = self.config.epochs * self.config.steps_per_epoch
        self.task, self.epoch = self.task + 1, 0
        if self.diverged_at is not None:
            return dict.fromkeys([name for name in COLUMNS if name not in ("task", "replaced")], float("nan"))
        hidden, x = list[Tensor](), self.inputs
        for layer in self.network:
            x = layer(x)
            hidden += [x] if isinstance(layer, nn.ReLU) else []
        matrices = [p for p in self.network.parameters() if p.dim() > 1]
        return {
            "accuracy": self.hits / (steps * self.config.batch_size),
            "end_accuracy": float((x.argmax(1) == self.labels(self.task - 1)).double().mean()),
            "loss": self.loss / steps,
            "weight_magnitude": float(weight_magnitude(*matrices)),
            "dead": float(np.mean([float(dead(h).double().mean()) for h in hidden])),
        }


class RandomLabels(ShippedExperiment):
    """The experiment, as the laboratory runs it: every run is a job of its own."""

    Config = Config
    columns = COLUMNS
    shares: ClassVar[Sequence[str]] = ("accuracy", "end_accuracy", "dead")
    rivals = tuple(name for name in RIVALS if name not in get_args(Method))
    methods = (*get_args(Method), *rivals)
    devices: ClassVar[Sequence[str]] = ("cpu",)

    def data_sets(self, config: Config) -> tuple[str]:
        return (config.dataset,)

    def check_data(self, config: Config, found: Mapping[str, ImageSet]) -> None:
        have = len(found[config.dataset].train)
        if have < config.images:
            raise ValueError(f"'{config.dataset}' has {have:,} images, and a task {config.images:,}: lower `images`")

    def stack_key(self, config: Config, device: str) -> Hashable:
        return config

    def start(self, configs: Sequence[Config], context: Context) -> Learner:
        (config,) = configs
        return Learner(config, load(config.dataset, context.data))

    def advance(self, state: Learner) -> dict[str, NDArray[Any]]:
        if not state.learn():
            return {name: np.zeros(0) for name in ("run", *COLUMNS)}
        row = {"run": 0, "task": state.task + 1, "replaced": replaced(state.method)[0], **state.end_task()}
        return {name: np.array([value]) for name, value in row.items()}

    def figure(self, rows: pandas.DataFrame) -> Figure:
        """Accuracy, dead units, weight magnitude, over tasks."""
        table: Any = rows
        percent = ("accuracy", "end_accuracy", "dead")
        table = table.assign(**{name: 100 * table[name] for name in percent})
        part = Part(self.curves(table), [("task", y) for y in list(LABELS)[1:]], "", BINS)
        return figure_of([part], self.look, LABELS, bounds=self.bounds(percent))


BINS = 25
LABELS = {
    "task": "task",
    "accuracy": "accuracy while learning (%)",
    "end_accuracy": "accuracy at the end (%)",
    "weight_magnitude": "mean |weight|",
    "dead": "dead units (%)",
}


def _cells(**common: Any) -> list[Cell]:
    """Adam's step size as usual; strengths and rate as published for this problem."""
    return [
        {**common, "method": "bp"},
        *({**common, "method": "l2", "weight_decay": decay} for decay in (1e-5, 1e-4, 1e-3)),
        *({**common, "method": "l2init", "l2_init": strength} for strength in (1e-3, 1e-2)),
        {**common, "method": "snp", "weight_decay": 1e-4, "noise_std": 1e-4},
        {**common, "method": "cbp", "replacement_rate": 1e-3},
        {**common, "method": "random", "replacement_rate": 1e-3},
        {**common, "method": "fresh"},
    ]


def _quick() -> list[Cell]:
    few = _cells(images=400, epochs=50, tasks=10)
    return [cell for cell in few if cell["method"] in ("bp", "cbp") or cell.get("l2_init") == 1e-2]


RandomLabels.plans = {
    "quick": Profile(
        "400 images, 10 tasks of 50 epochs, 1 seed: backprop, L2 Init, continual backprop; a minute", _quick, range(1)
    ),
    "small": Profile(
        "400 images, 30 tasks of 100 epochs, 3 seeds, all methods; an hour on two cores",
        lambda: _cells(images=400, epochs=100, tasks=30),
        range(3),
    ),
    "paper": Profile(
        "1,200 images, 50 tasks of 400 epochs, 10 seeds, all methods; a day on two cores", _cells, range(10)
    ),
}
