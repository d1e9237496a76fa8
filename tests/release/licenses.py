"""The licenses of what the package needs, the table of docs/requirements.md: `python -m tests.release.licenses`

By the metadata of the package index, of the versions in `constraints.txt`: nothing is installed.
"""

import json
import subprocess
import venv
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.release.project import ROOT, direct


def installed():
    """Canonical name -> metadata of each package that core and every extra of users would install."""
    asked = sorted({str(requirement) for each in direct().values() for _, requirement in each})
    with TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "pip>=26"], check=True)  # older ones do not report license expressions
        command = [*pip, "--dry-run", "--report", "-", "--constraint", str(ROOT / "constraints.txt")]
        told = subprocess.run([*command, *asked], text=True, stdout=subprocess.PIPE, check=True).stdout
    return {canonicalize_name(each["metadata"]["name"]): each["metadata"] for each in json.loads(told)["install"]}


def license_of(metadata):
    """As its package says: an expression, else classifiers, else a line of text.

    >>> license_of({"classifier": ["License :: OSI Approved :: MIT License"], "license": "The MIT License, a long text"})
    'MIT License'
    """
    if expression := metadata.get("license_expression"):
        return expression
    of_classifiers = [
        each.split(" :: ")[-1] for each in metadata.get("classifier", []) if each.startswith("License ::")
    ]
    told = [each for each in of_classifiers if each != "OSI Approved"]
    return ", ".join(told) or metadata.get("license", "").strip().partition("\n")[0] or "not told"


def needed_by(package, packages):
    """The extras that ask for a package; of one that none asks for, the packages that do."""
    if extras := [extra for extra, _ in direct().get(package, [])]:
        return ", ".join(f"`{extra}`" if extra != "core" else extra for extra in extras)
    asking = {True: [], False: []}  # by itself, or by an extra of its own
    for other, metadata in packages.items():
        for requirement in map(Requirement, metadata.get("requires_dist", [])):
            if canonicalize_name(requirement.name) == package != other:
                asking[requirement.marker is None or requirement.marker.evaluate({"extra": ""})].append(other)
    return ", ".join(dict.fromkeys(asking[True] or asking[False]))


if __name__ == "__main__":
    packages = installed()
    print("| package | license | needed by |\n|---|---|---|")
    for package, metadata in sorted(packages.items()):
        print(f"| {metadata['name']} | {license_of(metadata)} | {needed_by(package, packages)} |")
