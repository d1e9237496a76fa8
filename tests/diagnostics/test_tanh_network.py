"""A tanh network that has learned many tasks of random labels: no unit is dead or dormant, and yet the table shows it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pliant import Monitor, data, diagnose

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not data.available("mnist"), reason="MNIST is not here: see pliant data list"),
]
IMAGES, EPOCHS, TASKS = 500, 20, 60


def accuracies(model, optimizer, images, tasks):
    """The accuracy in the last epoch of each task: other images and drawn labels."""
    draws, found = torch.Generator().manual_seed(0), []
    for _ in range(tasks):
        x = images[torch.randint(len(images), (IMAGES,), generator=draws)]
        y = torch.randint(10, (IMAGES,), generator=draws)
        for _ in range(EPOCHS):
            hits = 0
            for batch in torch.randperm(IMAGES, generator=draws).split(32):
                output = model(x[batch])
                optimizer.zero_grad()
                F.cross_entropy(output, y[batch]).backward()
                optimizer.step()
                hits += int((output.argmax(1) == y[batch]).sum())
        found.append(hits / IMAGES)
    return found


def test_the_tanh_network_stands_out_beside_a_fresh_one(caplog):
    torch.manual_seed(0)
    images = torch.as_tensor(data.load("mnist").train.pixels[:]).flatten(1).float() / 255
    model = nn.Sequential(nn.Linear(784, 100), nn.Tanh(), nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    Monitor(model, optimizer, images[:2], every=500)
    curve = accuracies(model, optimizer, images, TASKS)
    assert max(curve) - curve[-1] > 0.1  # it learns worse
    y = torch.randint(10, (512,), generator=torch.Generator().manual_seed(1))
    found = diagnose(model, images[:512], y, loss=F.cross_entropy, optimizer=optimizer, sharpness=True)
    for row, fresh in zip(found.rows, found.reference.rows, strict=True):
        assert (row.dead, row.dormant_by_activity, row.linearized) == (
            0,
            0,
            None,
        )  # what was measured before shows little
        assert row.saturated <= 0.15 * row.units
        assert row.effective_rank > 0.5 * fresh.effective_rank
        assert row.preactivation_std > 10 * fresh.preactivation_std
        assert row.saturation > 0.4
        assert fresh.saturation == 0.0
        assert row.weight_growth > 3
        assert row.update_ratio < 0.2 * fresh.update_ratio
    assert found.network.sharpness > 5 * found.reference.network.sharpness
    assert found.network.plasticity < found.reference.network.plasticity
    assert any("of the activity is at a flat end" in line for line in found.alarms())
    assert "(at ends)" in caplog.text  # the Monitor said so while it trained
