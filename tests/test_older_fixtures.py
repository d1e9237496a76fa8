"""What older code has saved is read by the code of today, and learning goes on from it: see `tests.fixtures.write`."""

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from torch.testing import assert_close

from pliant.base.saving import load_state
from pliant.cli import main
from pliant.experiments import TABLE
from tests.fixtures import subjects

HERE = Path(__file__).parent / "fixtures"
WRITTEN = {
    "a96e282": "6248f382e74302f9e07b8c32552d082e50770c17720b57d2585644c65f207d0e"
}  # version -> SHA-256 of its files: what users have does not change with us


def members(version, archive):
    """The files of an archive."""
    with tarfile.open(HERE / version / f"{archive}.tar.xz") as whole:
        return {name: whole.extractfile(name).read() for name in whole.getnames()}


def unpacked(version, archive, folder):
    """An archive, in a folder of the test's own."""
    with tarfile.open(HERE / version / f"{archive}.tar.xz") as whole:
        whole.extractall(folder, filter="data")
    return folder


def of_every_version(archive, suffix=".pt"):
    names = [(version, name) for version in WRITTEN for name in members(version, archive)]
    return [(version, name.removesuffix(suffix)) for version, name in names if name.endswith(suffix)]


def test_fixtures_stay_as_they_were_written():
    for version, sha256 in WRITTEN.items():
        whole = hashlib.sha256()
        for file in sorted((HERE / version).rglob("*.tar.xz")):
            whole.update(file.relative_to(HERE).as_posix().encode() + hashlib.sha256(file.read_bytes()).digest())
        assert whole.hexdigest() == sha256


