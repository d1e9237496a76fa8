"""Every method keeps every promise: one grid (`promises.py`), of 25 methods, 4 networks, 3 optimizers and 22 promises.

By default 341 of its 5,820 cells run, a minute and a half of one core; `make slow` runs the others.
"""

from itertools import permutations

import pytest

from tests.methods.promises import (
    BESIDE,
    METHODS,
    OF_THE_ENGINE,
    PROMISES,
    broken,
    ranks_stay_equal,
    together_they_train_and_resume_to_the_bit,
)
from tests.methods.runs import NETWORKS, OPTIMIZERS, Cell
from tests.ranks import on_ranks

PAIRS = [(network, optimizer) for network in NETWORKS for optimizer in OPTIMIZERS]


def cells():
    """By default a method keeps a promise on one network with one optimizer, the next one on others; the rest is slow.

    So is what the engine keeps, but for one promise in eight, of a method like another whose row asks them all.
    """
    found = []
    for row, method in enumerate(METHODS):
        kept = [promise for promise in PROMISES if promise.__name__ not in method.cannot]
        asked = [
            promise
            for number, promise in enumerate(kept)
            if not method.like or promise not in OF_THE_ENGINE or (row + number) % 8 == 0
        ]
        for promise in kept:
            for place, pair in enumerate(PAIRS):
                today = promise in asked and place == (row + 5 * asked.index(promise)) % len(PAIRS)
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


def test_by_default_every_method_meets_every_pair_of_network_and_optimizer_and_every_kind_meets_every_promise():
    today = [each.values for each in cells() if not each.marks]
    by_name = {method.name: method for method in METHODS}
    for method in METHODS:
        met = {(cell.network, cell.optimizer) for _, cell in today if cell.method is method}
        asked = {promise for promise, cell in today if cell.method is method}
        if method.like:
            assert {network for network, _ in met} == set(NETWORKS)
            assert {optimizer for _, optimizer in met} == set(OPTIMIZERS)
            assert not by_name[method.like].like
        else:
            assert met == set(PAIRS)
            assert asked == {promise for promise in PROMISES if promise.__name__ not in method.cannot}


# -- pairs ---------------------------------------------------------------------------------------------------------------


def pairs():
    """By default each method after continual backprop, each on a network and an optimizer of its own; all others are slow."""
    found = []
    for first, second in permutations(METHODS, 2):
        if first.is_a_call or second.is_a_call or {first.name, second.name} == {"grama", "grama by activity"}:
            continue  # the two refuse one another: each would reset the units at its own rate
        today = first is BESIDE
        cell = Cell(second, *PAIRS[(7 * METHODS.index(second)) % len(PAIRS)])
        name = f"{first.name}, then {second.name}: {cell.network}, {cell.optimizer}"
        found.append(pytest.param(cell, [first, second], marks=() if today else pytest.mark.slow, id=name))
    return found


@pytest.mark.parametrize(("cell", "rows"), pairs())
def test_two_methods_train_together_and_resume(cell, rows):
    together_they_train_and_resume_to_the_bit(cell, rows)


# -- several ranks -------------------------------------------------------------------------------------------------------


def a_rank(rank, folder, cells):
    for row, pair in cells:
        ranks_stay_equal(Cell(METHODS[row], *pair), rank)


def test_ranks_of_a_data_parallel_model_stay_equal(tmp_path):
    asked = [row for row, method in enumerate(METHODS) if not method.like or row % 2]
    on_ranks(a_rank, tmp_path, [(row, PAIRS[(5 * row) % len(PAIRS)]) for row in asked])


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=", ".join)
def test_ranks_stay_equal_on_every_network_with_every_optimizer(pair, tmp_path):
    on_ranks(a_rank, tmp_path, [(row, pair) for row in range(len(METHODS))])
