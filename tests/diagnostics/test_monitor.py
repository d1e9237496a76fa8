"""The measures while a network trains: what they say, where they go, and that nobody notices."""

import copy
import csv
import logging
import math
from dataclasses import asdict, fields

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import pliant
from pliant import Monitor, diagnose
from pliant.base.saving import load_state, save_state
from pliant.diagnostics import GroupDiagnosis
from tests.networks import Recurrent, Transformer, convnet, mlp
from tests.units.hard_cases import CASES
from tests.units.test_hard_cases import floats

NETWORKS = {
    "mlp": (mlp, (6,)),
    "convnet": (convnet, (2, 8, 8)),
    "transformer": (Transformer, (4, 6)),
    "recurrent": (Recurrent, (4, 6)),
}
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}


def batches(shape, steps, size=16):
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(size, *shape, generator=generator), torch.arange(size) % 2) for _ in range(steps)]


def step_of(model, optimizer, x, y):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def train(network="mlp", optimizer="SGD", steps=12, monitored=True, **settings):
    build, shape = NETWORKS[network]
    torch.manual_seed(0)
    model = build()
    stepper = OPTIMIZERS[optimizer](model.parameters())
    monitor = Monitor(model, stepper, torch.zeros(2, *shape), **settings) if monitored else None
    torch.manual_seed(1)
    for x, y in batches(shape, steps):
        step_of(model, stepper, x, y)
    return model, stepper, monitor


def hooks(model, *optimizers):
    of_model = sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())
    return of_model + sum(len(o._optimizer_step_pre_hooks) + len(o._optimizer_step_post_hooks) for o in optimizers)


def steps_in(monitor):
    return list(dict.fromkeys(row["step"] for row in monitor.rows))


def alike(first, second):
    return first == second or (isinstance(first, float) and math.isnan(first) and math.isnan(second))


# -- nobody notices ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("every", [1, 5])
def test_training_is_the_same_to_the_bit(network, optimizer, every):
    plain, stepper, _ = train(network, optimizer, monitored=False)
    state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    model, watched, monitor = train(network, optimizer, every=every)
    assert steps_in(monitor) == sorted({1, *range(every, 13, every)})
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), model.state_dict().values(), strict=True))
    mine, theirs = (tree_leaves(each.state_dict()) for each in (watched, stepper))
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(mine, theirs, strict=True))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]  # noqa: NPY002


def test_between_measurements_the_model_has_no_hook_and_detached_it_leaves_none():
    model, stepper, monitor = train(every=100)
    assert hooks(model) == 0
    assert hooks(model, stepper) == 2
    monitor.detach()
    assert hooks(model, stepper) == 0
    assert len(monitor.rows) == 2
    model = mlp()
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(model, stepper, torch.zeros(2, 6)):  # armed for the first step
        assert hooks(model) > 0
        twin = copy.deepcopy(model)
        twin(torch.ones(2, 6)).sum().backward()
    assert hooks(model, stepper) == 0


def test_a_copy_of_the_model_feeds_nothing():
    model = mlp()
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, stepper, torch.zeros(2, 6), every=1)
    copy.deepcopy(model)(torch.ones(50, 6)).sum().backward()
    step_of(model, stepper, torch.ones(4, 6), torch.zeros(4, dtype=torch.long))
    assert monitor.rows[0]["n"] == 4
    with pytest.raises(TypeError, match="Monitor holds hooks on one model and its optimizer and cannot be copied"):
        copy.deepcopy(monitor)


def test_a_forward_that_raises_leaves_no_mode_behind():
    model = mlp()
    monitor = Monitor(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.zeros(2, 6))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.zeros(2, 5))
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    monitor.detach()


# -- what it says --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mlp", "convnet"])
def test_a_measurement_is_what_diagnose_says_of_the_same_batch(network):
    build, shape = NETWORKS[network]
    torch.manual_seed(0)
    model = build()
    if network == "convnet":
        model[3].p = 0.0  # its noise would be another
    stepper = OPTIMIZERS["SGD"](model.parameters())
    monitor = Monitor(model, stepper, torch.zeros(2, *shape), every=3, rows=10**6)
    for number, (x, y) in enumerate(batches(shape, 6), 1):
        expected = diagnose(model, x, y, loss=F.cross_entropy, groups=monitor.plan, reference=None).rows
        before = [part.parameter.detach().clone() for group in monitor.groups for part in group.incoming_weights()]
        step_of(model, stepper, x, y)
        if number % 3:
            continue
        after = [part.parameter.detach() for group in monitor.groups for part in group.incoming_weights()]
        found = [row for row in monitor.rows if row["step"] == number]
        for row, other, old, new in zip(found, expected, before, after, strict=True):
            for name, value in asdict(other).items():
                if name not in ("update_ratio", "stagnant", "volatile", "weight_growth"):
                    assert row[name] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), name
            assert row["update_ratio"] == pytest.approx(((new - old).norm() / old.norm()).item(), rel=1e-4)


