import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from pliant.experiments.warm_starting import Config, WarmStarting, carried_on
from tests.experiments.residual_runs import Runs
from tests.experiments.small_pictures import make_pictures

EXPERIMENT = WarmStarting()
SHORT = {
    "classes": 4,
    "epochs": 5,
    "width": 4,
    "batch": 10,
    "train_images": 15,
    "test_images": 6,
    "step_size": 0.05,
    "momentum": 0.9,
    "until": 2.0,
}
RUNS = Runs(EXPERIMENT, SHORT)
begin, finish, straight = RUNS.begin, RUNS.finish, RUNS.straight
SNP = {"method": "snp", "shrink": 0.5, "noise_std": 0.01}


@pytest.fixture(autouse=True, scope="module")
def data(tmp_path_factory):
    """A folder of data sets with one small set in it, and a cache of its own."""
    folder = tmp_path_factory.mktemp("data")
    make_pictures(folder / "small", classes=4, count=21)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLIANT_CACHE", str(folder / "cache"))
        yield folder


def batches_of(state):
    """The labels and first pixels of every batch that the run learns from, by stage."""
    seen = {1: [], 2: []}
    learn = state.learner.learn
    state.learner.learn = lambda x, labels, among: (seen[state.stage].append(x.clone()), learn(x, labels, among))[1]
    finish(state)
    return seen


def test_a_warm_start_learns_half_of_the_pictures_and_then_all(data):
    seen = batches_of(begin(data, epochs=1))
    images = {stage: {x.numpy().tobytes() for batch in found for x in batch} for stage, found in seen.items()}
    assert len(images[1]) == 30
    assert len(images[2]) == 60
    assert images[1] < images[2]


def test_both_starts_begin_alike_and_meet_the_whole_set_in_the_same_order(data):
    warm, scratch = (batches_of(begin(data, epochs=1, start=start)) for start in ("warm", "scratch"))
    assert not scratch[1]
    assert all(torch.equal(a, b) for a, b in zip(warm[2], scratch[2], strict=True))
    networks = [begin(data, start=start).learner.network for start in ("warm", "scratch")]
    for a, b in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(a, b)


def test_rows_are_epochs_and_the_last_of_each_stage_says_so(data):
    _, rows = straight(data)
    assert rows["stage"].tolist() == [1] * 5 + [2] * 5
    assert rows["epoch"].tolist() == [1, 2, 3, 4, 5] * 2
    assert rows["last"].tolist() == [0, 0, 0, 0, 1] * 2
    assert rows["step"].tolist() == [3, 6, 9, 12, 15, 21, 27, 33, 39, 45]
    assert rows["test_accuracy"][-1] > 0.5


def test_a_stage_ends_when_its_pictures_are_learned(data):
    rows = finish(begin(data, epochs=40, until=0.75))
    last = rows["last"] == 1
    assert (rows["train_accuracy"][last] >= 0.75).all()
    assert (rows["train_accuracy"][~last] < 0.75).all()
    assert rows["stage"][last].tolist() == [1, 2]


def test_as_the_other_half_arrives_momentum_is_forgotten_and_parameters_shrink(data):
    plain, shrunk = begin(data, pieces=1), begin(data, pieces=1, method="snp", shrink=0.5)
    for state in (plain, shrunk):
        while state.stage == 1:
            state.learn_a_while()
        assert not any(held["momentum_buffer"].any() for held in state.learner.optimizer.state.values())
    for a, b in zip(plain.learner.network.parameters(), shrunk.learner.network.parameters(), strict=True):
        assert_close(b, a / 2, rtol=1e-6, atol=0)


def test_shrink_and_perturb_adds_noise_only_then(data):
    plain, noisy = begin(data, pieces=1), begin(data, pieces=1, method="snp", shrink=1.0, noise_std=0.01)
    for state in (plain, noisy):
        while (state.epoch, state.piece) != (4, 3):  # all but the last piece of the first stage
            state.learn_a_while()
    before = zip(plain.learner.network.parameters(), noisy.learner.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in before)
    for state in (plain, noisy):
        while state.stage == 1:
            state.learn_a_while()
    pairs = zip(plain.learner.network.parameters(), noisy.learner.network.parameters(), strict=True)
    noise = torch.cat([(b - a).detach().flatten() for a, b in pairs])
    assert float(noise.std()) == pytest.approx(0.01, rel=0.05)


def test_with_pictures_of_validation_those_of_the_test_are_seen_by_no_one(data):
    tuning, reported = begin(data, pieces=1, train_images=10, validation_images=5), begin(data)
    images = {
        name: {image.numpy().tobytes() for image in part.pixels}
        for name, part in (
            ("tested", reported.data.test),
            ("learned", reported.data.train),
            ("judged", tuning.judged),
            ("learned in tuning", tuning.data.train),
        )
    }
    assert images["judged"] | images["learned in tuning"] == images["learned"]
    assert not images["judged"] & images["learned in tuning"]
    assert not images["tested"] & images["learned"]
    seen = []
    right = tuning.learner.right
    tuning.learner.right = lambda x, labels, among: (seen.append(x.clone()), right(x, labels, among))[1]
    while not tuning.learn_a_while():
        pass
    assert torch.equal(torch.cat(seen), tuning.data.validation.batch(np.arange(20))[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replacement_rate": 1e-3}, "replacement_rate: for method cbp, not bp: add --methods cbp"),
        ({"method": "cbp"}, "method cbp needs replacement_rate"),
        ({"shrink": 0.5}, "shrink and noise_std: for method snp"),
        ({"method": "snp"}, "method snp needs shrink and noise_std: add --set shrink"),
        ({**SNP, "start": "scratch"}, "its start is 'warm'"),
    ],
)
def test_settings_that_contradict_each_other_are_errors(settings, message):
    with pytest.raises(ValidationError, match=message):
        Config(**settings)


