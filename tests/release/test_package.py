"""The wheel and the sdist of `make package`: what they hold, and the wheel at work where the source is not."""

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.package

ROOT = Path(__file__).parents[2]
DIST = ROOT / "build" / "dist"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
INFO = f"pliant-{VERSION}.dist-info"
WRITTEN_BY_THE_BUILD = {f"{INFO}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")} | {
    f"{INFO}/licenses/{name}" for name in ("LICENSE", "src/pliant/lab/report/page/uPlot.LICENSE")
}


def only(pattern):
    (found,) = DIST.glob(pattern)
    return found


def kept(*folders):
    """Files that the repository keeps, or would with the next commit."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders]
    names = subprocess.run(asked, cwd=ROOT, text=True, capture_output=True, check=True).stdout.splitlines()
    return {name for name in names if (ROOT / name).is_file()}


a_clone = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone: what is to be packed is not known")


@a_clone
def test_the_wheel_holds_the_package_its_licenses_and_nothing_else():
    held = set(zipfile.ZipFile(only("*.whl")).namelist())
    assert held == {name.removeprefix("src/") for name in kept("src")} | WRITTEN_BY_THE_BUILD
    assert "pliant/py.typed" in held


@a_clone
def test_the_sdist_holds_all_that_a_clone_does():
    with tarfile.open(only("*.tar.gz")) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    assert held == kept() | {"PKG-INFO"}


def test_wheel_and_sdist_are_small():
    assert only("*.whl").stat().st_size < 2**20
    assert only("*.tar.gz").stat().st_size < 2**24


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Where the wheel is installed: its dependencies are those of this environment, the source is not on its path."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install"]
    subprocess.run([*pip, "--quiet", "--no-index", "--no-deps", str(only("*.whl"))], check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    # A path of a .pth file is not searched for further ones: the source, which `pip install -e` adds so, stays out.
    (packages / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return home


@pytest.fixture
def run(environment, tmp_path, monkeypatch):
    """Run a command of the environment in a folder of its own: what it prints."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("MPLBACKEND", "agg")

    def command(name, *arguments):
        ended = subprocess.run(
            [environment / "bin" / name, *arguments], cwd=tmp_path, text=True, capture_output=True, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    return command


def test_the_package_that_is_imported_is_the_wheels(run, environment):
    ask = "import pliant, pliant.lab, sys; print(pliant.__file__, pliant.lab.__file__, *sys.path, sep='\\n')"
    *files, path = run("python", "-c", ask).split(maxsplit=2)
    assert all(Path(file).is_relative_to(environment) for file in files), files
    assert str(ROOT / "src") not in path.split()
    assert run("pliant", "--version") == f"pliant {VERSION}\n"


def test_a_study_runs_and_is_reported(run, tmp_path):
    assert "slowly-changing-regression" in run("pliant", "list")
    study = ["slowly-changing-regression", "--profile", "quick", "--seeds", "0-2", "--methods", "bp,cbp"]
    said = run("pliant", "run", *study, "--set", "steps=240000", "--out", "study")
    assert "finished" in said
    assert "squared_error" in run("pliant", "report", "study")
    run("pliant", "plot", "study")
    assert (tmp_path / "study" / "figure.png").stat().st_size > 10_000
    run("pliant", "report", "study", "--html", "page.html")
    page = (tmp_path / "page.html").read_text()
    for name in ("page.js", "page.css", "uPlot.iife.min.js", "uPlot.min.css"):  # files of the wheel beside its modules
        assert (ROOT / "src" / "pliant" / "lab" / "report" / "page" / name).read_text().strip() in page, name


def test_a_type_checker_reads_the_types_of_the_package(environment, tmp_path):
    (tmp_path / "user.py").write_text(
        "import pliant\n"
        "reveal_type(pliant.ContinualBackprop)\n"
        "text: str = pliant.__version__\n"
        "number: int = pliant.__version__\n"
    )
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    checker = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", str(environment / "bin" / "python")]
    ended = subprocess.run(checker, cwd=tmp_path, text=True, capture_output=True, check=False, env=os.environ)
    said = [
        (each["range"]["start"]["line"], each["message"]) for each in json.loads(ended.stdout)["generalDiagnostics"]
    ]
    assert said[0] == (1, 'Type of "pliant.ContinualBackprop" is "type[ContinualBackprop]"')
    assert [(line, message.splitlines()[0]) for line, message in said[1:]] == [
        (3, 'Type "str" is not assignable to declared type "int"')
    ]