def test_growth_is_since_the_monitor_attached():
    model = mlp()
    stepper = torch.optim.SGD(model.parameters(), lr=0.0)
    monitor = Monitor(model, stepper, torch.zeros(2, 6), every=2)
    x, y = torch.ones(4, 6), torch.zeros(4, dtype=torch.long)
    step_of(model, stepper, x, y)
    with torch.no_grad():
        model[0].weight *= 3.0
    step_of(model, stepper, x, y)
    assert [row["weight_growth"] for row in monitor.rows] == pytest.approx([1.0, 1.0, 3.0, 1.0])


def test_what_a_method_writes_after_the_step_is_no_part_of_it():
    model = mlp()
    stepper = torch.optim.SGD(model.parameters(), lr=0.0)
    x, y = torch.randn(8, 6), torch.zeros(8, dtype=torch.long)
    cbp = pliant.ContinualBackprop(model, stepper, example_inputs=x, replacement_rate=0.9, maturity_threshold=0)
    monitor = Monitor(model, stepper, groups=cbp.plan, every=1)
    for _ in range(30):
        step_of(model, stepper, x, y)
    assert min(sum(each["replaced"]) for each in cbp.stats().values()) >= 20
    assert all(row["update_ratio"] == 0.0 for row in monitor.rows)


def test_a_pull_is_part_of_the_gradient_that_is_measured():
    model = mlp()
    stepper = torch.optim.SGD(model.parameters(), lr=0.0)
    pliant.L2(model, stepper, strength=100.0)
    monitor = Monitor(model, stepper, torch.zeros(2, 6), every=1)
    x, y = batches((6,), 1)[0]
    step_of(model, stepper, x, y)
    pulled = model[0].weight.grad + 100.0 * model[0].weight
    assert monitor.rows[0]["gradient_norm"] == pytest.approx(pulled.norm().item(), rel=1e-4)


def test_a_few_rows_spread_evenly_are_measured_of_many():
    *_, monitor = train("convnet", every=4, rows=20)
    assert {row["n"] for row in monitor.rows if row["group"] != monitor.rows[-1]["group"]} <= {20, 16}
    *_, other = train("convnet", every=4, rows=10**6)
    assert max(row["n"] for row in other.rows) == 16 * 9
    assert monitor.rows[0]["preactivation_std"] == pytest.approx(other.rows[0]["preactivation_std"])  # of all


def test_a_mask_leaves_padding_out():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))

        def forward(self, x, mask):
            return (self.net(x) * mask[..., None]).sum(1)

    model, x, mask = Padded(), torch.randn(5, 4, 3), torch.ones(5, 4)
    mask[:, 3:] = 0
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, stepper, (x, mask), mask="mask", every=1)
    model(x, mask).square().sum().backward()
    stepper.step()
    assert monitor.rows[0]["n"] == 15


def test_a_loop_that_calls_parts_of_the_model_alone_is_measured_too():
    class Agent(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = mlp()[:4], nn.Linear(9, 2)

        def forward(self, x):
            return self.head(self.body(x))

        def loss(self, x):
            return self.head(self.body(x)).square().mean()

    model = Agent()
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, stepper, torch.zeros(2, 6), every=1)
    model.loss(torch.ones(4, 6)).backward()
    stepper.step()
    assert [(row["activation"], row["n"]) for row in monitor.rows] == [("relu", 4), ("tanh", 4)]
    assert all(row["preactivation_std"] is not None for row in monitor.rows[:1])


def test_evaluation_and_paused_forwards_are_not_measured():
    model = mlp()
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, stepper, torch.zeros(2, 6), every=1)
    with torch.no_grad():
        model(torch.zeros(30, 6))
    with pliant.recording_paused():
        model(torch.zeros(30, 6))
    diagnose(model, torch.zeros(30, 6))
    step_of(model, stepper, torch.ones(4, 6), torch.zeros(4, dtype=torch.long))
    assert monitor.rows[0]["n"] == 4


