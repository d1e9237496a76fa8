"""A classifier and a regressor of single examples, without scikit-learn and River."""

import copy
import inspect
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

from pliant.online import OnlineClassifier, OnlineMLP, OnlineRegressor

RNG = np.random.default_rng(0)
X = RNG.normal(size=(900, 4)) * [1, 10, 0.1, 1] + [0, 100, 0, -5]
LABELS = np.where(X[:, 0] > 0, "up", np.where(X[:, 1] > 100, "mid", "low"))
NUMBERS = X[:, 0] * 3 + X[:, 1]
BUSY = {"hidden": (8, 6), "replacement_rate": 0.02, "maturity_threshold": 10}  # at least 20 replacements in each layer
VARIANTS = [
    {},
    {"optimizer": "adam", "step_size": 1e-3},
    {"noise_std": 1e-3, "weight_decay": 1e-3},
    {"normalization": "online", "dropout": 0.2, "utility": "adaptable_contribution"},
    {"normalize": False, "missing": "zero", "step_size": 1e-5},
    {"candidates": 3, "weight_decay": 1e-3},
]
BOTH = [(OnlineClassifier, LABELS), (OnlineRegressor, NUMBERS)]


def mapping(row, names="abcd"):
    return dict(zip(names, row.tolist(), strict=True))


def numbers(state):
    """The arrays and numbers of a state, flat, by their path."""
    found = {}
    for name, value in state.items():
        if isinstance(value, dict):
            found |= {f"{name}.{below}": each for below, each in numbers(value).items()}
        else:
            found[name] = np.asarray(value)
    return found


def assert_same(a, b):
    a, b = (each if isinstance(each, dict) else each.state_dict() for each in (a, b))
    left, right = numbers(a), numbers(b)
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


# ---------------------------------------------------------------- what is learned


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
@pytest.mark.parametrize(("kind", "y"), BOTH)
def test_how_examples_are_divided_into_calls_changes_nothing(kind, y, settings):
    block, rows, single = (kind(**BUSY | settings) for _ in range(3))
    block.partial_fit(X, y)
    for begin, end in ((0, 1), (1, 2), (2, 300), (300, 301), (301, 900)):
        rows.partial_fit(X[begin:end], y[begin:end])
    for row, answer in zip(X, y.tolist(), strict=True):
        single.learn_one(dict(enumerate(row)), answer)
    assert min(block.replacements_) >= 20
    score = {"score": None}
    assert_same(block.state_dict() | score, rows.state_dict() | score)
    assert_same(rows.state_dict() | score, single.state_dict() | score)
    np.testing.assert_allclose([rows.score_, single.score_], block.score_, rtol=1e-12)


def test_without_normalization_it_is_the_single_learner():
    z, settings = (X - X.mean(axis=0)) / X.std(axis=0), BUSY | {"step_size": 0.01}
    model = OnlineClassifier(**settings, normalize=False).partial_fit(z, LABELS, classes=["low", "mid", "up"])
    mlp = OnlineMLP(inputs=4, outputs=3, seed=0, loss="cross_entropy", **settings)
    mlp.partial_fit(z, np.unique(LABELS, return_inverse=True)[1])
    assert min(model.replacements_) >= 20
    theirs = mlp.ensemble.state_dict()
    for name, mine in model.state_dict()["network"].items():
        np.testing.assert_array_equal(mine, theirs[name], err_msg=name)


def test_inputs_are_standardized_by_a_running_mean_and_variance_that_include_the_example():
    model, mean, variance = OnlineRegressor(normalize_decay=0.9), np.zeros(4), np.zeros(4)
    for t, row in enumerate(X[:50], start=1):
        model.partial_fit(row[None], [0.0])
        a = max(1 - 0.9, 1 / t)
        away = row - mean
        mean, variance = mean + a * away, (1 - a) * (variance + a * away**2)
    state = model.state_dict()["inputs"]
    np.testing.assert_allclose([state["mean"], state["variance"]], [mean, variance], rtol=1e-12)


def test_an_outlier_reaches_the_network_no_larger_than_the_decay_rate_allows():
    model = OnlineRegressor(hidden=(), normalize_decay=0.99)
    model.partial_fit(X, NUMBERS)
    weights = model.state_dict()["network"]["parameters"]
    usual = model.predict(X).std()
    far = model.predict(X[:1] + np.array([1e12, 0, 0, 0])) - model.predict(X[:1])
    deviation = np.sqrt(model.state_dict()["targets"]["variance"][0])
    assert abs(far[0]) <= 12 * np.abs(weights).max() * deviation
    assert usual > 0


