"""Rows name the commit of the code that made them, and do not when it is not git's."""

import subprocess

import pytest

from pliant.lab.study.facts import changed_versions, commit, versions


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(
        ["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def file(tmp_path):
    git(tmp_path, "init", "-q")
    file = tmp_path / "experiment.py"
    file.write_text("step_size = 0.1")
    git(tmp_path, "add", "experiment.py")
    git(tmp_path, "commit", "-qm", "first")
    git(tmp_path, "tag", "-am", "a release", "v1")
    return file


def test_the_commit_is_the_full_name_of_head_whatever_its_tags(file):
    assert commit(file) == git(file.parent, "rev-parse", "HEAD").strip()


def test_an_edited_checkout_is_called_dirty(file):
    file.write_text("step_size = 0.2")
    assert commit(file) == git(file.parent, "rev-parse", "HEAD").strip() + "-dirty"


def test_a_file_git_does_not_track_has_no_commit(file, tmp_path_factory):
    other = file.with_name("untracked.py")
    other.touch()
    assert commit(other) == commit(tmp_path_factory.mktemp("plain") / "x.py") == commit(None) == ""


def test_changed_versions_are_named():
    assert changed_versions(versions()) == []
    now = versions()
    assert changed_versions({**now, "numpy": "0.1"}) == [("numpy", "0.1", now["numpy"])]
