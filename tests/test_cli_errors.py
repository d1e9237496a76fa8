"""Requests that cannot be met: each is one line that says what is wrong and what is near, and exit status 2.

`pytest -s` prints every command beside its answer.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pliant.cli import main

TOY = str(Path(__file__).parent / "toy_experiment.py") + ":Toy"
FILE = TOY.rpartition(":")[0]

BAD = [
    ("rnu", ["No such command 'rnu'"]),
    ("", ["Missing command"]),
    ("run", ["Missing argument 'NAME'"]),
    ("run TOY extra", ["extra argument"]),
    ("run TOY --profil quick", ["No such option: --profil", "--profile"]),
    ("run TOY --jobs 0", ["--jobs", "1"]),
    ("run TOY --jobs two", ["--jobs", "valid integer"]),
    ("run slowly-changing-regresion", ["unknown experiment", "did you mean 'slowly-changing-regression'"]),
    ("run FILE:Toi", ["unknown class", "'Toi'", "did you mean 'Toy'"]),
    ("run nowhere.py:Toy", ["no experiment at", "nowhere.py: the file is not there"]),
    ("run no_such_module:Toy", ["no module 'no_such_module'"]),
    ("run :Toy", ["':Toy' is no experiment: write module:Class or path/to/file.py:Class"]),
    ("run TOY --profile quik", ["unknown profile 'quik': did you mean 'quick'? Known: quick, tiny"]),
    ("run TOY --methods lms,nlsm", ["unknown method 'nlsm': did you mean 'nlms'? Known: lms, nlms"]),
    ("run TOY --seeds 0-x", ["--seeds '0-x'", "a range such as 0-29"]),
    ("run TOY --seeds 9-0", ["--seeds '9-0': a range goes up"]),
    ("run TOY --set stepsize=0.1", ["unknown field 'stepsize': did you mean 'step_size'? Known: method, seed, steps"]),
    ("run TOY --set step_size", ["--set 'step_size': write field=value or field=value,value"]),
    ("run TOY --set step_size=0.1,-1", ["step_size=-1: ", "step_size is float > 0 and <= 10 (default 0.01)"]),
    ("run TOY --set step_size=fast", ["step_size=fast: ", "float > 0 and <= 10"]),
    ("run TOY --set step_size=nan", ["step_size=nan: ", "float > 0 and <= 10"]),
    ("run TOY --set steps=1.5", ["steps=1.5: ", "steps is int > 0 and a multiple of 200 (default 6000)"]),
    ("run TOY --set steps=300", ["steps=300: input should be a multiple of 200"]),
    ("run TOY --set method=sgd", ["--set method=...: methods and seeds are chosen by --methods and --seeds"]),
    ("run TOY --set seed=-3", ["--set seed=...: methods and seeds are chosen by --methods and --seeds"]),
    ("run TOY --set drift=0.1 --set drift=0.2", ["'drift' is set twice"]),
    ("run TOY --device gpu", ["unknown device 'gpu': did you mean 'cpu'"]),
    ("run TOY --device cuda:99", ["device 'cuda:99' is not here: torch sees"]),
    ("run rewired-cart-pole --device cuda", ["device 'cuda': this experiment runs on cpu alone: leave --device out"]),
    ("run TOY --out OTHER", ["holds other files and no study: give another --out"]),
    ("run TOY --out OTHER/thesis.tex/study", ["cannot write OTHER/thesis.tex/study: Not a directory"]),
    ("resume EMPTY", ["no study in EMPTY: `pliant run NAME --out EMPTY` makes one"]),
    ("status EMPTY", ["no study in EMPTY"]),
    ("plot EMPTY", ["no study in EMPTY"]),
    ("export EMPTY", ["no study in EMPTY"]),
    ("export EMPTY --format xlsx", ["unknown format 'xlsx'", "Known: csv, parquet"]),
    ("export EMPTY --out rows.xlsx", ["rows.xlsx does not end in .csv or .parquet"]),
    ("export EMPTY --out rows.csv --format parquet", ["--format parquet and --out rows.csv contradict each other"]),
    ("plot EMPTY --out a.txt", ["a.txt does not say a format of figures: end it in .png, .pdf or .svg"]),
    ("plot EMPTY --out figure", ["figure does not say a format of figures"]),
    ("run FILE", ["which experiment in", "Write FILE:Toy"]),
    ("run nowhere.py", ["no experiment at", "nowhere.py: the file is not there"]),
    ("list permuted-mnits", ["unknown experiment", "did you mean 'permuted-mnist'"]),
    ("list FILE", ["which experiment in"]),
]  # fmt: skip


@pytest.mark.parametrize(("command", "fragments"), BAD, ids=[command or "(nothing)" for command, _ in BAD])
def test_a_bad_request_is_one_line_and_exit_2(command, fragments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("OTHER").mkdir()
    Path("OTHER/thesis.tex").touch()
    words = [word.replace("TOY", TOY).replace("FILE", FILE) for word in command.split()]
    status, line = refused(words, capsys)
    with capsys.disabled():
        print(f"\n$ pliant {command}\n{line}", end="") if "-s" in sys.argv else None
    assert status == 2
    assert line.startswith("pliant: ")
    assert [fragment for fragment in fragments if fragment.replace("FILE", FILE) not in line] == []
    assert {path.name for path in tmp_path.iterdir()} == {"OTHER"}, "something was written"


def refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines(keepends=True) if not line.startswith("pliant: note: ")]
    assert said.out == ""
    assert len(lines) == 1
    return ended.value.code, lines[0]


@pytest.fixture
def study(tmp_path, capsys):
    """A study of two runs, planned and not yet begun, so that requests can contradict it."""
    from pliant.lab.study.settings import selected
    from pliant.lab.study.study import Study, new_plan, with_runs
    from pliant.lab.study.target import target

    plain = Study(tmp_path / "S", new_plan("toy", target(TOY), "quick", "cpu", {}))
    with_runs(plain, selected(plain.experiment, "quick", "nlms", "0")).save()
    return plain.folder


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["--profile", "tiny"], "holds a study with profile 'quick', not 'tiny'"),
        (["--methods", "nlms", "--set", "drift=0.5"], "runs of 'nlms' with other settings: drift was 0.01, is 0.5"),
    ],
)
def test_a_request_that_contradicts_the_study_in_its_folder_is_refused(words, fragment, study, capsys):
    status, line = refused(["run", TOY, "--out", str(study), *words], capsys)
    assert status == 2
    assert fragment in line


def test_plotting_before_there_are_rows_is_refused(study, capsys):
    status, line = refused(["plot", str(study)], capsys)
    assert status == 2
    assert "has no rows yet" in line


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ('"format": 2', '"format": 3', "has format 3, this version of pliant reads 1 and 2"),
        ('"jobs": [', '"jobs": {', "study.json is damaged"),
        ('"drift"', '"drfit"', "the experiment has changed: unknown field 'drfit': did you mean 'drift'"),
        ('"profile"', '"prfile"', "study.json is damaged"),
    ],
)
def test_a_study_that_was_edited_by_hand_is_refused(old, new, fragment, study, capsys):
    file = study / "study.json"
    text = json.dumps(json.loads(file.read_text()))
    assert old in text
    file.write_text(text.replace(old, new))
    status, line = refused(["resume", str(study)], capsys)
    assert status == 2
    assert fragment in line


def test_a_real_process_prints_neither_traceback_nor_box():
    ended = subprocess.run(
        [sys.executable, "-m", "pliant.cli", "run", TOY, "--sets", "x=1"], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("pliant: No such option: --sets")
    assert ended.stderr.count("\n") == 1
