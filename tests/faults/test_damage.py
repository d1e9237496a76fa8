"""Whatever happened to the files of a study, every command says it in a line: none ends in a traceback, none loses rows.

Generated: every file of a small finished study x every damage x every command, and every entry of study.json x every value.
"""

import errno
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pliant.cli import main
from tests.lab.study.test_from_elsewhere import PLANTED

READERS = {
    "status": ["status"],
    "report": ["report"],
    "export": ["export", "--format", "parquet"],
    "plot": ["plot"],
    "watch": ["watch"],
}
COMMANDS = {**READERS, "resume": ["resume"], "longer": ["resume", "--to", "3"]}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A finished study of two jobs, with their last states."""
    folder = tmp_path_factory.mktemp("original")
    (folder / "own.py").write_text(PLANTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAN", os.devnull)
        patch.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            main(["run", "own.py:Planted", "--out", "study", "--jobs", "1"])
        assert ended.value.code == 0
        yield folder / "study"


@pytest.fixture
def study(original, tmp_path):
    shutil.copytree(original, tmp_path / "study")
    return tmp_path / "study"


@pytest.fixture
def pliant(capsys, monkeypatch):
    """Run a command here: its exit status. Fails where it says more than a line, or something that is none."""

    def command(*arguments):
        monkeypatch.setattr(sys, "path", [*sys.path])  # a study's folder is added to it
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert ended.value.code in (0, 1, 2), arguments
        lines = [line for line in said.err.splitlines() if not line.startswith("pliant: note: ")]
        assert all(line.startswith(("pliant: ", "job ")) for line in lines), said.err
        assert all(len(line) < 1500 for line in lines)
        assert (len(lines) == 1) == (ended.value.code != 0), said.err
        return ended.value.code

    return command


def content(folder):
    """What the files hold, but for those that commands make."""
    names = ("figure.png", "rows.parquet", "watch.gif")
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in names)
    return {path: path.read_bytes() for path in files}


# -- files ---------------------------------------------------------------------------------------------------------------

FILES = ["study.json", "study.lock", "jobs", "logs", "jobs/000.sqlite", "jobs/000.lock", "jobs/000-2.safetensors"]
FILES += ["logs/worker-0.log", "jobs/000.sqlite-journal"]


def replaced(place, make):
    remove(place)
    make(place)


def remove(place):
    shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink(missing_ok=True)


def truncated(place, share):
    if place.is_file():
        os.truncate(place, int(place.stat().st_size * share))


def noise(place, at, size=4096):
    if place.is_file():
        data = bytearray(place.read_bytes())
        data[at : at + size] = np.random.default_rng(0).bytes(min(size, max(1, len(data) - at)))
        place.write_bytes(bytes(data))


DAMAGES = {
    "gone": remove,
    "empty": lambda place: replaced(place, Path.touch),
    "a byte": lambda place: truncated(place, 1e-9),
    "a third": lambda place: truncated(place, 1 / 3),
    "all but the end": lambda place: truncated(place, 0.98),
    "noise at the beginning": lambda place: noise(place, 0),
    "noise in a page": lambda place: noise(place, 4096),
    "noise in its midst": lambda place: noise(place, place.stat().st_size // 2 if place.is_file() else 0, 100),
    "zeros": lambda place: replaced(place, lambda at: at.write_bytes(bytes(9000))),
    "text": lambda place: replaced(place, lambda at: at.write_text("something else\n" * 99)),
    "a folder": lambda place: replaced(place, Path.mkdir),
    "a link to nowhere": lambda place: replaced(place, lambda at: at.symlink_to("nowhere")),
    "a link to itself": lambda place: replaced(place, lambda at: at.symlink_to(at.name)),
    "a pipe": lambda place: replaced(place, os.mkfifo),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_told_in_a_line_by_every_command(file, damage, study, pliant, tmp_path):
    DAMAGES[damage](study / file)
    shutil.copytree(study, tmp_path / "damaged", symlinks=True, copy_function=copied)
    before = content(study)
    for name, command in COMMANDS.items():
        status = pliant(command[0], study, *command[1:])
        if name in READERS:
            assert content(study) == before or "journal" in file, f"{name} changed something"
        elif status == 0:
            assert pliant("status", study) == 0
        remove(study)
        shutil.copytree(tmp_path / "damaged", study, symlinks=True, copy_function=copied)


def copied(source, target, follow_symlinks=False):
    if Path(source).is_fifo():
        os.mkfifo(target)
    else:
        shutil.copy2(source, target, follow_symlinks=follow_symlinks)


# -- study.json ------------------------------------------------------------------------------------------------------------

VALUES = [
    None,
    [],
    {},
    "",
    "x" * 10_000,
    -1,
    1e308,
    float("nan"),
    True,
    10**400,
    [["x"]],
    {"x": {"y": []}},
    "\0",
    "a\nb",
]


def places(value, path=()):
    """Of every entry of nested mappings and lists."""
    if path:
        yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in entries:
        yield from places(each, (*path, key))


PLAN = {  # where study.json has entries; a test holds it to one
    "format": 2, "id": "", "name": "", "experiment": {"address": "", "folder": ""}, "profile": "", "device": "", "created": "",
    "versions": {"python": ""}, "data": {}, "reading": {"renamed": {"speed": "rate"}, "weights": {"x": "n"}},
    "jobs": [{"name": "", "runs": [{"method": "", "seed": 0, "steps": 0, "rate": 0.5}]}],
}  # fmt: skip


def test_the_places_of_study_json_are_those(study):
    plan = json.loads((study / "study.json").read_text())
    assert list(plan) == list(PLAN)
    for place in places(PLAN):
        entry_at(plan, place)


def entry_at(plan, place):
    for key in place:
        plan = plan[key]
    return plan


@pytest.mark.parametrize("place", list(places(PLAN)), ids=lambda place: ".".join(map(str, place)))
def test_an_edited_entry_of_study_json_is_told_in_a_line_by_every_command(place, study, pliant):
    text, before = (study / "study.json").read_text(), content(study / "jobs")
    for value in (..., *VALUES):
        plan = json.loads(text)
        *above, last = place
        if value is ...:
            del entry_at(plan, above)[last]
        else:
            entry_at(plan, above)[last] = value
        (study / "study.json").write_text(json.dumps(plan))
        for command in ("status", "export", "resume"):
            pliant(command, study)
        assert content(study / "jobs") == before or place[0] == "jobs", value
    (study / "study.json").write_text(text)
    assert pliant("resume", study) == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "5",
        '"x"',
        "null",
        "{",
        "[" * 9999,
        '{"a":' * 9999,
        "{}",
        '{"format": 2}',
        "\ufeff{}",
        "\0",
        '{"format": []}',
    ],
)
def test_a_study_json_that_is_something_else_is_told_in_a_line(text, study, pliant):
    (study / "study.json").write_text(text)
    assert {pliant(command[0], study, *command[1:]) for command in COMMANDS.values()} == {2}
    (study / "study.json").write_bytes(text.encode("utf-16"))
    assert {pliant(command[0], study, *command[1:]) for command in COMMANDS.values()} == {2}


@pytest.mark.parametrize("name", ["n" * 300, "n" * 5000, "a/" * 3000, "\0", "\udcff", "", "."])
def test_a_folder_of_any_name_is_told_in_a_line(name, pliant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS.values():
        assert pliant(command[0], name, *command[1:]) == 2
    if len(name) > 100 or name == "\0":
        assert pliant("run", "slowly-changing-regression", "--out", name) == 2


# -- disks -------------------------------------------------------------------------------------------------------------------


class Failing:
    """Makes every opening of some files fail."""

    def __init__(self, monkeypatch, number):
        self.plain, self.number = (io.open, os.open), number
        monkeypatch.setattr(io, "open", self.open)
        monkeypatch.setattr("builtins.open", self.open)
        monkeypatch.setattr(os, "open", self.os_open)
        self.on = ""

    def fail(self, file):
        if self.on and self.on in str(file):
            raise OSError(self.number, os.strerror(self.number), str(file))

    def open(self, file, *arguments, **named):
        self.fail(file)
        return self.plain[0](file, *arguments, **named)

    def os_open(self, file, *arguments, **named):
        self.fail(file)
        return self.plain[1](file, *arguments, **named)


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EIO, errno.ENOSPC, errno.EROFS, errno.EMFILE], ids=errno.errorcode.get
)
@pytest.mark.parametrize("file", ["study.json", "study.lock", "safetensors", "figure", "rows", "watch", "logs", "jobs"])
def test_a_file_that_cannot_be_opened_is_told_in_a_line(file, number, study, pliant, monkeypatch):
    disk, before = Failing(monkeypatch, number), content(study)
    for command in COMMANDS.values():
        disk.on = file
        pliant(command[0], study, *command[1:])
        disk.on = ""
    after = content(study)
    assert {path: after[path] for path in before if path.suffix == ".sqlite"}.keys() == {
        path for path in before if path.suffix == ".sqlite"
    }
    assert pliant("status", study) == 0


def command_line(*arguments, **options):
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source, "RAN": os.devnull}
    command = [sys.executable, "-m", "pliant", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, **options)


@pytest.mark.parametrize(
    "most", [0, *(pytest.param(each, marks=pytest.mark.slow) for each in (300, 5000, 20_000)), 12_000]
)
def test_a_file_that_cannot_grow_is_told_and_what_was_committed_stays(most, original, study, tmp_path):
    """A limit on the size of files stands for a full disk: it fails writes at any place, also inside a commit."""
    for name in ("jobs", "logs"):
        shutil.rmtree(study / name)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # noqa: E731
    done = command_line("resume", study, "--jobs", "1", preexec_fn=limit, cwd=original.parent)
    assert done.returncode in (1, 2), done.stdout
    assert "Traceback" not in done.stderr
    assert command_line("status", study).returncode == 0
    ended = command_line("resume", study, "--jobs", "1", cwd=original.parent)
    assert ended.returncode == 0, ended.stderr
    tables = [
        command_line("export", folder, "--out", tmp_path / f"{folder.parent.name}.csv") for folder in (study, original)
    ]
    assert [table.returncode for table in tables] == [0, 0]
    ours, theirs = ((tmp_path / f"{folder.parent.name}.csv").read_text() for folder in (study, original))
    assert ours == theirs
    for command in (["export", study], ["plot", study], ["export", study, "--format", "parquet"]):
        done = command_line(*command, preexec_fn=limit, cwd=original.parent)
        assert done.returncode == (0 if "rows" in done.stdout or "figure" in done.stdout else 2)
        assert "Traceback" not in done.stderr
    assert not list(study.glob("*.tmp*"))


@pytest.mark.parametrize("command", ["status", "report", "list", "--help"])
def test_an_output_that_is_full_or_closed_is_told_in_a_line(command, study):
    arguments = [command, *([study] if command in ("status", "report") else [])]
    with open("/dev/full", "w") as full:
        source = str(Path(__file__).parents[2] / "src")
        done = subprocess.run(
            [sys.executable, "-m", "pliant", *map(str, arguments)],
            stdout=full, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": source},
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["pliant: No space left on device"]
    ended = subprocess.run(
        f"{sys.executable} -m pliant {' '.join(map(str, arguments))} | true", shell=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": source},
    )  # fmt: skip
    assert ended.stderr == ""


@pytest.fixture
def nobody():
    """Somebody who may do what everybody may."""

    def become(yes=True):
        os.seteuid(65534 if yes else 0)

    yield become
    os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_study_that_may_only_be_read_is_read_and_not_resumed(study, pliant, nobody, tmp_path, capsys):
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    for command in COMMANDS.values():
        pliant(command[0], study, *command[1:])  # all is imported
    for name in ("figure.png", "rows.parquet"):
        (study / name).unlink()
    for command, expected in {"status": 0, "report": 0, "export": 2, "plot": 2, "resume": 2}.items():
        nobody()
        assert pliant(command, study) == expected
        nobody(False)
    for unreadable in ("study.json", "jobs/000.sqlite", "jobs"):
        mode = (study / unreadable).stat().st_mode
        (study / unreadable).chmod(0)
        nobody()
        assert {pliant(command[0], study, *command[1:]) for command in COMMANDS.values()} == {2}
        nobody(False)
        (study / unreadable).chmod(mode)