@pytest.mark.parametrize("profile", ["quick", "small", "paper"])
def test_a_profile_has_five_runs_a_seed(profile):
    configs = EXPERIMENT.runs(profile)
    cells = {(config.method, config.start) for config in configs}
    assert cells == {("bp", "warm"), ("bp", "scratch"), ("snp", "warm"), ("cbp", "warm"), ("cbp", "scratch")}
    assert len(configs) == len(set(configs)) == 5 * len({config.seed for config in configs})


def test_tuning_tries_nine_settings_of_each_method_and_start_on_a_seed_and_pictures_that_no_result_uses():
    configs, small = EXPERIMENT.runs("tuning"), EXPERIMENT.runs("small")[0]
    assert len(configs) == len(set(configs)) == 5 * 9
    for cell in {(config.method, config.start) for config in configs}:
        assert sum((config.method, config.start) == cell for config in configs) == 9
    assert {config.seed for config in configs} == {1000}
    same = ("dataset", "classes", "width", "batch", "momentum", "until", "test_images")
    assert all(getattr(config, name) == getattr(small, name) for config in configs for name in same)
    assert {c.validation_images + c.train_images for c in configs} == {small.train_images}
    assert all(config.validation_images > 0 for config in configs)


def tables(data, **settings):
    pandas = pytest.importorskip("pandas")
    frames = []
    for own in ({"start": "warm"}, {"start": "scratch"}):
        for seed in (0, 1):
            _, rows = straight(data, **settings, **own, seed=seed)
            frames.append(pandas.DataFrame(rows).assign(method="bp", dataset="small", seed=seed, **own))
    return pandas.concat(frames)


def test_the_figure_shows_the_gap_to_backprop_from_scratch(data):
    rows = tables(data, epochs=1)
    figure = EXPERIMENT.figure(rows)
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "training accuracy",
        "test accuracy",
        "test accuracy less that of backprop, scratch",
    ]
    ends = rows[(rows["stage"] == 2) & (rows["last"] == 1)].set_index(["start", "seed"])["test_accuracy"]
    gap = np.mean([ends["warm", seed] - ends["scratch", seed] for seed in (0, 1)])
    points = [line for line in figure.axes[2].get_lines() if line.get_marker() == "o"]
    assert [float(line.get_ydata()[0]) for line in points] == pytest.approx([gap])


def test_a_gap_of_fewer_seeds_than_began_says_so(data):
    rows = tables(data, epochs=1)
    unfinished = (rows["seed"] == 1) & (rows["start"] == "scratch") & (rows["last"] == 1)
    names = [EXPERIMENT.figure(each).axes[2].get_xticklabels()[0].get_text() for each in (rows, rows[~unfinished])]
    assert names == ["backprop\nwarm", "backprop\nwarm\n(1 of 2 seeds)"]


def test_runs_that_ended_early_are_carried_on_at_their_last_value():
    pandas = pytest.importorskip("pandas")
    places = {"epoch": [1, 2, 1], "last": [0, 1, 1]}
    rows = pandas.DataFrame({"curve": ["a", "a", "b"], "seed": 0, **places, "y": [0.1, 0.2, 0.7]})
    assert carried_on(rows)["y"].tolist() == [0.1, 0.2, 0.7, 0.7]


def test_a_run_that_diverged_or_is_under_way_is_not_carried_on():
    pandas = pytest.importorskip("pandas")
    places = {"epoch": [1, 2, 1], "last": [0, 1, 0]}
    rows = pandas.DataFrame({"curve": "a", "seed": [0, 0, 1], **places, "y": [0.1, 0.2, 0.7]})
    found = carried_on(rows)
    assert found[["seed", "epoch", "y"]].to_numpy().tolist() == [[0, 1, 0.1], [0, 2, 0.2], [1, 1, 0.7]]


def test_gaps_of_two_settings_are_two_points_each_against_its_own_scratch():
    pandas = pytest.importorskip("pandas")
    ends = [("warm", 0.1, 0.3), ("scratch", 0.1, 0.4), ("warm", 0.01, 0.5), ("scratch", 0.01, 0.9)]
    common = {"method": "bp", "dataset": "small", "stage": 2, "epoch": 1, "last": 1, "train_accuracy": 1.0}
    rows = pandas.DataFrame(
        [
            {**common, "seed": seed, "start": start, "step_size": step_size, "test_accuracy": accuracy}
            for start, step_size, accuracy in ends
            for seed in (0, 1)
        ]
    )
    axes = EXPERIMENT.figure(rows).axes[2]
    points = [float(line.get_ydata()[0]) for line in axes.get_lines() if line.get_marker() == "o"]
    assert points == pytest.approx([-0.1, -0.4])
