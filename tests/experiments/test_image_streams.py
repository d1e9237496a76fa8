"""The streams of changing images, and what learns from them; drawn characters."""

from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError

import pliant.experiments.image_streams as image_streams
from pliant.data import Images, image_set
from pliant.experiments.image_streams import Learner, shuffled
from pliant.experiments.images.glyphs import CHARACTERS, PER_CLASS, glyphs
from pliant.experiments.input_permuted_mnist import InputPermutedMnist
from pliant.experiments.label_permutation import LabelPermutation
from pliant.experiments.rare_context import RareContext
from pliant.lab.experiment import checked_rows
from pliant.online.standardize import Standardizer

EXPERIMENTS = (InputPermutedMnist(), LabelPermutation(), RareContext())
SHORT = {"dataset": "kinds", "tasks": 3, "period": 100, "hidden": (20,), "probe": 50, "step_size": 0.03}
CBP = {"replacement_rate": 0.05, "maturity_threshold": 10}
METHODS = {
    "bp": {},
    "l2": {"weight_decay": 1e-2},
    "l2init": {"l2_init": 1e-2},
    "snp": {"weight_decay": 1e-3, "noise_std": 1e-3},
    "layernorm": {},
    "upgd": {"sigma": 0.1, "weight_decay": 1e-3},
    "cbp": CBP,
    "random": CBP,
    "linear": {"hidden": ()},
    "fresh": {},
}


