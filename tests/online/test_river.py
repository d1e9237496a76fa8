"""The estimators of single examples inside River."""

import copy

import numpy as np
import pytest

pytest.importorskip("river", reason="River is not installed: pip install -e .[river]")
pytest.importorskip("sklearn", reason="River's own checks need scikit-learn: pip install -e .[sklearn]")

import pandas as pd
from river import base, compose, datasets, drift, ensemble, evaluate, metrics, multiclass, preprocessing
from river.checks import yield_checks

from pliant.online import OnlineClassifier, OnlineRegressor

CHECKS = [(model, check) for model in (OnlineClassifier(), OnlineRegressor()) for check in yield_checks(model)]


@pytest.mark.parametrize(
    "number", range(len(CHECKS)), ids=lambda i: f"{type(CHECKS[i][0]).__name__}-{CHECKS[i][1].__name__}"
)
def test_a_check_of_river_passes(number):
    model, check = CHECKS[number]
    check(model.clone())


def test_it_is_what_river_takes_it_for():
    for kind, bases in (
        (OnlineClassifier, (base.Classifier, base.MiniBatchClassifier)),
        (OnlineRegressor, (base.Regressor, base.MiniBatchRegressor)),
    ):
        assert all(isinstance(kind(), each) for each in bases)
    assert not isinstance(OnlineRegressor(), base.Classifier)
    assert isinstance(preprocessing.StandardScaler() | OnlineClassifier(), base.Classifier)


def test_progressive_validation_finds_the_running_score():
    model = OnlineClassifier(hidden=(16,))
    metric = evaluate.progressive_val_score(datasets.Phishing(), model, metrics.Accuracy())
    assert metric.get() == pytest.approx(
        model.score_, abs=1e-3
    )  # River leaves the first example out, we count it as missed
    assert model.score_ > 0.85
    assert evaluate.progressive_val_score(datasets.Phishing(), OnlineClassifier(), metrics.ROCAUC()).get() > 0.9
    model = OnlineRegressor(hidden=(16,))
    metric = evaluate.progressive_val_score(datasets.TrumpApproval(), model, metrics.R2())
    assert metric.get() == pytest.approx(model.score_, abs=1e-3)


def test_it_works_in_pipelines_and_ensembles():
    kinds = compose.SelectType(str) | preprocessing.OneHotEncoder()
    pipeline = (compose.SelectType(int, float) + kinds) | OnlineClassifier(hidden=(16,))
    rng, hits = np.random.default_rng(0), []
    for t in range(1500):
        kind = ["a", "b", "c"][rng.integers(2 + (t > 500))]  # "c" comes late
        x, y = {"n": rng.normal(), "kind": kind}, kind != "b"
        hits.append(pipeline.predict_one(x) == y)
        pipeline.learn_one(x, y)
    assert np.mean(hits[-300:]) > 0.95
    for wrapped in (
        ensemble.BaggingClassifier(OnlineClassifier(hidden=(8,)), n_models=2, seed=1),
        drift.DriftRetrainingClassifier(OnlineClassifier(hidden=(8,)), drift.binary.DDM()),
        multiclass.OneVsRestClassifier(OnlineClassifier(hidden=(8,))),
        preprocessing.TargetStandardScaler(OnlineRegressor(hidden=(8,))),
    ):
        for x, y in datasets.Phishing().take(60):
            wrapped.predict_one(x)
            wrapped.learn_one(x, y)
        assert wrapped.predict_one(x) in (True, False) or isinstance(wrapped, preprocessing.TargetStandardScaler)


def test_mini_batches_go_through_pipelines_and_ensembles():
    examples = list(datasets.Phishing().take(900))
    X, y = pd.DataFrame([x for x, _ in examples]), pd.Series([y for _, y in examples], name="phishing")
    plain = preprocessing.StandardScaler() | OnlineClassifier(hidden=(16,))
    union = (
        compose.Select("empty_server_form_handler", "popup_window")
        + compose.Select("https", "request_from_other_domain")
    ) | (OnlineClassifier(hidden=(16,)))
    each = multiclass.OneVsRestClassifier(OnlineClassifier(hidden=(16,)))
    for model in (plain, union, each):
        hits = []
        for begin in range(0, 900, 50):
            batch = X.iloc[begin : begin + 50]
            found = model.predict_many(batch)
            assert found.empty or found.index.equals(batch.index)
            hits += [] if found.empty else [(found == y.loc[batch.index]).mean()]
            model.learn_many(batch, y.loc[batch.index])
        assert np.mean(hits[-9:]) > 0.8
    shares = plain.predict_proba_many(X)
    assert shares.columns.tolist() == [False, True]
    assert shares.index.equals(X.index)
    assert plain.predict_many(X).name == "phishing"
    examples = list(datasets.TrumpApproval().take(600))
    X, y = pd.DataFrame([x for x, _ in examples]), pd.Series([y for _, y in examples])
    model = preprocessing.StandardScaler() | OnlineRegressor(hidden=(16,))
    for begin in range(0, 600, 50):
        model.learn_many(X.iloc[begin : begin + 50], y.iloc[begin : begin + 50])
    assert np.abs(model.predict_many(X.iloc[-50:]) - y.iloc[-50:]).mean() < 1.0


def test_weights_reach_the_model():
    weighted, plain = OnlineClassifier(), OnlineClassifier()
    examples = list(datasets.Phishing().take(100))
    evaluate.progressive_val_score(
        [(x, y, {"w": t % 2}) for t, (x, y) in enumerate(examples)], weighted, metrics.Accuracy()
    )
    for x, y in examples[1::2]:
        plain.learn_one(x, y)
    assert weighted.predict_proba_one(x) == plain.predict_proba_one(x)
    assert copy.deepcopy(weighted).n_seen_ == 50
