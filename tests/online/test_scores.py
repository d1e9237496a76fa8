"""Scores are scikit-learn's, and who diverged has none."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from pliant.online import OnlineEnsemble, OnlineMLP
from pliant.online.scores import determination

RNG = np.random.default_rng(0)
X = RNG.standard_normal((200, 3))
PIXELS = RNG.integers(0, 256, (200, 3)) * 100.0  # features that nobody scaled


def of(truth, answer):
    """R^2 of one learner and output."""
    return determination(np.array(truth, float)[None, :, None], np.array(answer, float)[None, :, None])[0, 0]


@pytest.mark.parametrize(
    ("truth", "answer", "score"),
    [
        ([1, 3], [1, 2], 0.5),  # 1 - 1 / 2
        ([1, 3], [5, 2], -7.5),  # 1 - 17 / 2
        ([1, 1, 1], [1, 1, 1], 1.0),
        ([1, 1, 1], [1, 1, 2], 0.0),
        ([0.1] * 10, [0.1] * 10, 1.0),  # whose mean, in floating point, is not 0.1
        ([0.1] * 10, [0.2] * 10, 0.0),
        ([1e-200, 2e-200], [1, 1], 0.0),  # whose squares are 0
        ([1], [1], np.nan),
        ([1], [2], np.nan),
        ([1, 1], [np.nan, 1], np.nan),
        ([1, 3], [np.nan, 1], np.nan),
    ],
)
def test_r_squared_is_scikit_learns(truth, answer, score):
    assert_array_equal(of(truth, answer), score)


def test_r_squared_of_several_outputs_is_their_mean():
    learners = OnlineEnsemble(inputs=3, hidden=[4], outputs=3, learners=2, seed=0, dtype=np.float64)
    answer = learners.predict(X[None])
    y = np.stack([answer[0, :, 0], np.ones(200), answer[0, :, 2]], axis=1)[None]  # met, constant and missed, met
    assert learners.score(X[None], y)[0] == pytest.approx((1 + 0 + 1) / 3)
    assert np.isnan(learners.score(X[None, :1], y[:, :1])).all()


@pytest.mark.parametrize("kernel", ["rows", "lanes"])
@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_a_learner_that_diverged_has_no_answer_and_its_neighbors_have_theirs(kernel, loss):
    kinds = {"squared_error": X[None, :, :1].astype(np.float32), "cross_entropy": (X[None, :, 0] > 0).astype(int)}
    x, y = X[None].astype(np.float32), kinds[loss]
    steps = [0.01, 1e30]
    learners = OnlineEnsemble(
        inputs=3, hidden=[8], outputs=1 + (y.ndim == 2), learners=2, seed=0, loss=loss, step_size=steps, kernel=kernel
    )
    learners.partial_fit(x, y)
    assert (learners.diverged_at >= 0).tolist() == [False, True]
    answer, score = learners.predict(x), learners.score(x, y)
    assert np.isfinite(answer[0]).all()
    assert np.isfinite(score[0])
    assert np.isnan(score[1])
    assert (answer[1] == -1).all() if loss == "cross_entropy" else np.isnan(answer[1]).all()


def mlp(**changes):
    return OnlineMLP(**({"inputs": 3, "hidden": [8], "outputs": 1, "seed": 0, "step_size": 0.01} | changes))


@pytest.mark.parametrize(
    ("changes", "y"),
    [
        ({}, PIXELS[:, 0]),
        ({"kernel": "lanes"}, PIXELS[:, 0]),
        ({"outputs": 2, "activation": "leaky_relu"}, PIXELS[:, :2]),
        ({"outputs": 2, "loss": "cross_entropy", "step_size": 1e25}, (PIXELS[:, 0] > 12_000).astype(int)),
        ({"optimizer": "adam", "step_size": 1e25}, PIXELS[:, 0]),
        ({"dtype": np.float64, "activation": "linear"}, PIXELS[:, 0]),
    ],
)
def test_one_warning_tells_when_a_network_diverged_and_then_it_refuses(changes, y):
    net = mlp(**changes)
    assert not net.diverged
    with pytest.warns(
        RuntimeWarning, match=r"at step \d+, counted from 0, is not finite.*largest \|x\|.* 2\.5\de\+04"
    ) as told:
        net.partial_fit(PIXELS, y)
    step = int(np.flatnonzero(~np.isfinite(net.loss_))[0])
    assert net.diverged
    assert len(told) == 1
    assert f"its loss at step {step}, " in str(told[0].message)
    assert told[0].filename == __file__
    for use in (lambda: net.predict(X), lambda: net.score(X, y), lambda: net.partial_fit(X, y)):
        with pytest.raises(RuntimeError, match=rf"at step {step}, .*Build it anew, and scale the features.*step_size"):
            use()


def test_the_step_counts_all_calls():
    net = mlp(step_size=1e-4)
    net.partial_fit(X, X[:, 0])
    examples = zip(PIXELS, PIXELS[:, 0], strict=True)
    with pytest.warns(RuntimeWarning, match=r"at step 2\d\d,"):
        next(x for x, y in examples if net.partial_fit(x[None], [y]).diverged)
    assert net.ensemble.diverged_at[0] == net.ensemble.steps - 1


def test_a_network_that_its_last_step_broke_does_not_predict():
    net = mlp(step_size=1e38)
    net.partial_fit(PIXELS[:1], [1e5])
    assert not net.diverged  # its loss was finite
    with pytest.raises(RuntimeError, match=r"outputs that are not finite for X\[0\]: its last step broke it"):
        net.predict(X)


def test_scaled_features_tell_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = mlp().partial_fit(X, X[:, 0])
        assert not net.diverged
        assert net.score(X[:5], np.ones(5)) == 0.0
        assert net.score(np.repeat(X[:1], 5, axis=0), net.predict(np.repeat(X[:1], 5, axis=0))) == 1.0
        assert np.isnan(net.score(X[:1], np.ones(1)))
