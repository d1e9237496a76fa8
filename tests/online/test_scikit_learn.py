"""The estimators of single examples inside scikit-learn."""

import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install -e .[sklearn]")

import joblib
import pandas as pd
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from pliant.online import OnlineClassifier, OnlineRegressor

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 3))
LABELS = np.where(X[:, 0] > X[:, 1], "left", "right")
TABLE = pd.DataFrame(X, columns=["a", "b", "c"])

EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": "one step of twice the length is not two steps: the second begins elsewhere"
}
SKIPPED = {"check_array_api_input"}  # unless SCIPY_ARRAY_API is set


@pytest.mark.parametrize("missing", ["mean", "raise"])
@pytest.mark.parametrize("kind", [OnlineClassifier, OnlineRegressor])
def test_all_checks_of_scikit_learn_pass_but_one(kind, missing):
    results = check_estimator(kind(missing=missing), expected_failed_checks=EXPECTED, on_fail=None, on_skip=None)
    told = {(each["check_name"], each["status"]): each["exception"] for each in results}
    assert {name for name, status in told if status == "failed"} == set(), told
    assert {name for name, status in told if status == "xfail"} == set(EXPECTED)
    assert {name for name, status in told if status == "skipped"} <= SKIPPED
    assert len(results) >= 55


def test_it_is_what_scikit_learn_takes_it_for():
    assert is_classifier(OnlineClassifier())
    assert is_regressor(OnlineRegressor())
    with pytest.raises(NotFittedError, match="has learned nothing yet: call fit, partial_fit or learn_one first"):
        OnlineClassifier().predict(X)
    copied = clone(OnlineClassifier(step_size=0.05).fit(X, LABELS))
    assert copied.step_size == 0.05
    assert not hasattr(copied, "classes_")


def test_it_works_in_pipelines_searches_and_ensembles():
    pipeline = make_pipeline(StandardScaler(), OnlineClassifier(hidden=(16,)))
    search = GridSearchCV(pipeline, {"onlineclassifier__step_size": [1e-6, 0.02]}, cv=3).fit(TABLE, LABELS)
    assert search.best_params_ == {"onlineclassifier__step_size": 0.02}
    assert search.score(TABLE, LABELS) > 0.9
    assert cross_val_score(OnlineRegressor(), X, X[:, 0] * 1e4, cv=3).min() > 0.9
    votes = VotingClassifier([("a", OnlineClassifier()), ("b", OnlineClassifier(seed=1))], voting="soft").fit(X, LABELS)
    assert votes.score(X, LABELS) > 0.9
    both = MultiOutputClassifier(OnlineClassifier()).fit(X, np.column_stack([LABELS, LABELS[::-1]]))
    assert both.predict(X).shape == (400, 2)
    weekday = make_pipeline(OneHotEncoder(sparse_output=False), OnlineClassifier()).fit(LABELS[:, None], LABELS)
    assert weekday.score(LABELS[:, None], LABELS) == 1.0


def test_tables_are_read_by_the_names_of_their_columns():
    model = OnlineClassifier().partial_fit(TABLE, pd.Series(LABELS, index=range(7, 407)))
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(model.predict(TABLE[["c", "a", "b"]]), model.predict(TABLE))
    np.testing.assert_array_equal(model.predict(X), model.predict(TABLE))
    gaps = TABLE.assign(a=TABLE.a.where(TABLE.a > 0), n=pd.array([1, None] * 200, dtype="Int64"))
    assert OnlineClassifier().fit(gaps, LABELS).predict(gaps).shape == (400,)
    model.learn_one({"a": 1.0, "b": 2.0, "c": 0.0, "new": 1.0}, "left")
    assert model.feature_names_in_.tolist() == ["a", "b", "c", "new"]


LEFT = LABELS == "left"


@pytest.mark.parametrize("labels", [LABELS, LEFT, LEFT * 7, np.array(LABELS, object), LEFT * 1.0])
def test_predictions_have_the_type_of_the_labels(labels):
    model = OnlineClassifier().fit(X, labels)
    assert model.predict(X).dtype.kind == labels.dtype.kind or labels.dtype.kind == "O"
    assert set(model.predict(X)) == set(labels)
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1.0)


def test_files_of_joblib_and_pickle_go_on_to_the_same_bits(tmp_path):
    model = OnlineClassifier(hidden=(8,), replacement_rate=0.02, maturity_threshold=5).partial_fit(X, LABELS)
    joblib.dump(model, tmp_path / "model")
    loaded = [
        joblib.load(tmp_path / "model"),
        joblib.load(tmp_path / "model", mmap_mode="r"),
        pickle.loads(pickle.dumps(model)),
    ]
    for each in (*loaded, model):
        each.partial_fit(X, LABELS)
        np.testing.assert_array_equal(each.predict_proba(X), loaded[0].predict_proba(X))
    assert model.replacements_[0] >= 20