def noisy(count=150):
    """Ten kinds of noisy images of 5 x 6 pixels."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 200, (10, 5, 6)) * (rng.random((10, 5, 6)) < 0.4)
    labels = rng.integers(0, 10, count)
    pixels = (kinds[labels] + rng.integers(0, 56, (count, 5, 6))).astype(np.uint8)
    return image_set("kinds", Images(pixels, labels, tuple("0123456789")), None)


IMAGES = noisy()


def learner(experiment=EXPERIMENTS[0], method="bp", **settings):
    return Learner(experiment, experiment.Config(**{"method": method, **SHORT, **METHODS[method], **settings}), IMAGES)


def rows_of(state):
    collected = []
    while state.statuses()[0].word == "running":
        collected.append(state.experiment.advance(state))
    return {name: np.concatenate([rows[name] for rows in collected]) for name in collected[0]}


def batch(experiment, task, begin, end, **settings):
    state = learner(experiment, **settings)
    return experiment.batch(state.config, IMAGES, task, begin, end)


def test_every_image_comes_once_and_then_again_in_another_order():
    order = shuffled(3, images=60, begin=0, end=150)
    assert sorted(order[:60]) == sorted(order[60:120]) == list(range(60))
    assert (order[:60] != order[60:120]).any()
    assert np.array_equal(shuffled(3, 60, 50, 130), order[50:130])


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: type(e).__name__)
def test_a_task_is_the_same_in_one_piece_or_in_several(experiment):
    whole = batch(experiment, 2, 0, 100)
    pieces = [batch(experiment, 2, begin, end) for begin, end in pairwise((0, 30, 31, 100))]
    for name in ("pixels", "labels"):
        assert np.array_equal(np.concatenate([getattr(piece, name) for piece in pieces]), getattr(whole, name))


def test_pixels_are_permuted_by_task_and_labels_are_not():
    one, other = (batch(InputPermutedMnist(), task, 0, 100) for task in (0, 3))  # 300 examples on, two epochs
    rows = [
        {tuple(np.sort(x)): y for x, y in zip(each.pixels.tolist(), each.labels, strict=True)} for each in (one, other)
    ]
    common = rows[0].keys() & rows[1].keys()  # images in both, told by their sorted pixels
    assert len(common) > 20
    assert all(rows[0][image] == rows[1][image] for image in common)
    assert not {tuple(x) for x in one.pixels.tolist()} & {tuple(x) for x in other.pixels.tolist()}


def test_labels_are_permuted_by_task_and_pixels_are_not():
    one, other = (batch(LabelPermutation(), task, 0, 100) for task in (0, 3))
    seen = [{tuple(x): y for x, y in zip(each.pixels.tolist(), each.labels, strict=True)} for each in (one, other)]
    pairs = {(int(seen[0][image]), int(seen[1][image])) for image in seen[0].keys() & seen[1].keys()}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) >= 8  # one to one
    assert any(a != b for a, b in pairs)


def test_the_rare_context_keeps_its_pixels_and_is_marked_by_an_input():
    settings = {"rare": 0.2, "period": 1000, "probe": 50}
    batches = [batch(RareContext(), task, 0, 1000, **settings) for task in (0, 1)]
    known = {tuple(x) for x in IMAGES.train.pixels.reshape(150, -1).tolist()}
    for each in batches:
        assert each.marked.mean() == pytest.approx(0.2, abs=0.05)
        assert np.array_equal(each.pixels[:, -1], each.marked)
        bytes_seen = np.rint(255 * each.pixels[:, :-1]).astype(int)
        assert all((tuple(x) in known) == rare for x, rare in zip(bytes_seen.tolist(), each.marked, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_goes_on_exactly_where_it_was(method, monkeypatch):
    monkeypatch.setattr(image_streams, "WORK", 1)
    monkeypatch.setattr(image_streams, "FEWEST", 40)
    straight, first = learner(method=method, pixels="online"), learner(method=method, pixels="online")
    expected = rows_of(straight)
    assert expected["accuracy"][-1] > 0.2  # of ten labels
    for _ in range(4):  # into the second task
        first.experiment.advance(first)
    resumed = learner(method=method, pixels="online")
    resumed.load_state_dict(first.state_dict())
    rest = rows_of(resumed)
    for name, values in expected.items():
        np.testing.assert_array_equal(rest[name], values[1:], err_msg=name)
    assert (expected["replaced"][-1] > 20) == (method in ("cbp", "random"))
    checked_rows({"run": np.zeros(3, int), **expected}, straight.experiment.columns, 1)


def test_fresh_units_may_be_the_best_of_several():
    plain, best = (rows_of(learner(method="cbp", candidates=candidates)) for candidates in (0, 8))
    assert (plain["replaced"] == best["replaced"]).all()
    assert best["replaced"][-1] > 20
    assert (plain["loss"] != best["loss"]).all()


def test_a_fresh_network_begins_every_task_anew():
    state = learner(method="fresh")
    weights = []
    for _ in range(3):
        state.experiment.advance(state)
        weights.append(state.network.weights(0))
    first, second = (state._network(task).weights(0) for task in (0, 1))
    assert (first != second).any()
    assert state.network.steps == 100


def test_pixels_are_standardized_by_the_set_or_as_they_come():
    one, other, plain = (learner(pixels=pixels) for pixels in ("standard", "online", "unit"))
    seen = batch(one.experiment, 0, 0, 100).pixels
    assert np.array_equal(plain._seen(seen, keep=True), seen)
    everything = IMAGES.train.pixels / 255
    np.testing.assert_allclose(
        one._seen(seen, keep=True), (seen - everything.mean()) / everything.std(), rtol=1e-5, atol=1e-5
    )
    expected = Standardizer(30, decay=0.99)(seen.astype(float), np.empty((100, 30)), keep=True)
    other._seen(seen[:7], keep=False)  # a probe leaves nothing
    np.testing.assert_allclose(other._seen(seen, keep=True), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": ()}, r"method linear has hidden=\[\], and the others have at least one hidden layer"),
        ({"method": "upgd", "optimizer": "adamw"}, "method upgd is an optimizer: leave optimizer out"),
        ({"hidden": (3, 0)}, "hidden has a layer of 0 units"),
        ({"probe": 101}, "a probe of 101 is no part of a task of 100 examples"),
        ({"l2_init": 0.1}, "l2_init is for method l2init, not bp"),
        ({"replacement_rate": 0.1}, "replacement_rate is for method cbp or random, not bp"),
        ({"method": "random", "replacement_rate": 0.1, "candidates": 4}, "candidates is for method cbp, not random"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        InputPermutedMnist.Config(**{**SHORT, **settings})


def test_other_images_than_those_of_the_run_are_refused():
    state = learner()
    saved = {**state.state_dict(), "data_sha256": "0" * 64}
    with pytest.raises(ValueError, match="began with other images of 'kinds'"):
        learner().load_state_dict(saved)


def test_characters_are_drawn_light_on_dark_and_differ_between_classes():
    drawn = glyphs()
    assert drawn.train.pixels.shape == (len(CHARACTERS) * PER_CLASS, 28, 28)
    assert np.array_equal(np.bincount(drawn.train.labels), np.full(len(CHARACTERS), PER_CLASS))
    assert 0.05 < (drawn.train.pixels > 127).mean() < 0.2
    means = np.stack([drawn.train.pixels[drawn.train.labels == c].mean(axis=0) for c in range(len(CHARACTERS))])
    guessed = np.square(drawn.train.pixels[:500, None].astype(float) - means).sum(axis=(2, 3)).argmin(axis=1)
    assert (guessed == drawn.train.labels[:500]).mean() > 0.3  # of 47 by the nearest mean
