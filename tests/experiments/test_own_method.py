"""A method of a user's file joins the shipped experiments: beside their methods, and without changing them."""

import json
from pathlib import Path

import numpy as np
import pytest

from pliant.experiments import TABLE
from pliant.experiments.methods import METHODS
from pliant.experiments.twin import Twin
from pliant.lab import Context, LabError
from pliant.lab.stored.checkpoint import from_bytes, to_bytes
from pliant.lab.study.own_method import method_target
from pliant.lab.study.settings import selected
from pliant.lab.study.target import load, target
from pliant.online import OnlineEnsemble
from tests.experiments.cut import CUT

PAGE = Path(__file__).parents[2] / "docs" / "your-own-method.md"
CODE = PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
OF_CBP = ("replacement_rate", "maturity_threshold")
COMPILED = ("slowly-changing-regression", "permuted-mnist", "label-permutation")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weight_noise.py"
    path.write_text(CODE)
    return path


def joined(name, *files):
    where = target(TABLE[name].target)
    methods = tuple(method_target(f"{file}:WeightNoise") for file in files)
    return load(where.model_copy(update={"methods": methods}))


def overrides(name):
    cut = {field: value for field, value in CUT[name].items() if field not in OF_CBP}
    if name in COMPILED:
        cut |= {"steps": 40_000, "bin": 20_000, "period": 5_000} if name == COMPILED[0] else {"tasks": 2, "period": 100}
    return [f"{field}={value}" for field, value in cut.items()]


def learned(experiment, config, data, state=None):
    """Rows of a run, stopped after each advance and gone on with from what would be stored."""
    rows = []
    while True:
        at = experiment.start([config], Context(data=data))
        if state is not None:
            at.load_state_dict(from_bytes(state))
        if at.statuses()[0].word != "running":
            return {column: np.concatenate([each[column] for each in rows]) for column in rows[0]}
        for _ in range(4):
            if at.statuses()[0].word == "running":
                rows.append({column: np.asarray(values) for column, values in experiment.advance(at).items()})
        state = to_bytes(at.state_dict())


COSTLY = ("slowly-changing-regression", "class-incremental-cifar-100", "label-permutation", "random-labels")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in COSTLY else []) for name in CUT]
)
def test_at_strength_0_it_learns_as_the_plain_method_and_otherwise_by_itself(name, file, data):
    experiment = joined(name, file)
    both = f"{experiment.plain},weight-noise"
    configs = selected(experiment, "quick", both, "0", [*overrides(name), "strength=0,0.01"])
    plain, nothing, noisy = next(
        (each, *own)
        for each in configs
        if each.method == experiment.plain
        and len(own := [other for other in configs if other.model_dump(include=set(type(each).model_fields), exclude={"method"})
                        == each.model_dump(exclude={"method"}) and other.method == "weight-noise"]) == 2
    )  # fmt: skip
    rows, same, other = (learned(experiment, each, data) for each in (plain, nothing, noisy))
    assert len(rows["run"]) > 0
    for column in rows:
        close = {"rtol": 2e-3, "atol": 2e-3} if name in COMPILED else {"rtol": 0, "atol": 0}
        np.testing.assert_allclose(same[column], rows[column], **close)
    assert any(not np.array_equal(other[column], rows[column], equal_nan=True) for column in rows)


@pytest.mark.parametrize("name", TABLE)
def test_the_shipped_runs_are_those_that_they_are_without_it(name, file):
    alone, beside = load(target(TABLE[name].target)), joined(name, file)
    shipped = [config for config in beside.runs("quick") if config.method != "weight-noise"]
    assert shipped == alone.runs("quick")
    assert [config.model_dump() for config in shipped] == [config.model_dump() for config in alone.runs("quick")]
    assert len(beside.runs("quick")) > len(shipped)


