"""A study that somebody else made: reading it runs no code of theirs, and nothing is written outside its folder."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from pliant.cli import main
from pliant.lab.errors import LabError
from pliant.lab.study.study import open_study

pytestmark = pytest.mark.faults

PLANTED = """
import os
with open(os.environ["RAN"], "a") as file:
    file.write(__name__ + "\\n")
from pydantic import Field
from pliant.lab import DONE, RUNNING, RunConfig

class Config(RunConfig):
    steps: int = 2
    rate: float = 0.5
    renamed = {"speed": "rate"}

class Runs:
    steps_done, steps_total = 0, 2
    def __init__(self, configs): self.count = len(configs)
    def statuses(self): return [DONE if self.steps_done == 2 else RUNNING] * self.count
    def state_dict(self): return {"at": self.steps_done}
    def load_state_dict(self, state): self.steps_done = state["at"]

class Planted:
    Config = Config
    columns = {"step": "steps", "x": "a mean", "n": "of so many"}
    profiles = {"quick": "seconds"}
    weights = {"x": "n"}
    length = "steps"
    def runs(self, profile): return [Config(method=m, seed=s) for m in "ab" for s in range(2)]
    def stack_key(self, config, device): return config.method
    def start(self, configs, context): return Runs(configs)
    def advance(self, state):
        state.steps_done += 1
        count, step = state.count, state.steps_done
        return {"run": range(count), "step": [step] * count, "x": [[1.0, 4.0][step - 1]] * count, "n": [step] * count}
    def figure(self, rows):
        from pliant.lab.figures import panels
        return panels(1, 1)[0]
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder in which theirs/ is a study of an experiment in the same folder, planted.py."""
    folder = tmp_path_factory.mktemp("original")
    theirs = folder / "theirs"
    theirs.mkdir()
    (folder / "planted.py").write_text(PLANTED)
    done = pliant(folder, "run", "planted:Planted", "--out", "theirs")
    assert done.returncode == 0, done.stderr
    shutil.move(folder / "planted.py", theirs / "planted.py")
    edit(theirs, lambda plan: plan["experiment"].update(folder="theirs"))
    (folder / "mine.txt").write_text("a year of work")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    shutil.copytree(original, tmp_path / "f", ignore=shutil.ignore_patterns("__pycache__", "ran"))
    return tmp_path / "f"


def pliant(folder, *arguments, module="pliant"):
    source = str(Path(__file__).parents[3] / "src")
    environment = {**os.environ, "PYTHONPATH": source, "RAN": str(folder / "ran"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def edit(study, change):
    plan = json.loads((study / "study.json").read_text())
    change(plan)
    (study / "study.json").write_text(json.dumps(plan))


def ran(folder):
    return (folder / "ran").exists()


def everything(folder):
    """What lies in a folder but for the study, byte for byte."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and folder / "theirs" not in path.parents)
    return {path: path.read_bytes() for path in files}


@pytest.mark.parametrize("command", ["status", "report", "export"])
def test_reading_runs_none_of_its_code(command, folder):
    done = pliant(folder, command, "theirs")
    assert (done.returncode, done.stderr) == (0, "")
    assert not ran(folder)


def test_rows_are_weighed_as_the_experiment_says_without_running_it(folder):
    """Of 1 once and 4 twice the mean is 3, and not 2.5."""
    done = pliant(folder, "report", "theirs", "--parts", "1", "--where", "method=a")
    assert "x by step, 1 parts, weighed by n" in done.stdout
    assert done.stdout.splitlines()[-1].split()[:4] == ["a", "2,", "few", "3.0000"]
    assert not ran(folder)


@pytest.mark.parametrize("command", ["report", "export"])
def test_a_study_that_does_not_say_how_to_read_its_rows_is_read_with_a_note(command, folder):
    edit(folder / "theirs", lambda plan: plan.pop("reading"))
    done = pliant(folder, command, "theirs")
    assert done.returncode == 0
    assert done.stderr.startswith("pliant: note: theirs does not say which columns weigh others")
    assert not ran(folder)
    assert pliant(folder, "resume", "theirs").returncode == 0
    assert pliant(folder, command, "theirs").stderr == ""


