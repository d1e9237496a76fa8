"""Every method keeps every promise: one grid (`promises.py`), of 10 methods, 4 networks, 3 optimizers and 22 promises.

By default 185 of its 2,220 cells run, about a minute of one core; `make slow` runs the others.
"""

import pytest

from tests.methods.promises import METHODS, PROMISES, broken, ranks_stay_equal
from tests.methods.runs import NETWORKS, OPTIMIZERS, Cell
from tests.ranks import on_ranks

PAIRS = [(network, optimizer) for network in NETWORKS for optimizer in OPTIMIZERS]


def cells():
    """By default a method keeps a promise on one network with one optimizer, the next one on others; the rest is slow."""
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


@pytest.mark.parametrize(
    ("promise", "method"),
    [
        pytest.param(promise, method, id=f"{promise.__name__}: {method.name}, for {method.cannot[promise.__name__]}")
        for method in METHODS
        for promise in PROMISES
        if promise.__name__ in method.cannot
    ],
)
def test_what_a_method_is_said_not_to_keep_it_does_not_keep(promise, method):
    """Else it is time to take the line out of its row."""
    assert broken(promise, Cell(method, "mlp", "adam"))


def test_every_reason_is_for_a_promise():
    names = {promise.__name__ for promise in PROMISES}
    assert all(names >= set(method.cannot) for method in METHODS)


def test_by_default_every_method_meets_every_pair_of_network_and_optimizer():
    today = [each.values for each in cells() if not each.marks]
    for method in METHODS:
        met = {(cell.network, cell.optimizer) for _, cell in today if cell.method is method}
        assert met == set(PAIRS)


# -- several ranks -------------------------------------------------------------------------------------------------------


def a_rank(rank, folder, cells):
    for row, pair in cells:
        ranks_stay_equal(Cell(METHODS[row], *pair), rank)


def test_ranks_of_a_data_parallel_model_stay_equal_with_every_method(tmp_path):
    on_ranks(a_rank, tmp_path, [(row, PAIRS[(5 * row) % len(PAIRS)]) for row in range(len(METHODS))])


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=", ".join)
def test_ranks_stay_equal_on_every_network_with_every_optimizer(pair, tmp_path):
    on_ranks(a_rank, tmp_path, [(row, pair) for row in range(len(METHODS))])