def test_one_study_has_both_and_a_changed_file_is_refused(file, tmp_path, pliant):
    study, method = tmp_path / "study", f"{file}:WeightNoise"
    cut = ["--set", "steps=1000", "--seeds", "0", "--out", study, "--jobs", "2"]
    shipped = ["run", "switching-markov-chain", "--methods", "bp", *cut]
    assert pliant(*shipped)[0] == 0
    before = (study / "jobs" / "000.sqlite").read_bytes()
    wanted = ["--methods", "bp,weight-noise", "--set", "strength=1e-3"]
    status, said, _ = pliant("run", "switching-markov-chain", "--method", method, *wanted, *cut)
    assert (status, "2 of 2 finished" in said) == (0, True)
    assert (study / "jobs" / "000.sqlite").read_bytes() == before
    assert pliant("export", study)[0] == 0
    header, first, *_ = (study / "rows.csv").read_text().splitlines()
    assert header.split(",").index("strength") < header.split(",").index("status")
    assert first.split(",")[header.split(",").index("strength")] == ""
    assert "weight-noise" in pliant("report", study, "--parts", "2")[1]
    assert pliant("plot", study)[0] == 0
    assert json.loads((study / "study.json").read_text())["experiment"]["methods"][0]["name"] == "weight-noise"
    file.write_text(CODE + "\n")
    for again in (["resume", study], ["run", "switching-markov-chain", "--method", method, *wanted, *cut]):
        status, _, errors = pliant(*again)
        assert status == 2
        assert "weight_noise.py:WeightNoise, the method 'weight-noise' of this study, has changed since" in errors
    assert pliant("report", study)[0] == 0
    file.unlink()
    assert f"no method at {file}: the file is not there" in pliant("resume", study)[2]


def test_list_tells_its_fields(file, pliant):
    _, said, _ = pliant("list", "permuted-mnist", "--method", f"{file}:WeightNoise")
    assert "fields of method weight-noise, for --set field=value" in said
    assert "strength  float >= 0 (default 0.0001)" in said


def test_what_learning_by_pytorch_costs_is_said_first(file, pliant, tmp_path):
    command = [
        "run",
        "slowly-changing-regression",
        "--method",
        f"{file}:WeightNoise",
        "--dry-run",
        "--out",
        tmp_path / "x",
    ]
    _, said, _ = pliant(*command)
    assert "method 'weight-noise' learns by PyTorch, 180,000,000 examples one at a time: about 25" in said
    assert (
        "learns by PyTorch" not in pliant("run", "slowly-changing-regression", "--dry-run", "--out", tmp_path / "x")[1]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('name = "weight-noise"', 'name = "cbp"'), "a method 'cbp' is there already"),
        (("strength: float", "step_size: float"), "has a field or a column step_size already"),
        (("strength: float", "status: float"), "the field status is a column of the laboratory's"),
        (('color = "#AA3377"', 'color = "red"'), "color is 'red': write it as '#117733'"),
        (("def make(", "def made("), "it lacks make"),
    ],
)
def test_what_is_no_method_is_refused(change, message, file):
    file.write_text(CODE.replace(*change))
    with pytest.raises(LabError, match=message):
        joined("switching-markov-chain", file)


def test_a_setting_of_it_is_for_it_alone(file):
    with pytest.raises(LabError, match="strength is for method spectral or weight-noise: add --methods spectral"):
        selected(joined("switching-markov-chain", file), "quick", "bp", overrides=["strength=1"])


class Plain:
    step_size, seed, optimizer = 0.01, 0, "sgd"


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "elu", "leaky_relu", "swish", "selu"])
def test_the_twin_learns_as_the_compiled_learner(loss, activation):
    outputs = 1 if loss == "squared_error" else 4
    settings = {"inputs": 20, "hidden": (7, 5), "outputs": outputs, "learners": 1, "seed": [3], "step_size": 0.01}
    compiled, begun = (OnlineEnsemble(**settings, activation=activation, loss=loss, dtype=np.float64) for _ in range(2))
    twin = Twin(begun, METHODS["bp"], Plain())
    draw = np.random.default_rng(0)
    X = draw.integers(0, 2, (1, 300, 20)).astype(np.uint8)
    y = draw.normal(size=(1, 300)).astype(np.float32) if outputs == 1 else draw.integers(0, 4, (1, 300))
    expected, found = compiled.partial_fit(X, y), twin.partial_fit(X, y)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=0, atol=1e-12)
    for layer in range(3):
        np.testing.assert_allclose(twin.weights(layer), compiled.weights(layer), rtol=0, atol=1e-12)