def test_a_stack_of_networks_has_a_row_for_each_run():
    from pliant.nn import StackedLinear

    torch.manual_seed(0)
    model = nn.Sequential(StackedLinear(3, 6, 8), nn.ReLU(), StackedLinear(3, 8, 2))
    groups = [
        pliant.UnitGroup(
            "0",
            [pliant.Slice("0.weight", 0), pliant.Slice("0.bias", 0)],
            [pliant.Slice("2.weight", 1)],
            pliant.Tap("2"),
            runs=3,
        )
    ]
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, stepper, groups=groups, every=2)
    for _ in range(2):
        stepper.zero_grad()
        model(torch.randn(3, 16, 6)).square().sum().backward()
        stepper.step()
    assert [(row["step"], row["run"]) for row in monitor.rows] == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert len({row["effective_rank"] for row in monitor.rows}) == 6


# -- every kind of step --------------------------------------------------------------------------------------------------


def test_all_forwards_of_an_accumulated_step_count():
    model = mlp()
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, stepper, torch.zeros(2, 6), every=2)
    for _ in range(4):
        stepper.zero_grad()
        for x, y in batches((6,), 3, size=5):
            F.cross_entropy(model(x), y).backward()
        stepper.step()
    assert [(row["step"], row["n"]) for row in monitor.rows] == [(s, 15) for s in (1, 1, 2, 2, 4, 4)]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.LBFGS])
def test_a_closure_runs_inside_of_the_step(optimizer):
    model = mlp()
    stepper = optimizer(model.parameters(), lr=0.1)
    monitor = Monitor(model, stepper, torch.zeros(2, 6), every=2)
    x, y = batches((6,), 1)[0]

    def closure():
        stepper.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(4):
        before = model[0].weight.detach().clone()
        stepper.step(closure)
    assert steps_in(monitor) == [1, 2, 4]
    assert {row["n"] for row in monitor.rows} == {16}
    moved = (model[0].weight.detach() - before).norm() / before.norm()
    assert monitor.rows[-2]["update_ratio"] == pytest.approx(moved.item(), rel=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_grad_scaler_skips_is_none(fused):
    model = mlp()
    stepper = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    monitor = Monitor(model, stepper, torch.zeros(2, 6), every=3)
    norms = []
    for number, (x, y) in enumerate(batches((6,), 8)):
        stepper.zero_grad()
        loss = F.cross_entropy(model(x), y)
        gradient = torch.autograd.grad(loss, model[0].weight, retain_graph=True)[0].norm().item()
        scaler.scale(loss * (float("inf") if number in (2, 4) else 1.0)).backward()
        scaler.step(stepper)
        scaler.update()
        norms += [] if number in (2, 4) else [gradient]
    assert monitor.steps == [6]
    assert steps_in(monitor) == [1, 3, 6]
    found = [row["gradient_norm"] for row in monitor.rows if row["group"] == "0"]
    assert found == pytest.approx([norms[0], norms[2], norms[5]], rel=1e-4)


def test_each_optimizer_has_its_own_count_of_steps():
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": mlp(), "b": mlp(seed=1)})
    model.forward = lambda x: (model["a"](x), model["b"](x))
    first, second = (torch.optim.SGD(model[name].parameters(), lr=0.1) for name in "ab")
    monitor = Monitor(model, [first, second], torch.zeros(2, 6), every=3)
    for number in range(6):
        for optimizer in (first, second) if number % 2 else (first,):
            optimizer.zero_grad()
            sum(each.square().sum() for each in model(torch.randn(4, 6))).backward()
            optimizer.step()
    assert monitor.steps == [6, 3]
    found = {(row["step"], row["group"].partition(".")[0]) for row in monitor.rows}
    assert found == {(1, "a"), (3, "a"), (6, "a"), (1, "b"), (3, "b")}


def test_by_hand_a_step_is_counted_when_it_is_said():
    model = mlp()
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, stepper, torch.zeros(2, 6), every=2, attach=False)
    for x, y in batches((6,), 4):
        step_of(model, stepper, x, y)
        monitor.step()
    assert steps_in(monitor) == [1, 2, 4]
    assert all(row["update_ratio"] > 0 for row in monitor.rows)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_compiled_model_runs_eagerly_in_the_step_that_is_measured(backend, whole):
    def run(monitored):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = mlp()
        compiled = torch.compile(model, backend=backend)
        stepper = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = Monitor(compiled, stepper, torch.zeros(2, 6), every=3) if monitored else None

        def step(x, y):
            step_of(compiled, stepper, x, y)

        act = torch.compile(step, backend=backend) if whole else step
        for x, y in batches((6,), 7):
            act(x, y)
        return model.state_dict(), monitor

    plain, (watched, monitor) = run(False)[0], run(True)
    assert steps_in(monitor) == [1, 3, 6]
    assert {row["n"] for row in monitor.rows} == {16}
    for name, value in plain.items():
        torch.testing.assert_close(watched[name], value, rtol=1e-5, atol=1e-6)


