"""Input-permuted MNIST: is the 200th order of the pixels learned from 5,000 images as fast as the first?

Stream  MNIST's training images in random order, one at a time; the pixels are permuted anew every 5,000 of them
Curve   share of images whose label was predicted before the update, by task; mean and 95% interval over seeds
Source  Elsayed and Mahmood, ICLR 2024 (arXiv 2404.00781); departures: docs/experiments/input-permuted-mnist.md

Online permuted MNIST (`pliant.experiments.permuted_mnist`) has 60,000 images per task; here what counts is to learn fast.
"""

from __future__ import annotations

from pliant.data import ImageSet
from pliant.experiments.base import Cell, Profile
from pliant.experiments.image_streams import Batch, ImageStream, StreamConfig, shuffled, unit
from pliant.streams import generator


class Config(StreamConfig, frozen=True):
    """One network on one stream of permutations."""


class InputPermutedMnist(ImageStream[Config]):
    """The experiment, as the laboratory runs it."""

    Config = Config

    def batch(self, config: Config, data: ImageSet, task: int, begin: int, end: int) -> Batch:
        first = task * config.period
        order = shuffled(config.seed, len(data.train), first + begin, first + end)
        permutation = generator(config.seed, "pixels", task).permutation(self.inputs(config, data))
        flat = data.train.pixels.reshape(len(data.train), -1)
        return Batch(unit(flat[order[:, None], permutation]), data.train.labels[order])


# -- what the profiles run -------------------------------------------------------------------------------------------

_ONLINE: Cell = {"pixels": "online", "init": "default"}
_STANDARD: Cell = {"pixels": "standard", "init": "default"}


def _cells(tasks: int) -> list[Cell]:
    """With inputs normalized online, and, of the methods published with them, with the set's mean and deviation."""
    cells: list[Cell] = [
        {**_ONLINE, "method": "bp", "step_size": 0.01},
        {**_ONLINE, "method": "bp", "step_size": 0.003},
        {**_ONLINE, "method": "l2", "weight_decay": 1e-2},
        {**_ONLINE, "method": "l2init", "l2_init": 1e-2},
        {**_ONLINE, "method": "snp", "weight_decay": 1e-2, "noise_std": 1e-4},
        {**_ONLINE, "method": "layernorm", "step_size": 0.003},
        {**_ONLINE, "method": "cbp", "step_size": 0.003, "replacement_rate": 1e-4},
        {**_ONLINE, "method": "random", "step_size": 0.003, "replacement_rate": 1e-4},
        {**_ONLINE, "method": "fresh"},
        {**_ONLINE, "method": "linear", "hidden": (), "step_size": 0.003},
        {**_STANDARD, "method": "bp", "step_size": 0.001},
        {**_STANDARD, "method": "bp", "optimizer": "adamw", "step_size": 1e-4},
        {**_STANDARD, "method": "bp", "optimizer": "adamw", "step_size": 1e-3},
        {**_STANDARD, "method": "cbp", "optimizer": "adamw", "step_size": 1e-4, "replacement_rate": 1e-4},
        {**_STANDARD, "method": "upgd", "sigma": 0.1, "weight_decay": 1e-2},
    ]
    return [{"step_size": 0.01, "tasks": tasks, **cell} for cell in cells]


def _quick() -> list[Cell]:
    return [
        {**cell, "tasks": 20}
        for cell in _cells(20)
        if cell["method"] in ("bp", "l2init", "cbp") and "optimizer" not in cell
    ]


InputPermutedMnist.plans = {
    "quick": Profile("20 tasks, 2 seeds: backprop, L2 Init, continual backprop; a minute", _quick, range(2)),
    "small": Profile("100 tasks, 3 seeds, all methods; half an hour on two cores", lambda: _cells(100), range(3)),
    "paper": Profile("200 tasks, 20 seeds, all methods; seven hours on two cores", lambda: _cells(200), range(20)),
}
