"""Wrapped models: diagnosed, probed, examined and monitored as what they hold, or refused in one sentence."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import pliant

QUICK = {"seeds": 3, "factors": (1.0,), "budget": 800, "tasks": "own", "progress": False}


def built():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def network():
    torch.manual_seed(0)
    return built()


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


class LikeFabric(nn.Module):
    """What `fabric.setup(model)` gives: both names of the model, forwards through the first, other attributes of the second."""

    def __init__(self, model, strategy=lambda model: model):
        super().__init__()
        self._forward_module = strategy(model)
        self._original_module = model

    def forward(self, *arguments):
        return self._forward_module(*arguments)

    def state_dict(self, **given):
        return self._original_module.state_dict(**given)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_original_module"), name)


class LikeFabricOptimizer:
    """A class of its own for each optimizer, whose attributes are those of the optimizer inside."""

    def __init__(self, optimizer):
        self._optimizer = optimizer
        self.__class__ = type("FabricAdam", (LikeFabricOptimizer, type(optimizer)), {})

    @property
    def optimizer(self):
        return self._optimizer

    def step(self, closure=None):
        return self._optimizer.step(closure)

    def __getattr__(self, name):
        return getattr(self._optimizer, name)


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "Fabric": LikeFabric,
    "Fabric, in parallel": lambda model: LikeFabric(model, nn.DataParallel),
    "Fabric, compiled": lambda model: LikeFabric(model, lambda each: torch.compile(each, backend="eager")),
    "Fabric of a compiled one": lambda model: LikeFabric(torch.compile(model, backend="eager")),
    "compiled Fabric": lambda model: torch.compile(LikeFabric(model), backend="eager"),
}


@pytest.fixture(scope="module")
def plain():
    model, (x, y) = network(), data()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    monitor, rows = monitored(model, model, optimizer, x, y)
    monitor.detach()
    probe = pliant.probe_plasticity(model, x, y, optimizer=optimizer, **QUICK)
    return rows, pliant.diagnose(model, x, y, loss=functional.cross_entropy, optimizer=optimizer), probe


def monitored(model, called, optimizer, x, y):
    monitor = pliant.Monitor(model, optimizer, x[:4], every=1)
    optimizer.zero_grad()
    functional.cross_entropy(called(x), y).backward()
    optimizer.step()
    return monitor, [{**row, "group": ""} for row in monitor.rows]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_gives_the_numbers_of_what_it_holds(wrapper, plain):
    rows, diagnosis, probe = plain
    model, (x, y) = WRAPPERS[wrapper](network()), data()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    if wrapper.startswith("Fabric"):
        optimizer = LikeFabricOptimizer(optimizer)
    monitor, found = monitored(model, model, optimizer, x, y)
    monitor.detach()
    assert found == rows
    found = pliant.diagnose(model, x, y, loss=functional.cross_entropy, optimizer=optimizer)
    for one, other in ((found, diagnosis), (found.reference, diagnosis.reference)):
        assert [{**each, "group": ""} for each in one.records()] == [{**each, "group": ""} for each in other.records()]
    found = pliant.probe_plasticity(model, x, y, optimizer=optimizer, **QUICK)
    assert found.records() == probe.records()


def test_a_wrapped_model_is_examined():
    model, (x, y) = LikeFabric(network()), data()
    optimizer = LikeFabricOptimizer(torch.optim.Adam(model.parameters(), lr=0.01))
    found = pliant.examine(model, x, y, optimizer=optimizer, seeds=3, budget=3600, progress=False)
    assert found.notes == []
    assert len(found.diagnosis.rows) == 1


class DeepSpeedEngine(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.module = model

    def forward(self, x):
        return self.module(x)


@pytest.mark.parametrize("act", [pliant.diagnose, pliant.probe_plasticity, pliant.examine, pliant.Monitor])
def test_a_wrapper_that_shards_the_model_is_refused(act):
    model, (x, y) = LikeFabric(network(), DeepSpeedEngine), data()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    given = (model, optimizer, x) if act is pliant.Monitor else (model, x)
    with pytest.raises(
        ValueError, match=r"^'_forward_module' is sharded \(DeepSpeedEngine\): .* Use DistributedDataParallel$"
    ):
        act(*given, **({} if act in (pliant.Monitor, pliant.diagnose) else {"y": y, "optimizer": optimizer}))


def test_a_forward_that_is_a_function_around_the_model_s_own_is_refused_where_copies_would_run_the_model():
    model, (x, y) = network(), data()
    before, own = copy.deepcopy(model.state_dict()), model.forward
    model.forward = lambda values: own(values.float())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with pytest.raises(ValueError, match=r"^Sequential cannot be copied: 'forward' is a function that holds the model"):
        pliant.probe_plasticity(model, x, y, optimizer=optimizer, fresh=built, **QUICK)
    assert all(torch.equal(model.state_dict()[name], each) for name, each in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
