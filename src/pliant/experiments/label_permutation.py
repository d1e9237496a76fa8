"""Permuted labels: when the names of 47 classes change but the images do not, is what was learned of the images used?

Stream  images of 47 characters in random order, one at a time; every 2,500 of them the labels are permuted anew
Curve   share of images whose label was predicted before the update, by task; mean and 95% interval over seeds
Source  Elsayed and Mahmood, ICLR 2024 (arXiv 2404.00781), with EMNIST; departures: docs/experiments/label-permutation.md

What the hidden layers have learned stays of use; the outputs have to be learned anew. With ten classes nothing is lost.
"""

from __future__ import annotations

from pydantic import Field

from pliant.data import ImageSet
from pliant.experiments.base import Cell, Profile
from pliant.experiments.image_streams import GLYPHS, Batch, ImageStream, StreamConfig, nine_each, shuffled, unit
from pliant.streams import generator


class Config(StreamConfig, frozen=True):
    """One network on one stream of permutations."""

    dataset: str = Field(GLYPHS, description="name of a set of images, all of one size; 'glyphs' needs no download")
    tasks: int = Field(400, gt=0, description="tasks")
    period: int = Field(2_500, gt=0, description="examples per task")


class LabelPermutation(ImageStream[Config]):
    """The experiment, as the laboratory runs it."""

    Config = Config

    def batch(self, config: Config, data: ImageSet, task: int, begin: int, end: int) -> Batch:
        first = task * config.period
        order = shuffled(config.seed, len(data.train), first + begin, first + end)
        permutation = generator(config.seed, "labels", task).permutation(len(data.train.classes))
        return Batch(unit(data.train.pixels[order].reshape(end - begin, -1)), permutation[data.train.labels[order]])


def _quick() -> list[Cell]:
    return [{"method": "bp"}]


def _tuning() -> list[Cell]:
    return nine_each(tasks=80)


LabelPermutation.plans = {
    "quick": Profile("pilot", _quick, range(1)),
    "tuning": Profile(
        "80 tasks, seed 1000, nine settings of each method; a quarter of an hour on one core",
        _tuning,
        range(1000, 1001),
    ),
}
