"""The command line, as a user types it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pliant.cli import main
from pliant.experiments import TABLE
from tests.experiments.small_pictures import make_pictures

TOY = str(Path(__file__).parent / "toy_experiment.py") + ":Toy"


@pytest.fixture
def pliant(capsys):
    """Run a command in this process: its exit status, output and errors."""

    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return command


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished study of the toy."""
    folder = tmp_path_factory.mktemp("cli") / "study"
    command = [sys.executable, "-m", "pliant.cli", "run", TOY, "--profile", "tiny", "--out", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_list_names_every_experiment_with_its_methods_and_profiles(pliant):
    status, said, _ = pliant("list")
    assert status == 0
    for name, entry in TABLE.items():
        assert name in said
        assert ", ".join(entry.methods) in said
        assert ", ".join(entry.profiles) in said


def test_list_answers_at_once_and_imports_nothing_heavy():
    code = "import sys; from pliant.cli import main\ntry: main(['list'])\nfinally: print(*sys.modules, file=sys.stderr)"
    began = time.perf_counter()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    seconds = time.perf_counter() - began
    assert ended.returncode == 0
    assert {"torch", "numba", "pandas", "matplotlib", "scipy"} & set(ended.stderr.split()) == set()
    assert seconds < 0.5 * 4, "half a second, with room for a busy machine"


@pytest.mark.parametrize("name", TABLE)
def test_the_table_says_of_an_experiment_what_its_class_says(name):
    from pliant.lab.settings import known_methods
    from pliant.lab.target import load, target

    experiment = load(target(TABLE[name].target))
    assert sorted(TABLE[name].methods) == sorted(known_methods(experiment.Config))
    assert list(TABLE[name].profiles) == list(experiment.profiles)


def test_a_dry_run_says_what_would_run_and_writes_nothing(pliant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said, _ = pliant(
        "run", TOY, "--methods", "nlms", "--seeds", "0-4", "--set", "step_size=0.1,0.2,0.3", "--dry-run"
    )
    assert status == 0
    assert "toy / quick   15 runs in 5 jobs, " in said
    assert "job 004  nlms  3 runs, seeds 4" in said
    assert "cost    three seconds" in said
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_on_an_earlier_study_shows_what_it_would_become(pliant, finished):
    before = (finished / "study.json").read_bytes()
    _, said, _ = pliant("run", TOY, "--profile", "tiny", "--seeds", "0-3", "--out", str(finished), "--dry-run")
    assert "16 runs in 8 jobs" in said
    assert (finished / "study.json").read_bytes() == before


def test_the_default_folder_is_named_for_experiment_and_profile(pliant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said, _ = pliant("run", TOY, "--profile", "tiny", "--methods", "nlms", "--seeds", "0")
    assert status == 0
    assert (tmp_path / "runs" / "toy-tiny" / "study.json").is_file()
    assert "  plot    pliant plot runs/toy-tiny\n" in said


def test_status_tells_jobs_rows_and_divergences(pliant, finished):
    status, said, _ = pliant("status", str(finished))
    assert status == 0
    assert "job 000  lms  2 runs, seeds 0   steps 1,000/1,000   10 rows" in said
    assert "  lms  seed 2  step_size 5.0   diverged at step " in said
    assert "9 of 12 finished, 3 diverged; " in said


def test_resuming_a_finished_study_does_nothing(pliant, finished):
    status, said, _ = pliant("resume", str(finished))
    assert status == 0
    assert "9 of 12 finished, 3 diverged" in said


def test_plot_draws_the_figure_and_says_where(pliant, finished):
    status, said, _ = pliant("plot", str(finished))
    assert (status, said) == (0, f"figure   {finished / 'figure.png'}\n")
    assert (finished / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_export_writes_all_rows_and_says_where(pliant, finished, form):
    status, said, _ = pliant("export", str(finished), "--format", form)
    assert (status, said) == (0, f"60 rows   {finished / f'rows.{form}'}\n")
    assert (finished / f"rows.{form}").is_file()


def test_resuming_with_other_versions_says_which(pliant, finished):
    plan = finished / "study.json"
    text = plan.read_text()
    numpy = json.loads(text)["versions"]["numpy"]
    plan.write_text(text.replace(f'"numpy": "{numpy}"', '"numpy": "1.0"'))
    _, said, _ = pliant("resume", str(finished))
    plan.write_text(text)
    assert f"numpy was 1.0 when this study began and is {numpy}: rows may differ in their last bits" in said


def test_the_plan_holds_every_config_and_its_grouping(finished):
    plan = json.loads((finished / "study.json").read_text())
    assert [len(job["runs"]) for job in plan["jobs"]] == [2] * 6
    assert plan["jobs"][0]["runs"][1] == {
        "method": "lms", "seed": 0, "steps": 1000, "step_size": 5.0, "drift": 0.01, "note": None,
    }  # fmt: skip
    assert {"python", "numpy", "pliant"} <= plan["versions"].keys()


@pytest.mark.parametrize(("missing", "command"), [("typer", ["list"]), ("pydantic", ["run", TOY, "--dry-run"])])
def test_a_missing_extra_names_the_line_that_installs_it(missing, command):
    code = f"import sys; sys.modules[{missing!r}] = None; from pliant.cli import main; main({command!r})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 2
    assert f'needs {missing}: pip install "pliant[lab]"' in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_report_says_how_each_curve_begins_and_ends(pliant, finished, tmp_path):
    file = tmp_path / "rows.parquet"
    pliant("export", str(finished), "--format", "parquet", "--out", str(file))
    asked = ["--parts", "5", "--against", "method=nlms,step_size=0.5"]
    _, of_folder, _ = pliant("report", str(finished), *asked)
    status, of_file, _ = pliant("report", str(file), *asked)
    assert status == 0
    assert of_file.splitlines()[1:] == of_folder.splitlines()[1:]
    assert "toy / tiny   squared_error by step, 5 parts" in of_file
    assert "seeds 0-2; ± half the 95% interval" in of_file
    assert "0 (3 diverged)" in of_file
    assert len(of_file.splitlines()) == 3 + 4


def test_report_of_some_runs_only(pliant, finished):
    _, said, _ = pliant("report", str(finished), "--where", "method=nlms", "--metric", "weight_magnitude")
    assert "weight_magnitude by step" in said
    assert [line.split()[0] for line in said.splitlines()[3:]] == ["nlms", "nlms"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--metric", "squared_eror"], "unknown column 'squared_eror': did you mean 'squared_error'?"),
        (["--where", "methd=nlms"], "unknown field 'methd': did you mean 'method'?"),
        (["--where", "method=bp"], "no run has method=bp"),
        (["--against", "method=nlms"], "method=nlms names 2 curves, not one"),
        (["--spread", "sd"], "unknown spread 'sd'"),
    ],
)
def test_a_report_of_what_is_not_there_is_refused(pliant, finished, asked, message):
    status, _, errors = pliant("report", str(finished), *asked)
    assert status == 2
    assert message in errors


def test_a_file_that_is_no_export_is_refused(pliant, tmp_path):
    import pandas

    pandas.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no")
    assert "does not say which study it is of" in pliant("report", str(tmp_path / "other.parquet"))[2]
    assert "cannot be read as Parquet" in pliant("report", str(tmp_path / "text.parquet"))[2]


def test_plot_draws_an_exported_file_of_a_known_experiment(pliant, tmp_path):
    exported = Path(__file__).parents[1] / "results" / "slowly-changing-regression-quick.parquet"
    status, said, _ = pliant("plot", str(exported), "--out", str(tmp_path / "drawn.png"))
    assert (status, said) == (0, f"figure   {tmp_path / 'drawn.png'}\n")
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


def test_plot_refuses_a_file_whose_experiment_it_does_not_know(pliant, finished, tmp_path):
    file = tmp_path / "rows.parquet"
    pliant("export", str(finished), "--format", "parquet", "--out", str(file))
    status, _, errors = pliant("plot", str(file))
    assert status == 2
    assert "unknown experiment 'toy'" in errors


# -- data sets ----------------------------------------------------------------------------------------------------------


SHORT = [
    *("permuted-mnist", "--methods", "bp", "--set", "dataset=mine", "--set", "tasks=2", "--set", "period=20"),
    *("--set", "width=4", "--set", "probe=4"),
]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A data set of the test's own, and a folder for studies."""
    monkeypatch.setenv("PLIANT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PLIANT_CACHE", str(tmp_path / "cache"))
    return make_pictures(tmp_path / "data" / "mine", classes=2, count=4)


def test_a_study_does_not_go_on_with_other_pictures_of_the_same_name(pliant, mine, tmp_path):
    out = str(tmp_path / "study")
    assert pliant("run", *SHORT, "--seeds", "0", "--out", out)[0] == 0
    assert json.loads((tmp_path / "study" / "study.json").read_text())["data"].keys() == {"mine"}
    next(mine.glob("*/*.png")).unlink()
    for command in (["run", *SHORT, "--seeds", "0-1", "--out", out], ["resume", out]):
        status, _, errors = pliant(*command)
        assert status == 2
        assert "learned from another 'mine' (SHA-256 " in errors


def test_a_missing_data_set_is_an_error_before_anything_is_written(pliant, mine, tmp_path):
    status, _, errors = pliant("run", *SHORT, "--set", "seed=1")
    assert (status, "--methods and --seeds" in errors) == (2, True)
    wrong = [word.replace("dataset=mine", "dataset=mne") for word in SHORT]
    status, _, errors = pliant("run", *wrong, "--out", str(tmp_path / "study"))
    assert status == 2
    assert "did you mean 'mine'?" in errors
    assert not (tmp_path / "study" / "study.json").exists()
