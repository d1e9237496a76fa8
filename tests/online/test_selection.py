"""Examples can be picked from a data set as it lies: which, in what order, with which inputs where, and how large."""

import numpy as np
import pytest

from pliant.online import OnlineEnsemble

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (1, 50, 6)).astype(np.uint8)
LABELS = RNG.integers(0, 3, (1, 50))
SHAPE = {"inputs": 6, "hidden": (8,), "outputs": 3, "loss": "cross_entropy", "seed": 0}


def learners(kernel="rows", count=2, **settings):
    return OnlineEnsemble(**SHAPE, learners=count, kernel=kernel, step_size=0.05, **settings)


@pytest.mark.parametrize("kernel", ["rows", "lanes"])
def test_each_stream_has_its_order_and_its_permutation_of_one_data_set(kernel):
    rows = np.stack([RNG.integers(0, 50, 300), RNG.integers(0, 50, 300)])
    columns = np.stack([RNG.permutation(6), RNG.permutation(6)])
    picked = learners(kernel).partial_fit(PIXELS, LABELS, rows=rows, columns=columns, scale=1 / 255)
    X = np.stack([PIXELS[0][rows[s]][:, columns[s]] for s in range(2)]).astype(np.float32) * np.float32(1 / 255)
    y = np.stack([LABELS[0][rows[s]] for s in range(2)])
    plain = learners(kernel).partial_fit(X, y)
    np.testing.assert_array_equal(picked.loss, plain.loss)
    np.testing.assert_array_equal(picked.correct, plain.correct)
    assert picked.loss.shape == (2, 300)


def test_learners_choose_their_stream_and_what_is_not_given_stays_as_it_lies():
    columns = np.stack([np.arange(6), np.arange(6)[::-1]])
    a = learners(count=3).partial_fit(PIXELS, LABELS, [1, 0, 1], columns=columns, scale=0.01).loss
    X = (PIXELS.astype(np.float32) * np.float32(0.01)).repeat(2, axis=0)
    X[1] = X[1][:, ::-1]
    b = learners(count=3).partial_fit(X, LABELS.repeat(2, axis=0), [1, 0, 1]).loss
    np.testing.assert_array_equal(a, b)


def test_numbers_that_are_no_bytes_are_picked_too_and_so_are_targets():
    shape = SHAPE | {"outputs": 2, "loss": "squared_error"}
    X, y, rows = RNG.random((1, 50, 6)), RNG.random((1, 50, 2)), RNG.integers(0, 50, (1, 5000))
    a = OnlineEnsemble(**shape, learners=1, dtype=np.float64).partial_fit(X, y, rows=rows).loss
    b = OnlineEnsemble(**shape, learners=1, dtype=np.float64).partial_fit(X[:, rows[0]], y[:, rows[0]]).loss
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("settings", "message"), [
    ({"rows": [[0, 50]]}, r"rows\[0, 1\] is 50, but the examples of X are 0 to 49"),
    ({"rows": [[-1]]}, r"rows\[0, 0\] is -1"),
    ({"rows": [0, 1]}, r"rows has shape \(2,\)"),
    ({"rows": [[0.5]]}, "type float64; expected indices"),
    ({"columns": [[0, 1, 2]]}, r"columns has shape \(1, 3\); expected \(streams, 6\)"),
    ({"columns": [[0, 1, 2, 3, 4, 6]]}, r"columns\[0, 5\] is 6, but the inputs are 0 to 5"),
    ({"rows": [[0]] * 3, "columns": [list(range(6))] * 2}, "columns has 2 streams; expected 1 or 3"),
    ({"rows": [[0]] * 3}, "X has 3 streams for 2 learners"),
    ({"scale": np.inf}, "scale must be finite"),
])  # fmt: skip
def test_a_selection_that_cannot_be_meant_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        learners().partial_fit(PIXELS, LABELS, **settings)


def test_a_network_is_asked_as_it_was_taught():
    """Bytes that were permuted and scaled to learn from are so to predict, and the answers go with the rows picked."""
    draw = np.random.default_rng(0)
    X, y = draw.integers(0, 256, (1, 40, 6), dtype=np.uint8), draw.integers(0, 3, (1, 40))
    rows, columns = draw.integers(0, 40, (2, 15)), np.stack([draw.permutation(6) for _ in range(2)])
    learners = OnlineEnsemble(inputs=6, hidden=[8], outputs=3, learners=2, seed=0, loss="cross_entropy", kernel="rows")
    picked = {"rows": rows, "columns": columns, "scale": 1 / 255}
    learners.partial_fit(X, y, **picked)
    by_hand = np.stack([X[0][r][:, c] for r, c in zip(rows, columns, strict=True)]) * np.float32(1 / 255)
    for mine, plain in zip(learners.activations(X, **picked), learners.activations(by_hand), strict=True):
        np.testing.assert_array_equal(mine, plain)
    np.testing.assert_array_equal(learners.score(X, y, **picked), learners.score(by_hand, y[0][rows]))
    assert not np.array_equal(learners.activations(X, rows=rows)[-1], learners.activations(by_hand)[-1])
