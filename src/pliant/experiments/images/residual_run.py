"""A residual network that learns from images, as a run of the laboratory.

What class-incremental learning and warm starting share. An epoch is a number of pieces: training steps, then pieces of
evaluation. A run can be stopped after any piece: `epoch` and `piece`, and what a subclass adds, say where it stands. What an
epoch needs is looked up from them, not stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pliant.base.saving import all_or_nothing, count_in, counts_in, entry, fill, load_part
from pliant.data import ImageSet, load
from pliant.data.images import check_same
from pliant.experiments.base import ShippedExperiment
from pliant.experiments.images.batches import Augmentation, ImageBatches, check_enough, split_by_class
from pliant.experiments.images.residual_learner import Learner, LearnerConfig
from pliant.experiments.methods import Method
from pliant.lab import DONE, RUNNING, Context, RunStatus, diverged

EVALUATED = 300  # images in a piece of evaluation, which costs about what a training step does


class RunConfig(LearnerConfig, frozen=True):
    """One network and its images; a subclass describes the fields, and says how many images a class."""

    dataset: str
    train_images: int
    test_images: int
    validation_images: int

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Of the network: the classes there will be, the first of the data set."""

    @property
    def images_per_class(self) -> tuple[int, int, int]:
        """Of validation, training, test."""
        return self.validation_images, self.train_images, self.test_images


EpochPlan = TypeVar("EpochPlan")


class ResidualRun(ABC, Generic[EpochPlan]):
    """A run in mid-learning.

    Args:
        config: of the run.
        context: where to find the data, and the device.
        order: of the classes, an output of the network each, (outputs,).
        method: of the run.
        event: whether it waits until it is told to act, where it changes whole parameters.
    """

    def __init__(
        self, config: RunConfig, context: Context, order: NDArray[np.int64], method: Method, event: bool = False
    ) -> None:
        images = load(config.dataset, context.data)
        self.dataset, self.sha256 = config.dataset, images.sha256
        self.data = split_by_class(images, order, *config.images_per_class, device=context.device)
        self.learner = Learner(config, method, config.outputs, self.data.train.channels, context.device, event)
        self.pieces_per_advance = pieces_per_advance(config.width, context.device)
        self.epoch = self.piece = self.updates = 0
        self.diverged_at: int | None = None
        self.hits = torch.zeros(3, dtype=torch.int64, device=context.device)  # this epoch's: two counts, broken outputs
        self._plan: EpochPlan | None = None

    # -- what a subclass says ---------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def over(self) -> bool:
        """Has all been learned?"""

    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """Pieces of the present epoch: training steps, evaluation."""

    @abstractmethod
    def look_up(self) -> EpochPlan:
        """What the present epoch goes through."""

    @abstractmethod
    def learn_a_batch(self) -> Tensor:
        """One training step; its loss."""

    @abstractmethod
    def evaluate(self, piece: int) -> None:
        """Count hits in a piece of evaluation."""

    @abstractmethod
    def end_epoch(self, hits: tuple[int, int]) -> list[dict[str, float]]:
        """What follows an epoch, `epoch` being how many there were; its row, if it has one."""

    def begin(self) -> None:
        """What comes before the first epoch since `epoch` was put to 0; nothing."""

    # -- learning ---------------------------------------------------------------------------------------------------

    @property
    def plan(self) -> EpochPlan:
        """What `look_up` says, looked up once an epoch."""
        if self._plan is None:
            self._plan = self.look_up()
        return self._plan

    def statuses(self) -> list[RunStatus]:
        if self.diverged_at is not None:
            return [diverged(self.diverged_at)]
        return [DONE if self.over else RUNNING]

    def learn_a_while(self) -> list[dict[str, float]]:
        """Some pieces of an epoch, or of two; the rows that they end, none for an epoch in which the run diverged."""
        rows: list[dict[str, float]] = []
        losses: list[Tensor] = []  # since they were last looked at
        for _ in range(self.pieces_per_advance):
            train, evaluation = self.sizes()
            if self.epoch == self.piece == 0:
                self.begin()
            if self.piece < train:
                self.updates += 1
                losses.append(self.learn_a_batch())
            else:
                self.evaluate(self.piece - train)
            self.piece += 1
            if self.piece == train:
                self._look_at(losses)
            if self.piece == train + evaluation:
                rows.extend(self._end_epoch())
            if self.over or self.diverged_at is not None:
                break
        self._look_at(losses)
        return rows

    def _look_at(self, losses: list[Tensor]) -> None:
        """Did the run diverge in the updates that these losses are of, the latest ones? They are forgotten."""
        broken = first_not_finite(losses)
        if broken is not None:
            self.diverged_at = self.updates - len(losses) + broken
        losses.clear()

    def _end_epoch(self) -> list[dict[str, float]]:
        """On to the next. The run ends here, without a row, where the last update broke the network."""
        first, second, broken = cast(list[int], self.hits.tolist())
        if broken:
            self.diverged_at = self.updates  # the next one, whose loss would not be finite
            return []
        self.hits.zero_()
        self.epoch, self.piece, self._plan = self.epoch + 1, 0, None
        return self.end_epoch((first, second))

    def count_hits(
        self,
        kind: int,
        images: ImageBatches,
        first: int,
        among: int,
        seen: int,
        augmentation: Augmentation | None = None,
    ) -> None:
        """Count hits of a kind (0 or 1) in a piece of evaluation.

        Args:
            kind: which of the two counts of an epoch.
            images: those to tell.
            first: the place of the piece's first image.
            among: how many of the images count, from the beginning.
            seen: outputs to choose from.
            augmentation: of all that count, if they are augmented.
        """
        chosen = np.arange(first, min(first + EVALUATED, among))
        right, broken = self.learner.right(*images.batch(chosen, augmentation and augmentation[chosen]), seen)
        self.hits[kind] += right
        self.hits[2] += broken

    # -- storing ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "data": self.sha256,
            "at": [self.epoch, self.piece, self.updates],
            "diverged_at": self.diverged_at,
            "hits": self.hits.clone(),
            "learner": self.learner.state_dict(),
        }

    @all_or_nothing
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_same(self.dataset, state["data"], self.sha256)
        self.epoch, self.piece, self.updates = counts_in(state, "at", 3)
        self.diverged_at, self._plan = (
            None if state["diverged_at"] is None else count_in(state, "diverged_at"),
            None,
        )
        fill(self.hits, entry(state, "hits", self.hits), "hits")
        load_part(self.learner, state, "learner")


