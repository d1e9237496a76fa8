"""`benchmarks/inventions.py`: its utilities and generators against values worked by hand, its learner against `pliant.online`."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import inventions
import inventions_kernel as kernel

from pliant.online import OnlineEnsemble
from pliant.streams import generator, stream_key, uniform

pytestmark = pytest.mark.slow  # research code, which takes a while to compile


def column(*numbers: float) -> np.ndarray:
    return np.array(numbers)[:, None]


def test_the_cost_of_a_replacement_is_gradient_times_distance_from_the_mean():
    h, g = column(1.0, 3.0), column(2.0, -1.0)  # costs 2 (1 - 2) = -2 and -1 (3 - 2) = -1
    assert kernel.replacement_cost(h, g, 0, 2.0) == (1.5, 2.5)


def test_the_two_sided_utility_is_the_largest_over_horizons_of_the_share_of_the_layer_s_mean():
    squares = np.array([[4.0, 0.0], [1.0, 9.0]])  # roots 2, 0 with mean 1; 1, 3 with mean 2
    assert kernel.two_sided(squares).tolist() == [2.0, 1.5]


def test_of_a_unit_alone_all_is_lost_and_of_two_copies_next_to_nothing():
    a, b = np.array([1.0, 1.0, -1.0, -1.0]), np.array([1.0, -1.0, 1.0, -1.0])
    g = np.full((4, 2), 3.0)
    assert_allclose(kernel.cost_after_others(np.column_stack([a, b]), g), 9 * 1.01)  # C = I, r = .01
    copies = 9 * (1.01**2 - 1) / 1.01  # [(C + r I)^-1]_ii = 1.01 / (1.01^2 - 1), C = [[1, 1], [1, 1]]
    assert_allclose(kernel.cost_after_others(np.column_stack([a, a]), g), copies)


def test_a_matched_unit_is_on_for_half_of_the_examples():
    assert kernel.centers(np.array([[1.0, -4.0], [2.0, 0.0], [9.0, 8.0]])).tolist() == [-2.0, 0.0]


def test_a_rescaled_draw_varies_as_the_layer_s_units_do():
    draws = np.column_stack([[0.0, 2.0], [5.0, 5.0]])  # deviations 1 and 0
    units = np.column_stack([[0.0, 8.0], [0.0, 2.0], [0.0, 4.0]])  # 4, 1 and 2
    assert kernel.scales(draws, units).tolist() == [2.0, 1.0]


def test_the_future_gradient_is_that_of_the_outgoing_weights_per_deviation():
    activity = np.column_stack([[1.0, 5.0], [0.0, 0.0]])  # deviation 2; a dead draw
    delta = np.array([[1.0, 0.0], [-1.0, 2.0]])  # E[delta A] = (-2, 5)
    assert_allclose(kernel.future_gradient(activity, delta), [29**0.5 / 2, 0.0])


def test_a_copy_is_explained_and_what_is_orthogonal_is_not():
    units = column(1.0, 1.0, 0.0)  # H'H = 2, r = .02, so a copy keeps .02 / 2.02 of itself
    draws = np.column_stack([[1.0, 1.0, 0.0], [0.0, 0.0, 4.0], [0.0, 0.0, 0.0]])
    assert_allclose(kernel.unexplained(draws, units), [0.02 / 2.02, 1.0, 0.0], rtol=1e-9)


def test_a_mirrored_unit_is_on_where_its_model_is_off():
    W, bias = np.array([[7.0, 2.0], [7.0, -3.0]]), np.array([7.0, 0.5])
    kernel.mirror(W, bias, 0, 1)
    assert W.tolist() == [[-2.0, 2.0], [3.0, -3.0]]
    assert bias.tolist() == [-0.5, 0.5]


def test_split_units_together_do_what_one_did():
    W, bias, V = np.array([[0.0, 3.0], [0.0, 4.0]]), np.array([0.0, 0.5]), np.array([[0.0, 0.0], [8.0, -2.0]])
    kernel.split(W, bias, V, 0, 1, np.uint64(5), 0)
    assert_allclose(W.sum(axis=1), [6.0, 8.0])
    assert_allclose(np.linalg.norm(W[:, 0] - W[:, 1]), 2 * 0.1 * 5)
    assert bias.tolist() == [0.5, 0.5]
    assert V.tolist() == [[4.0, -1.0], [4.0, -1.0]]


def test_the_least_useful_mature_unit_goes_and_of_equals_the_first():
    utility, age, chosen = np.array([0.0, 5.0, 3.0, 3.0]), np.array([100, 200, 200, 101]), np.zeros(2, np.int64)
    kernel.least_useful(utility, age, 100, chosen, 2)
    assert chosen.tolist() == [2, 3]


def test_the_true_cost_of_a_unit_is_the_loss_with_its_mean_in_its_place_less_the_loss():
    state = kernel.start((1, 2, 1), 1, 4, seed=0)
    state.weights[0][:] = [[1.0, -1.0]]
    state.weights[1][:] = [[2.0], [1.0]]
    x, y = column(1.0, 3.0), column(2.0, 6.0)  # h = 1, 3 and 0, 0: z = 2, 6 and the loss 0
    found = inventions.true_costs(state, (x, y, np.zeros(2, np.int64)), 0, np.array([2.0, 5.0]))
    assert found.tolist() == [4.0, 25.0]  # z = 4, 4: errors 2, -2; z = 7, 11: errors 5, 5


def test_ranks_correlate_whatever_the_numbers():
    assert inventions.rank_correlation(np.array([1.0, 2.0, 900.0]), np.array([-1.0, 0.0, 0.1])) == pytest.approx(1.0)
    assert np.isnan(inventions.rank_correlation(np.ones(3), np.arange(3.0)))


def test_the_price_is_the_cost_of_the_least_useful_tenth_of_mature_units_over_their_mean():
    cost = np.array([5.0, 1.0, 9.0, 0.0])  # of the three mature ones the mean is 5, the least useful the second
    told = {"network": "n", "layer": 1, "seed": [0] * 4, "period": 0, "age": [101, 101, 101, 100], "cost": cost}
    found = inventions.prices(pd.DataFrame({**told, **dict.fromkeys(inventions.UTILITIES, cost)}))
    assert found["share"].tolist() == [0.2] * len(inventions.UTILITIES)


def best_by_hand(state: kernel.State, draws: int) -> tuple[np.ndarray, float]:
    """Of so many matched draws for the first hidden layer the one with the largest future gradient."""
    x, delta = state.past[0], state.past_delta[1]
    found = []
    for number in range(draws):
        key = stream_key(0, "fresh weights", 0) + number
        w = (2 * uniform(key, 0, x.shape[1]) - 1) * (6 / x.shape[1]) ** 0.5
        a = np.maximum(x @ w - np.median(x @ w), 0)
        found.append((np.linalg.norm((delta * a[:, None]).mean(axis=0)) / a.std(), number, w, -np.median(x @ w)))
    _, number, w, bias = max(found)
    assert number > 0  # else the first draw would pass for the best
    return w, bias


@pytest.mark.slow  # half a minute to compile
def test_the_best_of_eight_matched_draws_is_the_one_with_the_largest_future_gradient():
    state = kernel.start((3, 4, 2), 1, 16, seed=0)
    state.seen[:] = 16
    rng = generator(0, "past")
    for past in (*state.past, *state.past_delta):
        past[:] = rng.normal(size=past.shape)
    w, bias = best_by_hand(state, 8)
    kernel.fresh_unit(state, kernel.Rules(objective=kernel.FUTURE, draws=8, matched=True), 0, 2)
    assert_allclose(state.weights[0][:, 2], w)
    assert_allclose(state.biases[0][2], bias)


@pytest.mark.slow  # a minute to compile
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("utility", ["contribution", "random"])
def test_plain_settings_learn_as_the_online_learners_do(optimizer: str, utility: str):
    rng, examples, sizes, seed = generator(0, "examples"), 3000, (12, 8, 7, 4), 3
    x, labels = (rng.random((examples, 12)) < 0.5).astype(float), rng.integers(0, 4, examples)
    settings = {"step_size": 0.01 if optimizer == "sgd" else 0.001, "weight_decay": 1e-3, "replacement_rate": 2e-3}
    online = OnlineEnsemble(
        inputs=12, hidden=sizes[1:-1], outputs=4, learners=1, seed=seed, dtype=np.float64, loss="cross_entropy",
        optimizer=optimizer, utility=utility, maturity_threshold=100, **settings,
    )  # fmt: skip
    state, losses = kernel.start(sizes, 1, 64, seed, optimizer == "adam"), np.zeros(examples)
    rules = kernel.Rules(
        adam=optimizer == "adam", labels=True, utility=inventions.UTILITIES[utility], **settings
    )  # fmt: skip
    gradients = tuple(np.zeros_like(W) for W in state.weights)
    expected = online.partial_fit(x[None], labels[None]).loss[0]
    kernel.learn(state, rules, gradients, x, np.zeros((examples, 1)), labels, losses)
    assert state.replaced.min() >= 20
    assert state.replaced.tolist() == online.replacements[0].tolist()
    assert_allclose(losses, expected, rtol=0, atol=1e-9)
