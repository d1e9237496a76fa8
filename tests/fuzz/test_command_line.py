"""Any words after `pliant`: an exit status that it documents, an error in a line, and nothing written where it refuses."""

import os
import shutil
import sys

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from pliant.cli import main
from pliant.commands import app
from tests.fuzz.odd import MANY, a_sentence, odd_texts
from tests.kill_and_resume import finish

TOY = os.path.join(os.path.dirname(__file__), "..", "toy_experiment.py") + ":Toy"
LEFT_OUT = {"--ray", "--install-completion", "--show-completion"}  # a cluster; the shell of whoever runs this
PLAUSIBLE = [
    "slowly-changing-regression",
    "switching-markov-chain",
    "permuted-mnist",
    "study",
    "rows.parquet",
    "file.txt",
    "new",
    TOY,
]
PLAUSIBLE += [
    "quick",
    "paper",
    "tiny",
    "bp",
    "cbp",
    "lms",
    "nlms",
    "method=lms",
    "step=200-600",
    "seed=0",
    "steps=1000",
    "note=none",
]
PLAUSIBLE += [
    "step_size=0.1,0.2",
    "drift=-1",
    "squared_error",
    "weight_magnitude",
    "step",
    "cpu",
    "cuda",
    "csv",
    "parquet",
    "latex",
]
PLAUSIBLE += [
    "markdown",
    "out.csv",
    "out.png",
    "out.html",
    "out.gif",
    "iqm",
    "bootstrap",
    "last",
    "area",
    "time-to-relearn",
    "page",
]


def commands():
    """Command -> its options, those with a value first."""
    group = typer.main.get_command(app)
    found = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found.update(
                {(name, inner): each for inner, each in command.commands.items() if inner != "fetch"}
            )  # a download
        else:
            found[name,] = command
    return {
        words: [
            option
            for each in command.params
            for option in each.opts
            if option.startswith("-") and option not in LEFT_OUT
        ]
        for words, command in found.items()
    }


COMMANDS = commands()


@st.composite
def lines(draw):
    """Mostly what could be meant, and among it what could not."""
    words = draw(st.sampled_from(list(COMMANDS)))
    value = st.one_of(st.sampled_from(PLAUSIBLE), odd_texts)
    options = COMMANDS[words] or ["--help"]
    rest = draw(st.lists(st.one_of(value, st.tuples(st.sampled_from(options), value)), max_size=5))
    line = [*words, *(word for each in rest for word in (each if isinstance(each, tuple) else (each,)))]
    if words == ("run",):
        line.append("--dry-run")
    return line


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "study"
    finish(["run", TOY, "--profile", "tiny", "--seeds", "0", "--out", str(folder)], folder)
    return folder


@pytest.fixture
def place(study, tmp_path, monkeypatch):
    """A current folder with a study, its export and another file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLIANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PLIANT_DATA", str(tmp_path / "data"))
    shutil.copytree(study, tmp_path / "study")
    with pytest.raises(SystemExit):
        main(["export", "study", "--out", "rows.parquet"])
    (tmp_path / "file.txt").write_text("a year of work")
    return tmp_path


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def ended(line, capsys):
    """Status, and what was said on standard error but for notes."""
    path = [*sys.path]
    try:
        main(line)
    except SystemExit as ended:
        status = ended.code
    finally:
        sys.path[:] = path
    said = capsys.readouterr()
    return status, [each for each in said.err.splitlines() if not each.startswith("pliant: note: ")]


@MANY
@given(line=lines())
def test_any_line_ends_as_documented(line, place, capsys):
    before = content(place)
    status, errors = ended(line, capsys)
    assert status in (0, 1, 2, 130)
    if status == 2:
        assert len(errors) == 1, errors
        a_sentence(errors[0])
        assert errors[0].startswith("pliant: ")
        assert content(place) == before
    assert (place / "file.txt").read_text() == "a year of work"
    assert all(path.read_bytes() == each for path, each in before.items() if path.suffix == ".sqlite")


FIELDS = ["method", "step", "step_size", "note", "squared_error", "status", "seed", "x"]


@MANY
@given(
    option=st.sampled_from(["--where", "--against"]),
    field=st.sampled_from(FIELDS),
    value=odd_texts,
    command=st.sampled_from(["report", "plot"]),
)
def test_any_value_of_where_is_met_by_some_rows_or_refused(option, field, value, command, place, capsys):
    line = [command, "study", option, f"{field}={value}"]
    if command == "plot":
        line = [command, "study", "--metric", "squared_error", "--where", f"{field}={value}", "--out", "out.png"]
    status, errors = ended(line, capsys)
    assert status in (0, 2)
    assert len(errors) == (status == 2), errors


def test_options_were_found():
    assert {"--set", "--where", "--metric"} <= {option for options in COMMANDS.values() for option in options}
