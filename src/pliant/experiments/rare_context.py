"""A rare context: is what is needed at one example in a hundred kept, while the rest of the stream changes again and again?

Stream  MNIST's images, one at a time; 99 of 100 with pixels permuted anew every 5,000 examples, one of 100 in their own order,
        with one more input that is 1 for these and 0 for all others
Curve   share of labels predicted before the update, by task: of the rare examples, and of the others
Source  ours: docs/experiments/rare-context.md

The rare context never changes, so its examples can be learned better and better. Decay shrinks their weights between them, and a
utility of short memory finds the units that they need useless.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from pliant.data import ImageSet
from pliant.experiments.base import Cell, Profile
from pliant.experiments.image_streams import COLUMNS, Batch, ImageStream, StreamConfig, shuffled, unit
from pliant.streams import generator, stream_key, uniform


class Config(StreamConfig, frozen=True):
    """One network on one stream."""

    rare: float = Field(0.01, gt=0, lt=1, description="probability of an example of the rare context")


class RareContext(ImageStream[Config]):
    """The experiment, as the laboratory runs it."""

    Config = Config
    columns: ClassVar[Mapping[str, str]] = {
        **COLUMNS,
        "accuracy": "as below, of the examples that are not rare",
        "marked_accuracy": "share of the task's examples of the rare context whose label was predicted before the update",
    }
    shares: ClassVar[Sequence[str]] = ("accuracy", "marked_accuracy", "dead")
    panels: ClassVar[Sequence[str]] = ("marked_accuracy", "accuracy", "weight_magnitude", "dead")

    def inputs(self, config: Config, data: ImageSet) -> int:
        return super().inputs(config, data) + 1

    def batch(self, config: Config, data: ImageSet, task: int, begin: int, end: int) -> Batch:
        first, pixels = task * config.period, self.inputs(config, data) - 1
        order = shuffled(config.seed, len(data.train), first + begin, first + end)
        marked = uniform(stream_key(config.seed, "context"), first + begin, end - begin) < config.rare
        permutation = generator(config.seed, "pixels", task).permutation(pixels)
        flat = data.train.pixels.reshape(len(data.train), -1)[order]
        seen = np.where(marked[:, None], flat, flat[:, permutation])
        context = marked[:, None].astype(np.float32)
        return Batch(np.concatenate([unit(seen), context], axis=1), data.train.labels[order], marked)


def _cells(tasks: int) -> list[Cell]:
    """At one step size; each method at two strengths, and continual backprop with a short and with a long memory."""
    common: dict[str, Any] = {"tasks": tasks, "step_size": 0.01}
    long = {"decay_rate": 0.9999}
    return [
        {**common, "method": "bp"},
        {**common, "method": "bp", "step_size": 0.003},
        *({**common, "method": "l2", "weight_decay": decay} for decay in (1e-4, 1e-3)),
        *({**common, "method": "l2init", "l2_init": strength} for strength in (1e-4, 1e-3)),
        *({**common, "method": "snp", "weight_decay": 1e-4, "noise_std": noise} for noise in (1e-5, 1e-4)),
        *({**common, "method": "cbp", "replacement_rate": 1e-4, **memory} for memory in ({}, long)),
        *({**common, "method": "random", "replacement_rate": rate} for rate in (1e-5, 1e-4)),
        {**common, "method": "linear", "hidden": ()},
        {**common, "method": "fresh"},
    ]


def _quick() -> list[Cell]:
    return [cell for cell in _cells(40) if cell["method"] in ("bp", "cbp") and cell["step_size"] == 0.01]


def _small() -> list[Cell]:
    return _cells(100)


def _long() -> list[Cell]:
    return _cells(200)


RareContext.plans = {
    "quick": Profile(
        "40 tasks, 3 seeds: backprop, and continual backprop with a short and a long memory; a minute", _quick, range(3)
    ),
    "small": Profile("100 tasks, 5 seeds, all methods; a quarter of an hour on two cores", _small, range(5)),
    "paper": Profile("200 tasks, 20 seeds, all methods", _long, range(20)),
}
