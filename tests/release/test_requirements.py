"""What `pyproject.toml` asks for, and what is told of it."""

from importlib.metadata import PackageNotFoundError, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.release.project import ROOT, direct

ROWS = {
    canonicalize_name(cells[1].strip()): cells[2:4]
    for line in (ROOT / "docs" / "requirements.md").read_text().splitlines()
    if len(cells := line.split("|")) == 5
}


@pytest.mark.parametrize("package", direct())
def test_the_license_of_every_requirement_is_told_with_the_extras_that_need_it(package):
    license_, needed_by = ROWS[package]
    assert license_.strip()
    assert [extra.strip(" `") for extra in needed_by.split(",")] == [extra for extra, _ in direct()[package]]


@pytest.mark.parametrize("package", direct())
def test_the_licenses_of_what_a_requirement_needs_are_told(package):
    asked, seen = [package], set()
    while asked:
        seen.add(name := asked.pop())
        assert name in ROWS
        try:
            requirements = map(Requirement, requires(name) or [])
        except PackageNotFoundError:
            continue  # of an extra that is not installed here
        for each in requirements:
            if (each.marker is None or each.marker.evaluate({"extra": ""})) and canonicalize_name(
                each.name
            ) not in seen:
                asked.append(canonicalize_name(each.name))
