"""The recipe for Ray Train of docs/integrations.md: DistributedDataParallel in Ray's workers, saved by `ray.train.report`.

In the environment of `make integrations`.
"""

import os
import tempfile

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("ray.train.torch", reason="Ray Train is not installed: make integrations")

import ray
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model

import pliant
from tests.integrations.killed import OFTEN, ROOT, data, differing, kill, replaced

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]

EPOCHS = 12


@pytest.fixture(scope="module", autouse=True)
def cluster():
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    workers = {"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # and reports are taken as often
        ray.init("local", num_cpus=4, include_dashboard=False, object_store_memory=100 * 2**20, runtime_env=workers)
        yield
        ray.shutdown()


def train_loop(config):
    """A worker: train, report a checkpoint after each epoch, and leave the end in a file per rank."""
    rank = ray.train.get_context().get_world_rank()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(), nn.Dropout(0.1), nn.Linear(12, 3))
    model = prepare_model(net)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    watched = net if config.get("unwrapped") else model
    cbp = pliant.ContinualBackprop(watched, optimizer, example_inputs=torch.zeros(2, 6), **OFTEN)
    parts, first = {"net": net, "optimizer": optimizer, "cbp": cbp}, 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            saved = torch.load(f"{folder}/state.pt")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        first = saved["epochs"]
    begun = replaced(cbp)
    loader = prepare_data_loader(DataLoader(TensorDataset(*data()), batch_size=4, shuffle=True))
    for epoch in range(first, config["epochs"]):
        loader.sampler.set_epoch(epoch)
        torch.manual_seed(2 * epoch + rank)  # dropout
        for batch, (x, y) in enumerate(loader):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
            if first == 0 and rank == 1 and (epoch, batch) == config.get("kill_at"):
                kill()
        with tempfile.TemporaryDirectory() as folder:
            state = {name: part.state_dict() for name, part in parts.items()} | {"epochs": epoch + 1}
            torch.save(state, f"{folder}/state.pt")
            checkpoint = Checkpoint.from_directory(folder) if rank == 0 else None
            ray.train.report({"epochs": epoch + 1}, checkpoint=checkpoint)
    counts = {"first": first, "before": begun, "replaced": replaced(cbp), "stats": cbp.stats()}
    torch.save({"weights": net.state_dict(), **counts}, f"{config['ends']}/{rank}.pt")


def train(folder, *, epochs=EPOCHS, failures=0, **config):
    """Two workers' training; what each of them left."""
    folder.mkdir(exist_ok=True)
    TorchTrainer(
        train_loop,
        train_loop_config={"epochs": epochs, "ends": str(folder), **config},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="run", storage_path=str(folder), failure_config=FailureConfig(max_failures=failures)),
    ).fit()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def in_peace(tmp_path_factory):
    return train(tmp_path_factory.mktemp("straight"))


def test_workers_replace_the_same_units_with_the_same_weights(in_peace):
    one, other = in_peace
    assert one["replaced"] >= 20
    assert differing(one["weights"], other["weights"]) == []
    assert one["stats"] == other["stats"]


def test_a_worker_is_killed_and_ray_goes_on_to_the_bit(in_peace, tmp_path):
    ends = train(tmp_path / "killed", failures=1, kill_at=(6, 3))
    for end, straight in zip(ends, in_peace, strict=True):
        assert end["first"] in (5, 6)  # the last report counts once Ray has seen it
        assert end["before"] >= 20
        assert end["replaced"] - end["before"] >= 20
        assert differing(end["weights"], straight["weights"]) == []
        assert end["stats"] == straight["stats"]


def test_a_run_of_the_same_name_goes_on_to_the_bit(in_peace, tmp_path):
    train(tmp_path / "twice", epochs=6)
    ends = train(tmp_path / "twice")
    for end, straight in zip(ends, in_peace, strict=True):
        assert end["first"] == 6
        assert differing(end["weights"], straight["weights"]) == []


def test_the_model_as_it_was_before_prepare_is_refused(tmp_path):
    with pytest.raises(Exception, match="the model is no DistributedDataParallel: wrap it first"):
        train(tmp_path / "unwrapped", unwrapped=True)
