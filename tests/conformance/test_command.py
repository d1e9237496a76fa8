"""`pliant conformance`."""

import json
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_all_of_ours_passes(pliant):
    status, said, errors = pliant("conformance", "pliant:ContinualBackprop")
    assert (status, errors) == (0, "")
    assert said.splitlines()[-1] == "ContinualBackprop: 29 checks, 29 passed"


def test_a_failed_check_ends_with_1_and_json_is_all_that_is_printed(pliant, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from pliant.conformance import UnitResetAdapter\n"
        "class Idle(UnitResetAdapter):\n"
        "    def attach(self, settings):\n"
        "        print('attached')\n"
    )
    status, said, errors = pliant("conformance", f"{tmp_path / 'mine.py'}:Idle", "--format", "json")
    assert status == 1
    report = json.loads(said)
    assert (report["adapter"], report["passed"]) == ("Idle", False)
    assert {each["outcome"] for each in report["checks"]} == {"passed", "failed"}
    assert set(errors.split()) == {"attached"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pliant:L2"], "the class L2 is no adapter: write a class derived from pliant.conformance.UnitResetAdapter"),
        (["pliant:ContinualBackrop"], "did you mean 'ContinualBackprop'?"),
        (["pliant"], "'pliant' names no function: write path/to/file.py:function, or module:function"),
        (["no_such_module:Mine"], "no module 'no_such_module' for the adapter"),
        (["missing.py:Mine"], "no adapter at "),
        (["pliant:ReDo", "--format", "jsn"], "unknown --format 'jsn' (did you mean 'json'?); known: text, json"),
        (["pliant.conformance:UnitResetAdapter"], "does not say how to attach: write attach(self, settings)"),
    ],
)
def test_what_cannot_be_checked_is_one_line(words, says, pliant):
    status, said, errors = pliant("conformance", *words)
    assert (status, said, errors.count("\n")) == (2, "", 1)
    assert says in errors
