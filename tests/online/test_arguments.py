"""Odd arguments and odd states of online learners: one sentence that names what is wrong, and nothing changed."""

import numpy as np
import pytest

from pliant.online import OnlineEnsemble, OnlineMLP

RIGHT = {"inputs": 3, "hidden": (4,), "outputs": 2, "learners": 2, "seed": 0, "kernel": "rows"}
ODD = [
    "1",
    "a",
    b"1",
    None,
    True,
    1.5,
    -1,
    float("nan"),
    float("inf"),
    [],
    [1, 2, 3],
    [[1]],
    {},
    {1: 2},
    object(),
    1 + 2j,
]
ODD += [10**9, 10**30, np.zeros((2, 2)), np.array(["1", "2"]), [1, [2]], lambda: 1, (1, "1"), "x" * 10_000]
MAY_BE = {  # what is odd for most settings and right for one
    "inputs": [], "hidden": [[], [1, 2, 3]], "outputs": [], "learners": [], "seed": [-1, 10**9, 10**30],
    "activation": [], "loss": [], "optimizer": [], "step_size": [1.5, 10**9, 10**30], "beta1": [], "beta2": [],
    "eps": [1.5, 10**9, 10**30], "weight_decay": [1.5, 10**9, 10**30], "noise_std": [1.5, 10**9, 10**30], "dropout": [],
    "normalization": [], "online_norm_decay": [], "replacement_rate": [None], "maturity_threshold": [10**9], "candidates": [],
    "decay_rate": [], "utility": [], "count": [], "hand_over_mean": [True], "init": [], "dtype": [], "threads": [10**9, 10**30],
    "kernel": [],
}  # fmt: skip


def same(a, b):
    return a is b or (type(a) is type(b) and isinstance(a, int | float | list) and a == b)


@pytest.mark.parametrize("name", MAY_BE)
def test_an_odd_setting_is_one_sentence_that_names_it(name):
    refused = 0
    for odd in ODD:
        if any(same(odd, fine) for fine in MAY_BE[name]):
            continue
        with pytest.raises((ValueError, TypeError)) as raised:
            OnlineEnsemble(**{**RIGHT, "kernel": "auto", name: odd})
        said = str(raised.value)
        assert "\n" not in said
        assert len(said) < 400, said
        assert name in said or "learners of layers" in said, said
        refused += 1
    assert refused >= 15


@pytest.mark.parametrize(
    "sizes", [{"hidden": (10**9,)}, {"hidden": (10**6, 10**6)}, {"inputs": 10**12}, {"learners": 10**11}]
)
def test_what_is_too_large_is_refused_with_its_size_before_it_is_made(sizes):
    with pytest.raises(ValueError, match=r"learners of layers .* GB of memory"):
        OnlineEnsemble(**{**RIGHT, **sizes})


def numbers(learners):
    return {name: np.copy(value) for name, value in learners.state_dict().items()}


def assert_unchanged(learners, before):
    for name, value in learners.state_dict().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


X, Y = np.ones((1, 5, 3), np.float32), np.ones((1, 5, 2), np.float32)
CALLS = {
    "text": (np.full((1, 5, 3), "1"), Y, {}), "objects": (np.full((1, 5, 3), None), Y, {}), "nothing": (None, Y, {}),
    "a number": (1.0, Y, {}), "no examples": (X[:, :0], Y[:, :0], {}), "no streams": (X[:0], Y[:0], {}),
    "one row": (X[0], Y, {}), "another width": (X[..., :2], Y, {}), "complex numbers": (X + 1j, Y, {}),
    "NaN": (X * np.nan, Y, {}), "infinity": (X / 0.0 if False else np.full_like(X, np.inf), Y, {}),
    "rows of other lengths": ([[[1, 2, 3], [1]]], Y, {}), "dates": (np.zeros((1, 5, 3), "M8[s]"), Y, {}),
    "targets of text": (X, np.full((1, 5, 2), "1"), {}), "targets of another length": (X, Y[:, :4], {}),
    "targets of NaN": (X, Y * np.nan, {}), "a stream of text": (X, Y, {"stream": ["0", "0"]}),
    "a stream that is not there": (X, Y, {"stream": [0, 1]}), "a negative row": (X, Y, {"rows": [[-1]]}),
    "a row too far": (X, Y, {"rows": [[5]]}), "rows of fractions": (X, Y, {"rows": [[0.5]]}), "no rows": (X, Y, {"rows": [[]]}),
    "columns too few": (X, Y, {"columns": [[0, 1]]}), "a column too far": (X, Y, {"columns": [[0, 1, 3]]}),
    "a scale of text": (X, Y, {"scale": "1"}), "a scale of NaN": (X, Y, {"scale": np.nan}),
    "a scale of True": (X, Y, {"scale": True}),
    "log_weights of text": (X, Y, {"log_weights": "no"}),
}  # fmt: skip


@pytest.mark.parametrize(("inputs", "targets", "more"), CALLS.values(), ids=CALLS)
def test_an_odd_call_changes_nothing(inputs, targets, more):
    learners = OnlineEnsemble(**RIGHT)
    learners.partial_fit(X, Y)
    before = numbers(learners)
    with pytest.raises((ValueError, TypeError)) as raised:
        learners.partial_fit(inputs, targets, **more)
    assert "\n" not in str(raised.value)
    assert_unchanged(learners, before)


@pytest.mark.parametrize("odd", [[["1", "2"]], [[None, 1]], [[1, 2], [3]], np.array([[b"1", b"2"]])])
def test_text_is_no_number_for_a_single_learner(odd):
    mlp = OnlineMLP(inputs=2, hidden=[3], outputs=1, seed=0)
    for call in (lambda: mlp.partial_fit(odd, [1]), lambda: mlp.predict(odd), lambda: mlp.partial_fit([[1, 2]], ["1"])):
        with pytest.raises((TypeError, ValueError)):
            call()


ALL = {
    "replacement_rate": 0.05,
    "maturity_threshold": 3,
    "noise_std": 0.01,
    "optimizer": "adam",
    "normalization": "online",
}


def test_a_damaged_state_is_refused_and_changes_nothing():
    learners, X = OnlineEnsemble(**RIGHT, **ALL), np.random.default_rng(0).random((1, 60, 3), np.float32)
    learners.partial_fit(X, X[..., :2])
    state = learners.state_dict()
    learners.partial_fit(X, X[..., :2])
    before, refused = numbers(learners), 0
    damaged = [None, 5, [], "x", {}]
    for name, value in state.items():
        damaged += [{key: each for key, each in state.items() if key != name}]
        odd = [None, "x", {}, [[1], [1, 2]]]
        if isinstance(value, np.ndarray) and value.dtype.kind in "if" and name not in ("sizes", "seeds"):
            odd += [value[:1], value[None], value.astype(np.float16), value.astype(str), np.float64(0)]
        if name in ("age", "eligible", "replaced", "settled"):
            odd += [value - 10_000]
        if name in ("settled", "diverged_at"):
            odd += [value + 10_000]
        if name in ("shrunk", "decay_power", "beta_power"):
            odd += [value * np.nan, value * 0 + np.inf]
        if name == "steps":
            odd += [-1, 1.5, True, np.nan, "60"]
        damaged += [{**state, name: each} for each in odd]
    for each in damaged:
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            learners.load_state_dict(each)
        assert "\n" not in str(raised.value)
        assert_unchanged(learners, before)
        refused += 1
    assert refused > 150
    learners.load_state_dict(state)
    np.testing.assert_array_equal(learners.state_dict()["parameters"], state["parameters"])
