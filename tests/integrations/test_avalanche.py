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

from tests.integrations import avalanche_of_today  # noqa: F401  (before Avalanche is imported)

pytest.importorskip("avalanche", reason="Avalanche is not installed: make integrations")

from avalanche.benchmarks import nc_benchmark
from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint
from avalanche.core import SupervisedPlugin
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from avalanche.training.plugins import AGEMPlugin, EvaluationPlugin, LwFPlugin
from avalanche.training.supervised import Naive

import pliant
from pliant.integrations.avalanche import ContinualBackpropPlugin, MethodPlugin, PlasticityMetrics
from tests.integrations.killed import METHODS, OFTEN, differing, hooks, kill, process, replaced

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]


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
    heads = name == "heads"
    return nc_benchmark(data, data, TASKS, task_labels=heads, shuffle=False, class_ids_from_zero_in_each_exp=heads)


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
    learner.plugins = [each for each in learner.plugins if not isinstance(each, KillAt)]
    half = plugin_of(learner)._attachment.state_dict()
    train(learner, name, start=start)
    assert differing(straight.model.state_dict(), learner.model.state_dict()) == []
    if issubclass(METHODS[method][0], pliant.UnitReset):
        assert plugin_of(straight).method.stats() == plugin_of(learner).method.stats()
        before = min(sum(group["replaced"]) for group in half["counts"].values())
        assert before >= 20
        assert replaced(plugin_of(learner).method) - before >= 20


@pytest.mark.parametrize("name", MODELS)
def test_rate_zero_leaves_training_the_same_to_the_bit(name):
    plain = train(strategy(name, []), name)
    plugin = ContinualBackpropPlugin(replacement_rate=0.0)
    watched = train(strategy(name, [plugin], [PlasticityMetrics("epoch")]), name)
    assert differing(plain.model.state_dict(), watched.model.state_dict()) == []
    assert {group["steps"] for group in plugin.method.stats().values()} == {4 * EPOCHS * TASKS}


# -- models that grow ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_units_that_stayed_keep_their_ages_and_utilities_when_a_model_grows(name):
    class Look(SupervisedPlugin):
        def after_training_exp(self, strategy, *args, **kwargs):
            before.append((plugin.method.ages(), plugin.method.utilities()))

        def before_forward(self, strategy, *args, **kwargs):
            if len(before) > len(after):
                after.append((plugin.method.ages(), plugin.method.utilities()))

    before, after = [], []
    plugin = ContinualBackpropPlugin(**OFTEN)
    train(strategy(name, [plugin, Look()]), name)
    assert len(after) == TASKS - 1
    for then, now in zip(before, after, strict=False):
        for one, other in zip(then, now, strict=True):
            assert one.keys() == other.keys() == {"body.0", "body.2"}
            assert all(torch.equal(one[group], other[group]) for group in one)


def test_units_are_known_to_feed_the_head_of_every_task_so_far():
    plugin = ContinualBackpropPlugin(**OFTEN)
    train(strategy("heads", [plugin]), "heads")
    (row,) = [row.group for row in plugin.method.plan.rows if row.group.name == "body.2"]
    assert [each.parameter for each in row.outgoing] == [
        f"head.classifiers.{k}.classifier.weight" for k in range(TASKS)
    ]


