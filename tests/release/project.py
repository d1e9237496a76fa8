"""What `pyproject.toml` says that the package needs."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def direct():
    """Package -> its requirements: (extra, `Requirement`), for core and every extra of users."""
    asked = {"core": PROJECT["dependencies"]} | PROJECT["optional-dependencies"]
    found = {}
    for extra, texts in asked.items():
        for requirement in map(Requirement, texts):
            if extra not in ("docs", "dev") and requirement.name != "pliant":
                found.setdefault(canonicalize_name(requirement.name), []).append((extra, requirement))
    return found
