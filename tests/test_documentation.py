"""What README and docs show is run, and what they point to is there."""

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pliant.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {page: re.findall(r"```(\w+)\n(.*?)```", page.read_text(), flags=re.S) for page in PAGES}
TUTORIAL = ROOT / "docs" / "tutorial.md"  # whose blocks go on from each other
PYTHON = [
    (page, code)
    for page, blocks in LANGUAGES.items()
    for language, code in blocks
    if language == "python" and page != TUTORIAL
]
SHELL = [
    (page, code) for page, blocks in LANGUAGES.items() for language, code in blocks if language in ("sh", "console")
]


def named(pages):
    return [f"{page.relative_to(ROOT)}:{number}" for number, (page, _) in enumerate(pages)]


ELSEWHERE = ("lightning", "transformers", "accelerate")  # libraries of an environment of their own


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=named(PYTHON))
def test_python_examples_run_and_print_what_the_page_says(page, code, capsys):
    for name in ELSEWHERE:
        if re.search(rf"^(from|import) {name}\b", code, flags=re.M) and find_spec(name) is None:
            pytest.skip(f"{name} is not installed: make integrations")
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})
    shown = re.match(r"\s*```text\n(.*?)```", page.read_text().split(f"```python\n{code}```")[1], flags=re.S)
    if shown:
        assert capsys.readouterr().out == shown[1]


NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?")


def test_the_tutorial_runs_from_top_to_bottom_and_prints_about_what_it_says(capsys):
    """Training magnifies the rounding of a CPU: words are the same, and numbers agree to a quarter, or to 3."""
    threads, names = torch.get_num_threads(), {"__name__": "__main__"}
    try:
        for code, shown in re.findall(
            r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", TUTORIAL.read_text(), flags=re.S
        ):
            exec(compile(code, str(TUTORIAL), "exec"), names)
            printed = capsys.readouterr().out
            assert NUMBER.sub("0", printed).split() == NUMBER.sub("0", shown).split()
            numbers = [[float(number) for number in NUMBER.findall(text)] for text in (printed, shown)]
            assert numbers[0] == pytest.approx(numbers[1], rel=0.25, abs=3)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_project_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


WORDS_IN_CODE = [
    (page, word)
    for page in (ROOT / "CONTRIBUTING.md", ROOT / "docs" / "inside.md")
    for word in sorted(set(re.findall(r"`([\w./]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.S))))
]
PATHS = [(page, word) for page, word in WORDS_IN_CODE if word.endswith((".py", ".md", ".toml", "/"))]
NAMES = [(page, word) for page, word in WORDS_IN_CODE if word.startswith("pliant.")]


@pytest.mark.parametrize(("page", "path"), PATHS, ids=lambda value: getattr(value, "name", value))
def test_paths_that_pages_for_contributors_name_exist(page, path):
    """From the root of the project, or within the package."""
    assert any((folder / path).exists() for folder in (ROOT, ROOT / "src" / "pliant")), path


@pytest.mark.parametrize(("page", "name"), NAMES, ids=lambda value: getattr(value, "name", value))
def test_names_that_pages_for_contributors_use_exist(page, name):
    home, _, attribute = name.rpartition(".")
    assert hasattr(import_module(home), attribute) or import_module(name)


@pytest.mark.parametrize(("page", "code"), SHELL, ids=named(SHELL))
def test_pliant_commands_exist_and_take_those_options(page, code, capsys):
    for line in code.splitlines():
        words = line.removeprefix("$ ").split(" #")[0].split()
        if words[:1] != ["pliant"]:
            continue
        with pytest.raises(SystemExit) as ended:
            main([words[1], "--help"])
        usage = capsys.readouterr().out
        assert ended.value.code == 0, f"{line}: no {words[1]}"
        for option in (word.split("=")[0] for word in words if word.startswith("--")):
            assert option in usage, f"{line}: no {option}"


def test_every_number_of_the_version_agrees():
    import pliant

    assert f'version = "{pliant.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"version: {pliant.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_the_experiment_of_the_page_runs_and_reports(tmp_path, monkeypatch, capsys):
    page = ROOT / "docs" / "your-own-experiment.md"
    (code,) = [code for where, code in PYTHON if where == page]
    (tmp_path / "drifting_teacher.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    run = ["run", "drifting_teacher.py:DriftingTeacher", "--out", "study", "--methods", "cbp", "--seeds", "0"]
    for words in ([*run, "--set", "steps=1500"], ["report", "study", "--parts", "3"], ["plot", "study"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "1 of 1 finished" in said
    assert (tmp_path / "study" / "figure.png").stat().st_size > 10_000
