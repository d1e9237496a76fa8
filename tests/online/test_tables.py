"""Tables, and what in them is a number: the same as in dictionaries."""

import datetime
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("pandas", reason="pandas is not installed: pip install -e .[lab]")

import pandas as pd

from pliant.online import OnlineClassifier, OnlineRegressor
from pliant.online.features import Features
from pliant.online.tables import table

RNG = np.random.default_rng(0)
NAN = np.nan
FRAME = pd.DataFrame(RNG.normal(size=(60, 3)), columns=["a", "b", "c"])
ANSWERS = np.where(FRAME.a > 0, "up", "down")
DAY = np.datetime64("2020-01-01", "ns")

# ---------------------------------------------------------------- one rule for cells

NUMBERS = {
    "booleans": ([True, False], None, [1.0, 0.0]),
    "nullable integers": ([1, None], "Int64", [1.0, NAN]),
    "nullable booleans": ([True, None], "boolean", [1.0, NAN]),
    "Arrow numbers": ([1.5, None], "double[pyarrow]", [1.5, NAN]),
    "sparse": ([0, 3], pd.SparseDtype("int64"), [0.0, 3.0]),
    "decimals": ([Decimal("1.5"), None], object, [1.5, NAN]),
    "a mixture": ([True, 2.5, 3, None, pd.NA, pd.NaT, Fraction(1, 4)], object, [1.0, 2.5, 3.0, NAN, NAN, NAN, 0.25]),
    "categories of numbers": ([3, 5], "category", [3.0, 5.0]),
}
OTHERS = {
    "dates": ([DAY, DAY], "datetime64[ns]"),
    "dates with a zone": ([pd.Timestamp("2020", tz="UTC")], None),
    "durations": ([np.timedelta64(1, "ns")], "timedelta64[ns]"),
    "numbers as texts": (["3.5", "4"], object),
    "numbers as strings of pandas": (["3.5", "4"], "string"),
    "categories of numbers as texts": (["3.5", "4"], "category"),
    "texts": (["red"], object),
    "dates as objects": ([1.0, datetime.date(2020, 1, 1)], object),
    "complex": ([1j], None),
    "periods": ([pd.Period("2020")], None),
    "lists": ([[1.0], [2.0]], object),
    "bytes": ([b"3.5"], object),
    "a bytearray": ([bytearray(b"3.5")], object),
    "arrays of texts": ([np.array("3.5")], object),
    "dates of NumPy": ([DAY], object),
}


def as_series(cells, dtype):
    series = pd.Series(index=range(len(cells)), dtype=object)
    for i, cell in enumerate(cells):
        series[i] = cell
    return series.astype(dtype) if dtype is not None else series.infer_objects()


@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_a_number_in_a_dictionary_is_one_in_a_table(name):
    cells, dtype, expected = NUMBERS[name]
    series = as_series(cells, dtype)
    rows, columns = table(pd.DataFrame({"n": 1.0, "x": series}))
    assert columns == ["n", "x"]
    np.testing.assert_array_equal(rows, [[1.0, number] for number in expected])
    np.testing.assert_array_equal([Features(["x"]).read({"x": cell})[0].item() for cell in series], expected)
    objects = np.empty((len(cells), 1), object)
    objects[:, 0] = cells
    np.testing.assert_array_equal(table(objects)[0][:, 0], expected)


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_dictionary_refuses_a_table_refuses_and_names_the_column(name):
    cells, dtype = OTHERS[name]
    frame = pd.DataFrame({"n": np.arange(len(cells)), "odd": as_series(cells, dtype)})
    with pytest.raises(TypeError, match="feature 'odd' is "):
        table(frame)
    objects = np.empty((len(cells), 2), object)
    objects[:, 0] = 1.0
    for i, cell in enumerate(cells):
        objects[i, 1] = cell
    with pytest.raises(TypeError, match="feature 1 is "):
        table(objects)
    for x in ({"odd": cells[-1]}, {"n": 1.0, "odd": cells[-1]}):
        with pytest.raises(TypeError, match="feature 'odd' is "):
            OnlineClassifier().learn_one(x, "up")


@pytest.mark.parametrize(
    "array", [np.array([[DAY]]), np.array([[DAY - DAY]]), np.array([["3.5"]]), np.array([[b"3.5"]])]
)
def test_an_array_of_dates_durations_or_texts_is_refused(array):
    with pytest.raises(TypeError, match="feature 0 is "):
        table(array)


