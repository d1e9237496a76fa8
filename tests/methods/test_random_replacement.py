"""Random replacement is continual backpropagation with another choice: as many units, at the same steps."""

import torch

from pliant import ContinualBackprop, RandomReplacement
from tests.networks import ages, batch, enough, mlp, train

OFTEN = {"replacement_rate": 0.05, "maturity_threshold": 5, "example_inputs": torch.zeros(2, 6)}


def trained(kind, **settings):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
    method = kind(model, optimizer, **OFTEN, **settings)
    train(model, optimizer, range(80))
    enough(method)
    return model, method


def test_as_many_units_go_at_the_same_steps_as_under_continual_backprop():
    (_, chance), (_, useful) = trained(RandomReplacement, seed=1), trained(ContinualBackprop, seed=1)
    assert chance.stats() == useful.stats()
    assert not torch.equal(ages(chance), ages(useful))  # others


def test_every_mature_unit_is_as_likely_to_go():
    """One of 12 units in each of 600 draws: 50 each, and within five standard deviations of it."""
    counts = torch.zeros(12)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    method = RandomReplacement(
        model, optimizer, example_inputs=torch.zeros(2, 6), replacement_rate=1 / 12 + 1e-9, maturity_threshold=0, seed=1
    )
    for step in range(600):
        model(batch(step, (6,))[0]).sum().backward()
        optimizer.step()
        counts += ages(method)[0] == 0
    assert counts.sum() == 600
    assert (counts - 50).abs().max() < 5 * (600 / 12 * 11 / 12) ** 0.5