def test_recomputed_activity_is_measured_too():
    class Saves(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            return checkpoint(self.net, x, use_reentrant=False)

    model = Saves()
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, stepper, torch.zeros(2, 6), every=1)
    step_of(model, stepper, *batches((6,), 1)[0])
    assert monitor.rows[0]["n"] >= 16
    assert monitor.rows[0]["activation"] in ("relu", None)


def test_data_parallel_training_is_measured_by_the_first_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        model = DistributedDataParallel(mlp())
        stepper = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = Monitor(model, stepper, torch.zeros(2, 6), every=2, to=tmp_path / "m.csv")
        for x, y in batches((6,), 4):
            step_of(model, stepper, x, y)
        assert steps_in(monitor) == [1, 2, 4]
        assert {row["activation"] for row in monitor.rows} == {"relu", "tanh"}
        monitor._ranks._group, monitor._ranks.__class__ = None, _Follower
        for x, y in batches((6,), 4):
            step_of(model, stepper, x, y)
        assert steps_in(monitor) == [1, 2, 4]
        assert monitor.steps == [8]
    finally:
        dist.destroy_process_group()


class _Follower(pliant.engine.data_parallel.Ranks):
    leads = False


# -- where it goes -------------------------------------------------------------------------------------------------------


class Writer:
    def __init__(self):
        self.seen = []

    def add_scalar(self, name, value, step):
        self.seen.append((name, value, step))


class Wandb:
    """As a run of W&B: what is logged without commit waits for the next, and is merged with it."""

    def __init__(self):
        self.waits, self.history, self.metrics, self.step = {}, [], [], 0

    def define_metric(self, name, **settings):
        self.metrics.append(name)

    def log(self, values, step=None, commit=None):
        if step is not None and step > self.step:
            self._commit()
            self.step = step
        self.waits |= values
        if commit or (commit is None and step is None):
            self._commit()
            self.step += 1

    def _commit(self):
        self.history += [self.waits] if self.waits else []
        self.waits = {}


class Mlflow:
    def __init__(self):
        self.seen = []

    def log_metrics(self, metrics, step=None):
        self.seen.append((metrics, step))


class Accelerator:
    def __init__(self):
        self.seen = []

    def log(self, values, step=None):
        self.seen.append((values, step))


def test_trackers_get_shares_and_numbers_by_name_at_the_optimizer_s_step():
    writer, wandb, mlflow, accelerator, seen = Writer(), Wandb(), Mlflow(), Accelerator(), []
    to = [writer, wandb, mlflow, accelerator, lambda values, step: seen.append((values, step))]
    *_, monitor = train(every=5, to=to)
    assert [step for _, step in seen] == [1, 5, 10]
    assert seen == mlflow.seen == accelerator.seen
    assert [{**values, "pliant/step": step} for values, step in seen] == [*wandb.history, wandb.waits]
    assert wandb.metrics == ["pliant/step", "pliant/*"]
    assert {(name, step) for name, _, step in writer.seen} == {(name, step) for values, step in seen for name in values}
    first = monitor.rows[0]
    assert seen[0][0]["pliant/0/dead_share"] == first["dead"] / first["units"]
    assert seen[0][0]["pliant/0/effective_rank"] == first["effective_rank"]
    assert all(isinstance(value, float) for value in seen[0][0].values())


