"""The command line, as a user types it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pliant.cli import EXTRAS
from pliant.data import CATALOG
from pliant.experiments import TABLE
from tests.experiments.small_pictures import make_pictures

TOY = str(Path(__file__).parent / "toy_experiment.py") + ":Toy"


FILES = ("conformance", "data", "doctor", "known", "listing", "reading", "running", "shared", "watching")
HEAVY = {name for name in EXTRAS if name not in ("typer", "pydantic")} | {"torch", "numpy", "stable_baselines3"}


def modules_of(command):
    """Names of all that a command of `pliant` has imported when it ends."""
    code = (
        f"import sys; from pliant.cli import main\ntry: main({command})\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0
    return set(ended.stderr.split())


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


def test_list_reads_the_table_alone_so_that_it_answers_at_once():
    imported = modules_of(["list"])
    base = {f"pliant.base.{name}" for name in ("choices", "deprecation", "files", "install", "interrupts")}
    commands = {f"pliant.commands.{name}" for name in FILES}
    own = {"pliant", "pliant.base", *base, "pliant.cli", "pliant.commands", *commands, "pliant.experiments"}
    assert {module for module in imported if module.partition(".")[0] == "pliant"} == own
    assert not imported & HEAVY


@pytest.mark.parametrize("name", TABLE)
def test_the_table_says_of_an_experiment_what_its_class_says(name):
    from pliant.lab.study.settings import known_methods
    from pliant.lab.study.target import load, target

    experiment = load(target(TABLE[name].target))
    assert sorted(TABLE[name].methods) == sorted(known_methods(experiment.Config))
    assert list(TABLE[name].profiles) == list(experiment.profiles)
    assert dict(TABLE[name].renamed) == dict(experiment.Config.renamed)


def test_a_dry_run_says_what_would_run_and_writes_nothing(pliant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said, _ = pliant(
        "run", TOY, "--methods", "nlms", "--seeds", "0-4", "--set", "step_size=0.1,0.2,0.3", "--dry-run"
    )
    assert status == 0
    assert "toy / quick   15 runs in 5 jobs, " in said
    assert "job 004  nlms step_size=0.1,0.2,0.3  3 runs, seed 4\n" in said
    assert said.endswith(
        "  changed  step_size 0.1,0.2,0.3, not 0.5,0.1\n  profile  three seconds (before these changes)\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_calls_a_run_as_a_report_calls_its_curve(pliant, finished):
    _, said, _ = pliant("run", TOY, "--profile", "tiny", "--out", str(finished), "--dry-run")
    _, reported, _ = pliant("report", str(finished))
    jobs = [line.split("  ")[2] for line in said.splitlines() if line.startswith("  job ")]
    curves = [line.split("  ")[0] for line in reported.splitlines()[3:]]
    assert sorted(set(jobs)) == ["lms step_size=0.01,5", "nlms step_size=0.5,0.1"]
    assert sorted(curves) == ["lms step_size=0.01", "lms step_size=5", "nlms step_size=0.1", "nlms step_size=0.5"]


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
    assert "job 000  lms step_size=0.01,5  2 runs, seed 0   steps 1,000/1,000   10 rows" in said
    assert "  lms step_size=5  seed 2   diverged at step " in said
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
    assert f'needs {missing}: pip install -e ".[lab]" in a clone of Pliant' in ended.stderr
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


def test_report_prints_all_parts_where_it_is_asked_to(pliant, finished):
    _, brief, _ = pliant("report", str(finished), "--parts", "5")
    status, said, _ = pliant("report", str(finished), "--parts", "5", "--all-parts")
    assert status == 0
    assert re.split("  +", said.splitlines()[2]) == ["curve", "seeds", *(f"to {n}" for n in (200, 400, 600, 800, 1000))]
    first, last = re.split("  +", brief.splitlines()[-1])[2:5:2]
    assert re.split("  +", said.splitlines()[-1])[2::4] == [first, last]
    assert said.splitlines()[4].split()[-5:] == ["-"] * 5  # all of its runs diverged


def test_report_of_a_range_of_places(pliant, finished):
    _, of_parts, _ = pliant("report", str(finished), "--parts", "5", "--all-parts", "--where", "method=nlms")
    _, of_range, _ = pliant(
        *("report", str(finished), "--parts", "2", "--all-parts", "--where", "method=nlms", "--where", "step=400-600")
    )
    asked, whole = ([re.split("  +", line)[2:] for line in said.splitlines()[2:]] for said in (of_range, of_parts))
    assert asked == [row[1:3] for row in whole]
    assert asked[0] == ["to 400", "to 600"]


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
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    says = "text.parquet is no Parquet file: `pliant export DIR --format parquet` makes one"
    for command in ("report", "plot"):
        assert says in pliant(command, str(tmp_path / "text.parquet"))[2]
    assert "cannot be read as Parquet" in pliant("report", str(tmp_path / "broken.parquet"))[2]


def test_an_exported_file_is_no_study(pliant, finished, tmp_path):
    file = tmp_path / "rows.parquet"
    pliant("export", str(finished), "--out", str(file))
    for command in ("status", "resume", "export"):
        status, _, errors = pliant(command, str(file))
        assert status == 2
        assert "rows.parquet is an exported file: `pliant report` and `pliant plot` take it" in errors
    (tmp_path / "notes.txt").write_text("no")
    assert "notes.txt is a file: give a study's folder" in pliant("status", str(tmp_path / "notes.txt"))[2]


def test_export_takes_the_format_from_the_name_of_the_file(pliant, finished, tmp_path):
    for name, begins in (("rows.parquet", b"PAR1"), ("rows.csv", b"run,method,seed,")):
        assert pliant("export", str(finished), "--out", str(tmp_path / name))[0] == 0
        assert (tmp_path / name).read_bytes().startswith(begins)


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_export_replaces_an_earlier_export_and_no_other_file(pliant, finished, tmp_path, name):
    file = tmp_path / name
    assert pliant("export", str(finished), "--out", str(file))[0] == 0
    assert pliant("export", str(finished), "--out", str(file))[0] == 0
    file.write_text("a year of notes")
    status, _, errors = pliant("export", str(finished), "--out", str(file))
    assert status == 2
    assert f"{name} is there, and is no earlier export: give another --out" in errors
    assert file.read_text() == "a year of notes"


def test_plot_draws_an_exported_file_of_a_known_experiment(pliant, tmp_path):
    exported = Path(__file__).parents[1] / "results" / "slowly-changing-regression-quick.parquet"
    status, said, _ = pliant("plot", str(exported), "--out", str(tmp_path / "drawn.png"))
    assert (status, said) == (0, f"figure   {tmp_path / 'drawn.png'}\n")
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


def test_plot_refuses_a_file_that_an_experiment_of_ones_own_made(pliant, finished, tmp_path):
    file = tmp_path / "rows.parquet"
    pliant("export", str(finished), "--format", "parquet", "--out", str(file))
    status, _, errors = pliant("plot", str(file))
    assert status == 2
    assert (
        "rows.parquet was made by an experiment of your own, toy_experiment.py:Toy: plot its study's folder" in errors
    )


def test_plot_draws_no_other_experiment_of_the_same_name(pliant, finished, tmp_path):
    import pandas

    file = tmp_path / "rows.parquet"
    pliant("export", str(finished), "--format", "parquet", "--out", str(file))
    rows = pandas.read_parquet(file)
    rows.attrs["name"] = "ant"  # as a class Ant in a file of one's own
    rows.to_parquet(file)
    assert "was made by an experiment of your own, toy_experiment.py:Toy" in pliant("plot", str(file))[2]


@pytest.mark.parametrize(("form", "begins"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_plot_draws_what_the_name_of_the_file_says(pliant, finished, tmp_path, form, begins):
    assert pliant("plot", str(finished), "--out", str(tmp_path / f"f.{form}"))[0] == 0
    assert (tmp_path / f"f.{form}").read_bytes().startswith(begins)


# -- what there is to ask for -------------------------------------------------------------------------------------------


def test_list_of_a_name_says_its_profiles_fields_and_columns(pliant):
    status, said, _ = pliant("list", TOY)
    assert status == 0
    assert said.splitlines()[:4] == [
        "toy   toy_experiment.py:Toy",
        "profiles",
        "  quick  three seconds",
        "         12 runs of lms, nlms",
    ]
    assert "  step_size  float > 0 and <= 10 (default 0.01)\n" in said
    assert "  drift      float >= 0 (default 0.01)\n             standard deviation of a target weight's step\n" in said
    assert "  squared_error     before the update, mean of a bin; NaN after divergence\n" in said
    assert "seed" not in said  # it has an option of its own


def test_list_of_a_known_name_asks_its_question(pliant):
    _, said, _ = pliant("list", "slowly-changing-regression")
    assert said.startswith(f"slowly-changing-regression   {TABLE['slowly-changing-regression'].question}\n")


def test_help_has_a_short_name_and_the_version_can_be_asked_for(pliant):
    from pliant import __version__

    assert pliant("--version") == (0, f"pliant {__version__}\n", "")
    for command in ([], ["run"], ["data", "list"]):
        status, said, _ = pliant(*command, "-h")
        assert (status, said.startswith("Usage: pliant")) == (0, True)


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


def test_a_dry_run_says_where_the_data_sets_are(pliant, mine, tmp_path):
    _, said, _ = pliant("run", *SHORT, "--dry-run")
    assert f"  data     mine: {tmp_path / 'data' / 'mine'}\n" in said
    names = "dataset=mine,fashion-mnist,theirs,imagenet"
    status, said, _ = pliant("run", *[names if word == "dataset=mine" else word for word in SHORT], "--dry-run")
    assert status == 0
    assert [line for line in said.splitlines() if line.startswith("  data")] == [
        "  data     fashion-mnist: not here, 31 MB will be fetched",
        "  data     imagenet: not here, and a run is refused; to get it: " + CATALOG["imagenet"].how,
        f"  data     mine: {tmp_path / 'data' / 'mine'}",
        "  data     theirs: not here, and a run is refused; to get it: pliant data add theirs FOLDER-OR-ZIP",
    ]


def test_a_missing_data_set_is_an_error_before_anything_is_written(pliant, mine, tmp_path):
    status, _, errors = pliant("run", *SHORT, "--set", "seed=1")
    assert (status, "--methods and --seeds" in errors) == (2, True)
    wrong = [word.replace("dataset=mine", "dataset=mne") for word in SHORT]
    status, _, errors = pliant("run", *wrong, "--out", str(tmp_path / "study"))
    assert status == 2
    assert "did you mean 'mine'?" in errors
    assert not (tmp_path / "study" / "study.json").exists()


# -- help, completion, interrupts ------------------------------------------------------------------------------------------

SOURCE = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
COMMANDS = [
    "",
    "list",
    "run",
    "resume",
    "status",
    "plot",
    "report",
    "export",
    "watch",
    "doctor",
    "conformance",
    "data",
    "data list",
    "data fetch",
    "data add",
]


def command_of(*words, **more):
    return {"args": [sys.executable, "-m", "pliant", *words], "env": {**SOURCE, **more}, "text": True}


@pytest.mark.parametrize("columns", ["40", "80", "120"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_whole_lines(command, columns, pliant, monkeypatch):
    """Every word of a command's first sentence is there, however narrow the terminal is."""
    monkeypatch.setenv("COLUMNS", columns)
    _, said, _ = pliant(*command.split(), "--help")
    cut = [line for line in said.splitlines() if line.rstrip().endswith("...") and "Usage: " not in line]
    assert cut == []
    words = " ".join(said.split())
    if command == "":
        assert "Run an experiment; on the folder of an earlier study, its missing runs." in words
        assert "Write all rows, each with its config, seed and commit, to one table;" in words
    if command == "data":
        assert "Known data sets, whether they are available, how many images they have, and their licenses." in words