def test_a_list_of_rows_keeps_the_types_of_its_cells():
    with pytest.raises(TypeError, match=r"feature 1 is '3.5', a text: make it numbers, with float or an encoder"):
        table([[1.0, "3.5"], [2.0, None]])
    np.testing.assert_array_equal(table([[1, None], [True, pd.NA]])[0], [[1.0, NAN], [1.0, NAN]])
    with pytest.raises(ValueError, match=r"X is no table of numbers: .* inhomogeneous"):
        table([[1.0], [1.0, 2.0]])


def test_all_columns_without_numbers_are_named():
    with pytest.raises(
        TypeError, match=r"feature 'x' is '1', a text: make it numbers.*; nor are features 'y', 'z' numbers"
    ):
        table(pd.DataFrame({"x": ["1"], "n": [1], "y": ["2"], "z": [pd.Timestamp("2020")]}))


def test_a_number_that_cannot_be_used_is_told_by_row_and_column():
    with pytest.raises(ValueError, match=r"feature 'b' of X\[7\] is inf"):
        OnlineClassifier().fit(FRAME.assign(b=FRAME.b.where(FRAME.index != 7, np.inf)), ANSWERS)
    with pytest.raises(ValueError, match=r"feature 2 of X\[1\] is missing"):
        OnlineClassifier(missing="raise").fit([[1.0, 2.0, 3.0], [1.0, 2.0, None]], ["a", "b"])


def test_two_columns_of_one_name_are_refused():
    twice = FRAME.set_axis(["a", "b", "a"], axis=1)
    model = OnlineClassifier().fit(FRAME, ANSWERS)
    for call in (model.predict, model.predict_many, lambda X: OnlineClassifier().fit(X, ANSWERS)):
        with pytest.raises(ValueError, match="two columns are called 'a': give each its own name"):
            call(twice)


@pytest.mark.parametrize("name", sorted(OTHERS.keys() - {"lists", "a bytearray"}))
def test_targets_are_numbers_by_the_same_rule(name):
    cells, dtype = OTHERS[name]
    series, X = as_series(cells, dtype), np.arange(2.0 * len(cells)).reshape(-1, 2)
    for y in (series, series.to_numpy(), cells):
        with pytest.raises((TypeError, ValueError), match=r"y must be numbers|Complex data not supported"):
            OnlineRegressor().fit(X, y)
    with pytest.raises(TypeError, match="y must be a number"):
        OnlineRegressor().learn_one({"a": 1.0}, cells[-1])
    mixture = [True, Decimal("1.5"), Fraction(1, 4)]
    np.testing.assert_array_equal(OnlineRegressor()._answers(mixture, 3)[:, 0], [1.0, 1.5, 0.25])


def test_a_label_that_is_missing_is_refused():
    for missing in (None, NAN, pd.NA, pd.NaT):
        with pytest.raises(ValueError, match="leave examples without a label out"):
            OnlineClassifier().fit(FRAME[:2], pd.Series(["up", missing], dtype=object))


# ---------------------------------------------------------------- columns that differ from those learned


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"c": "d"}, r"X lacks 1 \('c'\) and adds 1 \('d'\)"),
        ({"a": "e", "c": "d"}, r"X lacks 2 \('a', 'c'\) and adds 2 \('e', 'd'\)"),
    ],
)
def test_a_table_with_other_columns_is_told_which_are_missing_and_which_are_new(change, told):
    model = OnlineClassifier().partial_fit(FRAME, ANSWERS)
    before = model.predict_proba(FRAME)
    other = FRAME.rename(columns=change)
    for call in (model.predict, lambda X: model.partial_fit(X, ANSWERS)):
        with pytest.raises(
            ValueError, match=f"the 3 features that OnlineClassifier learned, but {told}: give it those, or use"
        ):
            call(other)
    np.testing.assert_array_equal(model.predict_proba(FRAME), before)


