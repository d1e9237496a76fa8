"""The profiles of every experiment begin, with their own settings and on data such as they ask for."""

import json

import numpy as np
import pytest

from pliant.data import Images, ImageSet
from pliant.experiments import TABLE
from pliant.lab import Context
from pliant.lab.study.target import load, target
from tests.experiments.cut import CUT, LIKE

ON_PICTURES = ("continual-imagenet", "class-incremental-cifar-100", "warm-starting")
OF_METHOD = ("replacement_rate", "maturity_threshold")  # settings that are not of how long it learns


def labelled(train: int, test: int, classes: int = 200) -> ImageSet:
    """So many black images of each class, which take no memory."""

    def part(count: int) -> Images:
        labels = np.repeat(np.arange(classes), count)
        return Images(np.broadcast_to(np.uint8(0), (len(labels), 32, 32, 3)), labels, tuple(map(str, range(classes))))

    return ImageSet("tiny-imagenet", part(train), part(test) if test else None, sha256="of none of them")


@pytest.mark.parametrize("published", [True, False], ids=["500 + 50 a class", "550 a class"])
@pytest.mark.parametrize("name", ON_PICTURES)
def test_profiles_on_tiny_imagenet_have_enough_pictures(name, published):
    experiment = load(target(TABLE[name].target))
    found = {"tiny-imagenet": labelled(500, 50) if published else labelled(550, 0)}
    for profile in set(experiment.profiles) - {"paper"}:
        for config in experiment.runs(profile):
            experiment.check_data(config, found)
    asked = experiment.runs("quick")[0]
    with pytest.raises(ValueError, match="tiny-imagenet"):
        experiment.check_data(asked, {"tiny-imagenet": labelled(asked.train_images - 1, 50)})


def cut_short(name):
    """Settings that make a run short; the bodies that have none of their own learn as the ant does, on one ground."""
    cut = dict(CUT.get(name, CUT[LIKE.get(name, "slippery-ant")]))
    for field in (*OF_METHOD, *(() if name in CUT else ("friction_period",))):
        cut.pop(field, None)
    lists = {field: json.loads(value) for field, value in cut.items() if str(value).startswith("[")}
    few = {"epochs": min(cut["epochs"], 4)} if "epochs" in cut else {}
    return {**cut, **lists, **few}


@pytest.mark.parametrize("name", TABLE)
def test_every_method_of_quick_cut_short_learns_and_has_rows(name, data):
    experiment = load(target(TABLE[name].target))
    cut = cut_short(name)
    of_method = {config.method: config for config in reversed(experiment.runs("quick"))}
    for method, config in of_method.items():
        state = experiment.start([type(config)(**{**config.model_dump(), **cut})], Context(data=data))
        rows = 0
        while rows == 0 and state.statuses()[0].word == "running":
            rows = len(experiment.advance(state)["run"])
        assert rows > 0, method
        assert state.statuses()[0].word in ("running", "done"), method
