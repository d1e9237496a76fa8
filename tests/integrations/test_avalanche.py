"""Methods inside strategies of Avalanche. In the environment of `make integrations`."""

import copy
import random
import signal

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import dropout
from torch.utils.data import TensorDataset

from tests.integrations import torchvision_on_cpu  # noqa: F401  (before Avalanche imports torchvision)

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("avalanche", reason="Avalanche is not installed: make integrations")

from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.scenarios.supervised import class_incremental_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint
from avalanche.core import SupervisedPlugin
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from avalanche.training.plugins import EvaluationPlugin, GEMPlugin, LwFPlugin
from avalanche.training.supervised import Naive

import pliant
from pliant.integrations.avalanche import ContinualBackpropPlugin, MethodPlugin, PlasticityMetrics, UnitResetPlugin
from tests.integrations.killed import METHODS, OFTEN, differing, hooks, kill, process, replaced


def body():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh())


class Growing(nn.Module):
    """A classifier that grows when classes come, also when it is evaluated on them."""

    def __init__(self):
        super().__init__()
        self.body, self.head = body(), IncrementalClassifier(12, 2)

    def forward(self, x):
        return self.head(dropout(self.body(x), 0.1, self.training))


class Heads(MultiTaskModule):
    """A head for each task."""

    def __init__(self):
        super().__init__()
        self.body, self.head = body(), MultiHeadClassifier(12, 2)

    def forward(self, x, task_labels):
        return self.head(dropout(self.body(x), 0.1, self.training), task_labels)


MODELS = {"growing": Growing, "heads": Heads}
TASKS, EPOCHS = 3, 6


def benchmark(name):
    draw = torch.Generator().manual_seed(3)
    x, y = torch.randn(192, 6, generator=draw), torch.arange(192) % (2 * TASKS)
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    if name == "growing":
        datasets = dict.fromkeys(["train", "test"], as_classification_dataset(data))
        return class_incremental_benchmark(datasets, num_experiences=TASKS)
    return nc_benchmark(data, data, TASKS, task_labels=True, shuffle=False, class_ids_from_zero_in_each_exp=True)


def strategy(name, plugins, metrics=(), **settings):
    seed(0)
    model = MODELS[name]()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    settings = {"train_mb_size": 16, "train_epochs": EPOCHS, **settings}
    return Naive(
        model=model,
        optimizer=optimizer,
        criterion=nn.CrossEntropyLoss(),
        plugins=plugins,
        evaluator=EvaluationPlugin(*metrics, loggers=[]),
        **settings,
    )


def seed(number):
    torch.manual_seed(number), np.random.seed(number), random.seed(number)  # noqa: NPY002


def train(learner, name, until=TASKS, start=0, save=None):
    """As people do: evaluate on all that will come after each experience."""
    streams = benchmark(name)
    for number in range(start, until):
        learner.train(streams.train_stream[number])
        learner.eval(streams.test_stream)
        if save is not None:
            save_checkpoint(learner, save)
    return learner


def plugin_of(learner):
    (found,) = [each for each in learner.plugins if isinstance(each, MethodPlugin)]
    return found


class KillAt(SupervisedPlugin):
    def __init__(self, iteration):
        super().__init__()
        self.iteration = iteration

    def after_training_iteration(self, strategy, *args, **kwargs):
        if strategy.clock.train_iterations == self.iteration:
            kill()


# -- going on -----------------------------------------------------------------------------------------------------


def made(method):
    kind, settings = METHODS[method]
    return MethodPlugin(kind, **settings)


def start_and_die(method, name, file):
    """In a process of its own: killed in the third experience."""
    learner = strategy(name, [made(method), KillAt(4 * EPOCHS * 2 + 7)])
    train(learner, name, save=file)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_what_was_killed_goes_on_to_the_bit(method, name, tmp_path, monkeypatch):
    file = str(tmp_path / "checkpoint.pkl")
    assert process("test_avalanche", f"start_and_die({method!r}, {name!r}, {file!r})") == -signal.SIGKILL
    straight = train(strategy(name, [made(method)]), name)

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # Avalanche's loader does not say what it reads
    learner = strategy(name, [made(method)])
    seed(99)
    learner, start = maybe_load_checkpoint(learner, file)
    assert start == 2
    half = plugin_of(learner)._attachment.state_dict()
    train(learner, name, start=start)
    assert differing(straight.model.state_dict(), learner.model.state_dict()) == []
    if issubclass(METHODS[method][0], pliant.UnitReset):
        assert plugin_of(straight).method.stats() == plugin_of(learner).method.stats()
        before = min(sum(group["replaced"]) for group in half["counts"].values())
        assert before >= 20
        assert replaced(plugin_of(learner).method) - before >= 20