@pytest.mark.parametrize(("kind", "y"), BOTH)
def test_units_of_measurement_do_not_matter(kind, y):
    plain, scaled = kind(**BUSY).partial_fit(X, y), kind(**BUSY)
    scaled.partial_fit(X * 2.0**20, y if kind is OnlineClassifier else y * 2.0**-10)
    assert scaled.score_ == pytest.approx(plain.score_, rel=1e-9)
    assert plain.score_ > 0.5


def test_the_running_score_is_that_of_predictions_before_each_update():
    model, hits = OnlineClassifier(**BUSY), []
    for row, label in zip(X, LABELS.tolist(), strict=True):
        hits.append(model.predict_one(mapping(row)) == label)
        model.learn_one(mapping(row), label)
    assert model.score_ == np.mean(hits)
    model, found = OnlineRegressor(**BUSY), []
    for row, number in zip(X, NUMBERS, strict=True):
        found.append(model.predict_one(mapping(row)))
        model.learn_one(mapping(row), number)
    away = ((np.array(found) - NUMBERS) ** 2).sum() / ((NUMBERS - NUMBERS.mean()) ** 2).sum()
    assert model.score_ == pytest.approx(1 - away, rel=1e-5)


def test_fit_begins_anew_and_repeats_with_its_seed():
    first = OnlineClassifier(**BUSY).fit(X, LABELS)
    again = OnlineClassifier(**BUSY).fit(X[:100], LABELS[:100]).fit(X, LABELS)
    assert_same(first, again)
    assert first.classes_.tolist() == ["low", "mid", "up"]
    assert first.n_seen_ == 10 * len(X)
    assert first.score(X, LABELS) > first.score_ > 0.6  # ten passes against the first of them
    other = OnlineClassifier(**BUSY, seed=1).fit(X, LABELS)
    assert not np.array_equal(other.predict_proba(X), first.predict_proba(X))


def test_several_columns_of_targets():
    Y = np.column_stack([NUMBERS, -NUMBERS])
    model = OnlineRegressor(**BUSY).fit(X, Y)
    assert model.predict(X).shape == Y.shape
    assert model.score(X, Y) > 0.8
    with pytest.raises(ValueError, match="learned 2 columns of targets: use partial_fit and predict"):
        model.predict_one(mapping(X[0]))


# ---------------------------------------------------------------- features and labels that come and go


@pytest.mark.parametrize("settings", VARIANTS[:4], ids=str)
def test_a_new_feature_changes_no_prediction_for_examples_without_it(settings):
    model = OnlineClassifier(**BUSY | settings)
    for row, label in zip(X, LABELS.tolist(), strict=True):
        model.learn_one(mapping(row), label)
    before, kept = model.state_dict(), [model.predict_proba_one(mapping(row)) for row in X[:50]]
    model._stream.add_features(model._stream.features.row, {"new": 1.0, "newer": 2.0})
    after = [model.predict_proba_one(mapping(row)) for row in X[:50]]
    for was, now in zip(kept, after, strict=True):
        assert list(now.values()) == pytest.approx(list(was.values()), abs=1e-5 if settings.get("noise_std") else 1e-6)
    for name in ("age", "utility", "mean", "decay_power", "eligible", "replaced", "beta_power"):
        np.testing.assert_array_equal(model.state_dict()["network"][name], before["network"][name], err_msg=name)
    assert min(model.replacements_) >= 20


def test_sums_of_weights_which_utilities_use_follow_a_network_that_grows():
    model = OnlineClassifier(**BUSY, weight_decay=1e-3, utility="adaptable_contribution").partial_fit(
        X[:300], LABELS[:300]
    )
    model.learn_one({0: 1.0, "new": 2.0}, "fourth")
    network = model._stream.network
    shrunk, state = network.state_dict()["shrunk"], network._state
    for layer, (at, of_inputs) in enumerate(zip(network._net.unit_at, network.sizes, strict=False)):
        if layer == 3:
            break
        sizes = np.abs(network.weights(layer)[0])
        np.testing.assert_allclose(shrunk * state.row_sum[0, at : at + of_inputs], sizes.sum(axis=1), rtol=1e-5)
        into = network._net.unit_at[layer + 1] - network._net.unit_at[1]
        np.testing.assert_allclose(
            shrunk * state.column_sum[0, into : into + sizes.shape[1]], sizes.sum(axis=0), rtol=1e-5
        )


