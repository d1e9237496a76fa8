"""What an ensemble promises, on both kernels and whatever the hyperparameters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import njit

from pliant import streams
from pliant.online import OnlineEnsemble, fresh_weights
from pliant.online.arithmetic import uniform
from pliant.online.compiling import edition
from pliant.online.rows import learn_rows

KERNELS = pytest.mark.parametrize("kernel", ["lanes", "rows"])
SEEDS = [3, 1, 4, 15, 9, 2, 6]
# One learner of each kind, so that blocks are mixed: observed or not, decayed or not, disturbed or not.
MIXED: dict[str, list[float]] = {
    "step_size": [0.03, 0.01, 0.02, 0.03, 0.01, 0.02, 0.03],
    "weight_decay": [0, 0, 0.01, 0, 0, 0.001, 0],
    "noise_std": [0, 0, 0, 0.001, 0, 0.01, 0],
    "replacement_rate": [0.02, 0, 0.02, 0.02, 0.01, 0, 0.02],
}


def ensemble(kernel="lanes", which=range(7), **settings: Any) -> OnlineEnsemble:
    which = list(which)
    mixed = {name: [values[r] for r in which] for name, values in MIXED.items()}
    mixed |= {"maturity_threshold": 10, "seed": [SEEDS[r] for r in which]}
    shape = {"inputs": 6, "hidden": (8, 7), "outputs": 1}
    return OnlineEnsemble(learners=len(which), kernel=kernel, **(shape | mixed | settings))


def stream(n=400, streams=1, inputs=6):
    rng = np.random.default_rng(5)
    shape = (streams, n, inputs)
    X = (rng.random(shape) * (rng.random(shape) < 0.6)).astype(np.float32)  # zeros are a case of their own
    return X, np.sin(3 * X.sum(axis=2)).astype(np.float32)


def trained(kernel="lanes", which=range(7), n=400, rows=None, **settings: Any):
    X, y = stream(n, 1 if rows is None else 3)
    learners = ensemble(kernel, which, **settings)
    return learners, learners.partial_fit(X, y, rows)


def assert_learner_is_the_same(one, i, many, j):
    for name in ("parameters", "shrunk", "moment1", "moment2", "utility", "mean", "age", "replaced", "diverged_at"):
        np.testing.assert_array_equal(one.state_dict()[name][i], many.state_dict()[name][j], err_msg=name)


@KERNELS
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_learner_is_the_same_alone_and_among_seven_in_any_order(kernel, optimizer):
    many, _ = trained(kernel, optimizer=optimizer)
    backwards, _ = trained(kernel, reversed(range(7)), optimizer=optimizer)
    assert (many.replacements[[0, 2, 3, 6]] >= 20).all()
    for r in range(7):
        alone, _ = trained(kernel, [r], optimizer=optimizer)
        assert_learner_is_the_same(alone, 0, many, r)
        assert_learner_is_the_same(backwards, 6 - r, many, r)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_learner_is_the_same_beside_readers_of_its_stream_and_of_others(optimizer):
    shared, _ = trained(which=[0, 2] * 8, rows=[1] * 16, optimizer=optimizer)
    mixed, _ = trained(which=[0, 2] * 3, rows=[1, 1, 0, 0, 2, 2], optimizer=optimizer)
    assert (shared.replacements >= 20).all()
    assert_learner_is_the_same(shared, 0, mixed, 0)
    assert_learner_is_the_same(shared, 1, mixed, 1)


@KERNELS
def test_two_threads_change_nothing(kernel):
    which = list(range(7)) * 5
    one, progress = trained(kernel, which)
    two, threaded = trained(kernel, which, threads=2)
    np.testing.assert_array_equal(progress.loss, threaded.loss)
    for r in range(len(which)):
        assert_learner_is_the_same(one, r, two, r)


@KERNELS
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_stopping_and_resuming_changes_nothing(kernel, optimizer):
    X, y = stream(1200)  # across the step at which sums are refreshed
    straight = ensemble(kernel, optimizer=optimizer, utility="adaptable_contribution")
    whole = straight.partial_fit(X, y).loss
    resumed = ensemble(kernel, optimizer=optimizer, utility="adaptable_contribution")
    first = resumed.partial_fit(X[:, :333], y[:, :333]).loss
    saved = resumed.state_dict()
    resumed = ensemble(kernel, optimizer=optimizer, utility="adaptable_contribution")
    resumed.load_state_dict(saved)
    second = resumed.partial_fit(X[:, 333:], y[:, 333:]).loss
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), whole)
    for name, value in straight.state_dict().items():
        np.testing.assert_array_equal(resumed.state_dict()[name], value, err_msg=name)


def test_the_two_kernels_agree_to_rounding():
    for settings in ({}, {"optimizer": "adam"}, {"utility": "adaptable_contribution", "count": "bernoulli"}):
        results = []
        for kernel in ("lanes", "rows"):
            X, y = stream()
            learners = ensemble(kernel, dtype=np.float64, noise_std=0.0, **settings)
            results.append((learners.partial_fit(X, y, log_weights=True), learners))
        (a, one), (b, two) = results
        assert (one.replacements[[0, 2, 3, 6]] >= 20).all()
        np.testing.assert_allclose(a.loss, b.loss, rtol=0, atol=1e-9)
        np.testing.assert_allclose(a.weight_sums, b.weight_sums, rtol=1e-10)
        np.testing.assert_array_equal(one.replacements, two.replacements)


@KERNELS
def test_rate_zero_is_no_continual_backprop_to_the_bit(kernel):
    zero, _ = trained(kernel, replacement_rate=0.0)
    none, _ = trained(kernel, replacement_rate=None)
    beside, _ = trained(kernel)  # learners 1 and 5 have rate zero, between others that have not
    for r in range(7):
        assert_learner_is_the_same(zero, r, none, r)
    for r in (1, 5):
        assert_learner_is_the_same(beside, r, none, r)


def test_the_same_seed_starts_from_the_same_weights_whatever_else_is_asked_for():
    plain = ensemble(which=[0])
    other = OnlineEnsemble(
        inputs=6, hidden=(8, 7), outputs=1, learners=2, seed=[8, SEEDS[0]], optimizer="adam", kernel="rows",
        replacement_rate=0.1, weight_decay=0.1, utility="weight",
    )  # fmt: skip
    for layer in range(3):
        np.testing.assert_array_equal(plain.weights(layer)[0], other.weights(layer)[1])
        assert not np.array_equal(plain.weights(layer)[0], other.weights(layer)[0])


@pytest.mark.parametrize(("init", "gain", "bound"), [
    ("kaiming", "relu", np.sqrt(2 * 3 / 400)), ("kaiming", "tanh", 5 / 3 * np.sqrt(3 / 400)), ("lecun", "selu", np.sqrt(3 / 400)),
    ("xavier", "sigmoid", np.sqrt(6 / 500)), ("default", "selu", np.sqrt(1 / 400)),
])  # fmt: skip
def test_initial_weights_fill_the_bound_of_their_rule_and_outputs_that_of_lecun(init, gain, bound):
    learners = OnlineEnsemble(inputs=400, hidden=[100], outputs=1, learners=1, seed=0, init=init, activation=gain)
    assert bound * 0.99 < np.abs(learners.weights(0)).max() <= bound
    assert np.sqrt(3 / 100) * 0.9 < np.abs(learners.weights(1)).max() <= np.sqrt(3 / 100)
    assert not learners.biases(0).any()
    assert not learners.biases(1).any()


@KERNELS
def test_a_replaced_unit_gets_the_fresh_weights_of_its_number_and_feeds_nothing(kernel):
    # No learning: utilities stay, and with one unit owed at a time the least useful mature unit goes each time.
    learners = ensemble(kernel, [0], hidden=(8,), step_size=0.0, replacement_rate=0.125, maturity_threshold=0)
    X, y = stream(1)
    before = learners.weights(0)[0]
    learners.partial_fit(X, y)  # one step: 8 mature units, one whole unit owed
    (changed,) = np.flatnonzero((learners.weights(0)[0] != before).any(axis=0))
    expected = fresh_weights(SEEDS[0], layer=0, replacement=0, fan_in=6, bound=np.sqrt(2 * 3 / 6))
    np.testing.assert_array_equal(learners.weights(0)[0][:, changed], expected.astype(np.float32))
    assert learners.weights(1)[0][changed] == 0
    assert learners.replacements.tolist() == [[1]]


@KERNELS
def test_handing_over_keeps_the_mean_output_of_a_learner_whose_input_never_changes(kernel):
    X = np.ones((1, 60, 6), np.float32)
    y = np.full((1, 60), 2.0, np.float32)
    still: dict[str, Any] = {"step_size": 0.0, "replacement_rate": 0.01, "maturity_threshold": 20, "activation": "tanh"}
    learners = ensemble(kernel, [0], dtype=np.float64, **still)
    loss = learners.partial_fit(X, y).loss[0]
    assert learners.replacements.sum() >= 4
    np.testing.assert_allclose(loss, loss[0], rtol=1e-12)
    without = ensemble(kernel, [0], dtype=np.float64, hand_over_mean=False, **still)
    assert np.ptp(without.partial_fit(X, y).loss) > 0.01


@KERNELS
def test_never_more_units_go_than_are_mature_and_what_is_owed_stays_owed(kernel):
    X, y = stream(50)
    learners = ensemble(kernel, [0], hidden=(4,), replacement_rate=1.0, maturity_threshold=9)
    learners.partial_fit(X, y)
    assert learners.replacements.tolist() == [[4 * 5]]  # all four every tenth step
    assert learners.state_dict()["eligible"].tolist() == [[4 * 5]]


@KERNELS
def test_what_is_not_a_number_goes_first_then_what_is_least_and_ties_go_to_the_lowest_index(kernel):
    settings: dict[str, Any] = {"hidden": (6,), "step_size": 0.0, "maturity_threshold": 0, "utility": "weight"}
    for share, gone in ((2 / 6, [2, 4]), (3 / 6, [0, 2, 4]), (4 / 6, [0, 1, 2, 4])):
        learners = ensemble(kernel, [0], replacement_rate=share + 1e-6, **settings)
        state, before = learners.state_dict(), learners.weights(0)[0]
        state["utility"][0, :6] = [-np.inf, -2e6, np.nan, -2e6, np.nan, 5.0]
        state["age"][0, :6], state["decay_power"][0, :6] = 50, 0.5
        learners.load_state_dict(state)
        learners.partial_fit(*stream(1))
        assert np.flatnonzero((learners.weights(0)[0] != before).any(axis=0)).tolist() == gone


@KERNELS
def test_a_diverged_learner_stops_is_recorded_and_leaves_the_others_alone(kernel):
    sizes = [0.01, 0.01, 1e6, 0.01, 0.01, 0.01, 0.01]
    learners, progress = trained(kernel, step_size=sizes)
    calm, _ = trained(kernel, step_size=0.01)
    stopped = int(learners.diverged_at[2])
    assert stopped > 0
    assert np.isfinite(progress.loss[2, :stopped]).all()
    assert not np.isfinite(progress.loss[2, stopped])
    assert np.isnan(progress.loss[2, stopped + 1 :]).all()
    for r in (0, 1, 3, 4, 5, 6):
        assert learners.diverged_at[r] == -1
        assert_learner_is_the_same(learners, r, calm, r)
    held = learners.weights(0)[2]
    assert np.isnan(learners.partial_fit(*stream(5)).loss[2]).all()
    np.testing.assert_array_equal(learners.weights(0)[2], held)


@KERNELS
def test_nothing_is_right_where_the_loss_is_not_a_number(kernel):
    settings: dict[str, Any] = {"outputs": 3, "loss": "cross_entropy", "step_size": 1e30}
    learners = ensemble(kernel, [0], **settings)
    progress = learners.partial_fit(1e3 * stream(50)[0], np.zeros((1, 50), np.int64))
    lost = ~np.isfinite(progress.loss)
    assert lost[0, learners.diverged_at[0]]
    assert progress.correct is not None
    assert not progress.correct[lost].any()


@KERNELS
def test_a_linear_learner_is_least_mean_squares(kernel):
    X, y = (each.astype(np.float64) for each in stream(20))
    learners = ensemble(kernel, [0], hidden=(), step_size=0.1, dtype=np.float64)
    w, b = learners.weights(0)[0, :, 0], learners.biases(0)[0, 0]
    progress = learners.partial_fit(X, y)
    for t in range(20):
        error = X[0, t] @ w + b - y[0, t]
        assert progress.loss[0, t] == pytest.approx(error**2, rel=1e-12)
        w, b = w - 0.2 * error * X[0, t], b - 0.2 * error
    np.testing.assert_allclose(learners.weights(0)[0, :, 0], w, rtol=1e-12)


@KERNELS
def test_noise_is_normal_of_the_given_size_and_keyed_by_the_seed(kernel):
    learners = ensemble(
        kernel, [0, 0, 1], hidden=(50, 50), step_size=0.0, noise_std=0.5, weight_decay=0, replacement_rate=0
    )
    before = [learners.weights(layer) for layer in range(3)]
    learners.partial_fit(*stream(1))
    moved = (
        np.concatenate([(learners.weights(layer) - before[layer]).reshape(3, -1) for layer in range(3)], axis=1) / 0.5
    )
    assert abs(moved[0].mean()) < 0.06
    assert moved[0].std() == pytest.approx(1.0, abs=0.04)
    assert np.mean(np.abs(moved[0]) > 1.96) == pytest.approx(0.05, abs=0.015)
    np.testing.assert_array_equal(moved[0], moved[1])
    assert abs(np.corrcoef(moved[0], moved[2])[0, 1]) < 0.06


@KERNELS
def test_sums_of_weights_are_those_of_the_weights(kernel):
    X, y = stream(1500)
    learners = ensemble(kernel, utility="adaptable_contribution", noise_std=0.0)
    sums = learners.partial_fit(X, y, log_weights=True).weight_sums
    for layer in range(3):
        np.testing.assert_allclose(sums[:, -1, layer], np.abs(learners.weights(layer)).sum(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(learners.weight_magnitude()[:, 1] * 56, sums[:, -1, 1], rtol=1e-5)


def test_kept_sums_of_the_rows_kernel_stay_those_of_the_weights():
    learners, _ = trained("rows", n=990, utility="adaptable_contribution", dtype=np.float64, noise_std=0.0)
    assert (learners.replacements[[0, 2, 3, 6]] >= 20).all()
    state = learners.state_dict()
    leaving = np.concatenate([np.abs(learners.weights(layer)).sum(axis=2) for layer in range(3)], axis=1)
    entering = np.concatenate([np.abs(learners.weights(layer)).sum(axis=1) for layer in range(3)], axis=1)
    rows, columns = (
        state["shrunk"][:, None, None] * state[name].reshape(7, 3, 16) for name in ("row_sum", "column_sum")
    )  # layers begin at multiples of 16
    rows = np.concatenate([rows[:, layer, :n] for layer, n in enumerate((6, 8, 7))], axis=1)
    columns = np.concatenate([columns[:, layer, :n] for layer, n in enumerate((8, 7, 1))], axis=1)
    np.testing.assert_allclose(rows, leaving, rtol=1e-12)
    np.testing.assert_allclose(columns, entering, rtol=1e-9)


@KERNELS
def test_bytes_are_the_numbers_they_are(kernel):
    X, y = stream(5000)
    X = np.round(3 * X)
    as_bytes, as_floats = ensemble(kernel), ensemble(kernel)
    a = as_bytes.partial_fit(X.astype(np.uint8), y)
    b = as_floats.partial_fit(X, y)
    np.testing.assert_array_equal(a.loss, b.loss)


@KERNELS
def test_random_utility_chooses_every_unit_in_the_long_run(kernel):
    X, y = stream(3000)
    learners = ensemble(kernel, [0], hidden=(4,), utility="random", replacement_rate=0.05, maturity_threshold=3)
    ages = []
    for begin in range(0, 3000, 100):
        learners.partial_fit(X[:, begin : begin + 100], y[:, begin : begin + 100])
        ages.append(learners.state_dict()["age"][0].copy())
    assert (np.array(ages) < 100).any(axis=0).all()
    assert learners.replacements[0, 0] >= 400


def test_predictions_are_what_the_learner_would_have_answered():
    X, y = stream(30)
    for activation in ("relu", "leaky_relu", "tanh", "sigmoid", "elu", "swish", "selu", "linear"):
        learners = ensemble(
            "rows", activation=activation, step_size=0.0, weight_decay=0.0, noise_std=0.0, replacement_rate=0.0
        )
        loss = learners.partial_fit(X, y).loss
        np.testing.assert_allclose((learners.predict(X)[..., 0] - y) ** 2, loss, rtol=1e-4, atol=1e-6)


def test_a_probe_shows_dead_units():
    learners = ensemble("lanes", [0], hidden=(8,))
    state = learners.state_dict()
    weights = state["parameters"][0, : 7 * 8].reshape(7, 8)
    weights[:, 3], weights[6, 3] = 0, -1  # bias -1: never on
    learners.load_state_dict(state)
    hidden, _ = learners.activations(stream()[0])
    assert np.flatnonzero((hidden[0] == 0).all(axis=0)).tolist() == [3]


def test_scores_are_accuracy_and_explained_variance():
    X, y = stream(4000)
    learners = ensemble(which=[0], replacement_rate=0.0, step_size=0.05)
    learners.partial_fit(X, y)
    residual = ((learners.predict(X)[0, :, 0] - y[0]) ** 2).sum() / ((y[0] - y[0].mean()) ** 2).sum()
    assert learners.score(X, y)[0] == pytest.approx(1 - residual, abs=1e-6)
    labels = (X[..., 0] > 0.3).astype(np.int64)
    learners = ensemble(which=[0], outputs=2, loss="cross_entropy", replacement_rate=0.0)
    progress = learners.partial_fit(X, labels)
    assert learners.score(X, labels)[0] == (learners.predict(X) == labels).mean() > 0.95
    assert progress.correct[0, -500:].mean() > 0.9
    assert 0.3 < progress.correct[0, :20].mean() < 1.0


def test_compiled_numbers_are_those_of_the_streams():
    key = streams.stream_key(5, "anything")

    @njit
    def numbers(key):  # `uniform` is compiled for compiled functions alone
        return [uniform(key, i) for i in range(50)]

    compiled = numbers(np.uint64(key))
    np.testing.assert_array_equal(compiled, streams.uniform(key, 0, 50))


def test_compiled_code_is_filed_under_the_sources_it_was_made_from():
    trained("rows", which=[0], n=1)
    files = [file.name for file in Path(learn_rows.stats.cache_path).glob(f"*learn_rows_{edition()}*")]
    assert any(name.endswith(".nbi") for name in files)  # so no index of other sources is ever opened


def test_a_state_of_other_learners_is_refused_by_name():
    state = ensemble(which=[0]).state_dict()
    with pytest.raises(ValueError, match="seeds"):
        ensemble(which=[1]).load_state_dict(state)
    with pytest.raises(ValueError, match="optimizer"):
        ensemble(which=[0], optimizer="adam").load_state_dict(state)
    for name, other in (
        ("activation", "tanh"), ("loss", "cross_entropy"), ("utility", "weight"), ("count", "bernoulli"),
        ("init", "xavier"), ("hand_over_mean", False), ("normalization", "layer"), ("dtype", np.float64),
    ):  # fmt: skip
        one, two = ({"outputs": 2, "kernel": "rows"} | more for more in ({}, {name: other}))
        with pytest.raises(ValueError, match=f"the state is of learners with {name}"):
            ensemble(which=[0], **two).load_state_dict(ensemble(which=[0], **one).state_dict())
    with pytest.raises(ValueError, match="format 7"):
        ensemble(which=[0]).load_state_dict(state | {"format": 7})
