"""`probe_plasticity`: learns worse than a fresh copy, yes, no or cannot tell; and everything is afterwards as it was."""

import copy
import random
import re

import numpy as np
import pytest
import torch
from scipy.special import stdtrit
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import pliant
from pliant.diagnostics.probe.comparison import compared, errors, log_ratio, steps_to, student
from pliant.diagnostics.probe.data import examples
from pliant.diagnostics.probe.result import Probe, task_probe
from pliant.diagnostics.probe.settings import Settings
from pliant.diagnostics.probe.tasks import Tasks

FEW = {"seeds": 3, "progress": False, "factors": (1.0,), "budget": 900}
ENOUGH = {"seeds": 3, "progress": False, "factors": (1.0,)}


def network(activation=nn.Tanh, dropout=0.0):
    return nn.Sequential(nn.Linear(6, 32), activation(), nn.Dropout(dropout), nn.Linear(32, 3))


def blobs(count=96, classes=3):
    """Three clouds of points, one per class."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(classes, (count,), generator=generator)
    centers = 2.0 * torch.randn(classes, 6, generator=generator)
    return centers[y] + torch.randn(count, 6, generator=generator), y


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.003)


def worn_out(model):
    """Every hidden unit saturated, on one side."""
    with torch.no_grad():
        model[0].bias.fill_(100.0)
    return model


def state_of_everything(model, optimizer):
    return copy.deepcopy(
        [
            model.state_dict(),
            [parameter.grad for parameter in model.parameters()],
            [module.training for module in model.modules()],
            optimizer.state_dict(),
            torch.get_rng_state(),
            random.getstate(),
            np.random.get_state(),  # noqa: NPY002
        ]
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


# -- the arithmetic ---------------------------------------------------------------------------------------------------


def test_an_error_is_the_share_of_the_way_left_from_the_start_and_one_where_a_loss_is_above_it_or_not_finite():
    assert errors(np.array([6.0, 3.0, 1.0, np.inf]), start=3.0, floor=-1.0).tolist() == [1.0, 1.0, 0.5, 1.0]


def test_the_interval_of_the_log_ratio_is_student_s_over_paired_seeds():
    areas, fresh = [0.4, 0.6, 0.2], [0.2, 0.2, 0.2]
    ratios = np.log([2.0, 3.0, 1.0])
    mean, low, high = log_ratio(areas, fresh)
    reach = stdtrit(2, 0.975) * ratios.std(ddof=1) / np.sqrt(3)
    assert mean == pytest.approx(np.log(6.0) / 3)
    assert (low, high) == pytest.approx((mean - reach, mean + reach), rel=1e-4)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 29])
def test_the_quantile_is_that_of_scipy(degrees):
    assert student(degrees) == pytest.approx(stdtrit(degrees, 0.975), rel=1e-3)


def test_the_answer_is_yes_above_the_margin_no_below_it_and_else_cannot_tell():
    def answer(ratio, spread):
        areas = 0.3 * ratio * np.exp(spread * np.array([-1.0, 0.0, 1.0]))
        return compared(areas, np.full(3, 0.3), 0.1, what="it", than="another").answer

    assert [answer(1.3, 0.01), answer(1.05, 0.01), answer(1.2, 0.2)] == ["yes", "no", "cannot tell"]


def test_steps_to_a_level_are_those_before_a_tenth_of_the_curve_is_below_it_on_average():
    assert steps_to(np.array([1.0] * 10 + [0.4] * 10), 0.5) == 10
    assert steps_to(np.ones(20), 0.5) is None


# -- what it says -----------------------------------------------------------------------------------------------------


def test_saturated_units_are_a_yes_on_every_kind_of_task():
    model = worn_out(network())
    probe = pliant.probe_plasticity(
        model, *blobs(), optimizer=adam, tasks=("own", "random", "smooth"), **{**ENOUGH, "factors": (3.0,)}
    )
    assert [task.answer.answer for task in probe.tasks.values()] == ["yes", "yes", "yes"]
    assert probe.verdict == "yes"
    assert probe.reason.startswith("the network learns worse than a fresh copy, ")
    assert str(probe).count("\n") > 12


def test_an_untrained_network_is_a_no():
    torch.manual_seed(5)
    probe = pliant.probe_plasticity(network(), *blobs(), optimizer=adam, **{**ENOUGH, "seeds": 6, "budget": 3600})
    assert [task.answer.answer for task in probe.tasks.values()] == ["no", "no"]


def test_the_verdict_follows_the_next_task_where_random_labels_say_otherwise():
    """Saturated units, in three equal sets, tell three clouds apart, which the head learns, and nothing else."""
    torch.manual_seed(0)
    model, (x, y) = network(), blobs()
    optimizer = adam(model.parameters())
    centers = torch.stack([x[y == each].mean(dim=0) for each in range(3)])
    directions = centers - centers.roll(1, dims=0)
    with torch.no_grad():
        for unit in range(32):
            model[0].weight[unit] = 1000.0 * directions[unit % 3]
            middle = (centers[unit % 3] + centers[unit % 3 - 1]) / 2
            model[0].bias[unit] = -1000.0 * directions[unit % 3] @ middle
    for _ in range(300):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    probe = pliant.probe_plasticity(model, x, y, optimizer=lambda p: torch.optim.Adam(p, lr=0.03), **ENOUGH)
    assert probe.tasks["random"].answer.answer == "yes"
    assert probe.verdict == "no"
    own, random = (probe.tasks[kind].answer.interval for kind in ("own", "random"))
    assert own.endswith(")")
    assert probe.reason == (
        f"the network learns its next task better than a fresh copy, but random targets worse than one: {own} and {random} "
        f"times its area"
    )


@pytest.mark.parametrize(
    ("own", "random", "says"),
    [
        (1.0, 2.0, "next task like a fresh copy, but random targets worse than one: 1 .* and 2 "),
        (2.0, 0.5, "next task worse than a fresh copy, but random targets better than one: 2 "),
        (None, 2.0, "crosses the margin, 1.25 .*; but random targets the network learns worse than a fresh copy: 2 "),
        (2.0, 3.0, "^the network learns worse than a fresh copy, 2 "),
        (2.0, None, "^the network learns worse than a fresh copy, 2 "),
    ],
)
def test_the_reason_names_both_tasks_where_both_are_known_and_differ(own, random, says):
    def task(kind, ratio):
        """Fresh networks are at half their first loss at all steps, the network at `ratio` times that; or around 1.25 times."""
        shares = 0.5 * np.array([1.0, 1.25, 1.5625] if ratio is None else [ratio] * 3)
        losses = {"fresh": np.full((1, 3, 20), 0.2), "model": np.repeat(0.4 * shares[None, :, None], 20, axis=2)}
        held_out = {name: np.full((1, 3), np.nan) for name in losses}
        return task_probe(kind, losses, held_out, [], 0.4, 0.25)

    tasks = {"own": task("own", own), "random": task("random", random)}
    probe = Probe(tasks, (1.0,), 0.1, 0.1, "SGD", 3, 20, 8, 96, 0.25, "", 1.0)
    assert re.search(says, probe.reason)
    assert str(probe).splitlines()[-1] != probe.reason
    assert probe.reason in str(probe)


def test_a_task_that_a_fresh_copy_does_not_learn_tells_nothing():
    probe = pliant.probe_plasticity(
        worn_out(network()), *blobs(), optimizer=lambda p: torch.optim.SGD(p, lr=1e-7), tasks="own", **ENOUGH
    )
    assert probe.verdict == "cannot tell"
    assert probe.reason.startswith("a fresh copy itself learns only ")
    assert not probe.tasks["own"].fresh_learns


def test_stale_optimizer_state_is_told_from_worn_out_weights():
    torch.manual_seed(5)
    model, (x, y) = network(), blobs()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003, betas=(0.9, 0.9999))
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    for state in optimizer.state.values():
        state["exp_avg_sq"] += 1e4
        state["step"] += 100_000
    probe = pliant.probe_plasticity(model, x, y, optimizer=optimizer, tasks="own", **ENOUGH)
    assert probe.verdict == "no"
    assert probe.tasks["own"].state.answer == "yes"
    assert list(probe.tasks["own"].sides) == [
        "fresh",
        "model",
        "model, optimizer state of now",
        "fresh, optimizer state of now",
    ]
    assert probe.tasks["own"].comparisons["fresh, optimizer state of now"].answer == "yes"


def test_the_first_step_size_is_probed_and_both_are_named():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    probe = pliant.probe_plasticity(model, *blobs(), optimizer=optimizer, tasks="own", **FEW)
    assert (probe.step_size_first, probe.step_size_now) == (0.1, pytest.approx(1e-6))
    assert "step size at first 0.1, now 1e-06" in str(probe)
    assert probe.records()[0]["step_size"] == 0.1
    assert probe.tasks["own"].fresh_learns


# -- fair, and leaving no trace ---------------------------------------------------------------------------------------


def test_runs_from_equal_weights_are_equal_to_the_bit_with_dropout_and_differ_by_seed():
    torch.manual_seed(5)
    model = network(dropout=0.5)
    probe = pliant.probe_plasticity(
        model, *blobs(), optimizer=adam, checkpoints={"twin": copy.deepcopy(model)}, tasks="own", **FEW
    )
    losses = {name: side.losses for name, side in probe.tasks["own"].sides.items()}
    assert np.array_equal(losses["twin"], losses["model"])
    assert not np.array_equal(losses["model"][0, 0], losses["model"][0, 1])
    assert not np.array_equal(losses["model"], losses["fresh"])


def test_everything_is_afterwards_as_it_was_to_the_bit():
    model, (x, y) = network(dropout=0.2), blobs()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    cbp = pliant.ContinualBackprop(model, optimizer, example_inputs=x, replacement_rate=0.1, maturity_threshold=1)
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.eval()
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True, generator=generator)
    before, method, drawn = (
        state_of_everything(model, optimizer),
        copy.deepcopy(cbp.state_dict()),
        generator.get_state(),
    )
    with torch.no_grad():
        probe = pliant.probe_plasticity(model, loader, optimizer=optimizer, **FEW)
    assert probe.batch_size == 16
    assert same(state_of_everything(model, optimizer), before)
    assert same(cbp.state_dict(), method)
    assert torch.equal(generator.get_state(), drawn)


def test_the_same_call_gives_the_same_curves_whatever_the_global_random_state():
    torch.manual_seed(5)
    model = network(dropout=0.2)
    first = pliant.probe_plasticity(model, *blobs(), optimizer=adam, **FEW)
    torch.manual_seed(6)
    second = pliant.probe_plasticity(model, *blobs(), optimizer=adam, **FEW)
    assert all(
        np.array_equal(side.losses, second.tasks[kind].sides[name].losses)
        for kind, task in first.tasks.items()
        for name, side in task.sides.items()
    )


def test_frozen_layers_stay_frozen_on_both_sides():
    """With everything but a useless head frozen, fresh and trained start from one and the same body."""
    torch.manual_seed(5)
    model = network()
    model[0].requires_grad_(False)
    probe = pliant.probe_plasticity(
        model,
        *blobs(),
        optimizer=torch.optim.SGD(model[3].parameters(), lr=0.1),
        tasks="own",
        fresh=network,
        **FEW,
    )
    sides = probe.tasks["own"].sides
    assert np.abs(sides["fresh"].losses[0, :, -1] - sides["model"].losses[0, :, -1]).max() < 0.3
    assert not np.array_equal(sides["fresh"].losses, sides["model"].losses)  # the heads differ


def test_checkpoints_are_state_dictionaries_files_and_networks(tmp_path):
    torch.manual_seed(5)
    model = network()
    torch.save(model.state_dict(), tmp_path / "early.pt")
    given = {"dict": model.state_dict(), "file": tmp_path / "early.pt", "network": copy.deepcopy(model)}
    probe = pliant.probe_plasticity(worn_out(model), *blobs(), optimizer=adam, checkpoints=given, tasks="own", **FEW)
    answers = {name: each.answer for name, each in probe.tasks["own"].comparisons.items()}
    assert answers["model"] == "yes"
    assert answers["file"] == answers["network"] != "yes"


# -- models of all kinds ----------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    def __init__(self, vocabulary=11):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 16)
        self.body = nn.Linear(16, 16)
        self.head = nn.Linear(16, vocabulary)

    def forward(self, ids):
        return self.head(self.embedding(ids).tanh() + self.body(self.embedding(ids)).relu())


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 32)
        self.policy = nn.Linear(32, 4)
        self.value = nn.Linear(32, 1)

    def forward(self, observation):
        hidden = self.body(observation).relu()
        return torch.distributions.Categorical(logits=self.policy(hidden)), self.value(hidden).squeeze(-1)


class OwnLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 3)

    def forward(self, values, labels=None):
        from types import SimpleNamespace

        logits = self.body(values)
        return SimpleNamespace(logits=logits, loss=None if labels is None else functional.cross_entropy(logits, labels))


class DictionaryLoss(OwnLoss):
    def forward(self, values, labels=None):
        return vars(super().forward(values, labels))


class TupleLoss(OwnLoss):
    def forward(self, values, labels=None):
        found = super().forward(values, labels)
        return (found.loss, found.logits)


def test_regressors_token_models_actor_critics_and_models_that_return_their_loss():
    x, y = blobs()
    torch.manual_seed(0)
    ids = torch.randint(11, (96, 5))
    actor_targets = {"action": torch.randint(4, (96,)), "return": torch.randn(96), "advantage": torch.randn(96)}

    def actor_loss(output, target):
        policy, value = output
        gain = policy.log_prob(target["action"]) * target["advantage"]
        return functional.mse_loss(value, target["return"]) - gain.mean()

    every = ("own", "random", "smooth")
    for model, data, loss, kinds in [
        (nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)), (x, x[:, :1] * 5), None, every),
        (nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)), (x, x[:, 0] * 5), None, every),
        (Tokens(), (ids, ids.roll(1, dims=1)), None, every),
        (nn.Sequential(nn.Conv1d(1, 3, 1)), (x[:, None], (x > 0).long()), None, ("own", "random")),
        (ActorCritic(), (x, actor_targets), actor_loss, ("own", "random")),
        (OwnLoss(), ({"values": x, "labels": y},), None, every),
        (DictionaryLoss(), ({"values": x, "labels": y},), None, ("own",)),
        (TupleLoss(), ({"values": x, "labels": y},), None, ("own",)),
        (OwnLoss(), ([{"values": x[:48], "labels": y[:48]}, {"values": x[48:], "labels": y[48:]}],), None, every),
    ]:
        probe = pliant.probe_plasticity(
            model,
            *data,
            loss=loss,
            optimizer=adam,
            tasks=kinds,
            fresh=lambda m=model: type_of(m),
            **{**FEW, "budget": 800},
        )
        assert list(probe.tasks) == list(kinds)
        for task in probe.tasks.values():
            assert np.isfinite(task.sides["model"].losses).all()


def type_of(model):
    """Built anew."""
    if isinstance(model, nn.Sequential):
        copied = copy.deepcopy(model)
        for layer in copied:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        return copied
    return type(model)()


def test_inputs_alone_are_probed_with_random_and_smooth_targets():
    probe = pliant.probe_plasticity(network(), blobs()[0], optimizer=adam, **FEW)
    assert list(probe.tasks) == ["random", "smooth"]
    one = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    assert list(pliant.probe_plasticity(one, blobs()[0], optimizer=adam, **FEW).tasks) == ["random", "smooth"]


def test_random_targets_are_the_user_s_own_each_at_another_example():
    x, y = blobs()
    tasks = Tasks(examples(network(), x, y, 96), torch.zeros(8, 3), None)
    first, again, other = tasks.of("random", 0), tasks.of("random", 0), tasks.of("random", 1)
    assert torch.equal(first.examples.targets.sort().values, y.sort().values)
    assert torch.equal(first.examples.targets, again.examples.targets)
    assert not torch.equal(first.examples.targets, other.examples.targets)
    assert not torch.equal(first.examples.targets, y)


def test_smooth_targets_are_alike_where_inputs_are_and_of_the_scale_of_the_user_s_own():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator)
    x[100:] = x[:100] + 1e-3 * torch.randn(100, 6, generator=generator)
    y = 7.0 + 3.0 * torch.randn(200, 1, generator=generator)
    smooth = Tasks(examples(network(), x, y, 200), torch.zeros(8, 1), None).of("smooth", 0).examples.targets
    assert (smooth[100:] - smooth[:100]).abs().max() < 0.1
    assert float(smooth.mean()) == pytest.approx(float(y.mean()), rel=1e-3)
    assert float(smooth.std()) == pytest.approx(float(y.std()), rel=0.02)


def test_smooth_targets_of_a_token_model_know_nothing_of_later_tokens():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, (64, 6), generator=generator)
    changed = ids.clone()
    changed[:, 4:] = changed[:, 4:].flip(0)  # the same tokens in all, at other places
    first, second = (
        Tasks(examples(Tokens(), each, ids, 64), torch.zeros(8, 6, 5), None).of("smooth", 0).examples.targets
        for each in (ids, changed)
    )
    same_scale = (first[:, :4] == second[:, :4]).float().mean()
    assert same_scale > 0.9  # but for the scale, which is that of all positions


# -- budgets and refusals ---------------------------------------------------------------------------------------------


def test_a_budget_of_steps_is_kept_first_by_fewer_steps_then_by_fewer_seeds():
    def within(budget, runs):
        found = Settings.checked(5, (1.0,), 10, 8, 0.1, None).within(budget, runs, seconds_per_step=0.01)
        return found.seeds, found.steps

    assert within(None, 2) == (5, 300)
    assert within(1000, 2) == (5, 100)
    assert within(300, 2) == (3, 50)
    assert within(10.0, 2) == (5, 100)
    with pytest.raises(
        ValueError, match=r"budget is too small to tell: .* are 240 steps, about 2 s, and it allows 200"
    ):
        within(200, 2)


class Slowing(nn.Module):
    """A network whose forwards take some time of a clock."""

    def __init__(self, tick):
        super().__init__()
        self.net, self.tick = network(), tick

    def forward(self, x):
        self.tick()
        return self.net(x)


@pytest.fixture
def slowing(monkeypatch):
    """The probe of 5 seeds x 2 sides of a network whose forwards take 2 ms, and `later` from the `count`-th on."""

    def probed(later, count, **given):
        passed = []

        def tick():
            passed.append(0.002 if len(passed) < count else later)

        torch.manual_seed(5)
        model = Slowing(tick)
        monkeypatch.setattr("time.perf_counter", lambda: sum(passed))
        settings = {"optimizer": adam, "tasks": "own", "factors": (1.0,), "progress": False, **given}
        return model.net, pliant.probe_plasticity(model, *blobs(), fresh=lambda: Slowing(tick), **settings)

    return probed


def test_a_time_is_kept_by_fewer_seeds_where_steps_take_longer_than_they_seemed_to(slowing):
    told = []
    net, probe = slowing(0.004, 500, budget="1.5s", progress=lambda done, runs, what: told.append((done, runs)))
    assert probe.seconds < 1.1 * 1.5
    assert (probe.seeds, probe.steps) == (4, 74)
    assert probe.cut == "cut from 5 seeds of 74 steps, to end within 2 s"
    assert f"budget: {probe.cut}" in str(probe)
    assert told[-1] == (8, 8)  # the line ends
    steps = 4 * 2 * 74
    plain = pliant.probe_plasticity(
        net, *blobs(), optimizer=adam, tasks="own", factors=(1.0,), progress=False, seeds=4, budget=steps
    )
    losses, same_steps = (
        {name: side.losses for name, side in each.tasks["own"].sides.items()} for each in (probe, plain)
    )
    assert np.array_equal(losses["model"], same_steps["model"])
    assert losses["fresh"].shape == losses["model"].shape
    assert probe.tasks["own"].start == pytest.approx(plain.tasks["own"].start, rel=0.2)  # of whole seeds alone


def test_a_time_is_kept_by_fewer_steps_where_three_seeds_would_take_too_long(slowing):
    net, probe = slowing(0.006, 200, budget="3s")
    assert probe.seconds < 1.1 * 3
    assert probe.seeds == 3
    assert 40 <= probe.steps < 80
    assert probe.cut == "cut from 5 seeds of 149 steps, to end within 3 s"
    own = probe.tasks["own"]
    assert own.sides["fresh"].losses.shape == own.sides["model"].losses.shape == (1, 3, probe.steps)
    assert all(np.isnan(side.held_out).all() for side in own.sides.values())  # that of unequal steps is not compared
    plain = pliant.probe_plasticity(
        net, *blobs(), optimizer=adam, tasks="own", factors=(1.0,), progress=False, seeds=3, budget=6 * probe.steps
    )
    assert np.array_equal(own.sides["model"].losses, plain.tasks["own"].sides["model"].losses)


def test_a_time_in_which_nothing_can_be_told_any_more_ends_the_probe(slowing):
    with pytest.raises(
        ValueError, match=r"budget is too small to tell: after 2 runs, 3 seeds of 40 steps would take about"
    ):
        slowing(0.1, 150, budget="1.5s")


def test_progress_is_told_before_the_start_and_after_every_run():
    told = []
    pliant.probe_plasticity(
        network(),
        *blobs(),
        optimizer=adam,
        tasks="own",
        **{**FEW, "budget": 400, "progress": lambda done, runs, what: told.append((done, runs, what))},
    )
    assert [each[0] for each in told] == list(range(7))
    assert told[0][2].startswith("6 runs of 66 steps, about ")


ODD = {
    "a pair": (
        lambda m: ((blobs(),), {}),
        "x is a tuple of 2, the arguments of the forward, .* give inputs and targets",
    ),
    "empty": (lambda m: ((torch.empty(0, 6),), {}), "x holds no example"),
    "an empty list": (lambda m: (([],), {}), "x is an empty list"),
    "an empty loader": (
        lambda m: ((DataLoader(TensorDataset(torch.empty(0, 6))),), {}),
        "x is a DataLoader without a batch",
    ),
    "a number": (lambda m: ((3,), {}), "no tensor at all"),
    "unequal": (lambda m: ((torch.ones(4, 6), torch.ones(5).long()), {}), "tensors of 4 and 5 examples"),
    "real targets of another size": (lambda m: ((torch.ones(4, 6), torch.ones(4, 7)), {}), "give loss="),
    "None for an optimizer": (lambda m: (blobs(), {"optimizer": None}), "optimizer is None: give the torch.optim"),
    "another model's": (
        lambda m: (blobs(), {"optimizer": adam(network().parameters())}),
        "optimizer steps no parameter of the model that trains",
    ),
    "a class": (lambda m: (blobs(), {"optimizer": torch.optim.Adam}), "optimizer is the class Adam"),
    "another task": (lambda m: (blobs(), {"tasks": "onw"}), "unknown task 'onw' \\(did you mean 'own'"),
    "own without targets": (lambda m: ((blobs()[0],), {"tasks": "own"}), "there are no targets"),
    "two seeds": (lambda m: (blobs(), {"seeds": 2}), "seeds must be 3 or more"),
    "no budget": (lambda m: (blobs(), {"budget": 10}), "budget is too small to tell"),
    "odd budget": (lambda m: (blobs(), {"budget": "soon"}), "budget is a number of steps, or a time"),
    "odd factors": (lambda m: (blobs(), {"factors": 0.5}), "factors are numbers"),
    "another checkpoint": (
        lambda m: (blobs(), {"checkpoints": {"old": nn.Linear(3, 3).state_dict()}}),
        "^checkpoints: 'old'",
    ),
    "a loss of many": (
        lambda m: (blobs(), {"loss": lambda output, y: functional.cross_entropy(output, y, reduction="none")}),
        "loss\\(output, targets\\) must be one number",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_bad_input_is_one_sentence_and_changes_nothing(name):
    make, message = ODD[name]
    model = network()
    optimizer = adam(model.parameters())
    data, given = make(model)
    before = state_of_everything(model, optimizer)
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        pliant.probe_plasticity(model, *data, **{"optimizer": optimizer, **FEW, **given})
    assert "\n" not in str(caught.value)
    assert same(state_of_everything(model, optimizer), before)


def test_a_frozen_model_is_refused():
    model = network().requires_grad_(False)
    with pytest.raises(ValueError, match="the model is frozen"):
        pliant.probe_plasticity(model, *blobs(), optimizer=adam, **FEW)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam", "Rprop", "ASGD", "Adamax"])
def test_every_optimizer_can_be_made_anew_with_its_settings(kind):
    torch.manual_seed(0)
    model, (x, y) = network(), blobs()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.01)
    functional.cross_entropy(model(x), y).backward()
    optimizer.step(lambda: functional.cross_entropy(model(x), y))
    probe = pliant.probe_plasticity(model, x, y, optimizer=optimizer, tasks="own", **FEW)
    assert probe.optimizer == kind
    assert (probe.tasks["own"].state is None) == (kind == "SGD")  # it has none


def test_a_probe_is_a_table_a_data_frame_a_dictionary_and_a_figure(tmp_path):
    import json

    probe = pliant.probe_plasticity(network(), *blobs(), optimizer=adam, **FEW)
    assert json.loads(json.dumps(probe.to_dict()))["verdict"] == probe.verdict
    assert list(probe.to_pandas()["task"]) == ["own", "own", "random", "random"]
    assert "<td" in probe._repr_html_()
    probe.plot().savefig(tmp_path / "probe.svg")
    assert "plasticity lost?" in str(probe)


def test_treatments_say_what_helps():
    torch.manual_seed(5)
    model, (x, y) = worn_out(network()), blobs()

    def shrink(model, optimizer):
        pliant.ShrinkAndPerturb(model, noise_std=0.1, shrink=0.001, period=None, seed=0).apply()

    def replace(model, optimizer):
        settings = {"replacement_rate": 0.02, "maturity_threshold": 20, "utility": "zero_contribution"}
        return pliant.ContinualBackprop(model, optimizer, example_inputs=x, trial=False, **settings)

    def nothing(model, optimizer):
        assert optimizer.param_groups[0]["params"][0] is model[0].weight

    given = {"shrink": shrink, "replace": replace, "nothing": nothing}
    probe = pliant.probe_plasticity(model, x, y, optimizer=adam, treatments=given, **ENOUGH, budget=3150)
    own = probe.tasks["own"]
    assert own.treatments["shrink"].high < 0.8
    assert own.treatments["replace"].high < 0.9
    assert own.treatments["nothing"].ratio == 1.0
    assert list(probe.tasks["random"].sides) == ["fresh", "model"]


def test_examples_that_are_only_learned_by_heart_are_told():
    torch.manual_seed(5)
    x = torch.randn(96, 6)
    noise = torch.randint(3, (96,))

    def probed(y):
        def make(parameters):
            return torch.optim.Adam(parameters, lr=0.03)

        return pliant.probe_plasticity(network(), x, y, optimizer=make, tasks="own", **ENOUGH)

    by_heart, real = probed(noise), probed((x[:, 0] > 0).long())
    assert by_heart.tasks["own"].by_heart
    assert "by heart only" in str(by_heart)
    assert not real.tasks["own"].by_heart
    assert real.records()[0]["held_out"] < 0.5