def test_a_feature_that_comes_late_is_learned():
    model, rng = OnlineClassifier(hidden=(16,), step_size=0.05), np.random.default_rng(1)
    late = rng.choice([-1.0, 1.0], 4000)
    for t, told in enumerate(late):
        x = {"noise": rng.normal()} | ({"late": told} if t >= 1000 else {})
        model.learn_one(x, bool(told > 0))
        if t == 999:
            assert 0.4 < model.score_ < 0.6
    assert model.n_features_in_ == 2
    assert [model.predict_one({"late": told, "noise": 0.0}) for told in (-1.0, 1.0)] == [False, True]


def test_a_label_that_comes_late_counts_as_missed_and_is_learned():
    model = OnlineClassifier(**BUSY, step_size=0.05)
    for t in range(600):
        model.learn_one({"a": t % 2}, t % 2)
    hits = model.score_ * model.n_seen_
    assert model.classes_.tolist() == [0, 1]
    model.learn_one({"a": 2}, 2)
    assert model.score_ * model.n_seen_ == pytest.approx(hits)
    assert model.classes_.tolist() == [0, 1, 2]
    for t in range(1500):
        model.learn_one({"a": t % 3}, t % 3)
    assert [model.predict_one({"a": a}) for a in (0, 1, 2)] == [0, 1, 2]
    assert sum(model.predict_proba_one({"a": 1}).values()) == pytest.approx(1.0)


def test_labels_are_sorted_in_whatever_order_they_come():
    model = OnlineClassifier().partial_fit(X, LABELS)
    assert model.classes_.tolist() == ["low", "mid", "up"] != list(dict.fromkeys(LABELS.tolist()))
    for row, shares, label in zip(X, model.predict_proba(X), model.predict(X), strict=True):
        assert model.classes_[shares.argmax()] == label == model.predict_one(dict(enumerate(row)))
        assert dict(zip(model.classes_.tolist(), shares, strict=True)) == model.predict_proba_one(dict(enumerate(row)))


def test_one_label_alone_is_always_predicted():
    model = OnlineClassifier().partial_fit(X[:5], ["only"] * 5)
    assert model.predict(X).tolist() == ["only"] * len(X)
    assert model.predict_proba_one(dict(enumerate(X[0]))) == {"only": 1.0}


def test_before_any_example_there_is_no_prediction():
    assert OnlineClassifier().predict_one({"a": 1}) is None
    assert OnlineClassifier().predict_proba_one({"a": 1}) == {}
    assert OnlineRegressor().predict_one({"a": 1}) == 0.0


@pytest.mark.parametrize("nothing", [None, np.nan, "absent"])
def test_what_is_missing_is_the_mean_or_zero_or_refused(nothing):
    def example(value):
        return {"a": value, "b": 1.0 + value} if nothing == "absent" else {"a": value, "b": 1.0 + value, "c": nothing}

    for missing, stands_for in (("mean", None), ("zero", 0.0)):
        model = OnlineRegressor(**BUSY, missing=missing)
        for t in range(200):
            model.learn_one({**example(t % 5), "c": 7.0 + t % 3}, t % 5)
        there = {**example(2), "c": stands_for if missing == "zero" else model.state_dict()["inputs"]["mean"][2]}
        assert model.predict_one(example(2)) == pytest.approx(model.predict_one(there), rel=1e-6)
    model = OnlineRegressor(**BUSY, missing="raise")
    model.learn_one({"a": 1.0, "b": 2.0, "c": 3.0}, 1.0)
    before = model.state_dict()
    with pytest.raises(
        ValueError, match=r"feature 'c' is missing \(absent, None or NaN\): missing='mean' or 'zero' takes that"
    ):
        model.learn_one(example(2), 1.0)
    assert_same(model, before)


def test_an_example_without_any_feature_may_come_first():
    model = OnlineClassifier()
    model.learn_one({}, "a")
    model.learn_one({"x": 1.0, "y": 2.0}, "b")
    assert model.n_features_in_ == 2
    assert model.predict_one({}) in ("a", "b")


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize(("kind", "y"), BOTH)
def test_a_weight_multiplies_the_gradient_and_nothing_is_learned_with_weight_zero(kind, y):
    steps = []
    for weight in (1.0, 2.0):
        model = kind(hidden=(8,), normalize=False, step_size=2.0**-16).partial_fit(X[:50], y[:50])
        before = model.state_dict()["network"]["parameters"].astype(np.float64)
        model.partial_fit(X[50:51], y[50:51], sample_weight=[weight])
        steps.append(model.state_dict()["network"]["parameters"] - before)
    assert np.abs(steps[0]).max() > 0
    np.testing.assert_allclose(steps[1], 2 * steps[0], atol=1e-6)
    before = model.state_dict()
    model.partial_fit(X[60:70], y[60:70], sample_weight=np.zeros(10))
    model.learn_one(dict(enumerate(X[70])), y[70].item(), w=0.0)
    assert_same(model, before)
    some = np.tile([0.0, 1.0], 450)
    assert_same(kind(**BUSY).fit(X, y, sample_weight=some), kind(**BUSY).fit(X[1::2], y[1::2]))


