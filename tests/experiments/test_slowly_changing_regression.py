import numpy as np
import pytest
from pydantic import ValidationError

from pliant.experiments.slowly_changing_regression import Config, SlowlyChangingRegression, Stream
from pliant.lab import Context

EXPERIMENT = SlowlyChangingRegression()
SHORT = {"period": 1000, "bin": 2000, "steps": 6000}


def rows_of(configs):
    state = EXPERIMENT.start(configs, Context())
    collected = []
    while any(status.word == "running" for status in state.statuses()):
        collected.append(EXPERIMENT.advance(state))
    return {name: np.array([rows[name] for rows in collected]) for name in collected[0]}


# -- the stream: the facts that the specification states ----------------------------------------------------------------


def test_a_threshold_unit_is_on_where_14_inputs_match_or_17_with_a_negative_bias():
    stream = Stream(0, "flip-one", 1000)
    inputs = np.random.default_rng(0).integers(0, 2, (5000, 20))
    on = inputs @ stream.weights.T + stream.biases > stream.thresholds
    matches = inputs @ (stream.weights == 1).T + (1 - inputs) @ (stream.weights == -1).T
    assert np.array_equal(on, matches >= np.where(stream.biases == 1, 14, 17))


def test_on_rates_and_output_variance_are_the_published_ones():
    inputs = np.random.default_rng(1).integers(0, 2, (4000, 20)).astype(np.uint8)
    streams = [Stream(seed, "redraw-all", 1000) for seed in range(60)]
    on = np.array([(inputs @ s.weights.T + s.biases > s.thresholds).mean() for s in streams])
    outputs = np.array([s.targets(inputs).var() for s in streams])
    assert on.mean() == pytest.approx(0.03, abs=0.002)
    assert outputs.mean() == pytest.approx(3.0, abs=0.3)


def test_flip_one_changes_one_slow_bit_a_period_and_redraw_all_about_half():
    flips = [
        np.abs(np.diff([Stream(s, "flip-one", 10).slow_bits(n).astype(int) for n in range(50)], axis=0)).sum(1)
        for s in range(3)
    ]
    redraws = [
        np.abs(np.diff([Stream(s, "redraw-all", 10).slow_bits(n).astype(int) for n in range(50)], axis=0)).sum(1)
        for s in range(20)
    ]
    assert np.all(np.array(flips) == 1)
    assert np.mean(redraws) == pytest.approx(7.5, abs=0.2)


def test_within_a_period_slow_bits_stay_fast_bits_are_fair_and_the_table_is_the_target():
    stream = Stream(2, "flip-one", 8000)
    inputs, targets = stream.examples(3)
    assert np.array_equal(inputs[:, :15], np.tile(stream.slow_bits(3), (8000, 1)))
    assert np.abs(inputs[:, 15:].mean(axis=0) - 0.5).max() < 0.03
    assert len(np.unique(inputs, axis=0)) == 32
    assert np.array_equal(targets, stream.targets(inputs))


def test_periods_are_looked_up_by_number_and_differ():
    first, again = Stream(1, "flip-one", 500), Stream(1, "flip-one", 500)
    first.examples(9)
    assert np.array_equal(first.examples(4)[0], again.examples(4)[0])
    assert not np.array_equal(first.examples(4)[0][:, 15:], first.examples(5)[0][:, 15:])


# -- the runs -----------------------------------------------------------------------------------------------------------


def test_a_run_depends_on_its_config_alone():
    configs = [Config(seed=seed, step_size=step_size, **SHORT) for seed in (3, 1) for step_size in (0.01, 0.001)]
    together = rows_of(configs)
    for run, config in enumerate(configs):
        alone = rows_of([config])
        for name in ("squared_error", "weight_magnitude", "dead"):
            assert np.array_equal(together[name][:, run], alone[name][:, 0])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_continual_backprop_replaces_units_on_schedule_and_backprop_none(optimizer):
    cbp = Config(method="cbp", replacement_rate=1e-3, maturity_threshold=100, optimizer=optimizer, **SHORT)
    replaced = rows_of([cbp])["replaced"][:, 0]
    assert replaced.tolist() == sorted(replaced)
    assert 25 <= replaced[-1] <= 1e-3 * 5 * 6000
    assert not rows_of([Config(optimizer=optimizer, **SHORT)])["replaced"].any()


def test_stopping_and_resuming_changes_nothing():
    configs = [Config(method="cbp", replacement_rate=1e-2, seed=seed, **SHORT) for seed in range(3)]
    straight = rows_of(configs)
    state = EXPERIMENT.start(configs, Context())
    EXPERIMENT.advance(state)
    resumed = EXPERIMENT.start(configs, Context())
    resumed.load_state_dict(state.state_dict())
    EXPERIMENT.advance(state)  # what was saved must not follow
    rows = EXPERIMENT.advance(resumed)
    assert straight["replaced"][1].min() >= 20
    for name, values in rows.items():
        assert np.array_equal(values, straight[name][1], equal_nan=True)