@pytest.mark.parametrize("command", ["plot", "resume"])
def test_which_code_runs_is_said_before_it_does(command, folder):
    edit(folder / "theirs", lambda plan: plan["experiment"].update(address="planted:Planted"))
    (folder / "theirs" / "planted.py").write_text("1 / 0")
    done = pliant(folder, command, "theirs")
    first, second = done.stderr.splitlines()
    assert done.returncode == 2
    assert first == f"pliant: note: theirs runs code: module planted ({(folder / 'theirs' / 'planted.py').resolve()})"
    assert second.startswith("pliant: ZeroDivisionError: division by zero (in <module>, ")


def test_a_method_that_the_study_brings_is_code_too(folder):
    method = {"name": "own", "address": str(folder / "theirs" / "own.py") + ":Own", "sha256": "0"}
    edit(folder / "theirs", lambda plan: plan["experiment"].update(methods=[method]))
    (folder / "theirs" / "own.py").write_text("1 / 0")
    done = pliant(folder, "plot", "theirs")
    assert f"planted.py), {folder / 'theirs' / 'own.py'}\n" in done.stderr


def test_the_code_of_a_shipped_experiment_is_known(folder, tmp_path):
    done = pliant(folder, "run", "slowly-changing-regression", "--dry-run", "--out", "new")
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["pandas", "typer", "json", "sqlite3", "pliant"])
def test_a_library_of_the_study_in_the_current_folder_is_not_taken_for_the_real_one(name, folder):
    theirs = folder / "theirs"
    (theirs / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nraise SystemExit('planted')")
    done = pliant(folder, "report", theirs, module="pliant")
    assert (done.returncode, ran(folder)) == (0, False)
    source = str(Path(__file__).parents[3] / "src")
    command = [sys.executable, "-m", "pliant", "report", "."]
    done = subprocess.run(command, cwd=theirs, env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True)
    if name in (
        "pandas",
        "typer",
        "sqlite3",
    ):  # Python itself, or `-m pliant`, imports the others before any line of ours runs
        assert (done.returncode, ran(folder)) == (0, False), done.stderr


NAMES = [
    "../../stray",
    "/tmp/stray",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "000.sqlite",
    "a\0b",
    "a\n",
    "\u202e000",
    "a" * 300,
    "-x",
    7,
]


@pytest.mark.parametrize("name", NAMES, ids=repr)
@pytest.mark.parametrize("command", ["resume", "status", "export"])
def test_names_of_jobs_are_plain(name, command, folder, capsys):
    edit(folder / "theirs", lambda plan: plan["jobs"][0].update(name=name))
    before = everything(folder)
    with pytest.raises(SystemExit) as ended:
        main([command, str(folder / "theirs")])
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert "study.json is damaged: jobs.0.name: " in said.err
    assert len(said.err) < 600
    assert everything(folder) == before


ADDRESSES = ["", ":", "x", "x:", ":X", ".x:X", "..x:X", "x y:X", "x:X.y", "x/y:X", "\0:X", "x" * 9999, 5]


@pytest.mark.parametrize("address", ADDRESSES, ids=lambda address: repr(address)[:20])
def test_an_address_of_code_is_one(address, folder):
    edit(folder / "theirs", lambda plan: plan["experiment"].update(address=address))
    with pytest.raises(LabError, match=r"study\.json is damaged: experiment\.address: ") as refused:
        open_study(folder / "theirs")
    assert len(str(refused.value)) < 500


LINKS = [
    "study.lock",
    "jobs/000.sqlite",
    "jobs/000.sqlite-journal",
    "jobs/000.lock",
    "logs/worker-0.log",
    "logs/000.log",
]
OUTPUTS = {"figure.png": "plot", "rows.csv": "export"}


@pytest.mark.parametrize("kind", ["file", "new file", "folder"])
@pytest.mark.parametrize("name", [*LINKS, "jobs", "logs", *OUTPUTS])
def test_a_link_in_the_folder_is_not_written_through(name, kind, folder):
    theirs = folder / "theirs"
    place = theirs / name
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    (folder / "empty").mkdir()
    place.symlink_to({"file": folder / "mine.txt", "new file": folder / "new", "folder": folder / "empty"}[kind])
    if place != theirs / "jobs" / "000.sqlite" and name != "jobs":
        (theirs / "jobs" / "000.sqlite").unlink()  # so that there is something to do
    before = everything(folder)
    done = pliant(folder, OUTPUTS.get(name, "resume"), "theirs")
    after = {path: content for path, content in everything(folder).items() if path != folder / "ran"}
    assert after == before
    assert list((folder / "empty").iterdir()) == []
    assert "Traceback" not in done.stderr
    assert (name == "logs/000.log") == (done.returncode == 0), done.stderr  # nothing fails, and so nothing is logged
    if done.returncode and (kind, name) not in (
        ("file", "jobs/000.sqlite"),
        ("file", "jobs"),
    ):  # no database, no folder
        assert "link" in done.stderr.splitlines()[-1] or "no file" in done.stderr.splitlines()[-1], done.stderr


def test_study_json_and_a_checkpoint_take_the_place_of_a_link(folder):
    theirs = folder / "theirs"
    shutil.move(theirs / "study.json", folder / "plan.json")
    (theirs / "study.json").symlink_to(folder / "plan.json")
    (theirs / "jobs" / "000-3.safetensors").symlink_to(folder / "mine.txt")
    (theirs / "jobs" / "000-9.safetensors").symlink_to(folder / "mine.txt")
    before = everything(folder)
    assert pliant(folder, "resume", "theirs", "--to", "3").returncode in (0, 1)
    (folder / "ran").unlink()
    assert everything(folder) == before
    assert not (theirs / "study.json").is_symlink()
    assert not (theirs / "jobs" / "000-9.safetensors").exists()


@pytest.mark.parametrize("name", ["../mine.txt", "/etc/passwd", "..", "000.sqlite", "001-2.safetensors", ""])
def test_a_state_is_looked_for_beside_its_job_and_under_its_name(name, folder, capsys):
    job = folder / "theirs" / "jobs" / "000.sqlite"
    from pliant.lab.stored import seals

    with closing(sqlite3.connect(job)) as database, database:
        database.execute("UPDATE job SET state_file = ?", (name,))
        seals.seal(database)
    study = open_study(folder / "theirs")
    with pytest.raises(LabError, match=r"000\.sqlite is not as it was written: its state is said to be in"):
        study.state(study.jobs[0])
    done = pliant(folder, "resume", "theirs", "--to", "3")
    assert (done.returncode, done.stderr.count("its state is said to be in")) == (2, 1)


def test_a_journal_that_names_another_file_is_not_read(folder):
    """SQLite would take mine.txt for a list of journals, find none of them, and remove it."""
    journal, mine = folder / "theirs" / "jobs" / "000.sqlite-journal", folder / "mine.txt"
    name = str(mine).encode()
    magic = bytes.fromhex("d9d505f920a163d7")
    pages = (folder / "theirs" / "jobs" / "000.sqlite").stat().st_size // 4096
    header = (
        magic
        + (0).to_bytes(4, "big")
        + bytes(4)
        + pages.to_bytes(4, "big")
        + (512).to_bytes(4, "big")
        + (4096).to_bytes(4, "big")
    )
    pointer = (
        (pages + 1).to_bytes(4, "big")
        + name
        + len(name).to_bytes(4, "big")
        + (sum(name) & 0xFFFFFFFF).to_bytes(4, "big")
        + magic
    )
    journal.write_bytes(header.ljust(512, b"\0") + pointer)
    for command in ("status", "report", "resume"):
        done = pliant(folder, command, "theirs")
        assert done.returncode == 2
        assert "000.sqlite-journal was not written by pliant: move it away" in done.stderr
        assert mine.read_text() == "a year of work"
