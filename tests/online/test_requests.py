"""A request that cannot be meant is one clear error; everything else is done."""

import numpy as np
import pytest

from pliant.online import OnlineEnsemble, OnlineMLP

SHAPE = {"inputs": 3, "hidden": [4], "outputs": 1, "learners": 2, "seed": 0}
X = np.random.default_rng(0).random((2, 20, 3), dtype=np.float32)
Y = X.sum(axis=2)


@pytest.mark.parametrize(("settings", "message"), [
    ({"activation": "tanhh"}, "unknown activation 'tanhh' .did you mean 'tanh'.*; known: relu, leaky_relu"),
    ({"utility": "usefulness"}, "unknown utility 'usefulness'; known: contribution"),
    ({"init": "he"}, "unknown init 'he'"),
    ({"loss": "mse"}, "unknown loss 'mse'; known: squared_error, cross_entropy"),
    ({"optimizer": "rmsprop"}, "unknown optimizer"),
    ({"count": "poisson"}, "unknown count"),
    ({"kernel": "gpu"}, "unknown kernel"),
    ({"step_size": -0.1}, "step_size must be finite and at least 0, not -0.1"),
    ({"step_size": [0.1, np.nan]}, r"step_size must be finite and at least 0, not nan .learner 1."),
    ({"step_size": [0.1, 0.2, 0.3]}, r"step_size has shape \(3,\); give one number, or one for each of 2 learners"),
    ({"replacement_rate": 1.5}, "replacement_rate must be finite and between 0 and 1, not 1.5"),
    ({"decay_rate": 1.0}, "decay_rate must be below 1"),
    ({"maturity_threshold": 2.5}, "maturity_threshold must be whole"),
    ({"beta2": 1.0}, "beta2 must be at least 0 and, in float32, below 1, not 1.0"),
    ({"eps": -1.0}, "eps must be finite and, in float32, above 0, not -1.0"),
    ({"eps": 0.0, "optimizer": "adam", "dtype": np.float64}, "eps must be finite and, in float64, above 0, not 0.0"),
    ({"eps": 1e-50, "optimizer": "adam"}, "eps must be finite and, in float32, above 0, not 1e-50"),
    ({"decay_rate": [0.9, 0.99999999]}, "decay_rate must be below 1 in float32, not 0.99999999: an average"),
    ({"beta1": 0.99999999}, "beta1 must be at least 0 and, in float32, below 1, not 0.99999999"),
    ({"online_norm_decay": (0.9, 0.99999999)}, r"online_norm_decay\[1\] must be at least 0 and, in float32, below 1"),
    ({"hidden": [4, 0]}, r"hidden\[1\] must be a positive integer, not 0"),
    ({"hidden": 16}, r"such as \(16,\) for one, not 16"),
    ({"seed": None}, "seed must be an integer, or one for each learner, not None"),
    ({"seed": [0.5, 1.5]}, "seed must be an integer, or one for each learner"),
    ({"online_norm_decay": 0.9}, "online_norm_decay must be two numbers, forward and backward, not 0.9"),
    ({"learners": 0}, "learners must be a positive integer, not 0"),
    ({"seed": [1, 2, 3]}, "3 seeds for 2 learners"),
    ({"dtype": np.float16}, "dtype must be float32 or float64"),
    ({"loss": "cross_entropy"}, "cross_entropy needs at least 2 outputs"),
])  # fmt: skip
def test_a_setting_that_cannot_be_meant_is_refused_at_construction(settings, message):
    with pytest.raises(ValueError, match=message):
        OnlineEnsemble(**(SHAPE | settings))


def test_what_is_below_one_in_the_dtype_asked_for_is_taken():
    near = {"decay_rate": 0.99999999, "beta1": 0.99999999, "beta2": 0.99999999, "optimizer": "adam", "eps": 1e-50}
    learners = OnlineEnsemble(
        **(SHAPE | near | {"dtype": np.float64, "replacement_rate": 0.5, "maturity_threshold": 2})
    )
    learners.partial_fit(X.astype(np.float64), Y.astype(np.float64))
    assert (learners.replacements > 0).all()
    assert np.isfinite(learners.weights(0)).all()


@pytest.mark.parametrize(("X", "y", "stream", "error", "message"), [
    (X[:, :, :2], Y, None, ValueError, r"X has shape \(2, 20, 2\); expected \(streams, n, 3\)"),
    (X[0], Y[0], None, ValueError, "expected .streams, n, 3."),
    (X[:, :0], Y[:, :0], None, ValueError, "there is no example in it"),
    (X, Y[:, :5], None, ValueError, r"y has shape \(2, 5\)"),
    (X.astype(np.float64), Y, None, TypeError, r"X is float64, and these learners compute in float32: pass X.astype"),
    (X.astype(np.int64), Y, None, TypeError, "X is int64"),
    (X, Y.astype(np.float64), None, TypeError, "y is float64"),
    (np.where(X > 0.9, np.nan, X).astype(np.float32), Y, None, ValueError, "is nan; examples must be finite"),
    (X, np.where(Y > 1.5, np.inf, Y).astype(np.float32), None, ValueError, "y.* is inf"),
    (X, Y, [0, 2], ValueError, r"stream\[1\] is 2, but X has rows 0 to 1"),
    (X, Y, [-1, 0], ValueError, r"stream\[0\] is -1"),
    (X, Y, [0], ValueError, "expected 2 row numbers"),
    (X, Y, [0.0, 1.0], ValueError, "float64"),
    (np.concatenate([X, X, X]), np.concatenate([Y, Y, Y]), None, ValueError, "X has 6 streams for 2 learners"),
])  # fmt: skip
def test_examples_that_do_not_fit_are_refused_and_change_nothing(X, y, stream, error, message):
    learners = OnlineEnsemble(**SHAPE)
    before = learners.state_dict()
    with pytest.raises(error, match=message):
        learners.partial_fit(X, y, stream)
    assert all(np.array_equal(value, learners.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize(("labels", "error", "message"), [
    (np.full((2, 20), 3), ValueError, r"y\[0, 0\] is 3; labels run from 0 to 2"),
    (np.full((2, 20), -1), ValueError, "is -1"),
    (np.zeros((2, 20)), TypeError, "labels are integers from 0 to 2"),
    (np.zeros((2, 20, 1), int), ValueError, "expected one label for each example"),
])  # fmt: skip
def test_labels_out_of_range_are_refused(labels, error, message):
    learners = OnlineEnsemble(**(SHAPE | {"outputs": 3, "loss": "cross_entropy"}))
    with pytest.raises(error, match=message):
        learners.partial_fit(X, labels)


def test_examples_that_are_not_contiguous_are_read_all_the_same():
    straight, strided = OnlineEnsemble(**SHAPE), OnlineEnsemble(**SHAPE)
    a = straight.partial_fit(np.ascontiguousarray(X[:, ::2, ::-1]), np.ascontiguousarray(Y[:, ::2]))
    b = strided.partial_fit(X[:, ::2, ::-1], Y[:, ::2])
    np.testing.assert_array_equal(a.loss, b.loss)


def test_one_learner_has_the_manners_of_scikit_learn():
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (3000, 2))
    y = (X[:, 0] > X[:, 1]).astype(int)
    mlp = OnlineMLP(inputs=2, hidden=[8], outputs=2, seed=0, loss="cross_entropy", step_size=0.05)
    assert mlp.partial_fit(X, y) is mlp
    assert mlp.predict(X).shape == (3000,)
    assert mlp.score(X, y) == np.mean(mlp.predict(X) == y) > 0.95
    assert mlp.loss_.shape == (3000,)
