"""Noise that is drawn when a row is next used has the distribution of noise drawn for every weight at every step."""

import math

import numpy as np
import pytest

from pliant import streams
from pliant.online import OnlineEnsemble, fresh_weights
from pliant.online.noise import REFRESH, fill_normals

SIGMA, STEP, DECAY = 0.05, 0.02, 2.0  # a step keeps 0.96 of a weight


def learners(kernel="rows", **settings):
    common = {"inputs": 4, "hidden": (5, 4), "outputs": 2, "learners": 2, "seed": 0, "dtype": np.float64}
    common |= {"step_size": STEP, "noise_std": SIGMA, "weight_decay": DECAY}
    return OnlineEnsemble(**(common | settings), kernel=kernel)


def examples(n, inputs=4, outputs=2):
    """Input 1 is there at every seventh step only, the last input never."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(1, n, inputs))
    X[:, np.arange(n) % 7 != 3, 1] = 0
    X[:, :, -1] = 0
    return X, rng.normal(size=(1, n, outputs))


def distance(a, b):
    """Kolmogorov and Smirnov's distance of two samples."""
    both = np.sort(np.concatenate([a, b]))
    of = [np.searchsorted(np.sort(sample), both, side="right") / len(sample) for sample in (a, b)]
    return np.abs(of[0] - of[1]).max()


def distance_from_normal(sample):
    ordered, n = np.sort(sample), len(sample)
    cdf = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in ordered])
    return max((np.arange(1, n + 1) / n - cdf).max(), (cdf - np.arange(n) / n).max())


