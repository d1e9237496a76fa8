import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from pliant.experiments.class_incremental import ClassIncremental, Config, scheduled
from tests.experiments.residual_runs import Runs, equal

EXPERIMENT = ClassIncremental()
SHORT = {
    "increment": 2,
    "tasks": 2,
    "epochs": 3,
    "width": 4,
    "batch": 10,
    "train_images": 15,
    "validation_images": 5,
    "test_images": 6,
}
RUNS = Runs(EXPERIMENT, SHORT)
begin, finish, straight = RUNS.begin, RUNS.finish, RUNS.straight
CBP = {"method": "cbp", "replacement_rate": 1.0, "maturity_threshold": 1}


# -- the protocol -------------------------------------------------------------------------------------------------------


def test_a_task_has_the_pictures_of_all_classes_so_far_and_a_row(data):
    state = begin(data, tasks=3)
    seen = []
    learn = state.learner.learn
    state.learner.learn = lambda x, labels, among: (
        seen.append((among, len(x), labels.tolist())),
        learn(x, labels, among),
    )[1]
    rows = finish(state)
    assert rows["classes"].tolist() == [2, 4, 6]
    assert [among for among, _, _ in seen] == [2] * 9 + [4] * 18 + [6] * 27
    first_epoch_of_the_last_task = [label for _, _, labels in seen[27:36] for label in labels]
    assert np.bincount(first_epoch_of_the_last_task).tolist() == [15] * 6
    assert state.steps_done == state.steps_total


def test_it_learns(data):
    rows = finish(begin(data, pieces=50, epochs=6))
    assert rows["test_accuracy"][1] > 0.8
    assert (rows["best_test_accuracy"] >= rows["test_accuracy"]).all()
    assert ((rows["best_epoch"] >= 1) & (rows["best_epoch"] <= 6)).all()


def test_outputs_of_classes_not_yet_seen_only_decay(data):
    state = begin(data, pieces=1)
    before = state.learner.network.head.weight.detach().clone()
    state.learn_a_while()
    after = state.learner.network.head.weight.detach()
    shrunk = before * (1 - 0.1 * 5e-4)
    assert_close(after[2:], shrunk[2:], rtol=1e-6, atol=0)
    assert not torch.allclose(after[:2], shrunk[:2])


def test_parts_of_the_data_do_not_overlap_and_validation_comes_first(data):
    state = begin(data)
    parts = [getattr(state.data, name).pixels for name in ("validation", "train", "test")]
    assert [len(part) for part in parts] == [20, 60, 24]
    as_bytes = [{image.numpy().tobytes() for image in part} for part in parts]
    assert len(set.union(*as_bytes)) == 104
    from pliant.data import load

    images = load("small", data).train
    first_class = images.pixels[images.labels == generator_order(state)[0]]
    assert np.array_equal(parts[0][:5].reshape(5, 32, 32, 3).numpy(), first_class[:5])
    assert np.array_equal(parts[1][:15].reshape(15, 32, 32, 3).numpy(), first_class[5:20])
    assert np.array_equal(parts[2][:6].reshape(6, 32, 32, 3).numpy(), first_class[20:])


def generator_order(state):
    from pliant.streams import generator

    return generator(state.config.seed, "class order").permutation(state.config.outputs)


def test_the_step_size_falls_by_fifths_after_60_120_and_160_of_200_epochs():
    sizes = [scheduled(0.1, epoch, 200) for epoch in range(200)]
    assert sizes == pytest.approx([0.1] * 60 + [0.02] * 60 + [0.004] * 40 + [0.0008] * 40)


def test_the_state_best_in_validation_is_restored_at_the_end_of_a_task(data):
    state = begin(data, pieces=1, tasks=1, epochs=6)
    best, chosen = -1.0, None
    rows = []
    while not rows:
        epoch = state.epoch
        kept = {name: value.clone() for name, value in state.learner.network.state_dict().items()}
        rows = state.learn_a_while()
        if state.epoch != epoch and not rows and state.best["validation_accuracy"] > best:
            best, chosen = state.best["validation_accuracy"], kept
    assert rows[0]["validation_accuracy"] == best
    assert rows[0]["best_epoch"] < 6, "the last epoch was the best: the test shows nothing with this seed"
    for name, value in state.learner.network.state_dict().items():
        assert_close(value, chosen[name], rtol=0, atol=0)