# -- studies ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = subjects.pictures(tmp_path_factory.mktemp("data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLIANT_DATA", str(folder))
        patch.setenv("PLIANT_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture
def pliant(capsys):
    """Run a command in this process, which must succeed; what it said."""

    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert ended.value.code == 0, said.err
        return said.out

    return command


def study_of(version, name, folder):
    (folder / "study" / "logs").mkdir(parents=True)
    return unpacked(version, f"studies/{name}", folder / "study")


def exported(pliant, study, file):
    pliant("export", study, "--out", file)
    return pandas.read_parquet(file)


def of_today(table, name):
    """An export of then, its columns of settings under the names that they have now."""
    return table.rename(columns=TABLE[name].renamed)


def of_runs(table):
    """Each run's rows, in their order."""
    return {run: rows.reset_index(drop=True) for run, rows in table.groupby("run")}


STUDIES = [
    (version, file.name.removesuffix(".tar.xz"))
    for version in WRITTEN
    for file in sorted((HERE / version / "studies").iterdir())
]


@pytest.mark.parametrize(("version", "name"), STUDIES)
def test_a_study_is_read_and_goes_on(version, name, data, tmp_path, pliant):
    """Rows that were there stay, to the bit; those that follow are those of the older code, but for what another processor
    or library rounds otherwise: as many, at the same places, with the same replacements, and weights of the same size.
    """
    study, exports = study_of(version, name, tmp_path), unpacked(version, "exports", tmp_path / "exports")
    ended = of_today(pandas.read_parquet(exports / f"{name}.ended.parquet"), name)
    count, measured = ended["run"].nunique(), ended.attrs["measured"]
    assert f"0 of {count} finished" in pliant("status", study)
    assert "not begun" in pliant("status", study)
    assert pliant("report", study)
    before = of_runs(exported(pliant, study, tmp_path / "before.parquet"))
    assert f"{count} of {count} finished" in pliant("resume", study, "--jobs", "1")
    after = of_runs(exported(pliant, study, tmp_path / "after.parquet"))
    assert 0 < len(before) < count
    for run, expected in of_runs(ended).items():
        found, kept = after[run], len(before.get(run, ()))
        assert kept < len(found) == len(expected)
        for column in expected.columns.difference(["status", "diverged_at"]):
            pandas.testing.assert_series_equal(found[column][:kept], expected[column][:kept])
            if kept:
                pandas.testing.assert_series_equal(before[run][column], expected[column][:kept])
        assert found[measured[0]].tolist() == expected[measured[0]].tolist()
        assert set(found["method"]) == set(expected["method"])
        if set(found["method"]) == {"cbp"}:
            assert found["replaced"].tolist() == expected["replaced"].tolist()
            assert found["replaced"].max() > 0
        for column in [each for each in measured if each.endswith("weight_magnitude")]:
            np.testing.assert_allclose(found[column], expected[column], rtol=0.02)


@pytest.mark.parametrize("version", WRITTEN)
def test_an_export_is_reported_and_drawn_and_may_be_written_anew(version, tmp_path, pliant):
    exports = unpacked(version, "exports", tmp_path / "exports")
    for file in sorted(exports.glob("*.csv")):
        table = file.with_suffix(".parquet")
        assert pliant("report", table)
        pliant("plot", table, "--out", tmp_path / "figure.png")
        study = study_of(version, file.stem, tmp_path / file.stem)
        for old, read in ((file, pandas.read_csv), (table, pandas.read_parquet)):
            before = of_today(read(old), file.stem)
            pliant("export", study, "--out", old)  # refused where the file is no earlier export
            pandas.testing.assert_frame_equal(read(old)[before.columns], before)


# -- methods, layers --------------------------------------------------------------------------------------------------


def assert_same_tensors(found, expected, **tolerance):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert_close(found[name], value, **tolerance, msg=lambda why, name=name: f"{name}: {why}")


ROUNDED = {"rtol": 1e-6, "atol": 1e-9}  # float64, on another processor


@pytest.mark.parametrize(("version", "name"), of_every_version("methods"))
def test_a_method_goes_on_from_its_state(version, name, tmp_path):
    saved = torch.load(unpacked(version, "methods", tmp_path) / f"{name}.pt", weights_only=True)
    training = subjects.METHODS[name]()
    training.load(saved["before"])
    assert training.replaced() == saved["replaced"]
    training.train(subjects.AFTER)
    assert_same_tensors(training.model.state_dict(), saved["after"]["model"], **ROUNDED)
    assert training.replaced() == saved["after"]["replaced"]
    assert all(count >= 20 for count in training.replaced().values())
    assert bool(training.replaced()) == training.resets_units


@pytest.mark.parametrize("version", WRITTEN)
def test_resets_give_what_they_gave(version, tmp_path):
    for name, found in subjects.resets():
        saved = torch.load(unpacked(version, "resets", tmp_path) / f"{name}.pt", weights_only=True)
        assert_same_tensors(found, saved, **ROUNDED)


@pytest.mark.parametrize("version", WRITTEN)
def test_a_layer_with_statistics_goes_on_from_its_state(version, tmp_path):
    saved = torch.load(unpacked(version, "layers", tmp_path) / "online-norm.pt", weights_only=True)
    model = subjects.online_normed().model
    model.load_state_dict(saved["model"])
    out = model.eval()(subjects.online_normed().batch(0)[0])
    assert_close(out, saved["out"], **ROUNDED)


# -- learners, agents -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "name"), of_every_version("learners"))
def test_a_learner_goes_on_from_its_state(version, name, tmp_path):
    saved = load_state(unpacked(version, "learners", tmp_path) / f"{name}.pt")
    learner = subjects.LEARNERS[name]()
    ensemble = getattr(learner, "ensemble", learner)
    ensemble.load_state_dict(saved["state"])
    losses = subjects.teach(learner, 1)
    exact = ensemble.dtype == np.float64
    np.testing.assert_allclose(losses, saved["losses"], **({"rtol": 1e-6} if exact else {"rtol": 0.01, "atol": 1e-4}))
    assert (ensemble.replacements >= 20).all()


@pytest.mark.parametrize(("version", "name"), of_every_version("agents", ".saved.pt"))
def test_agents_go_on_from_what_they_saved(version, name, tmp_path):
    files = unpacked(version, "agents", tmp_path)
    expected = torch.load(files / f"{name}.after.pt", weights_only=True)
    ppo = subjects.AGENTS[name]()
    ppo.load(files / f"{name}.saved.pt")
    for _ in range(subjects.ITERATIONS):
        ppo.iterate()
    physics_of_ours = name == "cheetah"  # MuJoCo's may differ between its versions, and this one learns in float32
    tolerance = {"rtol": 0.05, "atol": 0.02} if physics_of_ours else ROUNDED
    assert_same_tensors(dict(ppo.networks.named_parameters()), expected, **tolerance)
    assert (ppo.method is None) == (name == "article")
    for group in ppo.method.stats().values() if ppo.method else ():
        assert min(group["replaced"]) >= 20


@pytest.mark.parametrize(("version", "name"), of_every_version("sb3", ".policy.pt"))
def test_a_callback_goes_on_from_what_it_saved(version, name, tmp_path):
    pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is not installed: pip install -e .[sb3]")
    model, callback = subjects.sb3_agents()[name]()
    files = unpacked(version, "sb3", tmp_path)
    saved = torch.load(files / f"{name}.policy.pt", weights_only=True)
    model.policy.load_state_dict(saved["policy"])
    model.policy.optimizer.load_state_dict(saved["optimizer"])
    callback.load(files / f"{name}.callback.pt")
    before = load_state(files / f"{name}.callback.pt")["units"]["counts"]
    model.learn(subjects.SB3_STEPS, callback=callback)
    steps = subjects.SB3_STEPS // model.n_steps
    for group, row in callback.stats().items():
        assert row["steps"] == 2 * steps
        assert row["replaced"][0] > before[group]["replaced"][0] >= 10
        assert row["replaced"][0] >= 20