def test_fresh_units_may_be_the_best_of_several_and_share_no_job_with_plain_ones():
    cbp = {"method": "cbp", "replacement_rate": 1e-2, **SHORT}
    plain, few, many = (Config(candidates=candidates, **cbp) for candidates in (0, 4, 40))
    assert EXPERIMENT.stack_key(few, "cpu") == EXPERIMENT.stack_key(many, "cpu") != EXPERIMENT.stack_key(plain, "cpu")
    together, alone = rows_of([few, many]), [rows_of([config]) for config in (few, many, plain)]
    assert together["replaced"].min(axis=1)[-1] >= 20
    for name in ("squared_error", "replaced"):
        for run in (0, 1):
            assert np.array_equal(together[name][:, run], alone[run][name][:, 0])
    assert len({float(rows["squared_error"][-1, 0]) for rows in alone}) == 3


def test_a_diverged_run_is_a_result_and_leaves_its_sibling_alone():
    wild, tame = (
        Config(method="linear", activation="linear", step_size=step_size, **SHORT) for step_size in (1.0, 0.01)
    )
    state = EXPERIMENT.start([wild, tame], Context())
    rows = [EXPERIMENT.advance(state) for _ in range(3)]
    words = [status.word for status in state.statuses()]
    assert words == ["diverged", "done"]
    assert np.isnan(rows[-1]["squared_error"][0])
    assert rows[-1]["squared_error"][1] == rows_of([tame])["squared_error"][-1, 0]


@pytest.mark.parametrize(("activation", "column"), [("relu", "dead"), ("tanh", "saturated"), ("sigmoid", "saturated")])
def test_idle_units_are_counted_where_the_activation_has_a_flat_end(activation, column):
    rows = rows_of([Config(activation=activation, **SHORT)])
    other = "dead" if column == "saturated" else "saturated"
    assert ((rows[column] >= 0) & (rows[column] <= 1)).all()
    assert np.isnan(rows[other]).all()


def test_the_linear_learner_has_no_hidden_units():
    rows = rows_of([Config(method="linear", activation="linear", **SHORT)])
    assert np.isnan(rows["dead"]).all()
    assert (rows["squared_error"] > 0).all()


# -- profiles and settings ------------------------------------------------------------------------------------------------


def test_the_quick_profile_is_seven_curves_of_20_seeds():
    configs = EXPERIMENT.runs("quick")
    assert len(configs) == len(set(configs)) == 140
    assert {config.method for config in configs} == {"bp", "cbp", "linear"}


def test_the_paper_profile_has_the_published_cells():
    configs = EXPERIMENT.runs("paper")
    assert len(configs) == len(set(configs))
    one_seed = [config for config in configs if config.seed == 7]
    sgd_relu = [c for c in one_seed if (c.variant, c.optimizer, c.activation) == ("redraw-all", "sgd", "relu")]
    assert sorted({c.step_size for c in sgd_relu if c.method == "bp"}) == [0.001, 0.003, 0.01]
    assert sorted(c.weight_decay for c in sgd_relu if c.method == "l2") == pytest.approx(
        [10.0**-k for k in range(6, -1, -1)]
    )
    assert len([c for c in sgd_relu if c.method == "snp"]) == 6
    assert {c.count for c in one_seed if c.method == "cbp"} == {"bernoulli"}
    flips = [c for c in one_seed if c.variant == "flip-one"]
    assert len([c for c in flips if c.method == "linear"]) == 5
    assert {c.steps for c in flips} == {3_000_000}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bin": 15_000}, "bin of period"),
        ({"steps": 30_000}, "steps .30000. must be a multiple of bin"),
        ({"replacement_rate": 1e-3}, "replacement_rate is for method cbp or random, not bp: add --methods cbp"),
        ({"candidates": 4}, "candidates is for method cbp, not bp: add --methods cbp"),
        ({"method": "random", "replacement_rate": 0.1, "candidates": 4}, "candidates is for method cbp, not random"),
        ({"weight_decay": 1e-3}, "weight_decay is for method l2 or snp, not bp"),
        ({"method": "cbp"}, "method cbp needs replacement_rate > 0"),
        ({"method": "snp", "weight_decay": 1e-3}, "method snp needs noise_std > 0"),
        ({"method": "l2"}, "method l2 needs weight_decay > 0"),
        ({"method": "linear"}, "its activation is 'linear'"),
        ({"step_size": 0.0}, "greater than 0"),
        ({"rate": 1}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_contradict_each_other_are_errors(settings, message):
    with pytest.raises(ValidationError, match=message):
        Config(**settings)


def test_the_figure_has_a_row_of_panels_for_each_activation():
    pandas = pytest.importorskip("pandas")
    configs = [
        Config(activation=activation, seed=seed, **SHORT) for activation in ("relu", "tanh") for seed in range(2)
    ]
    tables = []
    for config in configs:
        rows = rows_of([config])
        flat = {name: values[:, 0] for name, values in rows.items()}
        tables.append(pandas.DataFrame(flat).assign(**config.model_dump()))
    figure = EXPERIMENT.figure(pandas.concat(tables))
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]
    assert titles == ["relu, sgd, flip-one", "tanh, sgd, flip-one"]
    assert [axes.get_ylabel() for axes in figure.axes[:3]] == ["squared error", "mean |weight|", "share of dead units"]
    assert {text.get_text() for text in figure.axes[0].texts} == {"backprop"}
