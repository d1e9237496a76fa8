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


_CHOSEN: dict[str, Cell] = {  # by profile `tuning`: docs/experiments/label-permutation.md has the table
    "bp": {"step_size": 0.03},
    "l2": {"step_size": 0.03, "weight_decay": 1e-3},
    "l2init": {"step_size": 0.03, "l2_init": 1e-3},
    "snp": {"step_size": 0.03, "weight_decay": 1e-3, "noise_std": 1e-4},
    "layernorm": {"step_size": 0.01},
    "cbp": {"step_size": 0.03, "replacement_rate": 1e-3},
    "random": {"step_size": 0.03, "replacement_rate": 1e-5},
    "fresh": {"step_size": 0.03},
    "linear": {"step_size": 0.06, "hidden": ()},
}


def _small() -> list[Cell]:
    cells: list[Cell] = [{"method": method, "tasks": 200, **chosen} for method, chosen in _CHOSEN.items()]
    upgd = {"method": "upgd", "tasks": 200, "step_size": 0.01, "sigma": 0.0, "weight_decay": 1e-3}
    control = {**_CHOSEN["cbp"], "method": "random", "tasks": 200}  # the same in number, at the same step size
    return [*cells, control, upgd]


def _quick() -> list[Cell]:
    return [{"method": method, "tasks": 40, **_CHOSEN[method]} for method in ("bp", "l2init", "cbp", "fresh")]


def _paper() -> list[Cell]:
    return [{**cell, "tasks": 400} for cell in _small()]


def _tuning() -> list[Cell]:
    """And, where the best of nine lay at an edge, some more beyond it."""
    beyond: list[Cell] = [{"method": "l2", "step_size": step_size, "weight_decay": 3e-3} for step_size in (0.01, 0.03)]
    for step_size, noise in ((0.01, 1e-5), (0.03, 1e-5), (0.01, 1e-4), (0.03, 1e-4)):
        beyond.append({"method": "snp", "step_size": step_size, "weight_decay": 1e-3, "noise_std": noise})
    beyond += [{"method": "cbp", "step_size": 0.06, "replacement_rate": rate} for rate in (1e-4, 1e-3)]
    beyond += [{"method": "random", "step_size": step_size, "replacement_rate": 1e-6} for step_size in (0.01, 0.03)]
    beyond += [{"method": "linear", "step_size": step_size, "hidden": ()} for step_size in (0.1, 0.2)]
    beyond += [{"method": method, "step_size": 0.1} for method in ("bp", "fresh")]
    return [*nine_each(tasks=80), *({"tasks": 80, **cell} for cell in beyond)]


LabelPermutation.plans = {
    "quick": Profile(
        "40 tasks, 3 seeds: backprop, L2 Init, continual backprop, fresh networks; a minute", _quick, range(3)
    ),
    "small": Profile("200 tasks, 5 seeds, all methods; half an hour on two cores", _small, range(5)),
    "tuning": Profile(
        "80 tasks, seed 1000, nine settings of each method or more; a quarter of an hour on one core",
        _tuning,
        range(1000, 1001),
    ),
    "paper": Profile("400 tasks, 20 seeds, all methods; five hours on two cores", _paper, range(20)),
}