def test_pictures_for_validation_and_test_are_not_augmented_unless_asked(data):
    plain, noisy = begin(data, pieces=1, tasks=1), begin(data, pieces=1, tasks=1, augment_test=True)
    seen = {}
    for name, state in (("plain", plain), ("noisy", noisy)):
        right = state.learner.right
        state.learner.right = lambda x, labels, among, name=name, right=right: (
            seen.setdefault(name, []).append(x.clone()),
            right(x, labels, among),
        )[1]
        finish(state)
    validation, test = (getattr(plain.data, part) for part in ("validation", "test"))
    assert_close(seen["plain"][0], validation.batch(np.arange(10))[0])
    assert_close(seen["plain"][1], test.batch(np.arange(12))[0])
    assert_close(seen["noisy"][0], seen["plain"][0])
    assert not torch.allclose(seen["noisy"][1], seen["plain"][1])


# -- the methods --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "kept", "reset"),
    [
        ({"method": "bp"}, ["head.weight", "stem.weight", "norm.running_mean"], []),
        ({"method": "head"}, ["stem.weight", "norm.running_mean"], ["head.weight"]),
        ({"method": "full"}, [], ["head.weight", "stem.weight", "norm.running_mean", "norm.weight"]),
        (
            {"method": "full", "reset": "parameters"},
            ["norm.running_mean"],
            ["head.weight", "stem.weight", "norm.weight"],
        ),
    ],
)
def test_what_starts_over_at_a_new_task(data, settings, kept, reset):
    state = begin(data, pieces=1, **settings)
    while state.task == 0:
        state.learn_a_while()
    before = {name: value.clone() for name, value in state.learner.network.state_dict().items()}
    momentum = dict(state.learner.optimizer.state)
    state.begin()
    after = state.learner.network.state_dict()
    assert {name: bool(torch.equal(before[name], after[name])) for name in (*kept, *reset)} == {
        **dict.fromkeys(kept, True),
        **dict.fromkeys(reset, False),
    }
    buffers = {name: bool(momentum[p]["momentum_buffer"].any()) for name, p in state.learner.network.named_parameters()}
    forgotten = reset if settings.get("reset") != "parameters" else []
    for name in ("head.weight", "stem.weight"):
        assert buffers[name] == (name not in forgotten)


def test_a_fully_reset_network_is_one_that_was_just_built(data):
    state = begin(data, pieces=1, method="full")
    while state.task == 0:
        state.learn_a_while()
    state.begin()
    fresh = begin(data, method="full")
    fresh.learner.start_over(task=state.task)
    for name, value in state.learner.network.state_dict().items():
        assert_close(value, fresh.learner.network.state_dict()[name], rtol=0, atol=0)


def test_methods_of_a_seed_start_alike_and_see_the_same_batches(data):
    first = finish(begin(data, tasks=1))
    for settings in ({"method": "full"}, {**CBP, "maturity_threshold": 1000}):
        assert equal(first, finish(begin(data, tasks=1, **settings)))
    assert first["weight_magnitude"] != finish(begin(data, tasks=1, seed=1))["weight_magnitude"]


@pytest.mark.parametrize(("units", "groups"), [("traced", 8), ("traced-residual", 12), ("article", 17)])
def test_continual_backprop_replaces_units_of_every_group(data, units, groups):
    state, _ = straight(data, **CBP, units=units)
    replaced = {name: group["replaced"][0] for name, group in state.learner.method.stats().items()}
    assert len(replaced) == groups
    assert min(replaced.values()) >= 20


def test_shrink_and_perturb_adds_noise_to_every_parameter_after_a_step(data):
    plain, noisy = begin(data, pieces=1), begin(data, pieces=1, method="snp", noise_std=1e-2)
    for state in (plain, noisy):
        state.learn_a_while()
    pairs = zip(plain.learner.network.parameters(), noisy.learner.network.parameters(), strict=True)
    noise = torch.cat([(b - a).detach().flatten() for a, b in pairs])
    assert float(noise.std()) == pytest.approx(1e-2, rel=0.05)
    assert (noise != 0).all()


