"""Every method keeps every promise: one grid (`promises.py`)."""

import pytest

from tests.methods.promises import METHODS, NETWORKS, OPTIMIZERS, PROMISES, Cell

PAIRS = [(network, optimizer) for network in NETWORKS for optimizer in OPTIMIZERS]


def cells():
    """By default a method keeps a promise on one pair of network and optimizer, and the next promise on another; the rest is slow."""
    found = []
    for row, method in enumerate(METHODS):
        kept = [promise for promise in PROMISES if promise.__name__ not in method.cannot]
        for number, promise in enumerate(kept):
            for place, pair in enumerate(PAIRS):
                today = place == (row + 5 * number) % len(PAIRS)
                marks = () if today else pytest.mark.slow
                cell = Cell(method, *pair)
                found.append(pytest.param(promise, cell, marks=marks, id=f"{promise.__name__}: {cell}"))
    return found


@pytest.mark.parametrize(("promise", "cell"), cells())
def test_every_method_keeps_every_promise(promise, cell):
    promise(cell)


def test_by_default_every_method_meets_every_pair_of_network_and_optimizer():
    today = [each.values for each in cells() if not each.marks]
    for method in METHODS:
        met = {(cell.network, cell.optimizer) for _, cell in today if cell.method is method}
        assert met == set(PAIRS)
