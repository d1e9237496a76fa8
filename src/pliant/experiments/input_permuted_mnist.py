"""Input-permuted MNIST: is the 200th order of the pixels learned from 5,000 images as fast as the first?

Stream  MNIST's training images in random order, one at a time; the pixels are permuted anew every 5,000 of them
Curve   share of images whose label was predicted before the update, by task; mean and 95% interval over seeds
Source  Elsayed and Mahmood, ICLR 2024 (arXiv 2404.00781); departures: docs/experiments/input-permuted-mnist.md

Online permuted MNIST (`pliant.experiments.permuted_mnist`) has 60,000 images per task; here what counts is to learn fast.
"""

from __future__ import annotations

from itertools import product

from pliant.data import ImageSet
from pliant.experiments.base import Cell, Profile
from pliant.experiments.image_streams import Batch, ImageStream, StreamConfig, nine_each, shuffled, unit
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


_CHOSEN: dict[str, Cell] = {}


def _quick() -> list[Cell]:
    return [{"method": "bp"}]


def _tuning() -> list[Cell]:
    """And with AdamW, with and without continual backprop, and with standardized pixels."""
    adamw = {"optimizer": "adamw", "tasks": 40}
    steps = (3e-5, 1e-4, 3e-4, 1e-3)
    cells = nine_each(tasks=40)
    cells += [{**adamw, "method": "bp", "step_size": step_size} for step_size in steps]
    cells += [{**adamw, "method": "cbp", "step_size": step_size, "replacement_rate": 1e-4} for step_size in steps]
    for pixels, step_size in product(("standard", "online"), (3e-4, 1e-3, 3e-3)):
        cells.append({"method": "bp", "tasks": 40, "pixels": pixels, "step_size": step_size})
        cells.append({"method": "l2init", "tasks": 40, "pixels": pixels, "step_size": step_size, "l2_init": 1e-2})
    return cells


InputPermutedMnist.plans = {
    "quick": Profile("pilot", _quick, range(1)),
    "tuning": Profile(
        "40 tasks, seed 1000, nine settings of each method; a quarter of an hour", _tuning, range(1000, 1001)
    ),
}