def test_a_table_with_fewer_or_more_columns_is_told_the_same():
    model = OnlineRegressor().partial_fit(FRAME, FRAME.a)
    with pytest.raises(ValueError, match=r"X lacks 2 \('b', 'c'\): give it those, or use learn_many and predict_many"):
        model.predict(FRAME[["a"]])
    with pytest.raises(ValueError, match=r"X adds 1 \('new'\): give it those"):
        model.predict(FRAME.assign(new=1.0))
    wide = FRAME.join(pd.DataFrame(0.0, FRAME.index, [f"column {i}" for i in range(400)]))
    with pytest.raises(ValueError, match=r"X adds 400 \('column 0', .* \.\.\. .*'column 399'\)") as raised:
        model.predict(wide)
    assert len(str(raised.value)) < 400
    with pytest.raises(
        ValueError, match="X has 2 features, but OnlineRegressor is expecting 3 features as input: give the"
    ):
        model.predict(FRAME.to_numpy()[:, :2])


def test_columns_with_the_numbers_of_the_features_are_read_by_number():
    X = FRAME.to_numpy()
    model = OnlineClassifier().fit(X, ANSWERS)
    np.testing.assert_array_equal(model.predict(pd.DataFrame(X)[[2, 0, 1]]), model.predict(X))
    np.testing.assert_array_equal(model.predict(FRAME), model.predict(X))  # learned without names: as they lie


# ---------------------------------------------------------------- polars


def test_tables_of_polars_are_read_and_answered_alike():
    pl = pytest.importorskip("polars", reason="polars is not installed: pip install polars")
    frame = pl.DataFrame({"a": [1.5, None], "i": [1, None], "t": [True, None], "d": [Decimal("1.5"), None]})
    rows, columns = table(frame)
    assert columns == ["a", "i", "t", "d"]
    np.testing.assert_array_equal(rows, [[1.5, 1.0, 1.0, 1.5], [NAN] * 4])
    for odd in (
        ["3.5"],
        [datetime.datetime(2020, 1, 1)],
        [datetime.timedelta(1)],
        pl.Series(["1"], dtype=pl.Categorical),
    ):
        with pytest.raises(TypeError, match="feature 'odd' is "):
            table(pl.DataFrame({"n": [1.0], "odd": odd}))
    model, other = OnlineClassifier(), OnlineClassifier()
    model.learn_many(pl.DataFrame(FRAME.to_dict("list")), pl.Series("way", ANSWERS))
    other.learn_many(FRAME, pd.Series(ANSWERS))
    found, shares = (
        model.predict_many(pl.DataFrame(FRAME.to_dict("list"))),
        model.predict_proba_many(pl.DataFrame(FRAME.to_dict("list"))),
    )
    assert (type(found), found.name, type(shares), shares.columns) == (pl.Series, "way", pl.DataFrame, ["down", "up"])
    assert found.to_list() == other.predict_many(FRAME).tolist()
    np.testing.assert_array_equal(shares.to_numpy(), other.predict_proba_many(FRAME).to_numpy())


# ---------------------------------------------------------------- learn_many and predict_many

SUBSETS = [["b", "a"], ["b", "d", "a"], ["c"], ["d", "c", "b", "a"], ["e", "a"]]
WIDE = FRAME.assign(d=FRAME.a * 2, e=np.where(RNG.random(60) < 0.3, NAN, 1.0 + FRAME.b))
BUSY = {"hidden": (8, 6), "replacement_rate": 0.5, "maturity_threshold": 2}
ALL_ANSWERS = np.where(WIDE.index < 20, ANSWERS, np.where(WIDE.c > 0, "late", ANSWERS))  # a label that comes late