def test_bfloat16_autocast_learns_close_to_float32_but_not_alike(data):
    exact, rough = (finish(begin(data, tasks=1, precision=each)) for each in ("float32", "bfloat16"))
    assert rough["weight_magnitude"][0] == exact["weight_magnitude"][0]  # measured before learning
    assert abs(rough["test_accuracy"] - exact["test_accuracy"]) < 0.4
    states = [begin(data, tasks=1, precision=each) for each in ("float32", "bfloat16")]
    for state in states:
        state.learn_a_while()
    weights = [state.learner.network.head.weight for state in states]
    assert not torch.equal(*weights)
    assert_close(*weights, rtol=0.1, atol=0.05)


# -- settings, profiles, figure -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replacement_rate": 1e-3}, "replacement_rate is for method cbp, not bp: add --methods cbp"),
        ({"method": "cbp"}, "method cbp needs replacement_rate > 0"),
        ({"noise_std": 1e-5}, "noise_std is for method snp"),
        ({"method": "snp"}, "method snp needs noise_std > 0"),
        ({"rate": 1}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_contradict_each_other_are_errors(settings, message):
    with pytest.raises(ValidationError, match=message):
        Config(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": 4}, "has 6 classes, and 8 are wanted"),
        ({"train_images": 16}, "26 images, and 5 for validation . 16 for learning . 6 for test are wanted"),
    ],
)
def test_too_few_classes_or_pictures_are_errors_that_say_how_many_there_are(data, settings, message):
    with pytest.raises(ValueError, match=message):
        begin(data, **settings)


def test_the_paper_profile_is_the_published_one():
    configs = EXPERIMENT.runs("paper")
    assert len(configs) == len(set(configs)) == 150
    assert {config.method for config in configs} == {"bp", "cbp", "head", "full", "snp"}
    assert {(c.dataset, c.width, c.increment, c.tasks, c.epochs, c.batch) for c in configs} == {
        ("cifar-100", 64, 5, 20, 200, 90)
    }
    assert {(c.step_size, c.momentum, c.weight_decay) for c in configs} == {(0.1, 0.9, 5e-4)}
    assert {(c.replacement_rate, c.maturity_threshold) for c in configs if c.method == "cbp"} == {(1e-5, 1000)}
    assert {c.noise_std for c in configs if c.method == "snp"} == {1e-5}


def test_medium_has_a_setting_of_each_method():
    configs = EXPERIMENT.runs("medium")
    assert [config.method for config in configs if config.seed == 0] == ["bp", "full", "head", "snp", "cbp"]
    assert len(configs) == 10


def test_tuning_tries_nine_settings_of_each_method_on_a_seed_that_no_result_uses():
    configs, medium = EXPERIMENT.runs("tuning"), EXPERIMENT.runs("medium")[0]
    assert len(configs) == len(set(configs)) == 5 * 9
    assert {sum(config.method == each.method for config in configs) for each in configs} == {9}
    assert {config.seed for config in configs} == {1000}
    assert {(c.increment, c.tasks) for c in configs} == {(10, 4)}
    same = ("dataset", "width", "batch", "momentum", "weight_decay", "validation_images")
    assert all(getattr(config, name) == getattr(medium, name) for config in configs for name in same)
    assert all(c.validation_images + c.train_images + medium.test_images <= 550 for c in configs)


def test_the_figure_compares_with_the_network_that_starts_over(data):
    pandas = pytest.importorskip("pandas")
    tables = []
    for method in ("bp", "full"):
        config = Config(**SHORT, method=method)
        tables.append(pandas.DataFrame(straight(data, method=method)[1]).assign(**config.model_dump()))
    figure = EXPERIMENT.figure(pandas.concat(tables))
    assert [axes.get_ylabel() for axes in figure.axes[:2]] == ["test accuracy", "accuracy less that of new network"]
    assert {text.get_text() for text in figure.axes[0].texts} == {"backprop", "new network"}