def first_not_finite(losses: Sequence[Tensor]) -> int | None:
    """The place of the first loss that is not a finite number; the device is asked once.

    >>> first_not_finite([torch.tensor(1.0), torch.tensor(torch.nan)]), first_not_finite([])
    (1, None)
    """
    if not losses:
        return None
    finite = cast(list[bool], torch.stack(list(losses)).isfinite().tolist())
    return finite.index(False) if False in finite else None


def pieces_per_advance(width: int, device: str) -> int:
    """Pieces that take a few seconds."""
    return 500 if device != "cpu" else max(1, min(48, 2048 // width**2))


ConfigT = TypeVar("ConfigT", bound=RunConfig)
RunT = TypeVar("RunT", bound=ResidualRun[Any])


class ResidualExperiment(ShippedExperiment, Generic[ConfigT, RunT]):
    """What the laboratory asks of an experiment with such runs, but for profiles, start and figure. Every run is a job."""

    integers: ClassVar[Sequence[str]]  # columns of whole numbers

    def data_sets(self, config: ConfigT) -> list[str]:
        return [config.dataset]

    def check_data(self, config: ConfigT, found: Mapping[str, ImageSet]) -> None:
        check_enough(found[config.dataset], config.outputs, *config.images_per_class)

    def stack_key(self, config: ConfigT, device: str) -> Hashable:
        return config

    def advance(self, state: RunT) -> dict[str, NDArray[Any]]:
        rows = state.learn_a_while()
        kinds = {name: np.int64 if name in self.integers else np.float64 for name in self.columns}
        columns = {name: np.array([row[name] for row in rows], dtype=kind) for name, kind in kinds.items()}
        return {"run": np.zeros(len(rows), dtype=np.int64), **columns}