def test_an_evaluation_in_between_is_not_recorded_and_neither_is_what_other_plugins_run():
    class Seen(SupervisedPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            rows.update(plugin.method.recorded().values())

    rows, plugin = set(), ContinualBackpropPlugin(**OFTEN)
    gem = AGEMPlugin(patterns_per_experience=8, sample_size=8)
    train(strategy("growing", [plugin, gem, Seen()], eval_every=1), "growing")
    assert rows == {16}
    assert replaced(plugin.method) >= 20


def test_a_plugin_that_copies_the_model_copies_no_method():
    plugin, lwf = ContinualBackpropPlugin(**OFTEN), LwFPlugin(alpha=1, temperature=2)
    learner = train(strategy("growing", [plugin, lwf]), "growing")
    steps = plugin.method.stats()
    lwf.lwf.prev_model(torch.randn(4, 6)).sum().backward()
    copy.deepcopy(learner.model)(torch.randn(4, 6)).sum().backward()
    assert max(plugin.method.recorded().values()) == 0
    assert plugin.method.stats() == steps


# -- the end, and metrics -----------------------------------------------------------------------------------------


def test_detaching_leaves_no_hook_and_training_attaches_again():
    plugin = ContinualBackpropPlugin(**OFTEN)
    learner = strategy("growing", [plugin])
    train(learner, "growing", until=1)
    assert hooks(learner.model, learner.optimizer) > 0
    plugin.detach()
    assert hooks(learner.model, learner.optimizer) == 0
    train(learner, "growing", until=2, start=1)
    assert {group["steps"] for group in plugin.method.stats().values()} == {4 * EPOCHS * 2}


def test_two_plugins_act_side_by_side():
    plugins = [ContinualBackpropPlugin(**OFTEN), MethodPlugin(pliant.L2, strength=0.1)]
    learner = train(strategy("growing", plugins), "growing")
    assert replaced(plugins[0].method) >= 20
    plain = train(strategy("growing", [ContinualBackpropPlugin(**OFTEN)]), "growing")
    sizes = [sum(p.square().sum() for p in each.model.parameters()) for each in (learner, plain)]
    assert sizes[0] < sizes[1]


def test_plasticity_is_a_metric():
    class Deaden(SupervisedPlugin):
        def after_training_epoch(self, strategy, *args, **kwargs):
            with torch.no_grad():
                strategy.model.body[0].bias[:8] = -1e6

    metric = PlasticityMetrics()
    learner = strategy("growing", [Deaden()], [metric])
    found = learner.train(benchmark("growing").train_stream[0])
    shares = {name: value for name, value in found.items() if name.startswith("Plasticity")}
    assert shares == {
        f"Plasticity_{name}/train_phase/train_stream/Task000": value for name, value in metric.result().items()
    }
    assert shares["Plasticity_dead_share/train_phase/train_stream/Task000"] >= 8 / 28


# -- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContinualBackpropPlugin(replacement_rate=2.0), r"replacement_rate must lie in \[0, 1\], got 2.0"),
        (lambda: ContinualBackpropPlugin(replacment_rate=0.1), "did you mean 'replacement_rate'"),
        (lambda: MethodPlugin(pliant.L2), "strength"),
        (lambda: MethodPlugin(None), "method must be one that is attached to a model"),
        (lambda: MethodPlugin(pliant.ReDo, example_inputs=lambda: 1), "example_inputs is called with 1 argument"),
        (lambda: PlasticityMetrics("iteration"), "unknown at 'iteration'"),
    ],
)
def test_bad_settings_are_refused_at_construction(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_state_of_other_units_is_refused_and_leaves_no_hook():
    plugin, other = ContinualBackpropPlugin(**OFTEN), ContinualBackpropPlugin(**OFTEN)
    train(strategy("growing", [plugin]), "growing", until=1)
    other.load_state_dict(plugin.state_dict())
    learner = strategy("growing", [other])
    learner.model.body[0], learner.model.body[2] = nn.Linear(6, 9), nn.Linear(9, 12)
    learner.optimizer.param_groups[0]["params"] = list(learner.model.parameters())
    with pytest.raises(ValueError, match="saved for other units"):
        train(learner, "growing", until=1)
    assert hooks(learner.model, learner.optimizer) == 0


def test_a_version_that_is_not_tested_is_refused(monkeypatch):
    monkeypatch.setattr("pliant.base.install.version", lambda package: "0.7.1")
    with pytest.raises(RuntimeError, match=r"avalanche-lib 0\.7\.1 is installed, and the adapter is tested with"):
        ContinualBackpropPlugin()
