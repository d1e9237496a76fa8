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


_CHOSEN: dict[str, Cell] = {}


def _quick() -> list[Cell]:
    return [{"method": "bp"}]


InputPermutedMnist.plans = {"quick": Profile("pilot", _quick, range(1))}