def test_steps_of_a_wandb_run_are_those_of_whoever_logs_to_it():
    wandb, model = Wandb(), mlp()
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, stepper, torch.zeros(2, 6), every=3, to=wandb)
    for number, (x, y) in enumerate(batches((6,), 7), 1):
        step_of(model, stepper, x, y)
        wandb.log({"loss": 0.0}, step=number)
    rows = [*wandb.history, wandb.waits]
    assert sum("loss" in row for row in rows) == 7
    assert [row["pliant/step"] for row in rows if "pliant/step" in row] == steps_in(monitor) == [1, 3, 6]


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_a_file_holds_the_rows(name, tmp_path):
    pandas = pytest.importorskip("pandas")
    *_, monitor = train(every=5, to=tmp_path / name)
    frame = pandas.read_csv(tmp_path / name) if name.endswith("csv") else pandas.read_parquet(tmp_path / name)
    assert frame["step"].tolist() == [row["step"] for row in monitor.rows] == [1, 1, 5, 5, 10, 10]
    assert frame["effective_rank"].tolist() == pytest.approx([row["effective_rank"] for row in monitor.rows])
    assert list(frame.columns) == list(monitor.rows[0])


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
@pytest.mark.parametrize("stop", [4, 5, 7, 10])
def test_stopping_and_resuming_changes_no_row_and_writes_none_twice(name, stop, tmp_path):
    def run(folder, resume=None, steps=12):
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        model = mlp()
        stepper = OPTIMIZERS["Adam"](model.parameters())
        monitor = Monitor(model, stepper, torch.zeros(2, 6), every=5, to=folder / name)
        start = 0
        if resume is not None:
            held = load_state(resume)
            model.load_state_dict(held["model"])
            stepper.load_state_dict(held["optimizer"])
            monitor.load_state_dict(held["monitor"])
            start = held["steps"]
        for number, (x, y) in enumerate(batches((6,), 12)[start:steps], start + 1):
            step_of(model, stepper, x, y)
            if number == stop and resume is None:
                parts = {"model": model, "optimizer": stepper, "monitor": monitor}
                save_state(
                    {key: each.state_dict() for key, each in parts.items()} | {"steps": stop}, tmp_path / "state.pt"
                )
        return monitor, (folder / name).read_bytes()

    straight, file = run(tmp_path / "straight")
    run(tmp_path / "killed", steps=11)  # beyond the checkpoint
    resumed, again = run(tmp_path / "killed", resume=tmp_path / "state.pt")
    assert all(alike(a[key], b[key]) for a, b in zip(straight.rows, resumed.rows, strict=True) for key in a)
    assert again == file
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [name]


def test_what_another_run_left_at_the_path_is_kept(tmp_path, caplog):
    path = tmp_path / "m.csv"
    train(every=5, to=path)
    first = path.read_text()
    with caplog.at_level(logging.WARNING, "pliant"):
        train("convnet", every=5, to=path)
    assert (tmp_path / "m.1.csv").read_text() == first
    assert len(list(csv.DictReader(path.read_text().splitlines()))) == 9
    assert f"{path} is of another run: it is now m.1.csv" in caplog.text


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_a_file_of_another_run_is_kept_when_a_state_is_loaded(name, tmp_path):
    (tmp_path / "a").mkdir()
    *_, monitor = train(every=5, to=tmp_path / "a" / name)
    train("mlp", "Adam", every=5, to=tmp_path / name)
    other = (tmp_path / name).read_bytes()
    *_, resumed = train(steps=0, every=5, to=tmp_path / name)
    resumed.load_state_dict(monitor.state_dict())
    assert (tmp_path / name.replace("m.", "m.1.")).read_bytes() == other
    assert (tmp_path / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_a_file_that_cannot_be_written_ends_no_training_and_is_told_once(tmp_path, caplog):
    path = tmp_path / "m.csv"
    model = mlp()
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, stepper, torch.zeros(2, 6), every=1, to=path)
    with caplog.at_level(logging.WARNING, "pliant"):
        for number, (x, y) in enumerate(batches((6,), 4)):
            if number == 2:
                path.unlink()
                path.mkdir()
            step_of(model, stepper, x, y)
    assert steps_in(monitor) == [1, 2, 3, 4]
    assert [record.getMessage().split(" is not")[0] for record in caplog.records] == ["step 3"]


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("rows.txt", "to='rows.txt' is no file that can be written"),
        ("wandb", r"A tracker is given itself: SummaryWriter\(...\), wandb.init"),
        ("nowhere/rows.csv", "there is no folder 'nowhere'"),
        (3, "to must be a file"),
        (Writer, "to is the class Writer: give a tracker that was made"),
        (lambda values: None, "to is called with 2 arguments"),
        ([3], "to must be a file"),
    ],
)
def test_a_destination_that_is_none_is_one_clear_error(to, message):
    model = mlp()
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises((TypeError, ValueError), match=message):
        Monitor(model, stepper, torch.zeros(2, 6), to=to)
    assert hooks(model, stepper) == 0


