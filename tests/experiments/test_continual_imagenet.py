import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from pliant.data import load
from pliant.experiments import continual_imagenet
from pliant.experiments.continual_imagenet import Config, ContinualImageNet
from pliant.experiments.images.class_pairs import Pairs
from pliant.experiments.images.convolutional import ConvNet, normalized
from pliant.lab import Context
from pliant.lab.stored.checkpoint import from_bytes, to_bytes

EXPERIMENT = ContinualImageNet()
CLASSES, TRAIN, TEST = 6, 20, 10
SHORT = {
    "dataset": "stripes",
    "train_images": TRAIN,
    "test_images": TEST,
    "tasks": 4,
    "epochs": 5,
    "batch_size": 10,
    "channels": (4, 4, 8),
    "hidden": (8, 8),
    "step_size": 0.02,
}
CBP = {"method": "cbp", "replacement_rate": 0.03, "maturity_threshold": 5}


def draw_pictures(folder, counts):
    """A folder of PNGs for each class: stripes of its own direction and width under noise."""
    draw = np.random.default_rng(0)
    across, down = np.meshgrid(np.arange(32), np.arange(32))
    for number, count in enumerate(counts):
        (folder / f"class-{number}").mkdir(parents=True)
        angle = np.pi * number / len(counts)
        waves = np.sin((np.cos(angle) * across + np.sin(angle) * down) * (0.4 + 0.2 * (number % 3)))
        for image in range(count):
            pixels = 128 + 80 * waves[..., None] + draw.normal(0, 25, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"class-{number}" / f"{image:03}.png")


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    """The folder that holds the set 'stripes', and a cache of its own."""
    folder = tmp_path_factory.mktemp("data")
    draw_pictures(folder / "stripes", [TRAIN + TEST + 2] * CLASSES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLIANT_DATA", str(folder))
        patch.setenv("PLIANT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield folder


def started(configs):
    return EXPERIMENT.start(configs, Context())


def rows_of(configs, state=None):
    """All rows of a job, each column (advances, runs)."""
    state = state or started(configs)
    collected = []
    while any(status.word == "running" for status in state.statuses()):
        collected.append(EXPERIMENT.advance(state))
    return {name: np.array([rows[name] for rows in collected if len(rows["run"])]) for name in collected[0]}


# -- the stream ---------------------------------------------------------------------------------------------------------


def pairs(**settings):
    return Pairs(load("stripes"), train_images=TRAIN, test_images=TEST, batch_size=10, **settings)


def test_every_pass_uses_each_class_once_and_pairs_them_anew():
    tasks = [pairs().classes(seed=3, task=task) for task in range(5 * CLASSES // 2)]
    passes = [tasks[first : first + CLASSES // 2] for first in range(0, len(tasks), CLASSES // 2)]
    assert all(sorted(sum(each, ())) == list(range(CLASSES)) for each in passes)
    assert len({frozenset(map(frozenset, each)) for each in passes}) > 1


def test_a_fixed_order_repeats_itself():
    fixed = pairs(order="fixed")
    assert [fixed.classes(3, task) for task in range(3)] == [fixed.classes(3, task) for task in range(3, 6)]
    assert [fixed.classes(3, task) for task in range(3)] == [pairs().classes(3, task) for task in range(3)]


def test_pictures_left_out_are_neither_learned_from_nor_tested_on():
    shortened = pairs(left_out=2)
    images = load("stripes").train
    for task in range(CLASSES // 2):
        seen = np.concatenate(shortened.images(3, task)).reshape(-1, 32 * 32 * 3)
        for number in shortened.classes(3, task):
            hidden = images.pixels[images.labels == number][-2:].reshape(2, -1)
            assert not (seen[:, None] == hidden).all(axis=2).any()
            assert (seen[:, None] == images.pixels[images.labels == number][-3].reshape(-1)).all(axis=2).any()


def test_a_task_has_the_first_pictures_of_its_classes_to_learn_from_and_the_last_to_be_tested_on():
    images = load("stripes").train
    learn, test = pairs().images(seed=0, task=1)
    for half, number in enumerate(pairs().classes(seed=0, task=1)):
        of_class = images.pixels[images.labels == number]
        assert np.array_equal(learn[half * TRAIN : (half + 1) * TRAIN], of_class[:TRAIN])
        assert np.array_equal(test[half * TEST : (half + 1) * TEST], of_class[-TEST:])


def test_an_epoch_sees_every_picture_once_in_an_order_of_its_own():
    batches = [pairs().batches(seed=0, task=task, epoch=epoch) for task, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(each.ravel()) == list(range(2 * TRAIN)) for each in batches)
    assert len({each.tobytes() for each in batches}) == 3
    assert batches[0].shape == (4, 10)


def test_a_class_with_too_few_pictures_is_named(data):
    draw_pictures(data / "uneven", [30, 29, 30])
    with pytest.raises(ValueError, match=r"class 'class-1' of 'uneven' has 29 images, fewer than .* \(20 \+ 10 \+ 0\)"):
        started([Config(**{**SHORT, "dataset": "uneven"})])


# -- the network --------------------------------------------------------------------------------------------------------


def test_the_network_is_the_published_one():
    """Pooling before ReLU changes neither outputs nor gradients."""
    net = ConvNet(1, (4, 5, 6), (7, 8)).double()
    plain = nn.Sequential(
        *(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(5, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(24, 7), nn.ReLU(), nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 2)),
    ).double()
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        theirs.data.copy_(ours[0])
    pixels = torch.randint(0, 256, (1, 9, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = normalized(pixels).double()
    outputs = [net(x)[0], plain(x[0])]
    for y in outputs:
        F.cross_entropy(y, torch.arange(9) % 2).backward()
    assert torch.allclose(*outputs, rtol=0, atol=1e-12)
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad[0], theirs.grad, rtol=0, atol=1e-12)


def test_the_full_network_has_the_published_sizes_and_work():
    net = ConvNet(1, (32, 64, 128), (128, 128))
    assert sum(parameter.numel() for parameter in net.parameters()) == sum((2432, 18496, 73856, 65664, 16512, 258))
    assert net.multiply_accumulates() == 28**2 * 2400 + 12**2 * 18432 + 4**2 * 73728 + 512 * 128 + 128 * 128 + 256


def test_bytes_become_numbers_around_zero_with_channels_last_in_memory():
    pixels = torch.tensor([0, 115, 255], dtype=torch.uint8).expand(1, 2, 32, 32, 3)
    x = normalized(pixels)
    assert x.shape == (1, 2, 3, 32, 32)
    assert x[0].is_contiguous(memory_format=torch.channels_last)
    expected = torch.tensor([(0 - 0.45) / 0.27, (115 / 255 - 0.45) / 0.27, (1 - 0.45) / 0.27])
    assert torch.allclose(x[0, 0, :, 5, 5], expected, atol=1e-6)


# -- learning -----------------------------------------------------------------------------------------------------------


def test_a_pair_of_stripes_is_learned():
    wide = {"channels": (8, 8, 16), "hidden": (16, 16), "step_size": 0.05}
    rows = rows_of([Config(**{**SHORT, **wide, "tasks": 2, "epochs": 15})])
    assert rows["test_accuracy"][:, 0].min() > 0.8
    assert rows["task"][:, 0].tolist() == [1, 2]


def test_a_run_whose_tasks_last_update_breaks_it_has_no_accuracy_after_it():
    state = started([Config(**SHORT)])
    learned = len(EXPERIMENT.advance(state)["run"])
    state.learn(SHORT["epochs"])
    with torch.no_grad():
        state.net.conv1.weight.fill_(torch.nan)
    state.learn = lambda epochs: np.array([0.5])
    assert learned == 1
    assert EXPERIMENT.advance(state)["run"].tolist() == []
    assert state.statuses() == [("diverged", state.steps_total // SHORT["tasks"] * 2)]


@pytest.mark.parametrize("keeps", ["clear", "keep"])
def test_a_task_starts_with_a_head_of_zeros_and_its_momentum_cleared_or_kept(keeps):
    state = started([Config(head_momentum=keeps, **SHORT)])
    EXPERIMENT.advance(state)
    before = state.net.conv1.weight.clone()
    assert state.net.head.weight.abs().sum() > 0
    state.begin_task()
    assert not state.net.head.weight.any()
    assert not state.net.head.bias.any()
    assert bool(state.momentum["head.weight"].any()) == (keeps == "keep")
    assert state.momentum["conv1.weight"].any()
    assert torch.equal(state.net.conv1.weight, before)


def test_methods_of_a_seed_agree_in_the_first_task_and_a_fresh_network_starts_over_in_each():
    of_method = {m: rows_of([Config(method=m, **SHORT)])["train_accuracy"][:, 0] for m in ("bp", "fresh")}
    assert of_method["bp"][0] == of_method["fresh"][0]
    assert not np.array_equal(of_method["bp"], of_method["fresh"])
    state = started([Config(method="fresh", seed=5, **SHORT)])
    EXPERIMENT.advance(state)
    state.begin_task()
    expected = ConvNet(1, SHORT["channels"], SHORT["hidden"])
    expected.redraw([5], task=1)
    assert torch.equal(state.net.conv2.weight, expected.conv2.weight)
    assert not any(momentum.any() for momentum in state.momentum.values())


def test_weight_decay_makes_weights_smaller_and_noise_is_added():
    size = {}
    for method in ({"method": "bp"}, {"method": "l2", "weight_decay": 0.05}, {"method": "snp", "noise_std": 0.01}):
        size[method["method"]] = rows_of([Config(**method, **SHORT)])["weight_magnitude"][-1, 0]
    assert size["l2"] < 0.95 * size["bp"]
    assert size["snp"] > 1.02 * size["bp"]


def test_continual_backprop_replaces_units_of_every_layer_and_backprop_none():
    state = started([Config(**CBP, **SHORT)])
    rows = rows_of(None, state)
    assert list(state.method.stats()) == ["conv1", "conv2", "conv3", "linear1", "linear2"]
    # layers of 4, 4, 8, 8, 8 units, 80 steps, a share of 0.03 of the mature ones in each
    assert all(group["replaced"][0] >= 3 for group in state.method.stats().values())
    assert rows["replaced"][-1, 0] >= 20
    assert not rows_of([Config(**SHORT)])["replaced"].any()


def test_a_run_alone_is_what_it_is_in_a_stack():
    configs = [Config(seed=seed, **{**SHORT, **CBP, "tasks": 2}) for seed in (7, 0, 2)]
    stack = started(configs)
    together = rows_of(None, stack)
    assert together["replaced"][-1].min() >= 20
    for run, config in enumerate(configs):
        state = started([config])
        alone = rows_of(None, state)
        for name, value in stack.net.named_parameters():
            assert torch.allclose(value[run], state.net.get_parameter(name)[0], rtol=0, atol=1e-5)
        for name in ("test_accuracy", "train_accuracy", "dead", "effective_rank", "weight_magnitude", "replaced"):
            assert np.allclose(together[name][:, run], alone[name][:, 0], rtol=1e-3)


@pytest.mark.parametrize("method", [CBP, {"method": "snp", "noise_std": 1e-3}, {"method": "fresh"}])
def test_stopping_amid_a_task_and_resuming_changes_nothing(method, monkeypatch):
    monkeypatch.setattr(continual_imagenet, "WORK", 1.0)  # an epoch an advance
    config = Config(**method, **SHORT)
    straight = rows_of([config])
    state = started([config])
    for _ in range(13):
        EXPERIMENT.advance(state)
    assert (state.task, state.epoch) == (2, 3)
    stored = to_bytes(state.state_dict())
    EXPERIMENT.advance(state)  # what was saved must not follow
    resumed = started([config])
    resumed.load_state_dict(from_bytes(stored))
    rest = rows_of(None, resumed)
    assert method is not CBP or straight["replaced"][1, 0] >= 20
    for name, values in rest.items():
        assert np.array_equal(values, straight[name][2:])


def test_rows_do_not_depend_on_how_much_an_advance_does(monkeypatch):
    config = Config(**CBP, **SHORT)
    at_once = rows_of([config])
    monkeypatch.setattr(continual_imagenet, "WORK", 1.0)
    state = started([config])
    assert [len(EXPERIMENT.advance(state)["run"]) for _ in range(5)] == [0, 0, 0, 0, 1]
    piecemeal = rows_of([config])
    assert all(np.array_equal(piecemeal[name], values) for name, values in at_once.items())


def test_a_state_learned_on_other_pictures_is_refused():
    state = started([Config(**SHORT)])
    with pytest.raises(ValueError, match=r"began with other images of 'stripes' \(SHA-256 00ff"):
        state.load_state_dict({**state.state_dict(), "data": "00ff"})


def test_a_diverged_run_is_a_result_and_leaves_its_sibling_alone():
    configs = [Config(seed=seed, **SHORT) for seed in range(2)]
    healthy = rows_of(configs)
    state = started(configs)
    EXPERIMENT.advance(state)
    with torch.no_grad():
        state.net.linear1.weight[0, 0, 0] = torch.nan
    rows = [EXPERIMENT.advance(state) for _ in range(3)]
    assert [status.word for status in state.statuses()] == ["diverged", "done"]
    assert state.statuses()[0].step == 20  # the first of the second task
    for task, each in enumerate(rows, start=1):
        assert each["run"].tolist() == [1]
        assert all(
            np.array_equal(each[name], healthy[name][task, 1:]) for name in ("test_accuracy", "weight_magnitude")
        )


def test_a_step_size_that_is_far_too_large_ends_in_divergence():
    state = started([Config(**{**SHORT, "step_size": 1e6})])
    while state.statuses()[0].word == "running":
        rows = EXPERIMENT.advance(state)
    assert state.statuses()[0].word == "diverged"
    assert not len(rows["run"])


def test_dead_units_answer_no_test_picture_anywhere_and_are_counted_over_all_layers():
    state = started([Config(**SHORT)])
    state.learn(1)
    with torch.no_grad():
        hidden = state.net.hidden(normalized(state.test_images))
    axes = [(0, 1, 3, 4)] * 3 + [(0, 1)] * 2
    silent = np.concatenate([(h == 0).numpy().all(axis=axis) for h, axis in zip(hidden, axes, strict=True)])
    in_one_picture = np.concatenate([(h[:, :1] == 0).numpy().all(axis=a) for h, a in zip(hidden, axes, strict=True)])
    assert len(silent) == 32
    assert silent.mean() != in_one_picture.mean()
    assert state.measures()["dead"][0] == silent.mean()


def test_identical_answers_have_an_effective_rank_of_one():
    state = started([Config(**SHORT)])
    state.learn(1)
    with torch.no_grad():
        state.net.linear2.weight[:], state.net.linear2.bias[:] = 0.0, 1.0
    assert state.measures()["effective_rank"][0] == pytest.approx(1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_captured_step_gives_what_the_cpu_gives():
    configs = [Config(seed=seed, **{**SHORT, **CBP, "tasks": 2}) for seed in range(3)]
    on_cpu = rows_of(configs)
    on_gpu = rows_of(None, EXPERIMENT.start(configs, Context(device="cuda")))
    assert on_cpu["replaced"][-1].min() >= 20
    for name in ("replaced", "weight_magnitude", "train_accuracy"):
        assert np.allclose(on_gpu[name], on_cpu[name], rtol=0.02)


# -- profiles and settings ------------------------------------------------------------------------------------------------


def test_profiles_have_the_methods_and_seeds_that_they_say():
    small, tuning, paper = (EXPERIMENT.runs(name) for name in ("small", "tuning", "paper"))
    assert {config.method for config in small} == {"bp", "l2", "snp", "cbp", "fresh"}
    assert {config.seed for config in small} == {0, 1, 2}
    assert {config.seed for config in tuning} == {1000}
    assert {m: len([c for c in tuning if c.method == m]) for m in ("bp", "l2", "snp", "cbp", "fresh")} == {
        **dict.fromkeys(("bp", "l2", "snp", "cbp", "fresh"), 6)
    }
    assert all(len(runs) == len(set(runs)) for runs in (small, tuning, paper))


def test_the_paper_profile_has_the_published_cells():
    cells = [config for config in EXPERIMENT.runs("paper") if config.seed == 29]
    assert [(c.method, c.tasks, c.step_size) for c in cells] == [
        *(("bp", 2000, 0.01), ("bp", 2000, 0.001), ("bp", 2000, 0.0001)),
        *(("l2", 5000, 0.03), ("snp", 5000, 0.01), ("cbp", 5000, 0.01)),
    ]
    assert {(c.epochs, c.batch_size, c.train_images, c.test_images, c.momentum) for c in cells} == {
        (250, 100, 600, 100, 0.9)
    }


def test_seeds_of_a_setting_stack_on_a_gpu_and_run_apart_on_a_cpu():
    first, second = Config(seed=0), Config(seed=1)
    assert EXPERIMENT.stack_key(first, "cuda:0") == EXPERIMENT.stack_key(second, "cuda:0")
    assert EXPERIMENT.stack_key(first, "cpu") != EXPERIMENT.stack_key(second, "cpu")


def test_an_advance_is_a_few_seconds_of_work_at_any_scale():
    """A core does at least 20 thousand million multiply-accumulates a second on these layers."""
    small, full = SHORT | {"epochs": 25, "channels": (8, 16, 32)}, {**SHORT, "channels": (32, 64, 128), "epochs": 250}
    assert started([Config(**small)]).epochs_at_once() == 25
    state = started([Config(**{**full, "hidden": (128, 128)})])
    epoch = 3 * state.net.multiply_accumulates() * 2 * TRAIN
    assert state.epochs_at_once() * epoch <= continual_imagenet.WORK


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 7}, "1200 images, which batch_size .7. does not divide"),
        ({"replacement_rate": 1e-3}, "replacement_rate is for method cbp, not bp: add --methods cbp"),
        ({"noise_std": 1e-3}, "noise_std is for method snp, not bp"),
        ({"method": "cbp"}, "method cbp needs replacement_rate > 0"),
        ({"method": "snp", "weight_decay": 1e-3}, "method snp needs noise_std > 0"),
        ({"method": "l2"}, "method l2 needs weight_decay > 0"),
        ({"method": "fresh", "weight_decay": 1e-3}, "weight_decay is for method l2 or snp, not fresh"),
        ({"channels": (8, 0, 8)}, "at least 1 each"),
        ({"momentum": 1.0}, "less than 1"),
        ({"rate": 1}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_contradict_each_other_are_errors(settings, message):
    with pytest.raises(ValidationError, match=message):
        Config(**settings)


def test_the_figure_has_a_panel_for_each_measure():
    pandas = pytest.importorskip("pandas")
    tables = []
    for config in (Config(seed=seed, **method, **SHORT) for method in ({}, CBP) for seed in range(2)):
        flat = {name: values[:, 0] for name, values in rows_of([config]).items()}
        tables.append(pandas.DataFrame(flat).assign(**config.model_dump(mode="json", exclude={"channels", "hidden"})))
    figure = EXPERIMENT.figure(pandas.concat(tables))
    assert [axes.get_ylabel() for axes in figure.axes] == list(continual_imagenet.LABELS.values())[1:]
    assert {text.get_text() for text in figure.axes[0].texts} == {"backprop", "cbp"}
