"""`pliant run --log`: a tracker holds the rows of the study, each at its step, also where the study was killed and went on."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pliant.lab.report.table import rows_of
from pliant.lab.study.study import open_study
from tests.patience import until

pytestmark = pytest.mark.integrations
ROOT = Path(__file__).parents[2]
TOY = f"{ROOT / 'tests' / 'toy_experiment.py'}:Toy"


def in_tensorboard(study, tracker_folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for folder in (study / "tensorboard").iterdir():
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        assert events.Tags()["tensors"] == ["settings/text_summary"]
        yield [(e.step, tag, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]


def in_wandb(study, tracker_folder):
    """Of the files that `wandb sync` would send: those of a run that went on are one run."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs = {}
    for file in sorted((study / "wandb").glob("offline-run-*/*.wandb")):
        found = runs.setdefault(file.stem, [])
        for data in records(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            names = [name for name in row if name.startswith("pliant/") and name != "pliant/step"]
            found += [(row["pliant/step"], name, float(row[name])) for name in names]
    yield from runs.values()


def records(data, head=7, block=32_768):
    """Those of a log of LevelDB: blocks of chunks, each with a checksum, a length and whether a record begins or ends in it."""
    at, record = head, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


def in_mlflow(study, tracker_folder):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=tracker_folder.as_uri())
    (experiment,) = [each for each in client.search_experiments() if each.name != "Default"]
    assert experiment.name == "pliant toy"
    for run in client.search_runs([experiment.experiment_id]):
        assert run.info.status == "FINISHED"
        assert float(run.data.params["step_size"]) > 0
        for_run = [(name, client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics]
        yield [(each.step, name, each.value) for name, history in for_run for each in history]


READ = {"tensorboard": in_tensorboard, "wandb": in_wandb, "mlflow": in_mlflow}


@pytest.mark.parametrize("name", READ)
def test_a_tracker_holds_the_rows_of_a_study_that_was_killed_and_went_on(name, tmp_path, monkeypatch):
    pytest.importorskip(name, reason=f"{name} is not installed: make integrations")
    study, place = tmp_path / "study", tmp_path / "tracker"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": place.as_uri(),
    }
    pliant = [sys.executable, "-m", "pliant"]
    run = [*pliant, "run", TOY, "--out", str(study), "--log", name, "--jobs", "1"]
    sent = study / "trackers" / name
    with subprocess.Popen(run, env=environment, start_new_session=True, stdout=subprocess.DEVNULL) as process:
        until(lambda: any(json.loads(file.read_text())["rows"] for file in sent.glob("*.json")))  # W&B: a job has ended
        os.killpg(process.pid, signal.SIGKILL)
    before = open_study(study)
    assert not before.has_ended()
    subprocess.run([*pliant, "resume", str(study), "--log", name], env=environment, check=True, capture_output=True)

    rows = rows_of(open_study(study))
    expected = Counter()
    for column in ("squared_error", "weight_magnitude"):
        values = rows[column].to_numpy(np.float64)
        there = ~np.isnan(values)
        expected += Counter(
            zip(rows["step"][there], [f"pliant/{column}"] * there.sum(), shown(values[there]), strict=True)
        )
    runs = [list(each) for each in READ[name](study, place)]
    found = Counter((step, tag, value) for each in runs for step, tag, value in [*with_values_shown(each)])
    assert len(runs) == open_study(study).run_count == 12
    assert not expected - found
    assert not {*found} - {*expected}
    twice = found - expected
    of_a_commit = 2 * 2  # columns of two runs
    assert sum(twice.values()) <= of_a_commit * (30 if name == "wandb" else 1)  # which keeps rows in its own time


def shown(values):
    """As single precision keeps them, which TensorBoard writes."""
    return [float(np.float32(value)) for value in values]


def with_values_shown(events):
    return [(step, tag, float(np.float32(value))) for step, tag, value in events]