# -- a word --------------------------------------------------------------------------------------------------------------


def test_a_threshold_that_is_passed_is_told_once_by_layer_and_measure(caplog):
    model = mlp()
    stepper = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = Monitor(model, stepper, torch.zeros(2, 6), every=2)
    with caplog.at_level(logging.WARNING, "pliant"):
        for number, (x, y) in enumerate(batches((6,), 12, size=64)):
            if number == 3:
                with torch.no_grad():
                    model[0].bias[:9] = -100.0
                    model[2].weight *= 300.0
            step_of(model, stepper, x, y)
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("step 4, '0': 75% of the units are 0 on every input (dead)") for line in said)
    assert any(line.startswith("step 4, '2': ") and "(at ends)" in line for line in said)
    assert any(
        "step 4, '2': the incoming weights are 300 times as large as at the start (growth)" in line for line in said
    )
    assert len(said) == len({(line.split()[2], line.split("(")[-1]) for line in said})
    before = len(said)
    resumed = Monitor(model, stepper, groups=monitor.plan, every=2)
    resumed.load_state_dict(monitor.state_dict())
    monitor.detach()
    with caplog.at_level(logging.WARNING, "pliant"):
        for x, y in batches((6,), 4):
            step_of(model, stepper, x, y)
    assert len(caplog.records) == before  # not again by the one that goes on
    assert steps_in(resumed)[-1] == 16


def test_few_examples_make_no_unit_dead():
    from pliant.diagnostics.alarms import alarms_of

    empty = dict.fromkeys(each.name for each in fields(GroupDiagnosis))

    def told(**row):
        first = GroupDiagnosis(**{**empty, "units": 100, "n": 32, "effective_rank": 30.0})
        return [measure for measure, _ in alarms_of(GroupDiagnosis(**{**empty, "units": 100, **row}), first)]

    assert [told(n=n, dead=70) for n in (512, 64, 32, 8)] == [["dead"], ["dead"], [], []]
    assert [told(n=n, stagnant=90) for n in (64, 32, 8)] == [["stagnant"], ["stagnant"], []]
    assert told(n=32, effective_rank=3.0) == ["effective_rank"]
    assert told(n=5, effective_rank=3.0) == []  # a last batch, which caps it


def test_no_word_where_none_is_wanted(caplog):
    model = mlp()
    with torch.no_grad():
        model[0].bias[:] = -100.0
    stepper = torch.optim.SGD(model.parameters(), lr=0.01)
    Monitor(model, stepper, torch.zeros(2, 6), every=1, warn=False)
    with caplog.at_level(logging.WARNING, "pliant"):
        step_of(model, stepper, *batches((6,), 1)[0])
    assert not caplog.records


def test_a_step_without_a_forward_in_training_mode_says_so_once(caplog):
    model = mlp().eval()
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = Monitor(model, stepper, torch.zeros(2, 6), every=1)
    with caplog.at_level(logging.WARNING, "pliant"):
        for x, y in batches((6,), 3):
            step_of(model, stepper, x, y)
    assert caplog.text.count("no forward in training mode with gradients came before it") == 1
    assert [(row["n"], row["dead"]) for row in monitor.rows] == [(0, None)] * 6
    assert all(row["update_ratio"] > 0 for row in monitor.rows)


# -- for readers ---------------------------------------------------------------------------------------------------------


def test_it_prints_the_last_measurement_beside_the_first_and_plots_all():
    *_, monitor = train(every=5)
    assert repr(monitor) == "Monitor(2 groups, every=5, 12 steps, 3 measured)"
    lines = str(monitor).splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["0", "first", "2", "first"]
    assert any("at step 10, beside the first measurement" in line for line in lines)
    pytest.importorskip("pandas")
    assert monitor.to_pandas()["step"].tolist() == [1, 1, 5, 5, 10, 10]
    titles = [axis.get_title() for axis in monitor.plot().axes]
    assert {"dead", "mean |w|", "update"} <= {*titles}
    nothing = train(steps=0)[2]
    assert "nothing measured yet" in str(nothing)
    assert nothing.latest() is None


# -- bad input -----------------------------------------------------------------------------------------------------------