@pytest.mark.parametrize(
    ("kind", "answers"), [(OnlineClassifier, ALL_ANSWERS), (OnlineRegressor, WIDE.a.to_numpy() * 50)]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_learn_many_is_learn_one_row_by_row_while_columns_come_and_go(kind, answers, weighted):
    weights = np.tile([0.0, 1.0, 2.0], 20) if weighted else np.ones(60)
    one, many = kind(**BUSY), kind(**BUSY)
    for part, columns in enumerate(SUBSETS):
        X = WIDE[columns].iloc[12 * part : 12 * part + 12]
        w = weights[12 * part : 12 * part + 12]
        many.learn_many(X, pd.Series(answers[X.index]), **({"w": w} if weighted else {}))
        for i, row in X.iterrows():
            one.learn_one(row.to_dict(), answers[i], weights[i])
    assert min(one.replacements_) >= 20
    assert many.n_features_in_ == 5
    assert many.n_seen_ == (40 if weighted else 60)
    mine, theirs = many.state_dict(), one.state_dict()
    assert [mine[name] for name in ("features", "labels", "seen")] == [
        theirs[name] for name in ("features", "labels", "seen")
    ]
    for part in ("network", "inputs", "targets"):
        for name, value in theirs[part].items():
            np.testing.assert_array_equal(mine[part][name], value, err_msg=name)
    assert many.score_ == pytest.approx(one.score_, rel=1e-12)
    X = WIDE[["e", "c"]].assign(never=1.0)  # two features are absent, one was never learned
    assert many.predict_many(X).tolist() == [one.predict_one(row.to_dict()) for _, row in X.iterrows()]


def test_answers_keep_the_index_of_the_table_and_the_name_of_the_series():
    X = FRAME.set_index(pd.date_range("2020", periods=60))
    model = OnlineClassifier()
    assert model.predict_many(X).tolist() == [None] * 60
    assert model.predict_proba_many(X).shape == (60, 0)
    model.learn_many(X, pd.Series(ANSWERS, name="way"))
    found, shares = model.predict_many(X), model.predict_proba_many(X)
    assert (found.name, shares.columns.tolist()) == ("way", ["down", "up"])
    assert found.index.equals(X.index)
    assert shares.index.equals(X.index)
    for (_, row), (_, share), label in zip(X.iterrows(), shares.iterrows(), found, strict=True):
        assert model.predict_proba_one(row.to_dict()) == pytest.approx(share.to_dict(), rel=1e-6)
        assert share.idxmax() == label == model.predict_one(row.to_dict())
    copied = OnlineClassifier()
    copied.load_state_dict(model.state_dict())
    assert copied.predict_many(X).equals(found)
    assert copied.predict_many(X).name == "way"
    numbers = OnlineRegressor()
    assert numbers.predict_many(X).tolist() == [0.0] * 60
    numbers.learn_many(X, pd.Series(FRAME.a.to_numpy(), name="size"))
    assert numbers.predict_many(X).name == "size"
    assert numbers.predict_many(X).index.equals(X.index)


@pytest.mark.parametrize(
    ("X", "y", "w", "error", "message"),
    [
        (FRAME.assign(d="x"), ANSWERS, 1.0, TypeError, "feature 'd' is 'x', a text"),
        (FRAME.assign(d=np.inf), ANSWERS, 1.0, ValueError, r"feature 'd' of X\[0\] is inf"),
        (FRAME, ANSWERS[:5], 1.0, ValueError, "y has 5 labels for the 60 examples of X"),
        (FRAME.assign(d=1.0), [0.5] * 60, 1.0, ValueError, "0.5 is continuous, not a class"),
        (FRAME, ANSWERS, [1.0, 2.0], ValueError, r"w has shape \(2,\); expected one number for each of 60"),
        (FRAME, ANSWERS, -1.0, ValueError, "w must be finite and at least 0"),
    ],
)
def test_a_batch_that_is_refused_changes_nothing(X, y, w, error, message):
    model = OnlineClassifier().partial_fit(FRAME, ANSWERS)
    before = model.predict_proba(FRAME)
    for each in (model, OnlineClassifier()):
        with pytest.raises(error, match=message):
            each.learn_many(X, y, w)
    assert model.n_features_in_ == 3
    np.testing.assert_array_equal(model.predict_proba(FRAME), before)


def test_a_batch_of_weight_zero_is_not_learned():
    model = OnlineClassifier()
    with pytest.raises(TypeError, match="predict_many takes a table with named columns"):
        model.predict_many(FRAME.to_numpy())
    with pytest.raises(ValueError, match=r"feature 'c' of X\[59\] is inf"):
        model.learn_many(FRAME.assign(c=FRAME.c.where(FRAME.index < 59, np.inf)), ANSWERS, 1.0 * (FRAME.index < 30))
    model.learn_many(FRAME, ANSWERS, 0.0)
    assert model.predict_many(FRAME).tolist() == [None] * 60
    model.learn_many(FRAME, ANSWERS)
    model.learn_many(FRAME.assign(new=1.0), ANSWERS, 0.0)
    assert (model.n_seen_, model.n_features_in_) == (60, 3)
