from itertools import pairwise

import numpy as np
import pandas
import pytest
import torch
from pydantic import ValidationError
from torch import nn

import pliant.experiments.permuted_mnist as permuted_mnist
from pliant import ContinualBackprop, chain_groups
from pliant.base.initial import GAINS, uniform_bound
from pliant.data import Images, image_set
from pliant.experiments.permuted_mnist import COLUMNS, Config, Learner, PermutedMnist, Stream, segment
from pliant.lab.experiment import checked_rows
from pliant.online import fresh_weights
from pliant.streams import generator

EXPERIMENT = PermutedMnist()
SHORT = {"tasks": 3, "period": 100, "width": 20, "probe": 50}
CBP = {"method": "cbp", "replacement_rate": 0.05, "maturity_threshold": 10}
METHODS = {
    "bp": {},
    "adam": {"step_size": 1e-3},
    "l2": {"weight_decay": 1e-2},
    "cbp": CBP,
    "linear": {"hidden_layers": 0},
    "snp": {"weight_decay": 1e-3, "noise_std": 1e-3},
    "dropout": {"dropout": 0.2},
    "layernorm": {},
    "onlinenorm": {},
}


def noisy(count=150, seed=0):
    """Ten kinds of noisy images, a fifth of whose pixels are not black."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 200, (10, 28, 28)) * (rng.random((10, 28, 28)) < 0.2)
    labels = rng.integers(0, 10, count)
    pixels = (kinds[labels] + rng.integers(0, 56, (count, 28, 28)) * (kinds[labels] > 0)).astype(np.uint8)
    return image_set("kinds", Images(pixels, labels, tuple("0123456789")), None)


IMAGES = noisy()


def learner(dtype=np.float32, data=IMAGES, **settings):
    method = settings.get("method", "bp")
    return Learner(Config(**{"dataset": "kinds", **SHORT, **METHODS[method], **settings}), data, dtype)


def rows_of(state):
    collected = []
    while state.statuses()[0].word == "running":
        collected.append(EXPERIMENT.advance(state))
    return {name: np.concatenate([rows[name] for rows in collected]) for name in collected[0]}


def parameters(state):
    layers = range(len(state.network.sizes) - 1)
    return [part[0] for layer in layers for part in (state.network.weights(layer), state.network.biases(layer))]


@pytest.fixture
def few_at_a_time(monkeypatch):
    """An advance learns from 30 examples, so that tasks of 100 take four."""
    monkeypatch.setattr(permuted_mnist, "WORK", 1)
    monkeypatch.setattr(permuted_mnist, "FEWEST", 30)


# -- the stream -----------------------------------------------------------------------------------------------------


def test_a_task_shows_every_image_once_and_then_again_in_the_same_order():
    stream = Stream(seed=3, pixels=784, images=60)
    order = stream.order(task=5, begin=0, end=150)
    assert sorted(order[:60]) == list(range(60))
    assert np.array_equal(order[60:120], order[:60])
    assert np.array_equal(stream.order(5, 50, 130), order[50:130])


def test_every_task_has_a_permutation_and_an_order_of_its_own():
    stream = Stream(seed=3, pixels=784, images=60)
    permutations = [stream.permutation(task) for task in range(4)]
    assert all(sorted(one) == list(range(784)) for one in permutations)
    assert all((a != b).mean() > 0.9 for a, b in pairwise(permutations))
    assert not np.array_equal(stream.order(0, 0, 60), stream.order(1, 0, 60))


def test_methods_of_a_seed_share_tasks_and_first_weights_and_seeds_do_not():
    first, same, other = learner(), learner(**CBP), learner(seed=1)
    assert np.array_equal(first.stream.permutation(1), same.stream.permutation(1))
    assert all(np.array_equal(a, b) for a, b in zip(parameters(first), parameters(same), strict=True))
    assert not np.array_equal(first.stream.permutation(1), other.stream.permutation(1))
    assert not np.array_equal(parameters(first)[0], parameters(other)[0])


# -- the network: the same in plain PyTorch -------------------------------------------------------------------------


def plain_pytorch(state, normalized=False):
    """Accuracy and loss of every task, and the parameters in the end, of the stream as the page describes it."""
    config, data = state.config, IMAGES.train
    sizes = state.network.sizes
    model, linear = nn.Sequential(), []
    for layer, (m, n) in enumerate(pairwise(sizes)):
        linear.append(nn.Linear(m, n, dtype=torch.float64))
        linear[-1].weight.data = torch.from_numpy(state.network.weights(layer)[0].T.copy())
        linear[-1].bias.data.zero_()
        model.append(linear[-1])
        if layer + 2 < len(sizes):
            model.extend([nn.LayerNorm(n, dtype=torch.float64)] if normalized else [])
            model.append(nn.ReLU())
    make = torch.optim.Adam if config.method == "adam" else torch.optim.SGD
    optimizer = make(model.parameters(), lr=config.step_size, weight_decay=config.weight_decay)
    if config.method == "cbp":
        attach_cbp(model, optimizer, config, sizes)
    accuracy, loss = np.zeros(config.tasks), np.zeros(config.tasks)
    for task in range(config.tasks):
        permutation = generator(config.seed, "pixels", task).permutation(784)
        order = generator(config.seed, "images", task).permutation(len(data))
        for image in order[: config.period]:
            x = torch.from_numpy(data.pixels[image].reshape(784)[permutation] / 255.0)
            output = model(x)
            error = nn.functional.cross_entropy(output, torch.tensor(data.labels[image]))
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            accuracy[task] += (output.argmax() == data.labels[image]).item() / config.period
            loss[task] += error.item() / config.period
    return accuracy, loss, [part.detach().numpy() for one in linear for part in (one.weight.T, one.bias)]


def attach_cbp(model, optimizer, config, sizes):
    drawn = {}

    def init(name, shape, generator):
        layer = int(name.split(".")[0]) // 2
        first, drawn[layer] = drawn.get(layer, 0), drawn.get(layer, 0) + shape[0]
        bound = uniform_bound("kaiming", shape[1], sizes[layer + 1], GAINS["relu"])
        rows = [fresh_weights(config.seed, layer, first + k, shape[1], bound) for k in range(shape[0])]
        return torch.from_numpy(np.stack(rows))

    method = {"replacement_rate": config.replacement_rate, "maturity_threshold": config.maturity_threshold}
    ContinualBackprop(model, optimizer, groups=chain_groups(model), init=init, seed=config.seed, **method)


@pytest.mark.parametrize("method", ["bp", "adam", "l2", "cbp", "linear", "layernorm"])
def test_a_run_is_the_plain_loop_in_pytorch(method):
    state = learner(np.float64, method=method, step_size=1e-3 if method == "adam" else 0.03)
    accuracy, loss, weights = plain_pytorch(state, normalized=method == "layernorm")
    rows = rows_of(state)
    np.testing.assert_allclose(rows["accuracy"], accuracy, atol=1e-12)
    np.testing.assert_allclose(rows["loss"], loss, atol=1e-8)
    for ours, plain in zip(parameters(state), weights, strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-8)
    assert (state.network.replacements >= 20).all() or method != "cbp"
    assert loss[0] < 2.5  # it learned
    if method == "linear":
        assert accuracy[0] > 0.3


def test_weight_magnitude_is_the_mean_over_all_matrices():
    state = learner()
    rows = rows_of(state)
    matrices = parameters(state)[::2]
    every = np.concatenate([matrix.ravel() for matrix in matrices])
    assert rows["weight_magnitude"][-1] == pytest.approx(np.abs(every).mean(), rel=1e-6)


def test_hidden_units_are_measured_on_the_new_task_before_learning_from_it():
    state = learner()
    x = IMAGES.train.pixels.reshape(-1, 784)[state.stream.order(0, 0, 50)][:, state.stream.permutation(0)] / 255
    weights, shares, ranks = parameters(state), [], []
    for w, b in zip(weights[0:6:2], weights[1:6:2], strict=True):
        x = np.maximum(x @ w + b, 0)
        shares.append((x == 0).all(axis=0).mean())
        p = np.linalg.svd(x, compute_uv=False)
        p = p[p > 0] / p.sum()
        ranks.append(np.exp(-(p * np.log(p)).sum()) / 20)
    rows = rows_of(state)
    assert [rows["dead"][0], rows["dead_first"][0], rows["dead_last"][0]] == [np.mean(shares), shares[0], shares[2]]
    found = [rows[f"effective_rank{which}"][0] for which in ("", "_first", "_last")]
    assert found == pytest.approx([np.mean(ranks), ranks[0], ranks[2]], rel=1e-4)
    assert rows["effective_rank"][0] != rows["effective_rank"][1]


def test_the_linear_learner_has_no_hidden_units():
    rows = rows_of(learner(method="linear"))
    assert np.isnan(rows["dead"]).all()
    assert np.isnan(rows["effective_rank_last"]).all()


# -- the runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_stopping_and_resuming_changes_nothing_also_within_a_task(method, few_at_a_time):
    straight = rows_of(learner(method=method))
    state = learner(method=method)
    early = [EXPERIMENT.advance(state) for _ in range(6)]  # 50 examples into the second task
    assert [len(rows["run"]) for rows in early] == [0, 0, 0, 1, 0, 0]
    resumed = learner(method=method)
    resumed.load_state_dict(state.state_dict())
    rows_of(state)  # what was saved must not follow
    rows = rows_of(resumed)
    assert method != "cbp" or straight["replaced"][0] >= 60
    for name, values in rows.items():
        assert np.array_equal(values, straight[name][1:], equal_nan=True), name
    assert all(np.array_equal(a, b) for a, b in zip(parameters(resumed), parameters(state), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_how_a_task_is_cut_into_advances_changes_nothing(method, request):
    whole = learner(method=method)
    at_once = rows_of(whole)
    request.getfixturevalue("few_at_a_time")
    parts = learner(method=method)
    bit_by_bit = rows_of(parts)
    assert np.array_equal(at_once["accuracy"], bit_by_bit["accuracy"])
    assert np.array_equal(at_once["replaced"], bit_by_bit["replaced"])
    assert all(np.array_equal(a, b) for a, b in zip(parameters(whole), parameters(parts), strict=True))


def test_runs_that_take_turns_learn_as_they_would_alone():
    alone = [rows_of(learner(**CBP, seed=seed)) for seed in (3, 4)]
    states = [learner(**CBP, seed=seed) for seed in (3, 4)]
    turns = [[EXPERIMENT.advance(state) for state in states] for _ in range(3)]
    for run, rows in enumerate(alone):
        together = {name: np.concatenate([turn[run][name] for turn in turns]) for name in COLUMNS}
        assert all(np.array_equal(together[name], rows[name]) for name in COLUMNS)
    assert alone[0]["replaced"][-1] >= 60


def test_rows_come_at_the_end_of_a_task_and_are_those_documented(few_at_a_time):
    state = learner()
    rows = [checked_rows(EXPERIMENT.advance(state), COLUMNS, runs=1) for _ in range(4)]
    assert [len(one["run"]) for one in rows] == [0, 0, 0, 1]
    assert [values.dtype for values in rows[0].values()] == [values.dtype for values in rows[3].values()]
    assert (rows[3]["task"][0], rows[3]["examples"][0]) == (1, 100)


def test_an_advance_is_a_task_or_as_many_examples_as_a_few_seconds_allow():
    def examples(width, **settings):
        return segment(Config(width=width, **settings), [784, width, width, width, 10])

    assert examples(100) > 60_000
    assert 3_000 < examples(2000) < 6_000
    assert examples(2000, method="adam") == examples(2000) // 4
    assert examples(10_000) == 500


def test_continual_backprop_replaces_units_on_schedule_and_the_others_none():
    replaced = rows_of(learner(**CBP))["replaced"]
    assert replaced.tolist() == sorted(replaced)
    assert 500 < replaced[-1] <= 0.05 * 60 * 300
    assert not rows_of(learner())["replaced"].any()


def test_fresh_units_may_be_the_best_of_several():
    plain, best = (rows_of(learner(method="cbp", candidates=candidates)) for candidates in (0, 8))
    assert (plain["replaced"] == best["replaced"]).all()
    assert best["replaced"][0] >= 60
    assert (plain["loss"] != best["loss"]).all()


def test_a_diverged_run_is_a_result():
    state = learner(step_size=1e20)
    rows = rows_of(state)
    (status,) = state.statuses()
    assert status.word == "diverged"
    assert status.step < 100
    assert np.isnan(rows["accuracy"]).tolist() == [True]


def test_a_probe_of_more_images_than_there_are_is_an_error():
    images = noisy()
    EXPERIMENT.check_data(Config(dataset="kinds", probe=len(images.train)), {"kinds": images})
    with pytest.raises(ValueError, match="and a probe 2,000: lower `probe`"):
        EXPERIMENT.check_data(Config(dataset="kinds"), {"kinds": images})


def test_a_run_does_not_go_on_with_other_images():
    state = learner()
    EXPERIMENT.advance(state)
    with pytest.raises(ValueError, match="began with other images of 'kinds'"):
        learner(data=noisy(seed=1)).load_state_dict(state.state_dict())


# -- profiles and settings ------------------------------------------------------------------------------------------


def test_the_small_profile_has_all_nine_methods_with_three_seeds():
    configs = EXPERIMENT.runs("small")
    assert len(configs) == len(set(configs)) == 30
    assert {config.method for config in configs} == set(METHODS)
    assert {(config.width, config.tasks, config.period) for config in configs} == {(100, 200, 60_000)}


def test_tuning_tries_nine_settings_of_each_method_or_more_on_a_seed_that_no_result_uses():
    configs = EXPERIMENT.runs("tuning")
    counts = {method: len({c for c in configs if c.method == method}) for method in METHODS}
    assert counts == {**dict.fromkeys(METHODS, 9), "l2": 12, "snp": 15, "dropout": 13}
    assert {config.seed for config in configs} == {1000}


def test_the_paper_profile_has_the_published_cells():
    configs = [config for config in EXPERIMENT.runs("paper") if config.seed == 7]
    assert len(configs) == len(set(configs)) == 23
    bp = [config for config in configs if config.method == "bp"]
    assert sorted({config.width for config in bp}) == [100, 1000, 2000, 10_000]
    assert {config.tasks * config.period for config in bp} == {48_000_000}
    assert sorted(config.period for config in bp if config.period != 60_000) == [10_000, 100_000, 1_000_000]
    assert sorted(c.step_size for c in configs if c.method == "adam") == [3e-5, 5e-5, 1e-4]
    cbp = [config for config in configs if config.method == "cbp"]
    assert sorted(config.replacement_rate for config in cbp) == [1e-6, 1e-5, 1e-4]
    assert {(config.utility, config.hand_over_mean) for config in cbp} == {("adaptable_contribution", False)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replacement_rate": 1e-4}, "replacement_rate is for method cbp, not bp: add --methods cbp"),
        ({"candidates": 4}, "candidates is for method cbp, not bp: add --methods cbp"),
        ({"weight_decay": 1e-4}, "weight_decay is for method l2 or snp, not bp"),
        ({"dropout": 0.1}, "dropout is for method dropout, not bp"),
        ({"method": "cbp"}, "method cbp needs replacement_rate > 0"),
        ({"method": "snp", "weight_decay": 1e-4}, "method snp needs noise_std > 0"),
        ({"method": "linear"}, "method linear has hidden_layers=0"),
        ({"hidden_layers": 0}, "the others have at least 1"),
        ({"method": "dropout", "dropout": 1.0}, "less than 1"),
        ({"rate": 1}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_contradict_each_other_are_errors(settings, message):
    with pytest.raises(ValidationError, match=message):
        Config(**settings)


def table(**axes):
    """Rows of short runs joined with their configs, as the laboratory exports them."""
    parts = []
    for settings in axes["runs"]:
        state = learner(**settings)
        rows = rows_of(state)
        config = pandas.DataFrame([state.config.model_dump()] * len(rows["run"]))
        measured = pandas.DataFrame({name: rows[name] for name in COLUMNS})
        status = {"status": state.statuses()[0].word, "diverged_at": None, "commit": "none"}
        parts.append(pandas.concat([config.assign(run=len(parts), **status), measured], axis=1))
    return pandas.concat(parts, ignore_index=True)


def test_the_figure_has_four_panels_for_each_width_and_a_color_for_each_method():
    runs = [{"step_size": step_size, "seed": seed} for step_size in (0.01, 0.003) for seed in range(2)]
    figure = EXPERIMENT.figure(table(runs=[*runs, {"width": 10}, CBP, {"method": "linear"}]))
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]
    assert titles == ["kinds, width 20, 100 examples per task", "kinds, width 10, 100 examples per task"]
    labels = [axes.get_ylabel() for axes in figure.axes[:4]]
    assert labels == ["online accuracy (%)", "mean |weight|", "dead units (%)", "effective rank (% of width)"]
    accuracy, dead = figure.axes[0], figure.axes[2]
    names = {"backprop 0.01", "backprop 0.003", "cbp", "linear"}
    assert {text.get_text() for text in accuracy.texts} == names
    assert {text.get_text() for text in dead.texts} == names - {"linear"}
    colors = {line.get_label(): line.get_color() for line in accuracy.lines}
    assert colors["backprop 0.01"] == colors["backprop 0.003"] != colors["cbp"]