def test_bad_requests_are_errors_at_construction_with_no_hook_left():
    model, x = mlp(), torch.zeros(2, 6)
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    head = torch.optim.SGD(model[4].parameters(), lr=0.1)
    for given, message in [
        ((model, None, x), "optimizer is None: give the torch.optim.Optimizer"),
        ((stepper, model, x), "model must be a torch.nn.Module, got a SGD|optimizer is a Sequential"),
        ((model, stepper), "give either example_inputs=x"),
        ((model, head, x), "no group has all of its parameters in the optimizer given|is not in the optimizer"),
        ((model, torch.optim.SGD(mlp().parameters(), lr=0.1), x), "in the optimizer given"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            Monitor(*given)
    for settings, message in [
        ({"every": 0}, "every must be 1 or more whole optimizer steps"),
        ({"exclude": ["0", "2"]}, "no groups are left to measure"),
        ({"mask": "masks"}, "takes no 'masks'"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            Monitor(model, stepper, x, **settings)
    assert hooks(model, stepper) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {**state, "format": 9}, "format"),
        (lambda state: {**state, "fingerprint": ["other"]}, "saved for other units"),
        (lambda state: {**state, "rows": [{"step": 1}]}, "holds what is no measurement"),
        (lambda state: {**state, "steps": [-1]}, "steps"),
        (lambda state: {key: value for key, value in state.items() if key != "sizes"}, "sizes"),
        (lambda state: [state], "a list is no state of Monitor"),
    ],
)
def test_a_foreign_state_is_refused_and_changes_nothing(change, message, tmp_path):
    *_, monitor = train(every=5, to=tmp_path / "m.csv")
    before, file = monitor.state_dict(), (tmp_path / "m.csv").read_bytes()
    with pytest.raises(ValueError, match=message):
        monitor.load_state_dict(change(copy.deepcopy(before)))
    assert monitor.state_dict() == before
    assert (tmp_path / "m.csv").read_bytes() == file


def test_a_parameter_that_was_replaced_is_an_error_at_the_next_measurement():
    model, stepper, _ = train(every=100)
    monitor = Monitor(model, stepper, torch.zeros(2, 6), every=1)
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    with pytest.raises(RuntimeError, match=r"'0.weight' was replaced by another tensor after the Monitor attached"):
        step_of(model, stepper, *batches((6,), 1)[0])
    monitor.detach()


# -- every network that traces ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_network_is_measured_and_trains_as_without(case):
    def run(monitored):
        model, example = case.make()
        stepper = torch.optim.SGD(model.parameters(), lr=1e-3)
        kinds = {name: case.options.get(name, False) for name in ("residual", "heads")}
        monitor = Monitor(model, stepper, example, every=1, warn=False, **kinds) if monitored else None
        torch.manual_seed(1)
        for _ in range(2):
            stepper.zero_grad()
            output = model(*example) if isinstance(example, tuple) else model(example)
            sum(each.square().mean() for each in floats(output)).backward()
            stepper.step()
        return model, monitor

    (plain, _), (model, monitor) = run(False), run(True)
    for a, b in zip(tree_leaves(plain.state_dict()), tree_leaves(model.state_dict()), strict=True):
        assert torch.equal(a, b)
    assert steps_in(monitor) == [1, 2]
    for row, group in zip(monitor.rows, [*monitor.plan.groups] * 2, strict=True):
        assert row["group"] == group.name
        assert (row["n"] > 0) == (row["effective_rank"] is not None) == bool(group.taps)


def test_a_closure_that_does_nothing_leaves_what_was_recorded_before_the_step():
    """Loops in which other code runs forward and backward give such closures: Lightning's manual optimization."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters())
    monitor = pliant.Monitor(model, optimizer, torch.zeros(2, 4), every=3)
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step(lambda: None)
    assert [(row["step"], row["n"]) for row in monitor.rows] == [(1, 16), (3, 16), (6, 16)]


def test_a_warmup_from_zero_does_not_use_up_the_alarm_of_stagnation(caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 0.0 if k == 0 else 1.0 if k < 50 else 1e-9)
    pliant.Monitor(model, optimizer, torch.zeros(2, 4), every=20)
    for step in range(100):
        optimizer.zero_grad()
        model(torch.randn(512, 4)).square().mean().backward()
        optimizer.step()
        schedule.step()
        if step == 10:
            assert "stagnant" not in caplog.text
    assert "stagnant" in caplog.text