def test_the_numbers_are_standard_normal_and_independent():
    z = np.zeros(200_000, np.float32)
    fill_normals(np.uint64(streams.stream_key(0, "noise")), np.uint64(5), z)
    assert distance_from_normal(z.astype(np.float64)) < 1.95 / math.sqrt(len(z))  # one sample in 1,000 lies farther
    first, second = z[:100_000], z[100_000:]
    for a, b in ((first, second), (z[1:], z[:-1]), (first**2, second**2)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.012
    assert z.max() > 4
    assert z.min() < -4


def test_a_row_that_is_never_used_has_shrunk_and_walked_as_far_as_if_disturbed_at_every_step():
    T, many = 250, 400
    net = learners(learners=many, noise_std=SIGMA)
    before = net.weights(0)[:, -1]
    net.partial_fit(*examples(T))
    keep = 1 - STEP * DECAY
    std = SIGMA * math.sqrt((1 - keep ** (2 * T)) / (1 - keep**2))
    moved = (net.weights(0)[:, -1] - keep**T * before) / std
    assert distance_from_normal(moved.ravel()) < 1.95 / math.sqrt(moved.size)
    assert moved.std() == pytest.approx(1, abs=4 / math.sqrt(2 * moved.size))
    assert np.abs(np.corrcoef(moved.T) - np.eye(5)).max() < 4.5 / math.sqrt(many)


def test_every_weight_is_distributed_as_under_noise_drawn_at_every_step():
    X, y = examples(60)
    lazy, plain = (learners(kernel, learners=2000, activation="tanh") for kernel in ("rows", "lanes"))
    losses = [net.partial_fit(X, y).loss for net in (lazy, plain)]
    bound = 1.95 * math.sqrt(2 / 2000)
    for layer in range(3):
        a, b = (np.concatenate([net.weights(layer), net.biases(layer)[:, None]], axis=1) for net in (lazy, plain))
        for i in range(a.shape[1]):
            for k in range(a.shape[2]):
                assert distance(a[:, i, k], b[:, i, k]) < bound
                assert a[:, i, k].std() == pytest.approx(b[:, i, k].std(), rel=0.1)
    assert distance(losses[0][:, -1], losses[1][:, -1]) < bound


def settle(W, b, used, settled, bias_settled, t, place, std, keep, key, row_count):
    """The noise of the missed steps, by the equation of the module."""
    for j in [*np.flatnonzero(used), len(W)]:
        first = settled[j] if j < len(W) else bias_settled[0]
        k = t - first
        if k == 0:
            continue
        z = np.zeros(2 * 16, np.float32)
        fill_normals(key, np.uint64((t * row_count + place + j) * 16), z)
        size = std * math.sqrt(sum(keep ** (2 * m) for m in range(k)))
        row = W[j] if j < len(W) else b
        row += size * z[: W.shape[1]].astype(np.float64)
        if j < len(W):
            settled[j] = t
        else:
            bias_settled[0] = t


def test_a_learner_is_the_plain_loop_that_settles_rows_by_the_equation():
    T, sizes, keep = 500, [4, 5, 4, 2], 1 - STEP * DECAY
    X, y = examples(T)
    online = learners(learners=1)
    key, rows = np.uint64(streams.stream_key(0, "noise")), sum(n + 1 for n in sizes[:-1])
    Ws, bs = [online.weights(i)[0] for i in range(3)], [online.biases(i)[0] for i in range(3)]
    settled, bias_settled = [np.zeros(n, int) for n in sizes[:-1]], [[0] for _ in range(3)]
    places = [0, 5, 11]
    losses = []
    for t in range(T):
        h = [X[0, t]]
        for i in range(3):
            settle(Ws[i], bs[i], h[i] != 0, settled[i], bias_settled[i], t, places[i], SIGMA, keep, key, rows)
            z = h[i] @ Ws[i] + bs[i]
            h.append(np.maximum(z, 0) if i < 2 else z)
        losses.append(np.mean((h[3] - y[0, t]) ** 2))
        g = h[3] - y[0, t]
        for i in (2, 1, 0):
            down = (Ws[i] @ g) * (h[i] > 0)
            Ws[i] -= STEP * (np.outer(h[i], g) + DECAY * Ws[i])
            bs[i] -= STEP * (g + DECAY * bs[i])
            g = down
    for i in range(3):
        settle(Ws[i], bs[i], np.ones(sizes[i]), settled[i], bias_settled[i], T, places[i], SIGMA, keep, key, rows)
    np.testing.assert_allclose(online.partial_fit(X, y).loss[0], losses, rtol=0, atol=1e-8)
    for i in range(3):
        np.testing.assert_allclose(online.weights(i)[0], Ws[i], rtol=0, atol=1e-8)
        np.testing.assert_allclose(online.biases(i)[0], bs[i], rtol=0, atol=1e-8)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_neither_cuts_nor_readers_change_anything(optimizer):
    X, y = examples(2 * REFRESH + 300)
    shape = {"optimizer": optimizer, "replacement_rate": 0.01, "maturity_threshold": 20, "weight_decay": 0.01}
    straight, cut = learners(**shape), learners(**shape)
    whole = straight.partial_fit(X, y).loss
    pieces = []
    for a, b in ((0, 1), (1, 10), (10, 20), (20, 999), (999, 1000), (1000, 1300), (1300, 2300)):
        pieces.append(cut.partial_fit(X[:, a:b], y[:, a:b]).loss)
        cut.weights(0)
        cut.predict(X[:, :3])
        saved, cut = cut.state_dict(), learners(**shape)
        cut.load_state_dict(saved)
    assert (straight.replacements >= 20).all()
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
    for name, value in straight.state_dict().items():
        np.testing.assert_array_equal(cut.state_dict()[name], value, err_msg=name)
    for layer in range(3):
        np.testing.assert_array_equal(straight.weights(layer), cut.weights(layer))


def test_a_row_that_is_not_used_is_not_touched_and_readers_see_it_move_all_the_same():
    net = learners(learners=1, weight_decay=0.0)
    X, y = examples(3 * REFRESH // 2)
    first = net.state_dict()["parameters"][0, : 4 * 16].reshape(4, 16)
    net.partial_fit(X[:, : REFRESH - 1], y[:, : REFRESH - 1])
    stored = net.state_dict()["parameters"][0, : 4 * 16].reshape(4, 16)
    np.testing.assert_array_equal(stored[3], first[3])
    assert (stored[0, :5] != first[0, :5]).all()
    seen = net.weights(0)[0, 3]
    assert (seen != first[3, :5]).all()
    np.testing.assert_array_equal(net.weights(0)[0, 3], seen)
    net.partial_fit(X[:, REFRESH - 1 :], y[:, REFRESH - 1 :])
    assert (net.state_dict()["parameters"][0, : 4 * 16].reshape(4, 16)[3, :5] != first[3, :5]).all()


def stored(net, layer):
    """Weights of learner 0 as they lie, without the noise that a row has missed."""
    state, sizes = net.state_dict(), net.sizes
    widths = [-(-n // 16) * 16 for n in sizes]
    begin = sum((m + 1) * w for m, w in zip(sizes[:layer], widths[1 : layer + 1], strict=True))
    matrix = state["parameters"][0, begin : begin + (sizes[layer] + 1) * widths[layer + 1]]
    return matrix.reshape(-1, widths[layer + 1])[:-1, : sizes[layer + 1]]


@pytest.mark.parametrize("more", [{}, {"dropout": 0.4}, {"optimizer": "adam"}])
@pytest.mark.parametrize("utility", ["contribution", "adaptable_contribution"])
def test_sums_that_are_kept_follow_the_noise(more, utility):
    X, y = examples(REFRESH - 50)
    net = learners(utility=utility, replacement_rate=0.01, maturity_threshold=20, **more)
    net.partial_fit(X, y)
    assert (net.replacements >= 20).all()
    state = net.state_dict()
    rows, columns = (state[name][0].reshape(3, 16) for name in ("row_sum", "column_sum"))
    for layer in range(3):
        W = np.abs(stored(net, layer))
        np.testing.assert_allclose(rows[layer, : len(W)], W.sum(axis=1), rtol=1e-9, atol=1e-9)
        if utility == "adaptable_contribution":
            np.testing.assert_allclose(columns[layer, : W.shape[1]], W.sum(axis=0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("std", [1e-3, 3e-3, 1e-2])
def test_a_utility_that_asks_for_incoming_weights_sees_those_that_noise_has_moved(std):
    rng = np.random.default_rng(0)
    X = rng.random((1, 950, 20)) * (rng.random((1, 950, 20)) < 0.3)  # a row is used at every third step or so
    y = rng.integers(0, 4, (1, 950))
    shape = {"inputs": 20, "hidden": (200,), "outputs": 4, "learners": 1, "loss": "cross_entropy", "weight_decay": 0.0}
    method = {"replacement_rate": 1e-9, "utility": "adaptation", "decay_rate": 0.0, "step_size": 0.01}
    for kernel, most in (("rows", 5 * std), ("lanes", 1e-9)):
        net = learners(kernel, **(shape | method | {"noise_std": std}))
        net.partial_fit(X, y)
        utility, truth = net.state_dict()["utility"][0, :200], 1 / np.abs(net.weights(0)[0]).mean(axis=0)
        assert np.abs(utility / truth - 1).max() < most
        assert len(set(np.argsort(utility)[:10]) & set(np.argsort(truth)[:10])) >= 8


def test_utilities_of_incoming_weights_are_distributed_as_under_noise_drawn_at_every_step():
    X, y = examples(60)
    shape = {"learners": 2000, "activation": "tanh", "utility": "adaptable_contribution", "replacement_rate": 1e-9}
    lazy, plain = (learners(kernel, **shape) for kernel in ("rows", "lanes"))
    for net in (lazy, plain):
        net.partial_fit(X[:, :, :1].repeat(4, axis=2), y)
    a, b = lazy.state_dict()["utility"], plain.state_dict()["utility"]
    for place, unit in enumerate([0, 1, 2, 3, 4, 16, 17, 18, 19]):  # the rows kernel begins a layer at a multiple of 16
        assert distance(a[:, unit], b[:, place]) < 1.95 * math.sqrt(2 / 2000)


def test_a_fresh_weight_has_no_noise_from_before_its_time():
    X, y = examples(41)
    net = learners(
        learners=1, hidden=(5,), replacement_rate=1.0, maturity_threshold=40, weight_decay=0.0, init="default"
    )
    net.partial_fit(X, y)
    assert net.replacements.tolist() == [[5]]
    fresh = np.stack([fresh_weights(0, 0, k, 4, math.sqrt(1 / 4)) for k in range(5)], axis=1)
    mine = net.weights(0)[0]
    np.testing.assert_array_equal(mine[:, np.argsort(mine[0])], fresh[:, np.argsort(fresh[0])])
    assert not net.weights(1).any()


def test_a_learner_that_diverged_keeps_its_weights_for_every_reader():
    net = learners(step_size=[1e6, 0.01])
    X, y = examples(50)
    net.partial_fit(X, y)
    assert net.diverged_at[0] >= 0
    held, other = net.weights(0)
    net.partial_fit(X, y)
    np.testing.assert_array_equal(net.weights(0)[0], held)
    assert (net.weights(0)[1] != other).all()


def test_the_weight_log_follows_the_weights_closely():
    X, y = examples(REFRESH + 1)
    net = learners(learners=1, hidden=(50, 50), noise_std=1e-4, weight_decay=0.1)
    sums = net.partial_fit(X, y, log_weights=True).weight_sums[0, -1]
    np.testing.assert_allclose(sums / np.diff([0, 200, 2700, 2800]), net.weight_magnitude()[0], rtol=1e-2)
