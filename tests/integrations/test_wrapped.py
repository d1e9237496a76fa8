"""Models as Fabric and Accelerate give them, probed, diagnosed, examined and monitored.

In the environment of `make integrations`.
"""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import pliant

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]


def fabric(precision):
    library = pytest.importorskip("lightning.fabric", reason="Lightning is not installed: make integrations")

    def setup(model, optimizer):
        found = library.Fabric(accelerator="cpu", precision=precision)
        return *found.setup(model, optimizer), found.backward

    return setup


def accelerate(precision):
    library = pytest.importorskip("accelerate", reason="Accelerate is not installed: make integrations")

    def prepare(model, optimizer):
        library.state.AcceleratorState._reset_state(True)
        found = library.Accelerator(cpu=True, mixed_precision=precision)
        return *found.prepare(model, optimizer), found.backward

    return prepare


WAYS = {
    "Fabric": (fabric, "32-true"),
    "Fabric, bf16": (fabric, "bf16-mixed"),
    "Accelerate": (accelerate, "no"),
    "Accelerate, bf16": (accelerate, "bf16"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_wrapped_model_is_probed_diagnosed_examined_and_monitored_and_stays_as_it_is(way, compiled):
    library, precision = WAYS[way]
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(64, 6)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    given = torch.compile(network, backend="eager") if compiled else network
    model, optimizer, backward = library(precision)(given, torch.optim.Adam(network.parameters(), lr=0.01))
    monitor = pliant.Monitor(model, optimizer, x[:4], every=1)
    for _ in range(2):
        optimizer.zero_grad()
        backward(cross_entropy(model(x), y))
        optimizer.step()
    optimizer.zero_grad()
    assert [row["n"] for row in monitor.rows] == [64, 64]
    monitor.detach()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    diagnosis = pliant.diagnose(model, x, y, loss=cross_entropy, optimizer=optimizer)
    assert diagnosis.reference is not None
    quick = {"optimizer": optimizer, "seeds": 3, "progress": False}
    probe = pliant.probe_plasticity(model, x, y, tasks="own", factors=(1.0,), budget=800, **quick)
    assert (probe.optimizer, list(probe.tasks["own"].sides)[:2]) == ("Adam", ["fresh", "model"])
    first, *_, last = probe.tasks["own"].sides["model"].curve
    assert last < first  # the copies learn
    assert pliant.examine(model, x, y, budget=5400, **quick).notes == []
    for parameter, value in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.grad is None