# ---------------------------------------------------------------- saved


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
@pytest.mark.parametrize(("kind", "y"), BOTH)
def test_stopping_and_resuming_changes_nothing(kind, y, settings):
    model = kind(**BUSY | settings)
    model.partial_fit(X[:450], y[:450]).learn_one({0: 1.0, "more": 2.0}, y[0].item())
    loaded = kind(**BUSY | settings)
    loaded.load_state_dict(model.state_dict())
    copies = [loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model]
    for each in copies:
        for row, answer in zip(X[450:], y[450:].tolist(), strict=True):
            each.learn_one(dict(enumerate(row)) | {"more": 1.0}, answer)
        assert_same(each, copies[0])
    assert min(model.replacements_) >= 20


@pytest.mark.parametrize(("kind", "y"), BOTH)
def test_a_damaged_state_is_refused_and_changes_nothing(kind, y):
    model = kind(**BUSY).partial_fit(X[:100], y[:100])
    state = model.state_dict()
    model.partial_fit(X[100:200], y[100:200])
    before = model.state_dict()
    damaged = [
        None,
        3,
        [],
        {},
        kind(hidden=(5,)).partial_fit(X, y).state_dict(),
        kind(**BUSY, seed=1).partial_fit(X, y).state_dict(),
    ]
    for name in state:
        damaged += [{key: value for key, value in state.items() if key != name}]
        damaged += [state | {name: odd} for odd in (None, "x", -1, [1, 2, 3, 4, 5, 6, 7], {"mean": 1})]
    for name in ("inputs", "targets", "score"):
        for below in state[name]:
            damaged += [state | {name: state[name] | {below: odd}} for odd in (np.full(4, np.nan), np.zeros(9), None)]
    for each in damaged:
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            model.load_state_dict(each)
        assert "\n" not in str(raised.value)
        assert_same(model, before)
    assert len(damaged) > 50


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize("kind", [OnlineClassifier, OnlineRegressor])
@pytest.mark.parametrize(
    ("positional", "named", "message"),
    [
        (
            (),
            {"hiden": 8},
            r" has no argument 'hiden' \(did you mean 'hidden'\?\); it has hidden, step_size, optimizer",
        ),
        ((), {"replacment_rate": 0}, r" has no argument .* \(did you mean 'replacement_rate'\?\)"),
        ((64, 64), {}, ": too many positional arguments; hidden is its only argument that needs no name"),
        (((64,),), {"hidden": (64,)}, ": multiple values for argument 'hidden'"),
    ],
)
def test_an_argument_that_it_does_not_take_is_told_by_its_own_name(kind, positional, named, message):
    with pytest.raises(TypeError, match=f"^{kind.__name__}{message}"):
        kind(*positional, **named)
    assert set(inspect.signature(kind).parameters) == set(kind().get_params())  # scikit-learn and River read both