def test_the_package_runs_as_a_module():
    done = subprocess.run(**command_of("--version"), capture_output=True)
    assert (done.returncode, done.stdout.split()[0], done.stderr) == (0, "pliant", "")
    done = subprocess.run(**command_of("rnu"), capture_output=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_shells_is_on(shell):
    done = subprocess.run(**command_of(_PLIANT_COMPLETE=f"source_{shell}"), capture_output=True)
    assert done.returncode == 0
    assert "_PLIANT_COMPLETE" in done.stdout
    complete = {"_PLIANT_COMPLETE": f"complete_{shell}", "COMP_WORDS": "pliant re", "COMP_CWORD": "1"}
    complete |= {"_TYPER_COMPLETE_ARGS": "pliant re", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run(**command_of(**complete), capture_output=True)
    assert {"resume", "report"} <= {*re.findall(r"\w+", done.stdout)}
    assert "status" not in done.stdout


@pytest.mark.faults
@pytest.mark.parametrize(
    ("command", "module"),
    [
        *(("run", module) for module in ("typer", "typer.core", "pliant.commands.data", "pliant.commands", "numpy")),
        *(("resume", module) for module in ("pydantic", "pliant.lab.errors")),
        *((command, "pliant.commands") for command in ("list", "report")),
    ],
)
def test_ctrl_c_while_python_imports_is_a_line(command, module, finished, tmp_path):
    """The process tells what it has imported; from the import of `pliant.cli` on, Ctrl-C is answered by the library."""
    arguments = {
        "run": ["run", "slowly-changing-regression", "--out", str(tmp_path / "study")],
        "list": ["list", "permuted-mnist"],
    }.get(command, [command, str(finished)])
    started = command_of(*arguments)
    started["args"][1:1] = ["-X", "importtime"]
    started["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell ignores it in the background
    with subprocess.Popen(**started, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        for line in process.stderr:
            if line.split("|")[-1].strip() == module:
                process.send_signal(signal.SIGINT)
                break
        said = [
            line for line in process.stderr.read().splitlines() if "import time:" not in line and "note: " not in line
        ]
    assert process.returncode == 130
    assert [line for line in said if line] == ["pliant: stopped"]
    assert not (tmp_path / "study").exists()


def test_an_error_in_an_experiment_says_where_and_more_if_asked(tmp_path):
    (tmp_path / "own.py").write_text("def half(x):\n    return 1 / x\nhalf(0)\n")
    done = subprocess.run(**command_of("run", "own.py:Own"), capture_output=True, cwd=tmp_path)
    place = f"{tmp_path / 'own.py'}:2"
    said = f"pliant: ZeroDivisionError: division by zero (in half, {place}; PLIANT_TRACEBACK=1 shows all of it)\n"
    assert (done.returncode, done.stderr) == (2, said)
    done = subprocess.run(**command_of("run", "own.py:Own", PLIANT_TRACEBACK="1"), capture_output=True, cwd=tmp_path)
    assert done.stderr.startswith("Traceback")
    (tmp_path / "own.py").write_text("import no_such_module_of_mine")
    done = subprocess.run(**command_of("run", "own.py:Own"), capture_output=True, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    (tmp_path / "own.py").write_text("def half(:\n")
    done = subprocess.run(**command_of("run", "own.py:Own"), capture_output=True, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{tmp_path / 'own.py'}:1" in done.stderr


ECHOED = [
    "run LONG", "run LONG:X", "run LONG.py:X", "run TOY --profile LONG", "run TOY --methods LONG", "run TOY --method LONG",
    "run TOY --seeds LONG", "run TOY --set LONG", "run TOY --set LONG=1", "run TOY --set step_size=LONG", "run TOY --device LONG",
    "run TOY --out LONG", "run TOY --jobs LONG", "run TOY --LONG", "LONG", "status LONG", "resume LONG",
    "resume LONG --to LONG",
    "plot LONG", "plot STUDY --out LONG", "report LONG", "report STUDY --metric LONG", "report STUDY --over LONG",
    "report STUDY --where LONG", "report STUDY --where LONG=1", "report STUDY --where method=LONG",
    "report STUDY --against LONG=1",
    "report STUDY --against method=LONG", "report STUDY --spread LONG", "report STUDY --parts LONG", "export STUDY --format LONG",
    "export STUDY --out LONG", "watch LONG", "watch STUDY --method LONG", "list LONG", "list TOY --method LONG",
    "data fetch LONG",
]  # fmt: skip


@pytest.mark.parametrize(
    "letters", ["x" * 10_000, "x " * 5000, "9" * 10_000, "é" * 10_000], ids=["x", "words", "digits", "é"]
)
@pytest.mark.parametrize("command", ECHOED)
def test_no_error_echoes_ten_thousand_characters(command, letters, pliant, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLIANT_CACHE", str(tmp_path / "cache"))
    words = {"TOY": TOY, "STUDY": str(finished)}
    status, said, error = pliant(*(words.get(word, word.replace("LONG", letters)) for word in command.split()))
    assert (status, said) == (2, "")
    assert len([line for line in error.splitlines() if "note: " not in line]) == 1
    assert len(error) < 1500