def test_a_repr_shows_what_was_chosen():
    assert repr(OnlineClassifier()) == "OnlineClassifier()"
    assert repr(OnlineRegressor((32,), step_size=0.1)) == "OnlineRegressor(hidden=(32,), step_size=0.1)"
    assert eval(repr(OnlineClassifier(seed=3, optimizer="adam"))).get_params()["optimizer"] == "adam"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden": 64}, r"hidden must be the sizes of the hidden layers, such as \(64,\) for one, not 64"),
        ({"step_size": -1}, "step_size must be finite and at least 0, not -1"),
        ({"optimizer": "adm"}, r"unknown optimizer 'adm' \(did you mean 'adam'\?\)"),
        ({"missing": "means"}, r"unknown missing 'means' \(did you mean 'mean'\?\)"),
        ({"on_divergence": "rais"}, r"unknown on_divergence 'rais' \(did you mean 'raise'\?\)"),
        ({"normalize": "yes"}, "normalize must be True or False, not 'yes'"),
        ({"normalize_decay": 1.0}, "normalize_decay must be at least 0 and below 1, not 1.0"),
        ({"replacement_rate": 2}, "replacement_rate must be finite and between 0 and 1, not 2"),
        ({"candidates": -1}, "candidates must be finite and between 0"),
        ({"candidates": 2, "normalization": "layer"}, "candidates do not work with normalization"),
        ({"seed": "zero"}, "seed must be an integer"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named_by_the_first_call_that_learns(wrong, message):
    for call in (
        lambda model: model.fit(X, LABELS),
        lambda model: model.partial_fit(X, LABELS),
        lambda model: model.learn_one({"a": 1.0}, "b"),
    ):
        model = OnlineClassifier(**wrong)
        with pytest.raises(ValueError, match=message):
            call(model)
        assert model.predict_one({"a": 1.0}) is None


def test_arguments_that_may_change_do_and_the_others_are_refused():
    changed, whole = OnlineClassifier(**BUSY, step_size=0.01), OnlineClassifier(**BUSY, step_size=0.01)
    changed.partial_fit(X[:100], LABELS[:100])
    whole.partial_fit(X[:100], LABELS[:100])
    changed.set_params(step_size=0.0, replacement_rate=0.0)
    before = changed.state_dict()["network"]["parameters"]
    changed.learn_one(dict(enumerate(X[0])), "up")
    np.testing.assert_array_equal(changed.state_dict()["network"]["parameters"], before)
    whole.set_params(hidden=(9,))
    with pytest.raises(
        ValueError, match=r"hidden was changed from \(8, 6\) to \(9,\) after learning had begun: call fit"
    ):
        whole.partial_fit(X[:1], LABELS[:1])
    assert whole.fit(X, LABELS).state_dict()["network"]["sizes"].tolist() == [4, 9, 3]


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(("kind", "y"), BOTH)
def test_divergence_is_never_silent(kind, y, parts):
    settings = {"hidden": (16,), "step_size": 1e30, "normalize": False}
    model = kind(**settings)
    told = rf"{kind.__name__} diverged: its loss at example .* is not finite. Lower step_size from 1e.30"
    with pytest.raises(RuntimeError, match=told):  # noqa: PT012
        for _ in range(parts):
            model.partial_fit(X[: 900 // parts], y[: 900 // parts])
    assert model.diverged_
    for call in (
        lambda: model.predict(X),
        lambda: model.learn_one({0: 1.0}, y[0].item()),
        lambda: model.partial_fit(X[:1], y[:1]),
    ):
        with pytest.raises(RuntimeError, match="it neither learns nor predicts any more"):
            call()
    model = kind(**settings, on_divergence="restart")
    with warnings.catch_warnings(record=True, action="always") as said:
        model.partial_fit(X, y)
    assert [f"(restart {k})" in str(each.message) for k, each in enumerate(said, start=1)] == [True] * model.restarts_
    assert {each.category for each in said} == {RuntimeWarning}
    assert model.restarts_ >= 1
    assert model.n_seen_ == len(X)
    assert not model.diverged_


WRONG_TURNS = [
    (
        lambda m: m.partial_fit(X[0], ["up"]),
        ValueError,
        r"Expected 2D array.*Reshape your data: X.reshape\(1, -1\) is one example",
    ),
    (
        lambda m: m.partial_fit(X[:, :3], LABELS),
        ValueError,
        "X has 3 features, but OnlineClassifier is expecting 4 features",
    ),
    (lambda m: m.partial_fit(X[:2], ["up"]), ValueError, "y has 1 labels for the 2 examples of X"),
    (
        lambda m: m.partial_fit(X[:1], [0.5]),
        ValueError,
        "0.5 is continuous, not a class; OnlineRegressor learns numbers",
    ),
    (lambda m: m.partial_fit(X[:1], [None]), ValueError, "a label is None: leave examples without a label out"),
    (lambda m: m.partial_fit([["a", "b", "c", "d"]], ["up"]), TypeError, "feature 0 is 'a', a text: make it numbers"),
    (lambda m: m.partial_fit(X[:1] * np.inf, ["up"]), ValueError, "feature 0 is inf: numbers must be finite"),
    (
        lambda m: m.partial_fit(X[:1], ["up"], sample_weight=[-1]),
        ValueError,
        "sample_weight must be finite and at least 0",
    ),
    (
        lambda m: m.partial_fit(X[:1], ["up"], classes=["low"]),
        ValueError,
        "y holds the label 'up', which `classes` does not",
    ),
    (lambda m: m.learn_one(X[0], "up"), TypeError, "an example is a dictionary of features, not a ndarray"),
    (
        lambda m: m.learn_one({0: "1.5", 1: 2, 2: 3, 3: 4}, "up"),
        TypeError,
        "feature 0 is '1.5', a text: make it numbers",
    ),
    (lambda m: m.learn_one({0: [1], 1: 2}, "up"), TypeError, "feature 0 is a list: give a number, or None"),
    (lambda m: m.learn_one({0: 1e300}, "up"), ValueError, r"feature 0 is 1e\+300: numbers must be finite"),
    (lambda m: m.learn_one({"new": np.inf}, "up"), ValueError, "feature 'new' is inf: numbers must be finite"),
    (lambda m: m.learn_one({0: 1.0}, ["up"]), TypeError, "a label must be hashable, and a list is not"),
    (lambda m: m.learn_one({0: 1.0}, float("nan")), ValueError, "a label is nan"),
    (lambda m: m.learn_one({0: 1.0}, "up", w=-1.0), ValueError, "w is -1: a weight must be finite and at least 0"),
    (lambda m: m.predict(X[:, :2]), ValueError, "X has 2 features"),
    (
        lambda m: m.partial_fit([{0: 1.0}], ["up"]),
        TypeError,
        "one by one to learn_one and predict_one, or pandas.DataFrame",
    ),
    (lambda m: m.predict({0: [1.0]}), TypeError, "X is no table but dictionaries"),
    (lambda m: m.learn_many(X, LABELS), TypeError, "learn_many takes a table with named columns, .* not a ndarray"),
    (lambda m: m.predict_many(X), TypeError, "takes a table with named columns"),
    (lambda m: m.fit(X, LABELS, sample_weight=np.zeros(900)), ValueError, "sample_weight is zero for every example"),
    (lambda m: m.set_params(eta=1), ValueError, "eta"),
]


@pytest.mark.parametrize("turn", range(len(WRONG_TURNS)))
def test_a_wrong_turn_is_told_in_a_sentence_and_nothing_is_changed(turn):
    call, error, message = WRONG_TURNS[turn]
    model = OnlineClassifier(**BUSY).partial_fit(X[:100], LABELS[:100])
    before = model.state_dict()
    with pytest.raises(error, match=message) as raised:
        call(model)
    assert "\n" not in str(raised.value)
    assert_same(model, before)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ("1.0", "y must be a number, not '1.0'"),
        (np.nan, "y is nan: targets must be finite"),
        (None, "y must be a number"),
    ],
)
def test_a_target_is_a_finite_number(y, message):
    model = OnlineRegressor(**BUSY).partial_fit(X, NUMBERS)
    before = model.state_dict()
    with pytest.raises((TypeError, ValueError), match=message):
        model.learn_one(dict(enumerate(X[0])), y)
    with pytest.raises((TypeError, ValueError)):
        model.partial_fit(X[:1], [y])
    assert_same(model, before)


WITHOUT = """
import pickle, sys
sys.modules["sklearn"] = sys.modules["river"] = None
import numpy as np
from pliant.online import OnlineClassifier, OnlineRegressor
X = np.random.default_rng(0).normal(size=(300, 3))
model = OnlineClassifier().set_params(hidden=(8,), step_size=0.05)
try:
    model.predict(X)
except ValueError as error:
    print(error)
print(model.fit(X, X[:, 0] > 0).score(X, X[:, 0] > 0) > 0.9, model.get_params()["hidden"], model)
model = pickle.loads(pickle.dumps(model))
model.learn_one({0: 1.0, 1: None, "new": 2.0}, True)
print(model.n_features_in_, OnlineRegressor().fit(X, X[:, 0]).predict(X).shape)
try:
    model.set_params(eta=1)
except ValueError as error:
    print(error)
"""


def test_neither_scikit_learn_nor_river_is_needed():
    ended = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    compiling = "compiling the online learners for this machine: some seconds, once; the code is kept on disk\n"
    assert ended.stderr.replace(compiling, "") == ""
    lines = ended.stdout.splitlines()
    assert lines[0] == "This OnlineClassifier has learned nothing yet: call fit, partial_fit or learn_one first"
    assert lines[1] == "True (8,) OnlineClassifier(hidden=(8,), step_size=0.05)"
    assert lines[2] == "4 (300,)"
    assert lines[3].startswith("Invalid parameter 'eta' for estimator OnlineClassifier(hidden=(8,), step_size=0.05).")
